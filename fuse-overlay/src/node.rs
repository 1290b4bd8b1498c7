//! The nodes that the kernel holds, by number. A node is one inode of the mount; it may have several names (hard
//! links), and each name knows its parent. What it is made of moves in one direction only:
//!
//! | upper    | meaning                                                    | next          |
//! |----------|------------------------------------------------------------|---------------|
//! | `Absent` | only lowers hold it                                        | `Named`, `Held` |
//! | `Named`  | the upper holds it under every name marked `up`            | `Held`        |
//! | `Held`   | it has no name in the upper (unlinked, or the root itself) | `Named` (by link) |
//!
//! Locks: a node's state is taken before its parent's, never after; no lock is held while data is copied.

use crate::cache::Evict;
use crate::deferred::Hidden;
use crate::listing::Listing;
use crate::number::ROOT;
use crate::place::Place;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use rustix::fs::FileType;
use rustix::io::{Errno, Result};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

pub(crate) struct Name {
    pub(crate) parent: Arc<Node>,
    pub(crate) name: Arc<[u8]>,
    /// The upper holds the file under this name.
    pub(crate) up: bool,
}

pub(crate) enum Upper {
    Absent,
    Named,
    Held(Arc<OwnedFd>),
}

/// What only directories have.
#[derive(Default)]
pub(crate) struct Dir {
    /// The directories of the lowers that are merged here, topmost first.
    pub(crate) places: Vec<Arc<Place>>,
    /// Cached `O_PATH` descriptor of the upper's directory.
    pub(crate) fd: Option<Arc<OwnedFd>>,
    /// A merged listing that some reader is in the middle of.
    pub(crate) listing: Option<Box<Listing>>,
    /// Does its default access control list decide over new files? Asked once.
    pub(crate) default_acl: Option<bool>,
    /// What was removed while no upper directory existed.
    pub(crate) hidden: Option<Box<Hidden>>,
}

pub(crate) struct State {
    pub(crate) names: Vec<Name>,
    pub(crate) upper: Upper,
    /// The upper's own inode number, to tell the file from a later one of the same name.
    pub(crate) upper_ino: u64,
    /// Where a file that is not a directory stands in a lower.
    pub(crate) lower: Option<(Arc<Place>, Arc<[u8]>)>,
    /// Cached data descriptor; read and write once the file is in the upper.
    pub(crate) data: Option<Arc<OwnedFd>>,
    /// The link count where `st_nlink` of the real file does not tell it.
    pub(crate) links: Option<u32>,
    pub(crate) dir: Option<Box<Dir>>,
}

pub(crate) struct Node {
    pub(crate) ino: u64,
    pub(crate) kind: FileType,
    lookups: AtomicU64,
    pub(crate) state: Mutex<State>,
}

impl Node {
    pub(crate) fn new(ino: u64, kind: FileType, state: State) -> Self {
        Self { ino, kind, lookups: AtomicU64::new(0), state: Mutex::new(state) }
    }

    pub(crate) fn is_dir(&self) -> bool {
        self.kind == FileType::Directory
    }

    pub(crate) fn places(&self) -> Vec<Arc<Place>> {
        self.state.lock().dir.as_ref().map(|dir| dir.places.clone()).unwrap_or_default()
    }

    /// Is anything of a lower merged into this directory?
    pub(crate) fn is_merged(&self) -> bool {
        self.state.lock().dir.as_ref().is_some_and(|dir| !dir.places.is_empty())
    }

    /// Was `name` removed without a whiteout yet?
    pub(crate) fn hides(&self, name: &[u8]) -> bool {
        let state = self.state.lock();
        let hidden = state.dir.as_ref().and_then(|dir| dir.hidden.as_ref());
        hidden.is_some_and(|hidden| hidden.names.contains(name))
    }

    pub(crate) fn is_up(&self) -> bool {
        !matches!(self.state.lock().upper, Upper::Absent)
    }

    pub(crate) fn parent(&self) -> Option<Arc<Node>> {
        self.state.lock().names.first().map(|name| name.parent.clone())
    }
}

impl State {
    pub(crate) fn name_mut(&mut self, parent: &Arc<Node>, name: &[u8]) -> Option<&mut Name> {
        self.names.iter_mut().find(|n| Arc::ptr_eq(&n.parent, parent) && &*n.name == name)
    }

