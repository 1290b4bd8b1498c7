//! The budget of cached descriptors. Whoever caches one hands in a weak reference to itself; when the budget is used
//! up, the oldest owner is asked to let go. Dropping a cached descriptor is always safe: it is opened again on demand,
//! and an operation that still uses it holds its own reference.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::{Arc, Weak};

pub(crate) trait Evict: Send + Sync {
    fn evict(&self);
}

pub(crate) struct Descriptors {
    owners: Mutex<VecDeque<Weak<dyn Evict>>>,
    limit: usize,
}

impl Descriptors {
    pub(crate) fn new(limit: usize) -> Self {
        Self { owners: Mutex::default(), limit }
    }

    pub(crate) fn cached(&self, owner: Arc<dyn Evict>) {
        let mut owners = self.owners.lock();
        owners.push_back(Arc::downgrade(&owner));
        let oldest = if owners.len() > self.limit { owners.pop_front() } else { None };
        drop(owners);
        if let Some(owner) = oldest.and_then(|weak| weak.upgrade()) {
            owner.evict();
        }
    }
}
