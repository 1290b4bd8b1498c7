//! A folder that is being filled, or read, by names from outside: each name is walked component by component
//! from descriptors, never following a symbolic link of the last component, and links before it only inside
//! the folder (`RESOLVE_IN_ROOT`). No name, however long or hostile, reaches anything outside.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::sys::path::{RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2};

/// A walk keeps one descriptor a level, and `ulimit -n` is 1024 by default.
const DEEPEST: usize = 250;

/// The root and the folders that lead to the last name, which is most often also the way to the next.
#[derive(Debug)]
pub struct Tree {
    root: OwnedFd,
    walked: Vec<(Vec<u8>, OwnedFd)>,
}

/// What to do with a folder that is missing on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    Make,
    Refuse,
}

/// The components of a name in an archive: relative to the root, whatever it starts with.
pub fn components(path: &[u8]) -> Result<Vec<&[u8]>> {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
    let parts: Vec<&[u8]> = parts.collect();
    if parts.contains(&&b".."[..]) {
        bail!("its name climbs out with \"..\"");
    }
    if parts.iter().any(|part| part.contains(&0)) {
        bail!("its name has a NUL byte");
    }
    if parts.len() > DEEPEST {
        bail!("its name is {} folders deep, {DEEPEST} is the limit", parts.len());
    }
    Ok(parts)
}

fn folder_flags() -> OFlag {
    OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

pub fn kind_of(found: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits())
}

impl Tree {
    pub fn open(path: &Path) -> Result<Self> {
        let root = OpenOptions::new()
            .read(true)
            .custom_flags((OFlag::O_PATH | OFlag::O_DIRECTORY).bits())
            .open(path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self::at(root.into()))
    }

    /// The tree of an open folder.
    pub fn at(root: OwnedFd) -> Self {
        Self { root, walked: Vec::new() }
    }

    /// The folder that `parts` name.
    pub fn folder(&mut self, parts: &[&[u8]], missing: Missing) -> Result<BorrowedFd<'_>> {
        let known = self.walked.iter().zip(parts).take_while(|((name, _), part)| name == *part).count();
        self.walked.truncate(known);
        for depth in known..parts.len() {
            let next = self.step(parts, depth, missing)?;
            self.walked.push((parts[depth].to_vec(), next));
        }
        Ok(self.walked.last().map_or(self.root.as_fd(), |(_, fd)| fd.as_fd()))
    }

    /// The folder above the last of `parts`, and the last.
    pub fn parent<'a>(
        &mut self,
        parts: &'a [&'a [u8]],
        missing: Missing,
    ) -> Result<(BorrowedFd<'_>, &'a [u8])> {
        let (last, above) = parts.split_last().context("its name is the root itself")?;
        Ok((self.folder(above, missing)?, last))
    }

    fn step(&self, parts: &[&[u8]], depth: usize, missing: Missing) -> Result<OwnedFd> {
        let above = self.walked.last().map_or(self.root.as_fd(), |(_, fd)| fd.as_fd());
        let part = parts[depth];
        loop {
            match openat(above, part, folder_flags(), Mode::empty()) {
                Ok(fd) => return Ok(fd),
                Err(Errno::ENOENT) if missing == Missing::Make => {
                    // Other rights and the times come with the folder's own entry, if it has one.
                    match mkdirat(above, part, Mode::from_bits_truncate(0o755)) {
                        Ok(()) | Err(Errno::EEXIST) => {}
                        Err(errno) => return Err(errno).context("cannot make a folder that leads to it"),
                    }
                }
                Err(Errno::ENOTDIR | Errno::ELOOP) => return self.through_link(&parts[..=depth]),
                Err(errno) => return Err(errno).context("cannot open a folder that leads to it"),
            }
        }
    }

    fn through_link(&self, parts: &[&[u8]]) -> Result<OwnedFd> {
        let path = CString::new(parts.join(&b'/')).context("its name has a NUL byte")?;
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        openat2(self.root.as_fd(), &path, flags, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
            .with_context(|| format!("{} is no folder of the layer", path.to_string_lossy()))
    }

    /// Forgets the way through `parts`, which is about to be replaced.
    pub fn forget(&mut self, parts: &[&[u8]]) {
        let known = self.walked.iter().zip(parts).take_while(|((name, _), part)| name == *part).count();
        if known == parts.len() {
            self.walked.truncate(known.saturating_sub(1));
        }
    }

    /// `fstatat(2)` of the name itself; `None` if there is none.
    pub fn stat(&mut self, parts: &[&[u8]]) -> Result<Option<FileStat>> {
        let (folder, name) = self.parent(parts, Missing::Refuse)?;
        stat_in(folder, name)
    }

    /// Opens a regular file for reading.
    pub fn read(&mut self, parts: &[&[u8]]) -> Result<File> {
        let (folder, name) = self.parent(parts, Missing::Refuse)?;
        Ok(openat(folder, name, OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?
            .into())
    }
}

pub fn stat_in(folder: BorrowedFd<'_>, name: &[u8]) -> Result<Option<FileStat>> {
    match fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Asked to move a regular file away: its folder, its name, and its path in the layer.
pub type Saved<'a> = dyn FnMut(BorrowedFd<'_>, &[u8], &[u8]) -> Result<()> + 'a;

/// Removes `name` and all below it. `saved` is asked to move each regular file away first.
pub fn remove(folder: BorrowedFd<'_>, name: &[u8], path: &[u8], saved: &mut Saved<'_>) -> Result<()> {
    let Some(found) = stat_in(folder, name)? else { return Ok(()) };
    match kind_of(&found) {
        SFlag::S_IFDIR => {}
        SFlag::S_IFREG => return saved(folder, name, path),
        _ => return Ok(unlinkat(folder, name, UnlinkatFlags::NoRemoveDir)?),
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let inside = openat(folder, name, flags, Mode::empty())?;
    for child in names(inside.as_fd())? {
        remove(inside.as_fd(), &child, &[path, b"/", &child].concat(), saved)?;
    }
    Ok(unlinkat(folder, name, UnlinkatFlags::RemoveDir)?)
}

/// The names in an open folder, sorted.
pub fn names(folder: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>> {
    let mut listing = nix::dir::Dir::openat(folder, ".", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut names = Vec::new();
    for entry in listing.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(name.to_vec());
        }
    }
    names.sort();
    Ok(names)
}

/// Whether an error says that the disk is full or a quota is reached.
pub fn is_full(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let code = match (cause.downcast_ref::<io::Error>(), cause.downcast_ref::<Errno>()) {
            (Some(error), _) => error.raw_os_error(),
            (_, Some(errno)) => Some(*errno as i32),
            _ => None,
        };
        matches!(code, Some(libc::ENOSPC | libc::EDQUOT))
    })
}