    pub(crate) fn forget_name(&mut self, parent: &Arc<Node>, name: &[u8]) {
        self.names.retain(|n| !(Arc::ptr_eq(&n.parent, parent) && &*n.name == name));
    }

    /// A name under which the upper holds the file.
    pub(crate) fn name_up(&self) -> Option<&Name> {
        self.names.iter().find(|name| name.up)
    }
}

impl Evict for Node {
    fn evict(&self) {
        let mut state = self.state.lock();
        let data = state.data.take();
        let fd = state.dir.as_mut().and_then(|dir| dir.fd.take());
        drop(state);
        drop((data, fd));
    }
}

const SHARDS: usize = 64;

/// After so many forgotten nodes memory is given back: a quarter of a megabyte.
const MANY: usize = 1024;

pub(crate) struct Table {
    shards: Vec<Mutex<FxHashMap<u64, Arc<Node>>>>,
    /// Since memory was last given back.
    forgotten: AtomicUsize,
}

impl Table {
    pub(crate) fn new(root: Arc<Node>) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        let table = Self { shards, forgotten: AtomicUsize::new(0) };
        table.shard(ROOT).lock().insert(ROOT, root);
        table
    }

    fn shard(&self, ino: u64) -> &Mutex<FxHashMap<u64, Arc<Node>>> {
        let index = (ino.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) as usize;
        self.shards.get(index).expect("six bits index 64 shards")
    }

    pub(crate) fn node(&self, ino: u64) -> Result<Arc<Node>> {
        self.shard(ino).lock().get(&ino).cloned().ok_or(Errno::STALE)
    }

    pub(crate) fn known(&self, ino: u64) -> Option<Arc<Node>> {
        self.shard(ino).lock().get(&ino).cloned()
    }

    /// Returns the node `ino`, made by `make` if there is none, with one more lookup counted; `None` if `fits` says
    /// that the node of that number is another file.
    pub(crate) fn adopt(
        &self,
        ino: u64,
        fits: impl FnOnce(&Arc<Node>) -> bool,
        make: impl FnOnce() -> Node,
    ) -> Option<Arc<Node>> {
        let mut shard = self.shard(ino).lock();
        if let Some(node) = shard.get(&ino) {
            let node = node.clone();
            // The count is taken before the lock goes, so that a forget on its way cannot free the node.
            node.lookups.fetch_add(1, Ordering::Relaxed);
            drop(shard);
            if fits(&node) {
                return Some(node);
            }
            self.forget(ino, 1);
            return None;
        }
        let node = Arc::new(make());
        node.lookups.fetch_add(1, Ordering::Relaxed);
        shard.insert(ino, node.clone());
        Some(node)
    }

    /// The kernel drops `count` references. A directory stays as long as a child of it does.
    /// `true` says that with this one many nodes are gone.
    pub(crate) fn forget(&self, ino: u64, count: u64) -> bool {
        let mut next = (ino, count);
        let mut many = false;
        while let Some(parent) = self.release(next.0, next.1) {
            many |= self.forgotten.fetch_add(1, Ordering::Relaxed) == MANY;
            next = (parent, 0);
        }
        many
    }

    pub(crate) fn has_forgotten_many(&self) -> bool {
        self.forgotten.load(Ordering::Relaxed) > MANY
    }

    /// Gives back the room of nodes that are gone.
    pub(crate) fn shrink(&self) {
        self.forgotten.store(0, Ordering::Relaxed);
        for shard in &self.shards {
            let mut nodes = shard.lock();
            if nodes.len() < nodes.capacity() / 4 {
                nodes.shrink_to_fit();
            }
        }
    }

    /// Takes the node out if nothing needs it, and returns the parent that may now be free too.
    fn release(&self, ino: u64, count: u64) -> Option<u64> {
        if ino == ROOT {
            return None;
        }
        let mut shard = self.shard(ino).lock();
        let node = shard.get(&ino)?;
        let left = node.lookups.load(Ordering::Relaxed).saturating_sub(count);
        node.lookups.store(left, Ordering::Relaxed);
        if left > 0 || Arc::strong_count(node) > 1 {
            return None;
        }
        let node = shard.remove(&ino)?;
        drop(shard);
        let parent = node.parent().map(|parent| parent.ino);
        drop(node);
        parent
    }

    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}
