//! What the upper's file system cannot say about a file, in one append-only table in the work directory: the number
//! that a copied-up file had before, the link count of a hard-linked origin, the recorded owner of a file that cannot
//! carry one. Keys are (inode number, birth time) of the upper file, so a reused inode number never matches an old row.
//! A torn last row is ignored; a later row of the same key wins.
//!
//! | kind | key              | stamp      | value                     |
//! |------|------------------|------------|---------------------------|
//! | 1    | upper inode      | birth time | published number          |
//! | 2    | published number | 0          | link count                |
//! | 3    | upper inode      | birth time | uid << 32 \| gid          |
//! | 4    | upper inode      | birth time | mode, 0 = none            |

use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use rustix::fs::{Mode, OFlags, Statx, openat};
use rustix::io::Result;
use std::os::fd::OwnedFd;

pub(crate) const FILE: &str = "fuse-overlay.records";
const ROW: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)]
pub(crate) enum Kind {
    Origin = 1,
    Links = 2,
    Owner = 3,
    Mode = 4,
}

/// An upper file that a row speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    ino: u64,
    born: u64,
}

impl Key {
    pub(crate) fn of(stat: &Statx) -> Self {
        let born = (stat.stx_btime.tv_sec as u64).wrapping_mul(1_000_000_000);
        Self { ino: stat.stx_ino, born: born.wrapping_add(u64::from(stat.stx_btime.tv_nsec)) }
    }

    pub(crate) fn number(number: u64) -> Self {
        Self { ino: number, born: 0 }
    }
}

#[derive(Default)]
pub(crate) struct Records {
    rows: Mutex<FxHashMap<(u64, u64), (u64, u64)>>,
    file: Option<OwnedFd>,
}

impl Records {
    pub(crate) fn open(work: &OwnedFd) -> Result<Self> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = openat(work, FILE, flags, Mode::from_raw_mode(0o600))?;
        let mut text = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            match rustix::io::pread(&file, &mut *buffer, text.len() as u64)? {
                0 => break,
                count => text.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            }
        }
        let whole = text.len() - text.len() % ROW;
        rustix::fs::ftruncate(&file, whole as u64)?;
        Ok(Self { rows: Mutex::new(parse(&text)), file: Some(file) })
    }

    pub(crate) fn find(&self, kind: Kind, key: Key) -> Option<u64> {
        let rows = self.rows.lock();
        let (born, value) = rows.get(&(kind as u64, key.ino))?;
        (*born == key.born).then_some(*value)
    }

    /// Is there a row for this inode number, of whatever age? A cheap question that spares most files a `statx`.
    pub(crate) fn mentions(&self, kind: Kind, ino: u64) -> bool {
        self.rows.lock().contains_key(&(kind as u64, ino))
    }

    /// Losing a row costs a stable number, not data, so a failed append is not an error of the operation.
    pub(crate) fn write(&self, kind: Kind, key: Key, value: u64) {
        let mut rows = self.rows.lock();
        if rows.insert((kind as u64, key.ino), (key.born, value)) == Some((key.born, value)) {
            return;
        }
        if let Some(file) = &self.file {
            let row = [kind as u64, key.ino, key.born, value].map(u64::to_le_bytes).concat();
            let _lost_number = rustix::io::write(file, &row);
        }
    }
}

fn parse(text: &[u8]) -> FxHashMap<(u64, u64), (u64, u64)> {
    let word = |row: &[u8], at: usize| {
        row.get(at * 8..at * 8 + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
    };
    let rows = text.chunks_exact(ROW);
    rows.map(|row| ((word(row, 0), word(row, 1)), (word(row, 2), word(row, 3)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_row_of_a_key_wins_and_a_torn_row_is_ignored() {
        let row = |value: u64| [1u64, 7, 9, value].map(u64::to_le_bytes).concat();
        let text = [row(1), row(2), vec![1; 20]].concat();
        let records = Records { rows: Mutex::new(parse(&text)), file: None };
        assert_eq!(records.find(Kind::Origin, Key { ino: 7, born: 9 }), Some(2));
        assert_eq!(records.find(Kind::Origin, Key { ino: 7, born: 8 }), None);
    }
}
