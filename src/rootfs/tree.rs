//! Trees of files as a whole: the copy of rung T3, and the removal of a tree whose folders may be closed to
//! their owner (an overlay's work folder has mode 000). Links are never followed.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::sys::xattr;

/// Copies `from` into the existing directory `to`: types, modes, times, links of both kinds, extended attributes;
/// owners where allowed. Device nodes are left out, since no user namespace may make one.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    copy_below(from, to, &mut Links::new())
}

/// Where the first name of each file with several was copied to, by device and inode.
type Links = HashMap<(u64, u64), PathBuf>;

fn copy_below(from: &Path, to: &Path, links: &mut Links) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        copy_entry(&entry.path(), &to.join(entry.file_name()), links)?;
    }
    keep_all(&from.symlink_metadata()?, from, to)
}

fn copy_entry(from: &Path, to: &Path, links: &mut Links) -> io::Result<()> {
    let found = from.symlink_metadata()?;
    let kind = found.file_type();
    if kind.is_dir() {
        fs::create_dir(to)?;
        return match copy_below(from, to, links) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => keep(&found, to),
            other => other,
        };
    }
    if found.nlink() > 1 {
        match links.entry((found.dev(), found.ino())) {
            Entry::Occupied(first) => return fs::hard_link(first.get(), to),
            Entry::Vacant(place) => drop(place.insert(to.to_owned())),
        }
    }
    if kind.is_symlink() {
        std::os::unix::fs::symlink(fs::read_link(from)?, to)?;
        keep_owner(&found, to);
        return keep_times(&found, to);
    }
    if kind.is_file() {
        match fs::copy(from, to) {
            Ok(_) => return keep_all(&found, from, to),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                fs::write(to, b"")?;
                return keep(&found, to);
            }
            Err(error) => return Err(error),
        }
    }
    if kind.is_fifo() {
        nix::unistd::mkfifo(to, nix::sys::stat::Mode::from_bits_truncate(found.mode()))?;
        return keep(&found, to);
    }
    // Nothing was made that another name of it could be linked to.
    links.remove(&(found.dev(), found.ino()));
    Ok(())
}

/// A change of owner takes file capabilities away, so attributes come last.
fn keep_all(found: &fs::Metadata, from: &Path, to: &Path) -> io::Result<()> {
    keep(found, to)?;
    let open = |path: &Path| {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        fs::OpenOptions::new().read(true).custom_flags(flags).open(path)
    };
    // What may not be read any more has lost nothing that could be read before.
    let (Ok(from), Ok(to)) = (open(from), open(to)) else { return Ok(()) };
    for name in xattr::flistxattr(from.as_fd())? {
        // An overlay's notes are about its own layers.
        if ["user.overlay.", "trusted."].iter().any(|own| name.to_bytes().starts_with(own.as_bytes())) {
            continue;
        }
        let Some(value) = xattr::fgetxattr(from.as_fd(), &name)? else { continue };
        match xattr::fsetxattr(to.as_fd(), &name, &value) {
            Err(error)
                if !matches!(error.raw_os_error(), Some(libc::EPERM | libc::EOPNOTSUPP | libc::EINVAL)) =>
            {
                return Err(error);
            }
            _ => {}
        }
    }
    Ok(())
}

fn keep(found: &fs::Metadata, to: &Path) -> io::Result<()> {
    keep_owner(found, to);
    fs::set_permissions(to, fs::Permissions::from_mode(found.mode() & 0o7777))?;
    keep_times(found, to)
}

/// Where it may not be given, the file is ours.
fn keep_owner(found: &fs::Metadata, to: &Path) {
    let _ = std::os::unix::fs::lchown(to, Some(found.uid()), Some(found.gid()));
}

fn keep_times(found: &fs::Metadata, to: &Path) -> io::Result<()> {
    let time = |seconds, nanoseconds| nix::sys::time::TimeSpec::new(seconds, nanoseconds);
    nix::sys::stat::utimensat(
        nix::fcntl::AT_FDCWD,
        to,
        &time(found.atime(), found.atime_nsec()),
        &time(found.mtime(), found.mtime_nsec()),
        nix::sys::stat::UtimensatFlags::NoFollowSymlink,
    )
    .map_err(io::Error::from)
}

/// Removes `path` and all below it; a folder that is closed to us is opened first.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            open_folders(path)?;
            fs::remove_dir_all(path)
        }
        other => other,
    }
}

fn open_folders(folder: &Path) -> io::Result<()> {
    let found = folder.symlink_metadata()?;
    if !found.is_dir() {
        return Ok(());
    }
    if found.mode() & 0o700 != 0o700 {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    }
    for entry in fs::read_dir(folder)? {
        open_folders(&entry?.path())?;
    }
    Ok(())
}
