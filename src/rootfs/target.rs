//! Paths inside a container's root, opened by descriptor: whatever the root ships or swaps in meanwhile, the
//! descriptor is inside it (`openat2(2)` with RESOLVE_IN_ROOT; CVE-2021-30465, CVE-2019-19921).

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat, mkdirat};

use crate::sys::path::{RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2};

/// What has to be at the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    Directory,
    File,
}

/// Chains of dangling links longer than the kernel follows are refused (`path_resolution(7)`).
const DEPTH: usize = 40;

pub fn c_string(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Opens what is at `path`, for use as a place (`O_PATH`); links are followed inside the root.
pub fn open(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    openat2(root, &c_string(path)?, libc::O_PATH, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
}

/// Opens a directory at `path` that is reached through no link at all: for /proc, /sys and /dev.
pub fn open_unlinked(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    openat2(root, &c_string(path)?, flags, 0, RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS)
}

/// Opens a file at `path` that is reached through no link at all.
pub fn open_unlinked_file(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    openat2(root, &c_string(path)?, libc::O_PATH, 0, RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS)
}

/// Where a path leads: the folder of its last name, that name, and what is there, if anything is.
#[derive(Debug)]
pub struct Place {
    pub folder: OwnedFd,
    pub name: OsString,
    pub stat: Option<FileStat>,
}

/// Finds the place of `path`; with `follow`, a link at its end leads on, also to what is not there yet.
pub fn place(root: BorrowedFd<'_>, path: &Path, follow: bool) -> io::Result<Place> {
    let open_folder = |path: &Path| {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        openat2(root, &c_string(path)?, flags, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    };
    let mut path = Path::new("/").join(path);
    for _ in 0..DEPTH {
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
            let (folder, name) = (open_folder(&path)?, OsString::from("."));
            let stat = Some(fstatat(&folder, "", AtFlags::AT_EMPTY_PATH)?);
            return Ok(Place { folder, name, stat });
        };
        let folder = open_folder(above)?;
        let stat = match fstatat(&folder, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(nix::errno::Errno::ENOENT) => None,
            found => Some(found?),
        };
        let kind = stat.map(|stat| SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()));
        if !follow || kind != Some(SFlag::S_IFLNK) {
            return Ok(Place { name: name.to_owned(), folder, stat });
        }
        path = above.join(nix::fcntl::readlinkat(&folder, name)?);
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

/// Opens `path`, making it and what leads to it where it is missing. A link that dangles is completed inside
/// the root, as docker does.
pub fn ensure(root: BorrowedFd<'_>, path: &Path, want: Want) -> io::Result<OwnedFd> {
    ensure_within(root, path, want, DEPTH)
}

fn ensure_within(root: BorrowedFd<'_>, path: &Path, want: Want, depth: usize) -> io::Result<OwnedFd> {
    match open(root, path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && depth > 0 => {}
        other => return other,
    }
    let clean = normal(path);
    let (Some(parent), Some(name)) = (clean.parent(), clean.file_name()) else {
        return open(root, Path::new("/"));
    };
    let folder = ensure_within(root, parent, Want::Directory, depth - 1)?;
    match make(folder.as_fd(), name, want) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
        Ok(()) => return open(root, &clean),
    }
    match open(root, &clean) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let link = nix::fcntl::readlinkat(folder.as_fd(), name)?;
            ensure_within(root, &parent.join(link), want, depth - 1)
        }
        other => other,
    }
}

/// The path without `.`, and with `..` taken lexically: only names that do not exist yet are left to make.
fn normal(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    clean
}

fn make(folder: BorrowedFd<'_>, name: &OsStr, want: Want) -> io::Result<()> {
    match want {
        Want::Directory => mkdirat(folder, name, Mode::from_bits_truncate(0o755))?,
        Want::File => {
            let name =
                CString::new(name.as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
            let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY | libc::O_NOFOLLOW;
            openat2(folder, &name, flags, 0o644, RESOLVE_NO_SYMLINKS)?;
        }
    }
    Ok(())
}

/// Opens what is at `path` and checks that it lies on the file system `magic` (CVE-2025-52881).
pub fn open_file_of(
    root: BorrowedFd<'_>,
    path: &Path,
    magic: nix::sys::statfs::FsType,
) -> io::Result<OwnedFd> {
    let place = open(root, path)?;
    if nix::sys::statfs::fstatfs(&place)?.filesystem_type() != magic {
        return Err(io::Error::other(format!("{} is not what it should be", path.display())));
    }
    Ok(place)
}

/// Whether the open file is a directory.
pub fn is_directory(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let found = fstatat(fd, "", AtFlags::AT_EMPTY_PATH)?;
    Ok(SFlag::from_bits_truncate(found.st_mode).contains(SFlag::S_IFDIR))
}

/// The name of an open descriptor for calls that take only paths.
pub fn path_of(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_made_normal_without_leaving_the_root() {
        assert_eq!(normal(Path::new("/a/./b/../c")), Path::new("/a/c"));
        assert_eq!(normal(Path::new("/../../a")), Path::new("/a"));
    }

    #[test]
    fn a_dangling_link_is_completed_inside_the_root() {
        let folder = std::env::temp_dir().join(format!("kelp-target-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("etc")).unwrap();
        std::os::unix::fs::symlink("/run/x/resolv.conf", folder.join("etc/resolv.conf")).unwrap();
        std::os::unix::fs::symlink("loop", folder.join("loop")).unwrap();
        let root = std::fs::File::open(&folder).unwrap();
        ensure(root.as_fd(), Path::new("/etc/resolv.conf"), Want::File).unwrap();
        assert!(folder.join("run/x/resolv.conf").is_file());
        assert!(ensure(root.as_fd(), Path::new("/loop/x"), Want::File).is_err());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
