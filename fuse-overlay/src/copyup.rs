//! Copy-up: a file of a lower gets its own copy in the upper before it is changed. It happens at the first change, not
//! at open; parents first. The copy is made whole in the work directory and then gets its name in one step, so a crash
//! leaves the old file or the new one. Reads of the node go to the copy from then on, through every descriptor.

use crate::attr::{Attr, Time, WANTED, decode_device};
use crate::node::{Node, State, Upper};
use crate::overlay::{At, Overlay};
use crate::place::Place;
use crate::records::{Key, Kind};
use crate::transfer;
use crate::upper::UpperLayer;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Statx, Timespec, Timestamps, linkat, mkdirat, mknodat, openat,
    readlinkat, statx, symlinkat, utimensat,
};
use rustix::io::{Errno, Result};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// How much of a file's data must survive the change that follows.
pub(crate) const ALL: u64 = u64::MAX;

impl Overlay {
    /// Makes sure that the upper holds `node`.
    pub(crate) fn copy_up(&self, node: &Arc<Node>) -> Result<()> {
        self.copy_up_until(node, ALL)
    }

    /// The same for a file that is about to be cut to `limit` bytes: the rest is not copied.
    pub(crate) fn copy_up_until(&self, node: &Arc<Node>, limit: u64) -> Result<()> {
        if node.is_up() {
            return Ok(());
        }
        let upper = self.upper_layer()?;
        if let Some(parent) = node.parent() {
            self.copy_up(&parent)?;
        }
        let _turn = self.copy_lock(node).lock();
        if node.is_up() {
            return Ok(());
        }
        self.quota.admit_inode()?;
        let (stat, _) = self.stat(node)?;
        let attr = self.attr_of(node, &stat, false)?;
        let step = Step { upper, node, stat: &stat, attr: &attr };
        match node.kind {
            FileType::RegularFile => self.copy_file(&step, limit),
            _ => self.copy_other(&step),
        }
    }

    fn copy_file(&self, step: &Step<'_>, limit: u64) -> Result<()> {
        let (place, name) = step.node.state.lock().lower.clone().ok_or(Errno::STALE)?;
        let (file, temporary) = step.upper.new_file()?;
        let outcome =
            self.fill(step, &file, &place, &name, limit).and_then(|()| self.publish(step, file, &temporary));
        match &temporary {
            Some(name) => step.upper.discard_on_error(outcome, name, AtFlags::empty()),
            None => outcome,
        }
    }

    /// Data, owner, attributes, mode and times, in the order in which they do not disturb each other.
    fn fill(
        &self,
        step: &Step<'_>,
        file: &OwnedFd,
        place: &Arc<Place>,
        name: &[u8],
        limit: u64,
    ) -> Result<()> {
        let size = step.stat.stx_size.min(limit);
        if size > 0 {
            self.quota.admit_bytes((step.stat.stx_blocks * 512).min(size))?;
            let source = place.open(&self.descriptors, name)?;
            let source = transfer::Source {
                file: &source,
                size: step.stat.stx_size,
                blocks: step.stat.stx_blocks,
                limit,
            };
            transfer::copy(&source, file, &step.upper.reflink)?;
        }
        let at = At::Held(Arc::new(file.try_clone().map_err(|_| Errno::MFILE)?));
        self.dress(step, &at)?;
        if size > 0 && !self.options.volatile {
            step.upper.secure(file)?;
        }
        Ok(())
    }

    /// Everything but data and name.
    fn dress(&self, step: &Step<'_>, at: &At) -> Result<()> {
        self.give_owner(at, step.attr, None)?;
        self.copy_xattrs(step.node, at)?;
        if step.node.kind != FileType::Symlink {
            at.set_mode(step.attr.mode)?;
        }
        at.set_times(Some(step.attr.atime), Some(step.attr.mtime))
    }

    /// Gives a finished regular file its name, or keeps it without one if the file has none any more.
    fn publish(&self, step: &Step<'_>, file: OwnedFd, temporary: &Option<Vec<u8>>) -> Result<()> {
        let stat = statx(&file, c"", AtFlags::EMPTY_PATH, WANTED)?;
        let path = crate::sys::proc_path(&file, b"");
        self.enrol(step, &stat);
        if step.stat.stx_nlink > 1 {
            step.upper.add_index(&path, step.node.ino)?;
        }
        let file = Arc::new(file);
        let first = step.node.state.lock().names.first().map(|name| (name.parent.clone(), name.name.clone()));
        let Some((parent, name)) = first else {
            self.arrived(step, &stat, |state| {
                state.upper = Upper::Held(file.clone());
                state.data = Some(file);
            });
            return Ok(());
        };
        let directory = self.upper_dir(&parent)?.ok_or(Errno::STALE)?;
        let times = statx(&directory, c"", AtFlags::EMPTY_PATH, WANTED)?;
        let mut state = step.node.state.lock();
        match temporary {
            None => linkat(CWD, &path, &directory, &*name, AtFlags::SYMLINK_FOLLOW)?,
            Some(temporary) => {
                let from = &step.upper.temporary;
                crate::rename::no_replace(from, temporary, &directory, &name)?;
            }
        }
        state.data = Some(file);
        self.named(&mut state);
        drop(state);
        self.arrived(step, &stat, |_| {});
        self.descriptors.cached(step.node.clone());
        restore_times(&directory, &times)
    }

