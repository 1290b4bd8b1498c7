//! What an upper directory of an overlay changes in the layers below it, name by name: for `diff`, and for the
//! layer that `commit` makes. Kernel overlay with `userxattr` and the user-space overlay write the same upper:
//! a character device 0/0 hides a name, `user.overlay.opaque` everything that a folder has below.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag};

use crate::image::tree::{self, kind_of, stat_in};
use crate::sys::xattr;
use crate::userns::maps::Shift;

pub const OPAQUE: &CStr = c"user.overlay.opaque";

/// What kelp itself makes in a root, to mount something on it, where the root has none.
const PLACES: [&str; 6] = ["dev", "proc", "sys", "etc/hosts", "etc/hostname", "etc/resolv.conf"];

/// `docker diff`'s three letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Added,
    Changed,
    Deleted,
}

/// One name that differs.
#[derive(Debug)]
pub struct Change<'a> {
    /// From the root on, without a slash before it.
    pub path: &'a [u8],
    pub kind: Kind,
    /// The folder of the upper that has it, and what it is there; of what is deleted, the folder that had it.
    pub folder: BorrowedFd<'a>,
    pub name: &'a [u8],
    pub stat: Option<FileStat>,
}

/// Told each change: a folder before what is in it, in the order of names.
pub type Visit<'a> = dyn FnMut(&Change<'_>) -> Result<()> + 'a;

/// What lies over what.
#[derive(Clone, Copy, Debug)]
pub struct Stack<'a> {
    pub upper: &'a Path,
    /// The lowest first.
    pub lowers: &'a [PathBuf],
    /// From the owners in the upper to those in the lowers, if the same one has other numbers there.
    pub shift: Option<&'a Shift>,
}

/// Walks the upper over the lowers.
pub fn walk(stack: Stack<'_>, visit: &mut Visit<'_>) -> Result<()> {
    let open = |path: &Path| -> Result<OwnedFd> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        nix::fcntl::open(path, flags, Mode::empty())
            .with_context(|| format!("cannot open {}", path.display()))
    };
    let below: Result<Vec<OwnedFd>> = stack.lowers.iter().rev().map(|path| open(path)).collect();
    let pair = Pair { upper: open(stack.upper)?, lowers: below?, opaque: false, shift: stack.shift };
    folder(&pair, b"", visit)
}

/// A folder as the upper has it, and as the layers below it do, the topmost first.
struct Pair<'a> {
    upper: OwnedFd,
    lowers: Vec<OwnedFd>,
    /// Nothing of the lowers shows.
    opaque: bool,
    shift: Option<&'a Shift>,
}

/// What the lowers together have under a name.
#[derive(Default)]
struct Below {
    stat: Option<FileStat>,
    folders: Vec<OwnedFd>,
}

fn folder(pair: &Pair<'_>, path: &[u8], visit: &mut Visit<'_>) -> Result<()> {
    let (mut names, mut hidden) = (tree::names(pair.upper.as_fd())?, BTreeSet::new());
    if pair.opaque {
        hidden = visible(&pair.lowers)?;
        hidden.retain(|name| names.binary_search(name).is_err());
        names.extend(hidden.iter().cloned());
        names.sort();
    }
    for name in names {
        let path = if path.is_empty() { name.clone() } else { [path, b"/", &name].concat() };
        if hidden.contains(&name) {
            visit(&deleted(pair, &path, &name))?;
        } else {
            entry(pair, &path, &name, visit)
                .with_context(|| format!("cannot read /{}", String::from_utf8_lossy(&path)))?;
        }
    }
    Ok(())
}

fn deleted<'a>(pair: &'a Pair<'_>, path: &'a [u8], name: &'a [u8]) -> Change<'a> {
    Change { path, kind: Kind::Deleted, folder: pair.upper.as_fd(), name, stat: None }
}

