//! Deferred whiteouts. A name that is removed from a directory which only lowers hold needs no copy of that directory
//! yet: it is hidden in memory, and `rm -rf` of a lower tree ends as one whiteout instead of a copy of every directory
//! on the way. The upper learns of it before anything else in it changes, at every sync, half a second later at the
//! latest, and at the end of the mount. So after `kill -9` of the server the upper is the tree as it was a moment ago:
//! what was removed in that moment may be back, and nothing else is ever out of order. The thread that settles in time also
//! gives memory back when the kernel has forgotten many files.

use crate::attr::Time;
use crate::node::{Node, Upper};
use crate::overlay::Overlay;
use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard};
use rustc_hash::FxHashMap;
use rustix::io::Result;
use rustix::time::{ClockId, clock_gettime};
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long a removal may be in memory only.
const DELAY: Duration = Duration::from_millis(500);

/// What a directory that only lowers hold has lost.
pub(crate) struct Hidden {
    pub(crate) names: BTreeSet<Box<[u8]>>,
    /// When it lost the last one: its modification time.
    pub(crate) at: Time,
}

/// The directories that have lost something; they stay in the table until the upper knows.
#[derive(Default)]
pub(crate) struct Deferred {
    directories: Mutex<FxHashMap<u64, Arc<Node>>>,
    any: AtomicBool,
    /// Written by `settle`, so that whoever finds the list empty knows that the upper is up to date.
    settling: RwLock<()>,
    wake: Condvar,
    closed: AtomicBool,
}

impl Overlay {
    /// Hides `name` in memory if only lowers hold the directory. `false` says that a real whiteout is needed.
    pub(crate) fn hide(&self, parent: &Arc<Node>, name: &[u8]) -> bool {
        // A copy-up of the directory that is on its way would miss the name.
        let _turn = self.copy_lock(parent).lock();
        let mut state = parent.state.lock();
        if !matches!(state.upper, Upper::Absent) {
            return false;
        }
        let Some(dir) = state.dir.as_mut() else { return false };
        let now = clock_gettime(ClockId::Realtime);
        let at = Time { sec: now.tv_sec, nsec: u32::try_from(now.tv_nsec).unwrap_or(0) };
        let hidden = dir.hidden.get_or_insert_with(|| Box::new(Hidden { names: BTreeSet::new(), at }));
        hidden.names.insert(name.into());
        hidden.at = at;
        drop(state);
        self.deferred.directories.lock().insert(parent.ino, parent.clone());
        self.deferred.any.store(true, Ordering::Release);
        self.deferred.wake.notify_one();
        true
    }

    /// Keeps `settle` away while a removal looks at the layers and acts on what it saw.
    pub(crate) fn unsettled(&self) -> RwLockReadGuard<'_, ()> {
        self.deferred.settling.read()
    }

    /// Brings every removal into the upper. Called before any other change of it.
    pub fn settle(&self) -> Result<()> {
        if !self.deferred.any.load(Ordering::Acquire) {
            return Ok(());
        }
        let _turn = self.deferred.settling.write();
        loop {
            let next = self.deferred.directories.lock().values().next().cloned();
            let Some(node) = next else { break };
            let gone = node.state.lock().names.is_empty() && node.ino != crate::number::ROOT;
            if !gone {
                self.copy_up(&node)?;
            }
            let ino = node.ino;
            drop(node);
            self.shown_again(ino);
        }
        self.deferred.any.store(!self.deferred.directories.lock().is_empty(), Ordering::Release);
        Ok(())
    }

    /// The directory needs no settling any more: it is in the upper, or gone.
    pub(crate) fn shown_again(&self, ino: u64) {
        let held = self.deferred.directories.lock().remove(&ino);
        if held.is_some() {
            drop(held);
            self.forget(ino, 0);
        }
    }

    /// Makes real whiteouts of what a directory has lost, in its copy that is being made.
    pub(crate) fn settle_into(&self, node: &Arc<Node>, copy: &OwnedFd) -> Result<()> {
        let names: Vec<Box<[u8]>> = {
            let state = node.state.lock();
            let hidden = state.dir.as_ref().and_then(|dir| dir.hidden.as_ref());
            hidden.map(|hidden| hidden.names.iter().cloned().collect()).unwrap_or_default()
        };
        let upper = self.upper_layer()?;
        names.iter().try_for_each(|name| upper.link_whiteout(copy, name))
    }

    /// Settles in the background until `stop_settling`; for a thread of its own.
    pub fn settle_in_time(&self) {
        while !self.deferred.closed.load(Ordering::Acquire) {
            let mut directories = self.deferred.directories.lock();
            if directories.is_empty() && !self.table.has_forgotten_many() {
                self.deferred.wake.wait(&mut directories);
            }
            if !self.deferred.closed.load(Ordering::Acquire) {
                self.deferred.wake.wait_for(&mut directories, DELAY);
            }
            drop(directories);
            // A full disk is told to whoever changes the upper next.
            let _tried_again_by_the_next_change = self.settle();
            if self.table.has_forgotten_many() {
                self.table.shrink();
                crate::sys::release_heap();
            }
        }
    }

    pub fn stop_settling(&self) {
        self.deferred.closed.store(true, Ordering::Release);
        self.wake_settler();
    }

    pub(crate) fn wake_settler(&self) {
        // Whoever is about to wait has looked at what it waits for under this lock.
        let _directories = self.deferred.directories.lock();
        self.deferred.wake.notify_all();
    }
}
