//! A layer's tar stream to a folder that kernel overlay takes as a lower directory (`userxattr`), and to the
//! layer's skeleton. One pass; hard links that stand before their target and the times of folders come last.
//!
//! | in the stream | in the tree |
//! |---|---|
//! | `.wh.NAME` | character device 0/0 called NAME, unless the layer itself has NAME |
//! | `.wh..wh..opq` | `user.overlay.opaque` = y on the folder |
//! | device nodes | nothing: the skeleton has them |
//! | `user.overlay.*`, `trusted.*`, `security.*` but capability | dropped |
//! | owners and modes that the tree can't have | `user.containers.override_stat` |

use std::collections::HashSet;
use std::ffi::CString;
use std::fs::File;
use std::io::BufRead;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, fchmod, futimens, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat, linkat, symlinkat};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::image::changes::OPAQUE;
use crate::image::ledger::{Kept, Ledger};
use crate::image::skeleton;
use crate::image::tar::{Entry, Kind, Reader, Unheard};
use crate::image::tree::{self, Missing, Tree};
use crate::sys::xattr;
use crate::units::Bytes;
use crate::userns::numbers::Places;

/// What the file itself can't have: `UID:GID:MODE`.
pub const OVERRIDE: &std::ffi::CStr = c"user.containers.override_stat";

/// Whose files the tree has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Owners {
    /// The archive's, as ids of the user namespace that kelp runs in.
    Real,
    /// All are the user's; folders can be entered and emptied by their owner, so `rm -rf` works.
    Recorded,
}

impl Owners {
    /// Real where the process is root over more than one id (`user_namespaces(7)`, uid_map).
    pub fn possible() -> Self {
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let ids: u64 =
            map.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok()).sum();
        if nix::unistd::geteuid().is_root() && ids > 1 { Self::Real } else { Self::Recorded }
    }
}

/// Bounds against bombs.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most bytes that one layer may become.
    pub layer: Bytes,
    pub entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { layer: Bytes(128 << 30), entries: 5_000_000 }
    }
}

/// What came of a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpacked {
    /// The bytes of all regular files.
    pub size: u64,
    pub entries: u64,
    /// Owners outside the id map, device nodes and attributes that the tree does not have.
    pub only_recorded: u64,
    /// The file system could not hold a whiteout or an opaque mark: kernel overlay can't use this tree.
    pub marks_missing: bool,
}

struct Unpacker {
    tree: Tree,
    owners: Owners,
    places: Places,
    limits: Limits,
    overwrite: bool,
    /// What the names in the stream begin with, and what stands there instead.
    renamed: Option<(Vec<u8>, Vec<u8>)>,
    folders: Vec<Entry>,
    links: Vec<Entry>,
    /// Folders that a whiteout hid before they came, or that came before their whiteout.
    whiteouts: HashSet<Vec<u8>>,
    result: Unpacked,
}

/// Unpacks into `folder/tree`, with the skeleton in `folder/skeleton`. Both are made here.
pub fn unpack(source: impl BufRead, folder: &Path, owners: Owners, limits: Limits) -> Result<Unpacked> {
    let root = folder.join("tree");
    std::fs::create_dir(&root).with_context(|| format!("cannot make {}", root.display()))?;
    fchmod(File::open(&root)?, Mode::from_bits_truncate(0o755))?;
    let skeleton = skeleton::Writer::create(&folder.join("skeleton"))?;
    let kept = Kept { skeleton, shadow: folder.join("shadow"), replaced: 0 };
    let mut unpacker = Unpacker::new(Tree::open(&root)?, owners, limits, true);
    let kept = unpacker.all(Reader::new(source, kept))?;
    kept.skeleton.finish()?;
    Ok(unpacker.result)
}

/// Where a stream that is no layer goes.
#[derive(Debug)]
pub struct Destination {
    pub folder: OwnedFd,
    /// What its first entry is called there, if not as in the stream.
    pub name: Option<Vec<u8>>,
    /// A folder may take the place of a file, and the other way round.
    pub overwrite: bool,
}

