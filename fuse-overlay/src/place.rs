//! A directory of a lower layer: which layer, and the path inside it. Lowers never change, so a path is good for ever,
//! and the descriptor is only a cache. Everything below is addressed by (directory descriptor, name); no symbolic link
//! and no `..` is ever followed out of the layer (`openat2(2)`, `RESOLVE_BENEATH`). Lowers are opened read-only.

use crate::attr::{WANTED, is_whiteout};
use crate::cache::{Descriptors, Evict};
use crate::number::Device;
use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Statx, StatxAttributes, openat, openat2, statx};
use rustix::io::{Errno, Result};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

pub(crate) const OPEN_PATH: OFlags =
    OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What the whiteouts of an unpacked OCI archive begin with (image-spec, layer.md, "Whiteouts").
const MARK: &[u8] = b".wh.";

/// A lower layer.
pub(crate) struct Layer {
    pub(crate) root: Arc<OwnedFd>,
    pub(crate) device: Device,
    pub(crate) xdev: bool,
    pub(crate) raw: bool,
    /// The root is marked `opaque=x`: empty files may be whiteouts (kernel 6.7, overlayfs.rst).
    pub(crate) marked_files: bool,
    pub(crate) exclude: Vec<Vec<u8>>,
    /// `O_NOATIME` needs ownership; the first refusal is remembered.
    quiet: AtomicBool,
}

impl Layer {
    pub(crate) fn new(root: OwnedFd, lower: crate::config::Lower) -> Result<Self> {
        let stat = statx(&root, c"", AtFlags::EMPTY_PATH, WANTED)?;
        let marked_files = crate::xattr::opaque_mark(&root, b"").is_some_and(|mark| mark == b'x');
        Ok(Self {
            root: Arc::new(root),
            device: Device::of(&stat),
            xdev: lower.xdev,
            raw: lower.raw,
            marked_files,
            exclude: lower.exclude,
            quiet: AtomicBool::new(true),
        })
    }
}

pub(crate) struct Place {
    pub(crate) layer: Arc<Layer>,
    /// Relative to the layer's root; empty for the root itself.
    pub(crate) path: Box<[u8]>,
    /// Something else is mounted here and the layer is `xdev`: no entry of it is ours.
    pub(crate) hollow: bool,
    fd: Mutex<Option<Arc<OwnedFd>>>,
    /// Names that this directory's `.wh.` files hide in the layers below; read once, raw layers only.
    marks: OnceLock<Box<[Box<[u8]>]>>,
}

impl Evict for Place {
    fn evict(&self) {
        *self.fd.lock() = None;
    }
}

impl Place {
    pub(crate) fn root(layer: Arc<Layer>) -> Arc<Self> {
        Arc::new(Self {
            layer,
            path: Box::default(),
            hollow: false,
            fd: Mutex::new(None),
            marks: OnceLock::new(),
        })
    }

    /// The directory `name` of this one, whose attributes were just read.
    pub(crate) fn child(&self, name: &[u8], stat: &Statx) -> Arc<Self> {
        let mounted = stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
        let hollow = self.hollow || (self.layer.xdev && mounted);
        let path = self.join(name).into_boxed_slice();
        Arc::new(Self {
            layer: self.layer.clone(),
            path,
            hollow,
            fd: Mutex::new(None),
            marks: OnceLock::new(),
        })
    }

    pub(crate) fn fd(self: &Arc<Self>, cache: &Descriptors) -> Result<Arc<OwnedFd>> {
        if self.path.is_empty() {
            return Ok(self.layer.root.clone());
        }
        if let Some(fd) = &*self.fd.lock() {
            return Ok(fd.clone());
        }
        let fd = Arc::new(open_beneath(&self.layer.root, &self.path)?);
        *self.fd.lock() = Some(fd.clone());
        cache.cached(self.clone());
        Ok(fd)
    }

    /// The attributes of `name`, or `None` if it is not there. A whiteout is returned as it is.
    pub(crate) fn stat(self: &Arc<Self>, cache: &Descriptors, name: &[u8]) -> Result<Option<Statx>> {
        if self.hollow || self.excludes(name) || (self.layer.raw && name.starts_with(MARK)) {
            return Ok(None);
        }
        absent(statx(self.fd(cache)?, name, AtFlags::SYMLINK_NOFOLLOW, WANTED))
    }

    /// Does the layer say that `name` is deleted? `stat` is what stands there.
    pub(crate) fn deletes(
        self: &Arc<Self>,
        cache: &Descriptors,
        name: &[u8],
        stat: Option<&Statx>,
    ) -> Result<bool> {
        let Some(stat) = stat else { return self.marks(cache, name) };
        let empty_file = stat.stx_size == 0 && stat.stx_mode & 0o170_000 == 0o100_000;
        let marked = self.layer.marked_files
            && empty_file
            && crate::xattr::is_marked_whiteout(self.fd(cache)?.as_fd(), name);
        Ok(marked || is_whiteout(stat))
    }

