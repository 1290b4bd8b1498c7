//! The writable layer: its root, and the work directory in which files are made before they become visible. Names in
//! the work directory are never reused while the mount lives. A whiteout is one inode with many names, as the kernel
//! does it; when the file system refuses another link, a new one is made.

use crate::attr::WANTED;
use parking_lot::Mutex;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, Statx, linkat, mkdirat, mknodat, openat, renameat_with,
    statx, unlinkat,
};
use rustix::io::{Errno, Result};
use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Names of the work directory, the kernel's where it has one.
pub(crate) const WORK: &str = "work";
pub(crate) const INDEX: &str = "index";
pub(crate) const INCOMPATIBLE: &str = "incompat";
/// The name of the mark that some directories carry redirects.
pub(crate) const REDIRECT: &str = "redirect";
const WHITEOUT: &[u8] = b"#whiteout";

pub(crate) struct UpperLayer {
    pub(crate) root: Arc<OwnedFd>,
    pub(crate) stat: Statx,
    /// `workdir` itself, which also holds the lease on the upper.
    pub(crate) work: OwnedFd,
    /// `workdir/work`.
    pub(crate) temporary: OwnedFd,
    /// `workdir/index`: one more name for every file that was copied up from a hard-linked origin.
    pub(crate) index: OwnedFd,
    indexed: Mutex<HashSet<u64>>,
    next: AtomicU64,
    /// The whiteout to link from exists.
    whiteout: Mutex<bool>,
    /// ext4 keeps a file's size behind its allocation, so that starting writeback is enough (decision 0102).
    pub(crate) ordered: bool,
    /// Some directory was renamed and says where its lowers are; the work directory carries the mark of it.
    pub(crate) redirected: AtomicBool,
    /// Cleared by the first refusal.
    pub(crate) reflink: AtomicBool,
    pub(crate) unnamed: AtomicBool,
}

impl UpperLayer {
    pub(crate) fn new(root: OwnedFd, work: OwnedFd) -> Result<Self> {
        const EXT4_SUPER_MAGIC: i64 = 0xef53;
        let directory = |name: &str| {
            match mkdirat(&work, name, Mode::from_raw_mode(0o700)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
            openat(
                &work,
                name,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )
        };
        let (temporary, index) = (directory(WORK)?, directory(INDEX)?);
        // What an earlier mount left; the marks of incompatible features stay.
        for name in crate::sweep::names(&temporary)? {
            if name != INCOMPATIBLE.as_bytes() {
                crate::sweep::remove(&temporary, &name)?;
            }
        }
        let indexed = crate::sweep::names(&index)?.iter().filter_map(|name| parse_number(name)).collect();
        let ordered = rustix::fs::fstatfs(&root)?.f_type as i64 == EXT4_SUPER_MAGIC;
        Ok(Self {
            stat: statx(&root, c"", AtFlags::EMPTY_PATH, WANTED)?,
            root: Arc::new(root),
            work,
            temporary,
            index,
            indexed: Mutex::new(indexed),
            next: AtomicU64::new(0),
            whiteout: Mutex::new(false),
            ordered,
            redirected: AtomicBool::new(false),
            reflink: AtomicBool::new(true),
            unnamed: AtomicBool::new(true),
        })
    }

    /// A name in the work directory that nobody else has.
    pub(crate) fn temporary_name(&self) -> Vec<u8> {
        format!("#{:x}", self.next.fetch_add(1, Ordering::Relaxed)).into_bytes()
    }

    /// Makes a whiteout under a name where nothing stands.
    pub(crate) fn link_whiteout(&self, directory: &OwnedFd, name: &[u8]) -> Result<()> {
        let mut made = self.whiteout.lock();
        if *made {
            match linkat(&self.temporary, WHITEOUT, directory, name, AtFlags::empty()) {
                // Full (EMLINK), or swept away by somebody (ENOENT): start a new one.
                Err(Errno::MLINK | Errno::NOENT) => *made = false,
                other => return other,
            }
        }
        match unlinkat(&self.temporary, WHITEOUT, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
        mknodat(&self.temporary, WHITEOUT, FileType::CharacterDevice, Mode::empty(), 0)?;
        *made = true;
        linkat(&self.temporary, WHITEOUT, directory, name, AtFlags::empty())
    }

    /// Replaces the file under `name`, which is not a directory, by a whiteout in one step.
    pub(crate) fn whiteout_over(&self, directory: &OwnedFd, name: &[u8]) -> Result<()> {
        let temporary = self.temporary_name();
        self.link_whiteout(&self.temporary, &temporary)?;
        let moved = rustix::fs::renameat(&self.temporary, &temporary, directory, name);
        self.discard_on_error(moved, &temporary, AtFlags::empty())
    }

    /// Takes the directory under `name` out of the upper in one step, leaving a whiteout if `hide` says so, and
    /// removes it with the whiteouts that it may hold.
    pub(crate) fn remove_dir(&self, directory: &OwnedFd, name: &[u8], hide: bool) -> Result<()> {
        if !hide {
            match unlinkat(directory, name, AtFlags::REMOVEDIR) {
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                other => return other,
            }
        }
        let temporary = self.temporary_name();
        if hide {
            self.link_whiteout(&self.temporary, &temporary)?;
            match renameat_with(&self.temporary, &temporary, directory, name, RenameFlags::EXCHANGE) {
                Ok(()) => {}
                // A file system without exchange: the name is free for a moment.
                Err(Errno::INVAL) => {
                    let aside = self.temporary_name();
                    rustix::fs::renameat(directory, name, &self.temporary, &aside)?;
                    rustix::fs::renameat(&self.temporary, &temporary, directory, name)?;
                    return crate::sweep::remove(&self.temporary, &aside);
                }
                Err(error) => return self.discard_on_error(Err(error), &temporary, AtFlags::empty()),
            }
        } else {
            rustix::fs::renameat(directory, name, &self.temporary, &temporary)?;
        }
        crate::sweep::remove(&self.temporary, &temporary)
    }

    /// Passes `outcome` on; if it is an error, what was made in the work directory goes.
    pub(crate) fn discard_on_error<T>(
        &self,
        outcome: Result<T>,
        temporary: &[u8],
        flags: AtFlags,
    ) -> Result<T> {
        if outcome.is_err() {
            let _swept_at_the_next_mount = unlinkat(&self.temporary, temporary, flags);
        }
        outcome
    }

    pub(crate) fn is_indexed(&self, number: u64) -> bool {
        self.indexed.lock().contains(&number)
    }

    /// Gives a copied-up file its name in the index. `path` leads to the file through /proc.
    pub(crate) fn add_index(&self, path: &[u8], number: u64) -> Result<()> {
        linkat(rustix::fs::CWD, path, &self.index, index_name(number), AtFlags::SYMLINK_FOLLOW)?;
        self.indexed.lock().insert(number);
        Ok(())
    }

    pub(crate) fn open_index(&self, number: u64) -> Result<OwnedFd> {
        openat(
            &self.index,
            index_name(number),
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
    }

    pub(crate) fn drop_index(&self, number: u64) -> Result<()> {
        if self.indexed.lock().remove(&number) {
            unlinkat(&self.index, index_name(number), AtFlags::empty())?;
        }
        Ok(())
    }
}

fn index_name(number: u64) -> String {
    format!("{number:016x}")
}

fn parse_number(name: &[u8]) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(name).ok()?, 16).ok()
}
