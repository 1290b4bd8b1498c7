//! The data of files. There is no open: a file's descriptor is made when the first byte is asked for, and the first
//! write copies the file up. Every read goes to the file that the node stands for now, never to one that some earlier
//! open found, so nobody can see a lower's data after a write.

use crate::metadata::{drops_privilege, without_privilege};
use crate::node::{Node, Upper};
use crate::overlay::{At, Overlay};
use rustix::fs::{AtFlags, FallocateFlags, FileType, Mode, OFlags, SeekFrom, Statx, statx};
use rustix::io::{Errno, Result, pread, pwrite};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A stretch of a file.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub ino: u64,
    pub offset: u64,
}

/// Whether a write takes away set-user-id bits (`FUSE_WRITE_KILL_SUIDGID`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    Keep,
    Drop,
}

/// Which of `lseek(2)`'s two questions about holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    Data,
    Hole,
}

/// A file that was opened to be read.
struct Opened {
    file: OwnedFd,
    /// Whoever writes later may use the descriptor too.
    shareable: bool,
}

impl Overlay {
    /// Fills `buffer` from `offset`; fewer bytes mean the end of the file.
    pub fn read(&self, ino: u64, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let node = self.node(ino)?;
        let cached = node.state.lock().data.clone();
        if let Some(file) = cached {
            return read_full(&file, offset, buffer);
        }
        let opened = self.open_to_read(&node)?;
        let count = read_full(&opened.file, offset, buffer)?;
        // A file that was read whole will be asked for again only if the kernel drops its pages.
        if opened.shareable && (offset > 0 || count == buffer.len()) {
            self.keep(&node, Arc::new(opened.file));
        }
        Ok(count)
    }

    fn open_to_read(&self, node: &Arc<Node>) -> Result<Opened> {
        let upper = self.at_upper(node, |at, _| at.open_file())?;
        if let Some(opened) = upper {
            return Ok(opened);
        }
        let (place, name) = node.state.lock().lower.clone().ok_or(Errno::INVAL)?;
        Ok(Opened { file: place.open(&self.descriptors, &name)?, shareable: true })
    }

    /// Caches a descriptor, unless the file was copied up since it was opened.
    fn keep(&self, node: &Arc<Node>, file: Arc<OwnedFd>) {
        let mut state = node.state.lock();
        let current = match statx(&file, c"", AtFlags::EMPTY_PATH, rustix::fs::StatxFlags::INO) {
            Ok(stat) => matches!(state.upper, Upper::Absent) || stat.stx_ino == state.upper_ino,
            Err(_) => false,
        };
        if current && state.data.is_none() {
            state.data = Some(file);
            drop(state);
            self.descriptors.cached(node.clone());
        }
    }

    /// The upper's file behind `node`, open for reading and writing.
    pub(crate) fn writable(&self, node: &Arc<Node>) -> Result<Arc<OwnedFd>> {
        self.settle()?;
        self.copy_up(node)?;
        self.open_upper(node)
    }

    fn open_upper(&self, node: &Arc<Node>) -> Result<Arc<OwnedFd>> {
        let (file, fresh) = self
            .at_upper(node, |at, state| {
                if let Some(file) = &state.data {
                    return Ok((file.clone(), false));
                }
                let file = Arc::new(at.open(OFlags::RDWR)?);
                state.data = Some(file.clone());
                Ok((file, true))
            })?
            .ok_or(Errno::STALE)?;
        if fresh {
            self.descriptors.cached(node.clone());
        }
        Ok(file)
    }

