//! Lookup: what a name in a merged directory stands for. The upper first, then each lower that the directory is merged
//! from, until something hides the rest. No listing is loaded for it: one `statx` a layer that has the directory.

use crate::attr::{Attr, WANTED, is_whiteout, kind_of};
use crate::config::{Owner, Owners};
use crate::node::{Dir, Name, Node, State, Upper};
use crate::number::ROOT;
use crate::overlay::Overlay;
use crate::place::{Place, absent};
use crate::records::{Key, Kind};
use rustix::fs::{AtFlags, FileType, Statx, statx};
use rustix::io::{Errno, Result};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A name that exists, with the reference that the kernel now holds.
pub(crate) struct Entry {
    pub(crate) node: Arc<Node>,
    pub(crate) attr: Attr,
}

/// What the layers hold under a name.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) upper: Option<Statx>,
    /// A whiteout stands in the upper.
    pub(crate) whiteout: bool,
    /// The topmost visible thing of the lowers that counts: a file, or the first directory.
    pub(crate) lower: Option<(Arc<Place>, Statx)>,
    /// Directories merged here.
    pub(crate) places: Vec<Arc<Place>>,
}

impl Found {
    pub(crate) fn stat(&self) -> Option<&Statx> {
        self.upper.as_ref().or(self.lower.as_ref().map(|(_, stat)| stat))
    }

    pub(crate) fn is_dir(&self) -> bool {
        self.stat().is_some_and(|stat| kind_of(stat) == FileType::Directory)
    }
}

