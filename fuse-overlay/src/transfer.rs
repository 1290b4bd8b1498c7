//! Copying the data of one real file into another: a reflink where the file system has them, else extent by extent so
//! that holes stay holes. It knows nothing of layers.

use rustix::fs::{SeekFrom, copy_file_range, ftruncate, ioctl_ficlone, seek};
use rustix::io::{Errno, Result, pread, pwrite};
use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

const CHUNK: usize = 1 << 20;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What is to be copied.
pub(crate) struct Source<'a> {
    pub(crate) file: &'a OwnedFd,
    pub(crate) size: u64,
    /// Blocks of 512 bytes that are allocated; fewer than the size needs means holes.
    pub(crate) blocks: u64,
    /// Copy no more than this.
    pub(crate) limit: u64,
}

/// Copies `source` into the empty file `to`. `reflink` is cleared when the file system refuses one.
pub(crate) fn copy(source: &Source<'_>, to: &OwnedFd, reflink: &AtomicBool) -> Result<()> {
    let size = source.size.min(source.limit);
    if size == 0 {
        return Ok(());
    }
    if reflink.load(Ordering::Relaxed) && size == source.size {
        match ioctl_ficlone(to, source.file) {
            Ok(()) => return Ok(()),
            Err(_) => reflink.store(false, Ordering::Relaxed),
        }
    }
    if source.blocks.saturating_mul(512) >= source.size {
        copy_range(source.file, to, 0, size)?;
        return Ok(());
    }
    copy_extents(source.file, to, size)?;
    ftruncate(to, size)
}

fn copy_extents(from: &OwnedFd, to: &OwnedFd, size: u64) -> Result<()> {
    let mut at = 0;
    while at < size {
        let start = match seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(()),
            Err(Errno::INVAL) => at,
            Err(error) => return Err(error),
        };
        let end = seek(from, SeekFrom::Hole(start)).unwrap_or(size).min(size);
        if start >= size {
            return Ok(());
        }
        copy_range(from, to, start, end.max(start + 1).min(size))?;
        at = end.max(start + 1);
    }
    Ok(())
}

/// Small files go through a buffer: `copy_file_range(2)` splices page by page and is slower there.
fn copy_range(from: &OwnedFd, to: &OwnedFd, start: u64, end: u64) -> Result<()> {
    let mut at = start;
    let mut in_kernel = end - start >= 16 * CHUNK as u64;
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
        let done = if in_kernel {
            match copy_file_range(from, Some(&mut at.clone()), to, Some(&mut at.clone()), want) {
                Err(Errno::XDEV | Errno::NOSYS | Errno::INVAL | Errno::OPNOTSUPP) => {
                    in_kernel = false;
                    continue;
                }
                other => other?,
            }
        } else {
            through_buffer(from, to, at, want)?
        };
        if done == 0 {
            return Ok(());
        }
        at += done as u64;
    }
    Ok(())
}

fn through_buffer(from: &OwnedFd, to: &OwnedFd, at: u64, want: usize) -> Result<usize> {
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < want {
            buffer.resize(want, 0);
        }
        let count = pread(from, buffer.get_mut(..want).unwrap_or_default(), at)?;
        let mut rest = buffer.get(..count).unwrap_or_default();
        let mut offset = at;
        while !rest.is_empty() {
            let written = pwrite(to, rest, offset)?;
            offset += written as u64;
            rest = rest.get(written..).unwrap_or_default();
        }
        Ok(count)
    })
}