/// Unpacks into a folder that is there: names are only names, and what they replace is gone. `place` is told
/// what kind of entry comes first.
pub fn extract(source: impl BufRead, place: impl FnOnce(Kind) -> Result<Destination>) -> Result<()> {
    let limits = Limits { layer: Bytes(u64::MAX), entries: u64::MAX };
    let mut source = Reader::new(source, Unheard);
    let Some(mut first) = source.next_entry()? else { return Ok(()) };
    let Destination { folder, name, overwrite } = place(first.kind)?;
    let mut unpacker = Unpacker::new(Tree::at(folder), Owners::Real, limits, overwrite);
    unpacker.renamed = name.map(|name| (first.path.clone(), name));
    unpacker.rename(&mut first);
    unpacker.entry(&mut source, first)?;
    unpacker.all(source)?;
    Ok(())
}

impl Unpacker {
    fn new(tree: Tree, owners: Owners, limits: Limits, overwrite: bool) -> Self {
        let (folders, links, whiteouts, result) = Default::default();
        let (renamed, places) = (None, Places::here());
        Self { tree, owners, places, limits, overwrite, renamed, folders, links, whiteouts, result }
    }

    fn rename(&self, entry: &mut Entry) {
        let Some((from, to)) = &self.renamed else { return };
        for path in [&mut entry.path, &mut entry.link] {
            if let Some(rest) = path.strip_prefix(&from[..]) {
                *path = [&to[..], b"/", rest].concat();
            }
            if entry.kind != Kind::HardLink {
                break;
            }
        }
    }

    fn all<R: BufRead, L: Ledger>(&mut self, mut source: Reader<R, L>) -> Result<L> {
        while let Some(mut entry) = source.next_entry()? {
            self.rename(&mut entry);
            let shown = String::from_utf8_lossy(&entry.path).into_owned();
            self.entry(&mut source, entry).with_context(|| format!("cannot unpack {shown:?}"))?;
        }
        self.late_links(&mut source)?;
        self.finish_folders()?;
        Ok(source.journal)
    }

    fn entry<R: BufRead, L: Ledger>(&mut self, source: &mut Reader<R, L>, entry: Entry) -> Result<()> {
        self.result.entries += 1;
        self.result.size = self.result.size.saturating_add(entry.size);
        if self.result.size > self.limits.layer.0 || self.result.entries > self.limits.entries {
            let sentence = format!("the layer becomes larger than the limit of {} bytes", self.limits.layer);
            return Err(Error::host(sentence).hint("raise it with --max-layer-size").into());
        }
        let path = entry.path.clone();
        let parts = tree::components(&path)?;
        let Some(name) = parts.last() else {
            return match entry.kind {
                Kind::Directory => self.root_entry(entry),
                _ => bail!("the root of a layer is a folder"),
            };
        };
        if let (true, Some(hidden)) = (L::LAYER, name.strip_prefix(b".wh.")) {
            return self.whiteout(&parts, hidden);
        }
        match entry.kind {
            Kind::File => self.file(source, &parts, &entry),
            Kind::Directory => self.folder(source, &parts, entry),
            Kind::Symlink => self.symlink(source, &parts, &entry),
            Kind::HardLink => self.hard_link(source, &parts, entry),
            Kind::Fifo => self.fifo(source, &parts, &entry),
            Kind::Character | Kind::Block => {
                self.result.only_recorded += 1;
                Ok(())
            }
        }
    }

    fn root_entry(&mut self, mut entry: Entry) -> Result<()> {
        entry.path.clear();
        self.folders.push(entry);
        Ok(())
    }

