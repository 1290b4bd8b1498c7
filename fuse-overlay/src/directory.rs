//! Reading merged directories: building a listing from the layers, and walking it from a cookie. A walk that asks for
//! attributes asks each file only where the listing saw it.

use crate::attr::{Attr, WANTED, is_whiteout, kind_of};
use crate::find::{Entry, Found};
use crate::listing::{DOT, DOT_DOT, Listing, Source};
use crate::node::Node;
use crate::number::ROOT;
use crate::overlay::Overlay;
use crate::place::{Place, absent};
use crate::records::Kind;
use rustc_hash::FxHashMap;
use rustix::fs::{AtFlags, FileType, statx};
use rustix::io::{Errno, Result};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// One entry, with the attributes if they were asked for; the kernel then holds one more reference to the node.
pub struct DirEntry<'a> {
    pub ino: u64,
    pub kind: FileType,
    pub cookie: u64,
    pub name: &'a [u8],
    pub attr: Option<Attr>,
}

/// A reader's answer to an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    Taken,
    /// The entry did not fit: stop, and forget its reference.
    Full,
}

/// How much a reader wants to know of each entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    Names,
    Attributes,
}

impl Overlay {
    /// Hands `take` the entries of a directory behind `cookie` until it is full.
    pub fn read_dir(
        &self,
        ino: u64,
        cookie: u64,
        detail: Detail,
        take: &mut dyn FnMut(DirEntry<'_>) -> Room,
    ) -> Result<()> {
        let node = self.node(ino)?;
        let mut at = cookie;
        for (dot, name) in [(DOT, &b"."[..]), (DOT_DOT, &b".."[..])] {
            if at < dot {
                let attr = self.dot(&node, dot)?;
                let entry = DirEntry {
                    ino: attr.ino,
                    kind: FileType::Directory,
                    cookie: dot,
                    name,
                    attr: Some(attr),
                };
                if take(entry) == Room::Full {
                    return Ok(());
                }
                at = dot;
            }
        }
        let listing = self.open_listing(&node, cookie)?;
        let finished = self.walk_listing(&node, &listing, at, detail, take)?;
        if !finished {
            let mut state = node.state.lock();
            if let Some(dir) = state.dir.as_mut() {
                dir.listing = Some(listing);
            }
        }
        Ok(())
    }

    /// A listing is taken out of the node for the time of one request, so that no lock is held while files are read.
    fn open_listing(&self, node: &Arc<Node>, cookie: u64) -> Result<Box<Listing>> {
        let kept = node.state.lock().dir.as_mut().and_then(|dir| dir.listing.take());
        match kept {
            Some(listing) if cookie > 0 => Ok(listing),
            _ => Ok(Box::new(self.list(node)?)),
        }
    }

    /// Returns whether the reader has seen everything.
    fn walk_listing(
        &self,
        node: &Arc<Node>,
        listing: &Listing,
        mut at: u64,
        detail: Detail,
        take: &mut dyn FnMut(DirEntry<'_>) -> Room,
    ) -> Result<bool> {
        let places = node.places();
        let start = at;
        while let Some((entry, name)) = listing.after(at) {
            let seen = match detail {
                Detail::Names => None,
                Detail::Attributes => match self.seen(node, &places, entry.kind, entry.source, name)? {
                    Some(seen) => Some(seen),
                    // It went away since the listing was made.
                    None => {
                        at = entry.cookie;
                        continue;
                    }
                },
            };
            let attr = seen.as_ref().map(|seen| seen.attr);
            let ino = attr.map_or(entry.ino, |attr| attr.ino);
            let shown = DirEntry { ino, kind: entry.kind, cookie: entry.cookie, name, attr };
            if take(shown) == Room::Full {
                if let Some(Entry { node, .. }) = seen {
                    let ino = node.ino;
                    drop(node);
                    self.forget(ino, 1);
                }
                return Ok(false);
            }
            at = entry.cookie;
        }
        Ok(at == start)
    }

    fn dot(&self, node: &Arc<Node>, dot: u64) -> Result<Attr> {
        let shown = match node.parent() {
            Some(parent) if dot == DOT_DOT => parent,
            _ => node.clone(),
        };
        let ino = if shown.ino == ROOT { self.root_number(&shown)? } else { shown.ino };
        let nothing = crate::attr::Time::default();
        Ok(Attr {
            ino,
            size: 0,
            blocks: 0,
            atime: nothing,
            mtime: nothing,
            ctime: nothing,
            mode: 0o040_755,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
        })
    }

    /// The node behind an entry. A file is asked only where the listing saw it.
    fn seen(
        &self,
        node: &Arc<Node>,
        places: &[Arc<Place>],
        kind: FileType,
        source: Source,
        name: &[u8],
    ) -> Result<Option<Entry>> {
        if kind == FileType::Directory || kind == FileType::Unknown {
            return self.entry(node, name);
        }
        let mut found = Found::default();
        match source {
            Source::Upper => {
                let fd = self.upper_dir(node)?.ok_or(Errno::STALE)?;
                found.upper = absent(statx(&fd, name, AtFlags::SYMLINK_NOFOLLOW, WANTED))?;
                if found.upper.as_ref().is_some_and(is_whiteout) {
                    return Ok(None);
                }
            }
            Source::Place(index) => {
                let Some(place) = places.get(usize::from(index)) else { return Ok(None) };
                found.lower = place.stat(&self.descriptors, name)?.map(|stat| (place.clone(), stat));
            }
        }
        match found.stat() {
            Some(stat) if kind_of(stat) == kind => self.adopt(node, name, found).map(Some),
            _ => self.entry(node, name),
        }
    }

    /// Merges the layers of a directory.
    pub(crate) fn list(&self, node: &Arc<Node>) -> Result<Listing> {
        let places = node.places();
        let mut merge = Merge { listing: Listing::default(), seen: FxHashMap::default(), single: false };
        let upper = self.upper_dir(node)?;
        merge.single = places.len() + usize::from(upper.is_some()) == 1;
        if let Some(hidden) = node.state.lock().dir.as_ref().and_then(|dir| dir.hidden.as_ref()) {
            merge.single = false;
            hidden.names.iter().for_each(|name| merge.hide(name));
        }
        if let Some(fd) = upper {
            if node.parent().is_none() && node.ino != ROOT {
                return Ok(merge.listing);
            }
            self.list_upper(node, &fd, !places.is_empty(), &mut merge)?;
        }
        for (index, place) in places.iter().enumerate() {
            self.list_place(place, u16::try_from(index).unwrap_or(u16::MAX), &mut merge)?;
        }
        Ok(merge.finish())
    }

    fn list_upper(&self, node: &Arc<Node>, fd: &Arc<OwnedFd>, merged: bool, merge: &mut Merge) -> Result<()> {
        let device = self.upper_layer()?.stat;
        let device = crate::number::Device::of(&device);
        let directory = crate::sweep::open_dir(fd, b".")?;
        crate::sweep::each(&directory, |name, ino, kind| {
            let mut number = self.numbers.publish(device, ino);
            if kind == FileType::CharacterDevice
                || kind == FileType::Unknown
                || self.records.mentions(Kind::Origin, ino)
            {
                let stat = statx(fd, name, AtFlags::SYMLINK_NOFOLLOW, WANTED)?;
                if is_whiteout(&stat) {
                    merge.hide(name);
                    return Ok(());
                }
                number = self.upper_number(&stat);
            }
            let moved = kind == FileType::Directory
                && self.upper_layer()?.redirected.load(Ordering::Acquire)
                && crate::xattr::redirect(fd, name)?.is_some();
            if moved {
                number = self.number(&self.find(node, name)?);
            }
            let open = !moved
                && merged
                && kind == FileType::Directory
                && crate::xattr::opaque_mark(fd, name) != Some(b'y');
            merge.add(name, number, kind, Source::Upper, open);
            Ok(())
        })
    }

    fn list_place(&self, place: &Arc<Place>, index: u16, merge: &mut Merge) -> Result<()> {
        if place.hollow {
            return Ok(());
        }
        let layer = &place.layer;
        let fd = place.fd(&self.descriptors)?;
        let directory = crate::sweep::open_dir(&fd, b".")?;
        let mut marks = Vec::new();
        crate::sweep::each(&directory, |name, ino, kind| {
            let number = self.numbers.publish(layer.device, ino);
            if layer.raw && name.starts_with(b".wh.") {
                marks.push(name.to_vec());
                return Ok(());
            }
            if place.excludes(name) {
                return Ok(());
            }
            let doubtful = kind == FileType::CharacterDevice
                || kind == FileType::Unknown
                || (layer.marked_files && kind == FileType::RegularFile);
            if doubtful {
                let stat = place.stat(&self.descriptors, name)?;
                if place.deletes(&self.descriptors, name, stat.as_ref())? {
                    merge.hide(name);
                    return Ok(());
                }
            }
            merge.add(name, number, kind, Source::Place(index), kind == FileType::Directory);
            Ok(())
        })?;
        marks.iter().filter_map(|mark| mark.get(4..)).for_each(|name| merge.hide_below(name));
        Ok(())
    }

    /// Is nothing visible in this directory?
    pub(crate) fn is_empty(&self, node: &Arc<Node>) -> Result<bool> {
        match self.list(node) {
            Err(Errno::ACCESS) if self.options.unreadable_is_empty => Ok(true),
            other => other.map(|listing| listing.is_empty()),
        }
    }
}

/// A merge in progress. Layers are added topmost first.
struct Merge {
    listing: Listing,
    /// Names that upper layers showed or hid; directories that are still open to lower ones carry their number's slot.
    seen: FxHashMap<Box<[u8]>, Slot>,
    /// Only one layer has the directory, so nothing can be seen twice.
    single: bool,
}

#[derive(Clone, Copy)]
struct Slot {
    index: Option<usize>,
}

impl Merge {
    fn hide(&mut self, name: &[u8]) {
        if !self.single {
            self.seen.entry(name.into()).or_insert(Slot { index: None });
        }
    }

    /// A raw layer's mark hides the name in the layers below, not in its own.
    fn hide_below(&mut self, name: &[u8]) {
        self.hide(name);
    }

    /// `open` says that a directory of the same name in the next layer is merged into this one.
    fn add(&mut self, name: &[u8], number: u64, kind: FileType, source: Source, open: bool) {
        if self.single {
            return self.listing.push(name, number, kind, source);
        }
        if let Some(slot) = self.seen.get_mut(name) {
            // A directory that the upper holds has the number of its topmost lower.
            if let Some(index) = slot.index.take()
                && kind == FileType::Directory
            {
                self.listing.renumber(index, number);
            }
            return;
        }
        let waits = open && source == Source::Upper;
        let index = self.listing.len();
        self.seen.insert(name.into(), Slot { index: waits.then_some(index) });
        self.listing.push(name, number, kind, source);
    }

    fn finish(self) -> Listing {
        self.listing.seal()
    }
}
