//! Reading and clearing real directories: what the work directory, a removed directory and a merged listing need.
//! It knows nothing of layers.

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, openat, unlinkat};
use rustix::io::{Errno, Result};
use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};

const BUFFER: usize = 64 * 1024;

thread_local! {
    static DIRENTS: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(BUFFER));
}

/// Opens a directory for reading its entries through a descriptor that may be `O_PATH`.
pub(crate) fn open_dir(fd: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(fd, name, flags, Mode::empty())
}

/// Calls `see` with name, inode number and type of every entry but `.` and `..`.
pub(crate) fn each(fd: &OwnedFd, mut see: impl FnMut(&[u8], u64, FileType) -> Result<()>) -> Result<()> {
    // The buffer is taken out for the time of the walk, because `see` may walk another directory.
    let mut buffer = DIRENTS.take();
    buffer.reserve(BUFFER);
    let mut entries = RawDir::new(fd, buffer.spare_capacity_mut());
    let outcome = loop {
        let Some(entry) = entries.next() else { break Ok(()) };
        let seen = entry.and_then(|entry| match entry.file_name().to_bytes() {
            b"." | b".." => Ok(()),
            name => see(name, entry.ino(), entry.file_type()),
        });
        if seen.is_err() {
            break seen;
        }
    };
    DIRENTS.set(buffer);
    outcome
}

pub(crate) fn names(fd: &OwnedFd) -> Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    each(fd, |name, _, _| {
        names.push(name.to_vec());
        Ok(())
    })?;
    Ok(names)
}

/// Removes everything in a directory.
pub(crate) fn empty(fd: &OwnedFd) -> Result<()> {
    names(fd)?.iter().try_for_each(|name| remove(fd, name))
}

/// Removes `name` with everything below it.
pub(crate) fn remove(directory: &OwnedFd, name: &[u8]) -> Result<()> {
    match unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    match unlinkat(directory, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        other => return other,
    }
    empty(&open_dir(directory, name)?)?;
    unlinkat(directory, name, AtFlags::REMOVEDIR)
}