    /// Makes the name free and runs `make`, at most twice: archives may have a name several times, and the
    /// last one counts.
    fn place<R: BufRead, L: Ledger>(
        &mut self,
        source: &mut Reader<R, L>,
        parts: &[&[u8]],
        make: impl Fn(BorrowedFd<'_>, &[u8]) -> nix::Result<()>,
    ) -> Result<()> {
        let (folder, name) = self.tree.parent(parts, Missing::Make)?;
        match make(folder, name) {
            Err(Errno::EEXIST) => {}
            other => return Ok(other?),
        }
        self.clear(source, parts)?;
        let (folder, name) = self.tree.parent(parts, Missing::Make)?;
        Ok(make(folder, name)?)
    }

    /// Removes what an earlier entry made of the name; contents go to the shadow, where the skeleton finds them.
    fn clear<R: BufRead, L: Ledger>(&mut self, source: &mut Reader<R, L>, parts: &[&[u8]]) -> Result<()> {
        self.tree.forget(parts);
        let path = parts.join(&b'/');
        self.whiteouts.remove(&path);
        let (folder, name) = self.tree.parent(parts, Missing::Make)?;
        if tree::stat_in(folder, name)?.is_some_and(|found| tree::kind_of(&found) == SFlag::S_IFDIR) {
            if !self.overwrite {
                bail!("a folder is in its place");
            }
            self.folders.retain(|folder| {
                let known = tree::components(&folder.path).unwrap_or_default();
                known.is_empty() || !known.starts_with(parts)
            });
        }
        tree::remove(folder, name, &path, &mut |from, name, path| source.journal.replaced(from, name, path))
    }

    fn file<R: BufRead, L: Ledger>(
        &mut self,
        source: &mut Reader<R, L>,
        parts: &[&[u8]],
        entry: &Entry,
    ) -> Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let made = std::cell::RefCell::new(None);
        self.place(source, parts, |folder, name| {
            *made.borrow_mut() = Some(openat(folder, name, flags, Mode::from_bits_truncate(0o600))?);
            Ok(())
        })?;
        let file = File::from(made.into_inner().context("the file was not made")?);
        let path = parts.join(&b'/');
        for chunk in &entry.chunks {
            source.journal.content(&path, chunk.offset, chunk.length)?;
            let mut at = chunk.offset;
            source.content(chunk.length, |bytes| {
                file.write_all_at(bytes, at)?;
                at += bytes.len() as u64;
                Ok(())
            })?;
        }
        let written = entry.chunks.iter().rev().find(|chunk| chunk.length > 0);
        if written.map_or(0, |last| last.offset + last.length) < entry.size {
            file.set_len(entry.size).context("cannot make a sparse file")?;
        }
        self.dress(file.as_fd(), entry, 0o400)
    }

    fn folder<R: BufRead, L: Ledger>(
        &mut self,
        source: &mut Reader<R, L>,
        parts: &[&[u8]],
        entry: Entry,
    ) -> Result<()> {
        let hidden = self.whiteouts.contains(&parts.join(&b'/'));
        let (above, name) = self.tree.parent(parts, Missing::Make)?;
        let found = tree::stat_in(above, name)?.map(|found| tree::kind_of(&found));
        if !self.overwrite && found.is_some_and(|kind| kind != SFlag::S_IFDIR) {
            bail!("something that is no folder is in its place");
        }
        if found != Some(SFlag::S_IFDIR) {
            self.place(source, parts, |above, name| mkdirat(above, name, Mode::from_bits_truncate(0o700)))?;
        }
        if hidden {
            self.opaque(parts)?;
        }
        self.folders.push(entry);
        Ok(())
    }

    fn symlink<R: BufRead, L: Ledger>(
        &mut self,
        source: &mut Reader<R, L>,
        parts: &[&[u8]],
        entry: &Entry,
    ) -> Result<()> {
        self.place(source, parts, |folder, name| symlinkat(&entry.link[..], folder, name))?;
        self.dress_name(parts, entry)
    }

    fn fifo<R: BufRead, L: Ledger>(
        &mut self,
        source: &mut Reader<R, L>,
        parts: &[&[u8]],
        entry: &Entry,
    ) -> Result<()> {
        let mode = Mode::from_bits_truncate(entry.mode & 0o777);
        self.place(source, parts, |folder, name| mknodat(folder, name, SFlag::S_IFIFO, mode, 0))?;
        self.dress_name(parts, entry)
    }

