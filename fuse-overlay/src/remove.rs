//! Removing names. A file of a lower is never copied for it: a whiteout takes its name. What the kernel still holds
//! stays readable, because its descriptor is kept until the last reference goes.

use crate::find::Found;
use crate::node::{Node, State, Upper};
use crate::overlay::Overlay;
use crate::upper::UpperLayer;
use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};
use rustix::io::{Errno, Result};
use std::os::fd::OwnedFd;
use std::sync::Arc;

impl Overlay {
    pub fn unlink(&self, parent: u64, name: &[u8]) -> Result<()> {
        let upper = self.upper_layer()?;
        let parent = self.node(parent)?;
        let found = self.find(&parent, name)?;
        if found.stat().is_none() {
            return Err(Errno::NOENT);
        }
        if found.is_dir() {
            return Err(Errno::ISDIR);
        }
        self.copy_up(&parent)?;
        let directory = self.upper_dir(&parent)?.ok_or(Errno::NOENT)?;
        let hide = self.shines_through(&parent, name, &found)?;
        let node = self.known(&found);
        let remove = || match (&found.upper, hide) {
            (Some(_), false) => unlinkat(&directory, name, AtFlags::empty()),
            (Some(_), true) => upper.whiteout_over(&directory, name),
            (None, _) => upper.link_whiteout(&directory, name),
        };
        match &node {
            Some(node) => self.drop_name(node, &parent, name, &found, remove)?,
            None => remove()?,
        }
        if let Some(stat) = found.upper.as_ref().filter(|stat| stat.stx_nlink < 2) {
            self.quota.lost(stat);
        }
        self.removed(&parent, name);
        Ok(())
    }

    /// Would a lower show something under `name` if the upper did not hold it?
    pub(crate) fn shines_through(&self, parent: &Arc<Node>, name: &[u8], found: &Found) -> Result<bool> {
        if found.upper.is_none() && !found.whiteout {
            return Ok(found.lower.is_some());
        }
        let mut below = Found::default();
        self.below(parent, name, &mut below)?;
        Ok(below.lower.is_some())
    }

    /// The node of what was found, if the kernel holds it.
    pub(crate) fn known(&self, found: &Found) -> Option<Arc<Node>> {
        self.table.known(self.number(found)).filter(|node| match &found.upper {
            Some(stat) => node.state.lock().upper_ino == stat.stx_ino,
            None => true,
        })
    }

    /// Takes a name from a node by `remove`, and keeps the file reachable if that was its last name in the upper.
    pub(crate) fn drop_name(
        &self,
        node: &Arc<Node>,
        parent: &Arc<Node>,
        name: &[u8],
        found: &Found,
        remove: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        // Nobody may copy the file up to a name that is going away.
        let _turn = self.copy_lock(node).lock();
        let directory = self.upper_dir(parent)?.ok_or(Errno::NOENT)?;
        let mut state = node.state.lock();
        let held = if found.upper.is_some() { hold(&state, parent, &directory, name)? } else { None };
        remove()?;
        state.forget_name(parent, name);
        if let Some(fd) = held {
            state.upper = Upper::Held(fd);
        }
        let linked = match (state.links, &found.lower) {
            (Some(links), _) => Some(links.saturating_sub(1)),
            (None, Some((_, stat))) if found.upper.is_none() => Some(stat.stx_nlink.saturating_sub(1)),
            _ => None,
        };
        state.links = linked;
        drop(state);
        if let Some(links) = linked {
            self.links_left(node.ino, links)?;
        }
        Ok(())
    }

    fn links_left(&self, number: u64, links: u32) -> Result<()> {
        let upper = self.upper_layer()?;
        if links > 0 {
            self.remember_links(number, links);
        } else if upper.is_indexed(number) {
            upper.drop_index(number)?;
        }
        Ok(())
    }

    pub fn rmdir(&self, parent: u64, name: &[u8]) -> Result<()> {
        let upper = self.upper_layer()?;
        let parent = self.node(parent)?;
        let found = self.find(&parent, name)?;
        if found.stat().is_none() {
            return Err(Errno::NOENT);
        }
        if !found.is_dir() {
            return Err(Errno::NOTDIR);
        }
        let node = self.directory(&parent, name, &found)?;
        if !self.is_empty(&node)? {
            return Err(Errno::NOTEMPTY);
        }
        self.copy_up(&parent)?;
        let directory = self.upper_dir(&parent)?.ok_or(Errno::NOENT)?;
        let hide = self.shines_through(&parent, name, &found)?;
        self.drop_dir(upper, &node, &directory, name, hide)?;
        if let Some(stat) = &found.upper {
            self.quota.lost(stat);
        }
        self.removed(&parent, name);
        Ok(())
    }

    fn drop_dir(
        &self,
        upper: &UpperLayer,
        node: &Arc<Node>,
        directory: &OwnedFd,
        name: &[u8],
        hide: bool,
    ) -> Result<()> {
        let held = self.upper_dir(node)?;
        if held.is_some() {
            upper.remove_dir(directory, name, hide)?;
        } else {
            upper.link_whiteout(directory, name)?;
        }
        let mut state = node.state.lock();
        state.names.clear();
        if let Some(fd) = held {
            state.upper = Upper::Held(fd);
            if let Some(dir) = state.dir.as_mut() {
                dir.places.clear();
                dir.fd = None;
            }
        }
        Ok(())
    }

    /// The node of a directory that was found; one for the moment if the kernel holds none.
    pub(crate) fn directory(&self, parent: &Arc<Node>, name: &[u8], found: &Found) -> Result<Arc<Node>> {
        if let Some(node) = self.known(found).filter(|node| node.is_dir()) {
            return Ok(node);
        }
        let copy = Found {
            upper: found.upper,
            places: found.places.clone(),
            lower: found.lower.clone(),
            whiteout: false,
        };
        let node = self.adopt(parent, name, copy)?.node;
        self.forget(node.ino, 1);
        Ok(node)
    }

    pub(crate) fn removed(&self, parent: &Arc<Node>, name: &[u8]) {
        let mut state = parent.state.lock();
        if let Some(listing) = state.dir.as_mut().and_then(|dir| dir.listing.as_mut()) {
            listing.remove(name);
        }
    }
}

/// A descriptor for a file that is about to lose its last known name in the upper.
fn hold(state: &State, parent: &Arc<Node>, directory: &OwnedFd, name: &[u8]) -> Result<Option<Arc<OwnedFd>>> {
    let other = state.names.iter().any(|n| n.up && !(Arc::ptr_eq(&n.parent, parent) && &*n.name == name));
    if other || matches!(state.upper, Upper::Held(_)) {
        return Ok(None);
    }
    if let Some(data) = &state.data {
        return Ok(Some(data.clone()));
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(Some(Arc::new(openat(directory, name, flags, Mode::empty())?)))
}