    /// Does the directory `name` hide what lower layers hold under that name?
    pub(crate) fn is_opaque(self: &Arc<Self>, cache: &Descriptors, name: &[u8]) -> Result<bool> {
        if self.marks(cache, name)? {
            return Ok(true);
        }
        let fd = self.fd(cache)?;
        if self.layer.raw {
            let mark = [name, b"/.wh..wh..opq"].concat();
            if absent(statx(&fd, &mark, AtFlags::SYMLINK_NOFOLLOW, WANTED))?.is_some() {
                return Ok(true);
            }
        }
        Ok(crate::xattr::opaque_mark(&fd, name).is_some_and(|mark| mark == b'y'))
    }

    /// Is there a file `.wh.NAME` beside it? The directory is read once, which is cheaper than a question a name.
    fn marks(self: &Arc<Self>, cache: &Descriptors, name: &[u8]) -> Result<bool> {
        if !self.layer.raw || self.hollow {
            return Ok(false);
        }
        if let Some(marks) = self.marks.get() {
            return Ok(marks.binary_search_by(|mark| (**mark).cmp(name)).is_ok());
        }
        let mut found: Vec<Box<[u8]>> = Vec::new();
        let directory = crate::sweep::open_dir(self.fd(cache)?, b".")?;
        crate::sweep::each(&directory, |entry, _, _| {
            found.extend(entry.strip_prefix(MARK).map(Into::into));
            Ok(())
        })?;
        found.sort();
        let marks = self.marks.get_or_init(|| found.into_boxed_slice());
        Ok(marks.binary_search_by(|mark| (**mark).cmp(name)).is_ok())
    }

    /// Opens the file `name` for reading, leaving its access time alone where we may.
    pub(crate) fn open(self: &Arc<Self>, cache: &Descriptors, name: &[u8]) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let directory = self.fd(cache)?;
        if self.layer.quiet.load(Ordering::Relaxed) {
            match openat(&directory, name, flags | OFlags::NOATIME, Mode::empty()) {
                Err(Errno::PERM) => self.layer.quiet.store(false, Ordering::Relaxed),
                other => return other,
            }
        }
        openat(&directory, name, flags, Mode::empty())
    }

    pub(crate) fn excludes(&self, name: &[u8]) -> bool {
        !self.layer.exclude.is_empty() && self.layer.exclude.contains(&self.join(name))
    }

    pub(crate) fn join(&self, name: &[u8]) -> Vec<u8> {
        if self.path.is_empty() { name.to_vec() } else { [&self.path, name].join(&b'/') }
    }
}

/// `ENOENT` and `ENOTDIR` as `None`.
pub(crate) fn absent<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens a directory below `root`, in pieces that the kernel's limit on a path allows.
pub(crate) fn open_beneath(root: &OwnedFd, path: &[u8]) -> Result<OwnedFd> {
    const LIMIT: usize = 4000;
    let Some((head, tail)) = split_before(path, LIMIT) else { return open_short(root, path) };
    let mut directory = open_short(root, head)?;
    let mut rest = tail;
    while let Some((head, tail)) = split_before(rest, LIMIT) {
        directory = open_short(&directory, head)?;
        rest = tail;
    }
    open_short(&directory, rest)
}

/// Cuts a path that is longer than `limit` at its last slash before that; `None` if it is short enough.
fn split_before(path: &[u8], limit: usize) -> Option<(&[u8], &[u8])> {
    let head = path.get(..limit)?;
    let slash = head.iter().rposition(|byte| *byte == b'/')?;
    Some((path.get(..slash)?, path.get(slash + 1..)?))
}

fn open_short(root: &OwnedFd, path: &[u8]) -> Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match openat2(root, path, OPEN_PATH, Mode::empty(), resolve) {
        // Before Linux 5.6, or filtered by a seccomp profile that does not know the call.
        Err(Errno::NOSYS | Errno::PERM) => open_by_component(root, path),
        other => other,
    }
}

fn open_by_component(root: &OwnedFd, path: &[u8]) -> Result<OwnedFd> {
    let mut directory = rustix::io::fcntl_dupfd_cloexec(root, 0)?;
    for component in path.split(|byte| *byte == b'/') {
        if component == b".." {
            return Err(Errno::XDEV);
        }
        directory = openat(&directory, component, OPEN_PATH, Mode::empty())?;
    }
    Ok(directory)
}

/// Opens what the user named; here, and only here, links are followed.
pub(crate) fn open_given(directory: crate::config::Directory) -> Result<OwnedFd> {
    use crate::config::Directory;
    match directory {
        Directory::Fd(fd) => Ok(fd),
        Directory::Path(path) => {
            openat(CWD, &path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_path_is_cut_at_slashes_only() {
        let path = b"aaa/bbb/ccc";
        assert_eq!(split_before(path, 20), None);
        assert_eq!(split_before(path, 9), Some((&b"aaa/bbb"[..], &b"ccc"[..])));
        assert_eq!(split_before(path, 6), Some((&b"aaa"[..], &b"bbb/ccc"[..])));
        assert_eq!(split_before(b"aaaaaaaa", 4), None);
    }
}
