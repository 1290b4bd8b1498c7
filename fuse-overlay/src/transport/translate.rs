//! Between an overlay's plain values and fuser's: attributes, times, types, errors and the small replies. Times pass
//! through `SystemTime`, which can hold every time of a file as long as it is added up with care.

use crate::attr::{Attr, Stamp, Time};
use crate::directory::Room;
use fuser::{Errno, FileAttr, FileType, INodeNo, ReplyEmpty, ReplyXattr, TimeOrNow};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const NANOSECONDS: u32 = 1_000_000_000;

pub(super) fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_i32(error.raw_os_error())
}

pub(super) fn done(outcome: rustix::io::Result<()>, reply: ReplyEmpty) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

pub(super) fn system_time(time: Time) -> SystemTime {
    let nanoseconds = Duration::from_nanos(u64::from(time.nsec));
    let whole = if time.sec >= 0 {
        UNIX_EPOCH.checked_add(Duration::from_secs(time.sec.unsigned_abs()))
    } else {
        UNIX_EPOCH.checked_sub(Duration::from_secs(time.sec.unsigned_abs()))
    };
    whole.and_then(|whole| whole.checked_add(nanoseconds)).unwrap_or(UNIX_EPOCH)
}

/// Undoes what fuser 0.18 does to times before 1970: it takes the nanoseconds off where they must be added.
pub(super) fn stamp(time: TimeOrNow) -> Stamp {
    let TimeOrNow::SpecificTime(time) = time else { return Stamp::Now };
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Stamp::At(Time { sec: after.as_secs() as i64, nsec: after.subsec_nanos() }),
        Err(before) => {
            let before = before.duration();
            let sec = (before.as_secs() as i64).wrapping_neg();
            Stamp::At(Time { sec, nsec: before.subsec_nanos() % NANOSECONDS })
        }
    }
}

pub(super) fn file_type(kind: rustix::fs::FileType) -> FileType {
    match kind {
        rustix::fs::FileType::Directory => FileType::Directory,
        rustix::fs::FileType::Symlink => FileType::Symlink,
        rustix::fs::FileType::Fifo => FileType::NamedPipe,
        rustix::fs::FileType::Socket => FileType::Socket,
        rustix::fs::FileType::CharacterDevice => FileType::CharDevice,
        rustix::fs::FileType::BlockDevice => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(attr.kind()),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.blksize,
        flags: 0,
    }
}

pub(super) fn room(full: bool) -> Room {
    if full { Room::Full } else { Room::Taken }
}

pub(super) fn sized(outcome: rustix::io::Result<Vec<u8>>, size: u32, reply: ReplyXattr) {
    match outcome {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(errno(error)),
    }
}

const NO_TIME: Time = Time { sec: 0, nsec: 0 };
pub(super) const NOTHING: Attr = Attr {
    ino: 0,
    size: 0,
    blocks: 0,
    atime: NO_TIME,
    mtime: NO_TIME,
    ctime: NO_TIME,
    mode: 0o100_000,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 4096,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_and_at_the_ends_of_the_clock_survive() {
        for sec in [i64::MIN, -2, -1, 0, 1, i64::MAX] {
            let shown = system_time(Time { sec, nsec: 0 });
            let stamp = stamp(TimeOrNow::SpecificTime(shown));
            assert_eq!(stamp, Stamp::At(Time { sec, nsec: 0 }));
        }
    }
}