fn entry(pair: &Pair<'_>, path: &[u8], name: &[u8], visit: &mut Visit<'_>) -> Result<()> {
    let Some(stat) = stat_in(pair.upper.as_fd(), name)? else { return Ok(()) };
    let below = below(&pair.lowers, name)?;
    if is_whiteout(&stat) {
        return if below.stat.is_some() { visit(&deleted(pair, path, name)) } else { Ok(()) };
    }
    let kind = if below.stat.is_some() { Kind::Changed } else { Kind::Added };
    if is_place(pair.upper.as_fd(), path, name, (&stat, pair.shift), &below)? {
        return Ok(());
    }
    visit(&Change { path, kind, folder: pair.upper.as_fd(), name, stat: Some(stat) })?;
    if kind_of(&stat) != SFlag::S_IFDIR {
        return Ok(());
    }
    let upper = open_folder(pair.upper.as_fd(), name)?;
    // What is made in an opaque folder hides the lowers without a mark of its own.
    let opaque = pair.opaque || is_opaque(upper.as_fd())?;
    folder(&Pair { upper, lowers: below.folders, opaque, shift: pair.shift }, path, visit)
}

fn open_folder(above: BorrowedFd<'_>, name: &[u8]) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(above, name, flags, Mode::empty())
}

fn is_opaque(folder: BorrowedFd<'_>) -> Result<bool> {
    Ok(xattr::fgetxattr(folder, OPAQUE)?.is_some_and(|value| value == b"y"))
}

fn is_whiteout(found: &FileStat) -> bool {
    kind_of(found) == SFlag::S_IFCHR && found.st_rdev == 0
}

fn below(lowers: &[OwnedFd], name: &[u8]) -> Result<Below> {
    let mut below = Below::default();
    for lower in lowers {
        let found = match stat_in(lower.as_fd(), name)? {
            Some(found) if is_whiteout(&found) => break,
            Some(found) => found,
            None => continue,
        };
        let is_folder = kind_of(&found) == SFlag::S_IFDIR;
        if !is_folder && !below.folders.is_empty() {
            break;
        }
        below.stat.get_or_insert(found);
        if !is_folder {
            break;
        }
        let folder = match open_folder(lower.as_fd(), name) {
            // The machine's own root has folders that the user may not look into.
            Err(Errno::EACCES) => break,
            folder => folder?,
        };
        let opaque = is_opaque(folder.as_fd())?;
        below.folders.push(folder);
        if opaque {
            break;
        }
    }
    Ok(below)
}

/// The names that the lowers together show.
fn visible(lowers: &[OwnedFd]) -> Result<BTreeSet<Vec<u8>>> {
    let (mut shown, mut hidden) = (BTreeSet::new(), BTreeSet::new());
    for lower in lowers {
        for name in tree::names(lower.as_fd())? {
            let whiteout = stat_in(lower.as_fd(), &name)?.is_some_and(|found| is_whiteout(&found));
            if !hidden.contains(&name) && !shown.contains(&name) {
                (if whiteout { &mut hidden } else { &mut shown }).insert(name);
            }
        }
    }
    Ok(shown)
}

/// An empty thing that kelp made to mount something on, or a folder that has such things and no others.
fn is_place(
    above: BorrowedFd<'_>,
    path: &[u8],
    name: &[u8],
    (stat, shift): (&FileStat, Option<&Shift>),
    below: &Below,
) -> Result<bool> {
    let is = |place: &&str| place.as_bytes() == path;
    match kind_of(stat) {
        SFlag::S_IFREG => Ok(below.stat.is_none() && stat.st_size == 0 && PLACES.iter().any(is)),
        SFlag::S_IFDIR if PLACES.iter().any(is) => {
            Ok(below.stat.is_none() && tree::names(open_folder(above, name)?.as_fd())?.is_empty())
        }
        SFlag::S_IFDIR if path == b"etc" => {
            let same = |below: FileStat| {
                let owner = (stat.st_uid, stat.st_gid);
                let owner = shift.map_or(owner, |shift| (shift.uid(owner.0), shift.gid(owner.1)));
                (below.st_mode, (below.st_uid, below.st_gid)) == (stat.st_mode, owner)
            };
            let folder = open_folder(above, name)?;
            let names = tree::names(folder.as_fd())?;
            for name in &names {
                let path = [b"etc/", &name[..]].concat();
                let Some(stat) = stat_in(folder.as_fd(), name)? else { continue };
                let below = self::below(&below.folders, name)?;
                if !is_place(folder.as_fd(), &path, name, (&stat, shift), &below)? {
                    return Ok(false);
                }
            }
            Ok(!names.is_empty() && below.stat.is_none_or(same) && !is_opaque(folder.as_fd())?)
        }
        _ => Ok(false),
    }
}