    pub fn write(&self, at: Span, data: &[u8], privilege: Privilege) -> Result<usize> {
        let node = self.node(at.ino)?;
        let file = self.writable(&node)?;
        if privilege == Privilege::Drop {
            drop_privilege(&file)?;
        }
        self.counted(&file, at.offset.saturating_add(data.len() as u64), || {
            let mut done = 0;
            while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
                match pwrite(&*file, rest, at.offset + done as u64) {
                    Ok(count) => done += count,
                    Err(Errno::INTR) => {}
                    Err(error) if done == 0 => return Err(error),
                    Err(_) => break,
                }
            }
            Ok(done)
        })
    }

    /// Runs `act`, which may make the file reach `end`, within the quota.
    fn counted<T>(&self, file: &OwnedFd, end: u64, act: impl FnOnce() -> Result<T>) -> Result<T> {
        if !self.quota.is_limited() {
            return act();
        }
        let before = blocks(file)?;
        let whole = end.next_multiple_of(4096);
        self.quota.admit_bytes(whole.saturating_sub(before.stx_size.max(before.stx_blocks * 512)))?;
        let outcome = act();
        self.quota.moved(before.stx_blocks, blocks(file)?.stx_blocks);
        outcome
    }

    pub(crate) fn truncate(&self, node: &Arc<Node>, size: u64) -> Result<()> {
        let file = self.writable(node)?;
        if !self.quota.is_limited() {
            return rustix::fs::ftruncate(&file, size);
        }
        let before = blocks(&file)?;
        rustix::fs::ftruncate(&file, size)?;
        self.quota.moved(before.stx_blocks, blocks(&file)?.stx_blocks);
        Ok(())
    }

    pub fn allocate(&self, at: Span, length: u64, mode: u32) -> Result<()> {
        let node = self.node(at.ino)?;
        let file = self.writable(&node)?;
        drop_privilege(&file)?;
        self.counted(&file, at.offset.saturating_add(length), || {
            rustix::fs::fallocate(&file, FallocateFlags::from_bits_retain(mode), at.offset, length)
        })
    }

    pub fn seek(&self, at: Span, question: Seek) -> Result<u64> {
        let node = self.node(at.ino)?;
        let file = self.open_to_read(&node)?.file;
        let from = match question {
            Seek::Data => SeekFrom::Data(at.offset),
            Seek::Hole => SeekFrom::Hole(at.offset),
        };
        rustix::fs::seek(&file, from)
    }

    /// Copies between two files of the mount inside the real file system, as a reflink where it can.
    pub fn copy_range(&self, from: Span, to: Span, length: u64) -> Result<usize> {
        let source = self.open_to_read(&self.node(from.ino)?)?.file;
        let target = self.writable(&self.node(to.ino)?)?;
        drop_privilege(&target)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(1 << 30);
        self.counted(&target, to.offset.saturating_add(length as u64), || {
            let (mut read_at, mut write_at) = (from.offset, to.offset);
            rustix::fs::copy_file_range(&source, Some(&mut read_at), &target, Some(&mut write_at), length)
        })
    }

    /// Brings a file's data to the disk; `data_only` as `fdatasync(2)`.
    pub fn sync(&self, ino: u64, data_only: bool) -> Result<()> {
        let node = self.node(ino)?;
        self.settle()?;
        if self.options.volatile || !node.is_up() {
            return Ok(());
        }
        if node.is_dir() {
            let fd = self.upper_dir(&node)?.ok_or(Errno::STALE)?;
            return rustix::fs::fsync(crate::sweep::open_dir(&fd, b".")?);
        }
        if node.kind != FileType::RegularFile {
            return Ok(());
        }
        let file = self.open_upper(&node)?;
        if data_only { rustix::fs::fdatasync(&file) } else { rustix::fs::fsync(&file) }
    }

    /// Does the mount promise to reach the disk?
    pub fn is_volatile(&self) -> bool {
        self.options.volatile
    }

    pub fn uses_writeback(&self) -> bool {
        self.options.writeback
    }

    pub fn has_acls(&self) -> bool {
        self.options.acl
    }

    pub fn is_coherent(&self) -> bool {
        self.options.coherent
    }
}

impl At {
    /// Opens for writing too where we may, so that later writes share the descriptor.
    fn open_file(&self) -> Result<Opened> {
        match self.open(OFlags::RDWR) {
            Err(Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::TXTBSY) => {
                Ok(Opened { file: self.open(OFlags::RDONLY)?, shareable: false })
            }
            other => Ok(Opened { file: other?, shareable: true }),
        }
    }
}

fn read_full(file: &OwnedFd, offset: u64, buffer: &mut [u8]) -> Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match pread(file, &mut *rest, offset + done as u64) {
            // A regular file gives less than was asked for only at its end.
            Ok(count) if count < rest.len() => return Ok(done + count),
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}

fn blocks(file: &OwnedFd) -> Result<Statx> {
    statx(file, c"", AtFlags::EMPTY_PATH, crate::attr::WANTED)
}

fn drop_privilege(file: &OwnedFd) -> Result<()> {
    let mode = u32::from(blocks(file)?.stx_mode);
    if drops_privilege(mode) {
        rustix::fs::fchmod(file, Mode::from_raw_mode(without_privilege(mode) & 0o7777))?;
    }
    Ok(())
}