impl Overlay {
    /// Looks `name` up. `None` is a name that does not exist, which the kernel may remember.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<Option<Attr>> {
        let parent = self.node(parent)?;
        Ok(self.entry(&parent, name)?.map(|entry| entry.attr))
    }

    pub(crate) fn entry(&self, parent: &Arc<Node>, name: &[u8]) -> Result<Option<Entry>> {
        if name.len() > 255 {
            return Err(Errno::NAMETOOLONG);
        }
        let found = self.find(parent, name)?;
        if found.stat().is_none() {
            return Ok(None);
        }
        self.adopt(parent, name, found).map(Some)
    }

    pub(crate) fn find(&self, parent: &Arc<Node>, name: &[u8]) -> Result<Found> {
        let mut found = Found::default();
        if let Some(fd) = self.upper_dir(parent)? {
            found.upper = absent(statx(&fd, name, AtFlags::SYMLINK_NOFOLLOW, WANTED))?;
            if found.upper.as_ref().is_some_and(is_whiteout) {
                found.upper = None;
                found.whiteout = true;
                return Ok(found);
            }
            let stops = match &found.upper {
                None => false,
                Some(stat) if kind_of(stat) != FileType::Directory => true,
                Some(_) => parent.is_merged() && crate::xattr::opaque_mark(&fd, name) == Some(b'y'),
            };
            if stops {
                return Ok(found);
            }
            if let Some(elsewhere) = self.redirect(&fd, name, &found)? {
                self.below_elsewhere(parent, &elsewhere, &mut found)?;
                return Ok(found);
            }
        }
        if parent.hides(name) {
            found.whiteout = true;
            return Ok(found);
        }
        self.below(parent, name, &mut found)?;
        Ok(found)
    }

    /// Where lowers hold what is merged into the upper's directory `name`, if it was renamed.
    pub(crate) fn redirect(&self, fd: &OwnedFd, name: &[u8], found: &Found) -> Result<Option<Vec<u8>>> {
        let redirected = self.upper_layer()?.redirected.load(Ordering::Acquire);
        let directory = found.upper.as_ref().is_some_and(|stat| kind_of(stat) == FileType::Directory);
        if redirected && directory { crate::xattr::redirect(fd, name) } else { Ok(None) }
    }

    /// Adds the directories of the lowers at a path from their roots, or under another name in the same place.
    fn below_elsewhere(&self, parent: &Arc<Node>, path: &[u8], found: &mut Found) -> Result<()> {
        let from_root = path.first() == Some(&b'/');
        let mut places = if from_root { self.node(ROOT)?.places() } else { parent.places() };
        let mut step = Found::default();
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            if matches!(name, b"." | b"..") {
                return Err(Errno::IO);
            }
            step = Found::default();
            self.below_in(&places, name, &mut step)?;
            places.clone_from(&step.places);
        }
        if !places.is_empty() {
            (found.lower, found.places) = (step.lower, step.places);
        }
        Ok(())
    }

    /// Adds what the lowers hold under `name`.
    pub(crate) fn below(&self, parent: &Arc<Node>, name: &[u8], found: &mut Found) -> Result<()> {
        self.below_in(&parent.places(), name, found)
    }

    fn below_in(&self, places: &[Arc<Place>], name: &[u8], found: &mut Found) -> Result<()> {
        for (index, place) in places.iter().enumerate() {
            let stat = place.stat(&self.descriptors, name)?;
            let last = index + 1 == places.len();
            // Nothing is below the last layer that a missing name could be hiding.
            if !(last && stat.is_none()) && place.deletes(&self.descriptors, name, stat.as_ref())? {
                return Ok(());
            }
            let Some(stat) = stat else { continue };
            let directory = kind_of(&stat) == FileType::Directory;
            let first = found.upper.is_none() && found.places.is_empty();
            if !directory {
                if first {
                    found.lower = Some((place.clone(), stat));
                }
                return Ok(());
            }
            let child = place.child(name, &stat);
            if found.places.is_empty() {
                found.lower = Some((place.clone(), stat));
            }
            found.places.push(child);
            if !last && place.is_opaque(&self.descriptors, name)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The published number of what was found. A copied-up file keeps the number of its origin.
    pub(crate) fn number(&self, found: &Found) -> u64 {
        match (&found.upper, &found.lower) {
            (Some(upper), Some((_, lower))) if kind_of(upper) == FileType::Directory => {
                self.numbers.of(lower)
            }
            (Some(upper), _) => self.upper_number(upper),
            (None, Some((_, lower))) => self.numbers.of(lower),
            (None, None) => 0,
        }
    }

    pub(crate) fn upper_number(&self, stat: &Statx) -> u64 {
        let origin = self.records.find(Kind::Origin, Key::of(stat));
        origin.unwrap_or_else(|| self.numbers.of(stat))
    }

    /// Turns what was found into a node that the kernel holds, and its attributes.
    pub(crate) fn adopt(&self, parent: &Arc<Node>, name: &[u8], found: Found) -> Result<Entry> {
        let stat = *found.stat().ok_or(Errno::NOENT)?;
        let number = self.number(&found);
        let name: Arc<[u8]> = name.into();
        let fits = |node: &Arc<Node>| self.fits(node, parent, &name, &found);
        let node = match self.table.adopt(number, fits, || self.make(number, parent, &name, &found)) {
            Some(node) => node,
            None => {
                let number = self.numbers.fresh();
                let made = self.table.adopt(number, |_| false, || self.make(number, parent, &name, &found));
                made.ok_or(Errno::IO)?
            }
        };
        // Another name of a hard link that was copied up: the file is in the upper, the name is not.
        let attr = if found.upper.is_none() && !node.is_dir() && node.is_up() {
            self.attr(&node)?
        } else {
            self.attr_of(&node, &stat, found.upper.is_some())?
        };
        Ok(Entry { node, attr })
    }

    /// Is the node of the same number the same file? If so it learns the name.
    fn fits(&self, node: &Arc<Node>, parent: &Arc<Node>, name: &Arc<[u8]>, found: &Found) -> bool {
        let Some(stat) = found.stat() else { return false };
        let mut state = node.state.lock();
        let up = found.upper.is_some();
        let known = !matches!(state.upper, Upper::Absent);
        let same = match &found.upper {
            Some(upper) => known && state.upper_ino == upper.stx_ino,
            None => !known || (!node.is_dir() && stat.stx_nlink > 1),
        };
        if node.kind != kind_of(stat) || node.ino == ROOT || !same {
            return false;
        }
        match state.name_mut(parent, name) {
            Some(name) => name.up |= up,
            None => {
                if node.is_dir() {
                    state.names.clear();
                }
                state.names.push(Name { parent: parent.clone(), name: name.clone(), up });
            }
        }
        true
    }

    fn make(&self, number: u64, parent: &Arc<Node>, name: &Arc<[u8]>, found: &Found) -> Node {
        let kind = found.stat().map_or(FileType::Unknown, kind_of);
        let up = found.upper.is_some();
        let directory = kind == FileType::Directory;
        let mut state = State {
            names: Vec::with_capacity(1),
            upper: if up { Upper::Named } else { Upper::Absent },
            upper_ino: found.upper.as_ref().map_or(0, |stat| stat.stx_ino),
            lower: None,
            data: None,
            links: None,
            dir: None,
        };
        state.names.push(Name { parent: parent.clone(), name: name.clone(), up });
        if directory {
            state.dir = Some(Box::new(Dir { places: found.places.clone(), ..Dir::default() }));
        } else if let (None, Some((place, stat))) = (&found.upper, &found.lower) {
            state.lower = Some((place.clone(), name.clone()));
            self.find_linked(number, stat, &mut state);
        } else if self.is_indexed(number) {
            state.links = self.links(number);
        }
        Node::new(number, kind, state)
    }

    /// A hard-linked file of a lower: another name of it may have been copied up, or removed.
    fn find_linked(&self, number: u64, stat: &Statx, state: &mut State) {
        if stat.stx_nlink < 2 {
            return;
        }
        state.links = self.links(number);
        let Some(upper) = self.upper.as_ref().filter(|upper| upper.is_indexed(number)) else { return };
        if let Ok(fd) = upper.open_index(number)
            && let Ok(stat) = statx(&fd, c"", AtFlags::EMPTY_PATH, WANTED)
        {
            state.upper = Upper::Held(Arc::new(fd));
            state.upper_ino = stat.stx_ino;
        }
    }

    fn is_indexed(&self, number: u64) -> bool {
        self.upper.as_ref().is_some_and(|upper| upper.is_indexed(number))
    }

    fn links(&self, number: u64) -> Option<u32> {
        self.records.find(Kind::Links, Key::number(number)).map(|links| links as u32)
    }

    /// The attributes of a node, from the file itself.
    pub(crate) fn attr(&self, node: &Arc<Node>) -> Result<Attr> {
        let (stat, up) = self.stat(node)?;
        self.attr_of(node, &stat, up)
    }

    pub(crate) fn attr_of(&self, node: &Arc<Node>, stat: &Statx, up: bool) -> Result<Attr> {
        let ino = if node.ino == ROOT { self.root_number(node)? } else { node.ino };
        let mut attr = Attr::new(ino, stat);
        if node.is_dir() {
            // A merged directory does not know how many directories it holds; 1 says so, as btrfs does.
            attr.nlink = if node.is_merged() { 1 } else { attr.nlink };
        } else if let Some(links) = node.state.lock().links {
            attr.nlink = links;
        }
        if let Some(hidden) =
            node.state.lock().dir.as_ref().and_then(|dir| dir.hidden.as_ref()).filter(|_| !up)
        {
            (attr.mtime, attr.ctime) = (hidden.at, hidden.at);
        }
        let mut owner = Owner { uid: attr.uid, gid: attr.gid };
        if self.options.owners == Owners::Recorded {
            self.recorded(node, stat, up, &mut attr, &mut owner);
        }
        let shown = self.ids.shown(owner, !up);
        (attr.uid, attr.gid) = (shown.uid, shown.gid);
        Ok(attr)
    }

    /// The root has id 1 on the wire; `stat` shows the number of its topmost lower, whatever is copied up.
    pub(crate) fn root_number(&self, root: &Arc<Node>) -> Result<u64> {
        let place = root.places().first().cloned();
        match (place, &self.upper) {
            (Some(place), _) => {
                Ok(self.numbers.of(&statx(&place.layer.root, c"", AtFlags::EMPTY_PATH, WANTED)?))
            }
            (None, Some(upper)) => Ok(self.numbers.of(&upper.stat)),
            (None, None) => Err(Errno::STALE),
        }
    }
}
