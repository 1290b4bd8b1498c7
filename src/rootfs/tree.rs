//! Trees of files as a whole: the copy of rung T3, and the removal of a tree whose folders may be closed to
//! their owner (an overlay's work folder has mode 000). Links are never followed.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

/// Copies `from` into the existing directory `to`: types, modes, times, links; owners where allowed. Device
/// nodes are left out, since no user namespace may make one.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        copy_entry(&entry.path(), &to.join(entry.file_name()))?;
    }
    keep(&from.symlink_metadata()?, to)
}

fn copy_entry(from: &Path, to: &Path) -> io::Result<()> {
    let found = from.symlink_metadata()?;
    let kind = found.file_type();
    if kind.is_dir() {
        fs::create_dir(to)?;
        return match copy(from, to) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => keep(&found, to),
            other => other,
        };
    }
    if kind.is_symlink() {
        return std::os::unix::fs::symlink(fs::read_link(from)?, to);
    }
    if kind.is_file() {
        match fs::copy(from, to) {
            Ok(_) => return keep(&found, to),
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
    Ok(())
}

fn keep(found: &fs::Metadata, to: &Path) -> io::Result<()> {
    let _ = std::os::unix::fs::lchown(to, Some(found.uid()), Some(found.gid()));
    fs::set_permissions(to, fs::Permissions::from_mode(found.mode() & 0o7777))?;
    let time = |seconds, nanoseconds| nix::sys::time::TimeSpec::new(seconds, nanoseconds);
    nix::sys::stat::utimensat(
        nix::fcntl::AT_FDCWD,
        to,
        &time(found.atime(), found.atime_nsec()),
        &time(found.mtime(), found.mtime_nsec()),
        nix::sys::stat::UtimensatFlags::NoFollowSymlink,
    )?;
    Ok(())
}

/// Removes `path` and all below it; a folder that is closed to us is opened first.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
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
