//! A merged directory listing. Cookies are a hash of the name, and the entries stand in their order: a reader that
//! comes back with a cookie goes on behind it, whatever was created, removed or rebuilt in between. So no state hangs
//! on an open directory, each entry is seen once, and a listing is only a cache that may be dropped at any time.

use rustix::fs::FileType;
use std::hash::{DefaultHasher, Hasher};

/// `.` and `..` come first.
pub(crate) const DOT: u64 = 1;
pub(crate) const DOT_DOT: u64 = 2;
const FIRST: u64 = 16;

/// Where an entry was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Upper,
    /// Index into the directory's places.
    Place(u16),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) cookie: u64,
    pub(crate) ino: u64,
    pub(crate) kind: FileType,
    pub(crate) source: Source,
    gone: bool,
    start: u32,
    length: u16,
}

#[derive(Debug, Default)]
pub(crate) struct Listing {
    entries: Vec<Entry>,
    names: Vec<u8>,
}

fn cookie(name: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(name);
    // Offsets of a directory are signed for user space, and the lowest are taken.
    (hasher.finish() >> 2).max(FIRST)
}

impl Listing {
    pub(crate) fn push(&mut self, name: &[u8], ino: u64, kind: FileType, source: Source) {
        let start = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        let length = u16::try_from(name.len()).unwrap_or(0);
        self.names.extend_from_slice(name);
        self.entries.push(Entry { cookie: cookie(name), ino, kind, source, gone: false, start, length });
    }

    /// Puts the entries in order and makes cookies unique; called once, after the last `push`.
    pub(crate) fn seal(mut self) -> Self {
        let names = std::mem::take(&mut self.names);
        let text = |entry: &Entry| slice(&names, entry);
        self.entries.sort_unstable_by(|a, b| a.cookie.cmp(&b.cookie).then_with(|| text(a).cmp(text(b))));
        let mut last = 0;
        for entry in &mut self.entries {
            entry.cookie = entry.cookie.max(last + 1);
            last = entry.cookie;
        }
        self.names = names;
        self
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Changes the number of the entry that was pushed as the `index`th.
    pub(crate) fn renumber(&mut self, index: usize, ino: u64) {
        if let Some(entry) = self.entries.get_mut(index) {
            entry.ino = ino;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.iter().all(|entry| entry.gone)
    }

    /// The first entry behind `cookie`.
    pub(crate) fn after(&self, cookie: u64) -> Option<(Entry, &[u8])> {
        let index = self.entries.partition_point(|entry| entry.cookie <= cookie);
        let mut rest = self.entries.get(index..)?.iter();
        rest.find(|entry| !entry.gone).map(|entry| (*entry, slice(&self.names, entry)))
    }

    /// The directory lost or gained a name while a reader is in the middle.
    pub(crate) fn remove(&mut self, name: &[u8]) {
        let wanted = cookie(name);
        let names = &self.names;
        let first = self.entries.partition_point(|entry| entry.cookie < wanted);
        let near = self.entries.iter_mut().skip(first).take(8);
        for entry in near {
            if slice(names, entry) == name {
                entry.gone = true;
            }
        }
    }

    pub(crate) fn insert(&mut self, name: &[u8], ino: u64, kind: FileType, source: Source) {
        self.remove(name);
        let at = cookie(name);
        let index = self.entries.partition_point(|entry| entry.cookie < at);
        self.push(name, ino, kind, source);
        if let Some(entry) = self.entries.pop() {
            self.entries.insert(index, entry);
        }
    }
}

fn slice<'a>(names: &'a [u8], entry: &Entry) -> &'a [u8] {
    let start = entry.start as usize;
    names.get(start..start + usize::from(entry.length)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(listing: &Listing) -> Vec<Vec<u8>> {
        let mut at = DOT_DOT;
        std::iter::from_fn(|| {
            let (entry, name) = listing.after(at)?;
            at = entry.cookie;
            Some(name.to_vec())
        })
        .collect()
    }

    #[test]
    fn a_reader_sees_each_name_once_while_names_come_and_go() {
        let mut listing = Listing::default();
        for i in 0..1000 {
            listing.push(format!("n{i}").as_bytes(), i, FileType::RegularFile, Source::Upper);
        }
        let mut listing = listing.seal();
        assert_eq!(walk(&listing).len(), 1000);
        listing.remove(b"n5");
        listing.insert(b"new", 1, FileType::RegularFile, Source::Upper);
        listing.insert(b"n7", 1, FileType::RegularFile, Source::Upper);
        let mut seen = walk(&listing);
        let count = seen.len();
        seen.sort();
        seen.dedup();
        assert_eq!((count, seen.len()), (1000, 1000));
        assert!(!seen.contains(&b"n5".to_vec()));
    }
}