    fn hard_link<R: BufRead, L: Ledger>(
        &mut self,
        source: &mut Reader<R, L>,
        parts: &[&[u8]],
        entry: Entry,
    ) -> Result<()> {
        let target = tree::components(&entry.link).context("its target leaves the layer")?;
        if target == parts {
            return Ok(());
        }
        if target.is_empty() {
            bail!("its target is a folder");
        }
        let found = match self.tree.stat(&target) {
            Ok(found) => found,
            Err(error) if error.downcast_ref::<Errno>() == Some(&Errno::ENOENT) => None,
            Err(error) => return Err(error.context("cannot find its target in the layer")),
        };
        match found.map(|found| tree::kind_of(&found)) {
            None => {
                self.links.push(entry);
                return Ok(());
            }
            Some(SFlag::S_IFDIR) => bail!("its target is a folder"),
            Some(SFlag::S_IFCHR) => bail!("its target is removed by the layer"),
            Some(_) => {}
        }
        let (folder, name) = self.tree.parent(&target, Missing::Refuse)?;
        let folder = folder.try_clone_to_owned()?;
        let name = name.to_vec();
        self.place(source, parts, |to, new| linkat(&folder, &name[..], to, new, AtFlags::empty()))
    }

    fn late_links<R: BufRead, L: Ledger>(&mut self, source: &mut Reader<R, L>) -> Result<()> {
        let mut waiting = std::mem::take(&mut self.links);
        while !waiting.is_empty() {
            let before = waiting.len();
            for entry in waiting {
                let (shown, path) = (String::from_utf8_lossy(&entry.path).into_owned(), entry.path.clone());
                self.hard_link(source, &tree::components(&path)?, entry)
                    .with_context(|| format!("cannot unpack {shown:?}"))?;
            }
            waiting = std::mem::take(&mut self.links);
            if let (true, Some(first)) = (waiting.len() == before, waiting.first()) {
                bail!(
                    "cannot unpack {:?}: the layer has no {:?} to link to",
                    String::from_utf8_lossy(&first.path),
                    String::from_utf8_lossy(&first.link)
                );
            }
        }
        Ok(())
    }

    fn whiteout(&mut self, parts: &[&[u8]], hidden: &[u8]) -> Result<()> {
        let (_, above) = parts.split_last().context("its name is empty")?;
        if hidden == b".wh..opq" {
            return self.opaque(above);
        }
        if hidden.starts_with(b".wh.") {
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            bail!("it is a whiteout of no name");
        }
        let mut target = above.to_vec();
        target.push(hidden);
        let (folder, name) = self.tree.parent(&target, Missing::Make)?;
        match tree::stat_in(folder, name)?.map(|found| tree::kind_of(&found)) {
            // A whiteout hides what lower layers have, never what its own layer has.
            Some(SFlag::S_IFDIR) => return self.opaque(&target),
            Some(_) => return Ok(()),
            None => {}
        }
        match xattr::whiteout(folder, &CString::new(name)?) {
            Err(error) if is_unsupported(&error) => self.result.marks_missing = true,
            other => other.context("cannot make a whiteout")?,
        }
        self.whiteouts.insert(target.join(&b'/'));
        Ok(())
    }

    fn opaque(&mut self, parts: &[&[u8]]) -> Result<()> {
        let folder = self.tree.folder(parts, Missing::Make)?;
        let folder = reopen(folder)?;
        match xattr::fsetxattr(folder.as_fd(), OPAQUE, b"y") {
            Err(error) if is_unsupported(&error) => self.result.marks_missing = true,
            other => other.context("cannot mark the folder opaque")?,
        }
        Ok(())
    }

    fn finish_folders(&mut self) -> Result<()> {
        let mut folders = std::mem::take(&mut self.folders);
        // The last entry of a name counts; children come before the folder that leads to them.
        folders.reverse();
        let mut seen = HashSet::new();
        folders.retain(|entry| seen.insert(key(entry)));
        folders.sort_by_cached_key(|entry| std::cmp::Reverse(key(entry)));
        for entry in folders {
            let folder = self.tree.folder(&tree::components(&entry.path)?, Missing::Make)?;
            let folder = reopen(folder)?;
            self.dress(folder.as_fd(), &entry, 0o700)
                .with_context(|| format!("cannot unpack {:?}", String::from_utf8_lossy(&entry.path)))?;
        }
        Ok(())
    }