    /// A directory, a link or a special file: made in the work directory and moved.
    fn copy_other(&self, step: &Step<'_>) -> Result<()> {
        let temporary = step.upper.temporary_name();
        let flags = self.make_other(step, &temporary)?;
        let from = &step.upper.temporary;
        let at = At::Name(Arc::new(from.try_clone().map_err(|_| Errno::MFILE)?), temporary.as_slice().into());
        let outcome = self
            .furnish(step, &temporary)
            .and_then(|()| self.dress(step, &at))
            .and_then(|()| self.place_other(step, &temporary));
        if outcome.is_err() && flags == AtFlags::REMOVEDIR {
            let _swept_at_the_next_mount = crate::sweep::remove(from, &temporary);
        }
        step.upper.discard_on_error(outcome, &temporary, flags)
    }

    /// A directory that has lost names gets its whiteouts before anyone sees it.
    fn furnish(&self, step: &Step<'_>, temporary: &[u8]) -> Result<()> {
        let lost = step.node.state.lock().dir.as_ref().is_some_and(|dir| dir.hidden.is_some());
        if !lost {
            return Ok(());
        }
        self.settle_into(step.node, &crate::sweep::open_dir(&step.upper.temporary, temporary)?)
    }

    fn make_other(&self, step: &Step<'_>, temporary: &[u8]) -> Result<AtFlags> {
        let directory = &step.upper.temporary;
        match step.node.kind {
            FileType::Directory => {
                mkdirat(directory, temporary, Mode::from_raw_mode(0o700))?;
                return Ok(AtFlags::REMOVEDIR);
            }
            FileType::Symlink => symlinkat(self.target(step.node)?, directory, temporary)?,
            kind => mknodat(
                directory,
                temporary,
                kind,
                Mode::from_raw_mode(0o600),
                decode_device(step.attr.rdev),
            )?,
        }
        Ok(AtFlags::empty())
    }

    fn target(&self, node: &Arc<Node>) -> Result<std::ffi::CString> {
        let (place, name) = node.state.lock().lower.clone().ok_or(Errno::STALE)?;
        readlinkat(place.fd(&self.descriptors)?, &*name, Vec::new())
    }

    fn place_other(&self, step: &Step<'_>, temporary: &[u8]) -> Result<()> {
        let from = &step.upper.temporary;
        let stat = statx(from, temporary, AtFlags::SYMLINK_NOFOLLOW, WANTED)?;
        let first = step.node.state.lock().names.first().map(|name| (name.parent.clone(), name.name.clone()));
        let (parent, name) = first.ok_or(Errno::NOENT)?;
        let directory = self.upper_dir(&parent)?.ok_or(Errno::STALE)?;
        let times = statx(&directory, c"", AtFlags::EMPTY_PATH, WANTED)?;
        self.enrol(step, &stat);
        let mut state = step.node.state.lock();
        crate::rename::no_replace(from, temporary, &directory, &name)?;
        self.named(&mut state);
        if let Some(dir) = state.dir.as_mut() {
            dir.hidden = None;
        }
        drop(state);
        self.arrived(step, &stat, |_| {});
        restore_times(&directory, &times)
    }

    fn named(&self, state: &mut State) {
        state.upper = Upper::Named;
        if let Some(name) = state.names.first_mut() {
            name.up = true;
        }
    }

    /// Records what the copy cannot say, before it has a name: a crash must not leave the one without the other.
    fn enrol(&self, step: &Step<'_>, stat: &Statx) {
        if step.node.kind == FileType::Directory {
            return;
        }
        if self.numbers.of(stat) != step.node.ino {
            self.records.write(Kind::Origin, Key::of(stat), step.node.ino);
        }
        let mut state = step.node.state.lock();
        if step.stat.stx_nlink > 1 && state.links.is_none() {
            state.links = Some(step.stat.stx_nlink);
            self.records.write(Kind::Links, Key::number(step.node.ino), u64::from(step.stat.stx_nlink));
        }
    }

    /// The upper holds the node now.
    fn arrived(&self, step: &Step<'_>, stat: &Statx, change: impl FnOnce(&mut State)) {
        self.quota.gained(stat);
        let mut state = step.node.state.lock();
        state.upper_ino = stat.stx_ino;
        change(&mut state);
    }
}

/// One copy-up: what is copied, and how it shall look.
struct Step<'a> {
    upper: &'a UpperLayer,
    node: &'a Arc<Node>,
    stat: &'a Statx,
    attr: &'a Attr,
}

impl UpperLayer {
    /// A new regular file without a name, or with one in the work directory where the file system needs one.
    fn new_file(&self) -> Result<(OwnedFd, Option<Vec<u8>>)> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        if self.unnamed.load(Ordering::Relaxed) {
            match openat(&self.temporary, ".", flags | OFlags::TMPFILE, mode) {
                Ok(file) => return Ok((file, None)),
                Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
                    self.unnamed.store(false, Ordering::Relaxed)
                }
                Err(error) => return Err(error),
            }
        }
        let name = self.temporary_name();
        Ok((openat(&self.temporary, &name, flags | OFlags::CREATE | OFlags::EXCL, mode)?, Some(name)))
    }

    /// After this a power cut cannot leave the file's name with an empty file behind it (decision 0102).
    pub(crate) fn secure(&self, file: &OwnedFd) -> Result<()> {
        if self.ordered { crate::sys::start_writeback(file.as_fd()) } else { rustix::fs::fdatasync(file) }
    }
}

pub(crate) fn timespec(time: Time) -> Timespec {
    Timespec { tv_sec: time.sec, tv_nsec: i64::from(time.nsec) }
}

/// A copy-up adds a name to the real directory, not to the one that users see.
fn restore_times(directory: &OwnedFd, stat: &Statx) -> Result<()> {
    let times = Timestamps {
        last_access: timespec(stat.stx_atime.into()),
        last_modification: timespec(stat.stx_mtime.into()),
    };
    utimensat(CWD, crate::sys::proc_path(directory, b""), &times, AtFlags::empty())
}