    /// Owner, attributes, mode and time of an open file or folder, in the order in which none undoes another.
    fn dress(&mut self, file: BorrowedFd<'_>, entry: &Entry, always: u32) -> Result<()> {
        let real = self.owners == Owners::Real;
        let owned = real && self.own(entry, |uid, gid| fchown(file, Some(uid), Some(gid)))?;
        for (name, value) in &entry.xattrs {
            self.attribute(file, name, value);
        }
        let mode = if real { entry.mode } else { entry.mode | always };
        fchmod(file, Mode::from_bits_truncate(mode))?;
        let root = entry.uid == 0 && entry.gid == 0;
        if mode != entry.mode || (!owned && !root) {
            let stat = format!("{}:{}:0{:o}", entry.uid, entry.gid, entry.mode);
            // Where the file system has no user attributes, the skeleton alone knows.
            let _ = xattr::fsetxattr(file, OVERRIDE, stat.as_bytes());
            self.result.only_recorded += 1;
        }
        let time = TimeSpec::new(entry.mtime.0, entry.mtime.1);
        Ok(futimens(file, &time, &time)?)
    }

    fn dress_name(&mut self, parts: &[&[u8]], entry: &Entry) -> Result<()> {
        let (folder, name) = self.tree.parent(parts, Missing::Refuse)?;
        let folder = folder.try_clone_to_owned()?;
        if self.owners == Owners::Real {
            let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
            self.own(entry, |uid, gid| fchownat(&folder, name, Some(uid), Some(gid), flags))?;
        }
        let time = TimeSpec::new(entry.mtime.0, entry.mtime.1);
        Ok(utimensat(&folder, name, &time, &time, UtimensatFlags::NoFollowSymlink)?)
    }

    /// Whether the file has the entry's owner now.
    fn own(&mut self, entry: &Entry, chown: impl Fn(Uid, Gid) -> nix::Result<()>) -> Result<bool> {
        if entry.uid == 0 && entry.gid == 0 {
            return Ok(true);
        }
        let id = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
        let (Some(uid), Some(gid)) = (id(entry.uid), id(entry.gid)) else { return Ok(false) };
        match chown(Uid::from_raw(uid), Gid::from_raw(gid)) {
            Ok(()) => Ok(true),
            // EINVAL: the id is not in the map. EPERM: an NFS server that knows only its own ids.
            Err(Errno::EINVAL | Errno::EPERM) => {
                self.result.only_recorded += 1;
                let place = self.places.of(uid, gid);
                place.map(|(uid, gid)| chown(Uid::from_raw(uid), Gid::from_raw(gid)));
                Ok(false)
            }
            Err(errno) => Err(errno).context("cannot give it to its owner"),
        }
    }

    fn attribute(&mut self, file: BorrowedFd<'_>, name: &[u8], value: &[u8]) {
        let ours = name.starts_with(b"user.overlay.") || name.starts_with(b"user.containers.");
        let taken = name.starts_with(b"user.") && !ours
            || name == b"security.capability"
            || (name.starts_with(b"system.posix_acl_") && self.owners == Owners::Real);
        let set = taken && CString::new(name).is_ok_and(|name| xattr::fsetxattr(file, &name, value).is_ok());
        self.result.only_recorded += u64::from(!set);
    }
}

fn key(entry: &Entry) -> Vec<Vec<u8>> {
    let parts = tree::components(&entry.path).unwrap_or_default();
    parts.into_iter().map(<[u8]>::to_vec).collect()
}

/// A descriptor that attributes can be set through, of one that only names the folder.
fn reopen(folder: BorrowedFd<'_>) -> Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(File::from(openat(folder, ".", flags, Mode::empty())?))
}

fn is_unsupported(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EPERM | libc::EACCES))
}
