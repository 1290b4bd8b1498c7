//! How much the upper may hold, and how fast it may be used. The quota counts blocks and inodes of the upper as they
//! change; it is seeded by walking the upper once, and only if there is a limit. The throttle is a token bucket that
//! says how long a reply must wait; who waits, and where, is the transport's business.

use crate::config::Limits;
use parking_lot::Mutex;
use rustix::fs::{FileType, Statx};
use rustix::io::{Errno, Result};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What the upper holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Quota {
    bytes_limit: AtomicU64,
    inodes_limit: AtomicU64,
    bytes: AtomicU64,
    inodes: AtomicU64,
    pub(crate) reads: Throttle,
    pub(crate) writes: Throttle,
}

impl Quota {
    pub(crate) fn new(limits: Limits) -> Self {
        let quota = Self::default();
        quota.change(limits);
        quota
    }

    pub(crate) fn change(&self, limits: Limits) {
        self.bytes_limit.store(limits.bytes, Ordering::Relaxed);
        self.inodes_limit.store(limits.inodes, Ordering::Relaxed);
        self.reads.change(limits.read_bytes_per_second, limits.reads_per_second);
        self.writes.change(limits.write_bytes_per_second, limits.writes_per_second);
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            bytes: self.bytes_limit.load(Ordering::Relaxed),
            inodes: self.inodes_limit.load(Ordering::Relaxed),
            read_bytes_per_second: self.reads.bytes.rate.load(Ordering::Relaxed),
            write_bytes_per_second: self.writes.bytes.rate.load(Ordering::Relaxed),
            reads_per_second: self.reads.operations.rate.load(Ordering::Relaxed),
            writes_per_second: self.writes.operations.rate.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage { bytes: self.bytes.load(Ordering::Relaxed), inodes: self.inodes.load(Ordering::Relaxed) }
    }

    pub(crate) fn is_limited(&self) -> bool {
        let limits = self.limits();
        limits.bytes > 0 || limits.inodes > 0
    }

    /// Counts what the upper holds already.
    pub(crate) fn count(&self, root: &OwnedFd) -> Result<()> {
        if self.is_limited() { self.count_below(root) } else { Ok(()) }
    }

    fn count_below(&self, directory: &OwnedFd) -> Result<()> {
        let fd = crate::sweep::open_dir(directory, b".")?;
        crate::sweep::each(&fd, |name, _, _| {
            let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
            let stat = rustix::fs::statx(&fd, name, flags, crate::attr::WANTED)?;
            // A file with several names counts in parts, so that the sum is right.
            let share =
                if crate::attr::kind_of(&stat) == FileType::Directory { 1 } else { stat.stx_nlink.max(1) };
            self.bytes.fetch_add(stat.stx_blocks * 512 / u64::from(share), Ordering::Relaxed);
            self.inodes.fetch_add(u64::from(share == 1), Ordering::Relaxed);
            if crate::attr::kind_of(&stat) == FileType::Directory {
                self.count_below(&crate::sweep::open_dir(&fd, name)?)?;
            }
            Ok(())
        })
    }

    /// May the upper grow by so many bytes?
    pub(crate) fn admit_bytes(&self, more: u64) -> Result<()> {
        let limit = self.bytes_limit.load(Ordering::Relaxed);
        let full = limit > 0 && self.bytes.load(Ordering::Relaxed).saturating_add(more) > limit;
        if full { Err(Errno::DQUOT) } else { Ok(()) }
    }

    pub(crate) fn admit_inode(&self) -> Result<()> {
        let limit = self.inodes_limit.load(Ordering::Relaxed);
        if limit > 0 && self.inodes.load(Ordering::Relaxed) >= limit { Err(Errno::DQUOT) } else { Ok(()) }
    }

    /// The blocks of a file changed from `before` to `after`.
    pub(crate) fn moved(&self, before: u64, after: u64) {
        if after >= before {
            self.bytes.fetch_add((after - before) * 512, Ordering::Relaxed);
        } else {
            self.lower(&self.bytes, (before - after) * 512);
        }
    }

    pub(crate) fn gained(&self, stat: &Statx) {
        self.inodes.fetch_add(1, Ordering::Relaxed);
        self.moved(0, stat.stx_blocks);
    }

    /// The last name of a file went.
    pub(crate) fn lost(&self, stat: &Statx) {
        self.lower(&self.inodes, 1);
        self.moved(stat.stx_blocks, 0);
    }

    fn lower(&self, counter: &AtomicU64, by: u64) {
        let subtract = |value: u64| Some(value.saturating_sub(by));
        let _always_some = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, subtract);
    }
}

/// One direction: bytes and operations are counted apart, and a reply waits for the later of the two.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    bytes: Bucket,
    operations: Bucket,
}

impl Throttle {
    fn change(&self, bytes: u64, operations: u64) {
        self.bytes.rate.store(bytes, Ordering::Relaxed);
        self.operations.rate.store(operations, Ordering::Relaxed);
    }

    /// Takes one operation of so many bytes and says when it may be answered; `None` is now.
    pub(crate) fn take(&self, bytes: u64, now: Instant) -> Option<Instant> {
        self.bytes.take(bytes, now).max(self.operations.take(1, now))
    }
}

/// A token bucket that holds a quarter of a second.
#[derive(Debug, Default)]
struct Bucket {
    rate: AtomicU64,
    /// The time at which everything taken so far is paid for.
    paid: Mutex<Option<Instant>>,
}

impl Bucket {
    /// Takes so much and says when it may be handed out; `None` is now.
    fn take(&self, amount: u64, now: Instant) -> Option<Instant> {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == 0 {
            return None;
        }
        let burst = Duration::from_millis(250);
        let cost = Duration::from_secs_f64(amount as f64 / rate as f64);
        let mut paid = self.paid.lock();
        let start = paid.unwrap_or(now).max(now.checked_sub(burst).unwrap_or(now));
        let end = start + cost;
        *paid = Some(end);
        (end > now).then_some(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_lets_a_burst_through_and_then_keeps_the_rate() {
        let bucket = Bucket::default();
        bucket.rate.store(1000, Ordering::Relaxed);
        let now = Instant::now();
        assert!(bucket.take(100, now).is_some(), "an idle bucket starts without credit");
        let later = now + Duration::from_secs(5);
        assert_eq!(bucket.take(250, later), None);
        assert_eq!(bucket.take(1000, later), Some(later + Duration::from_secs(1)));
    }

    #[test]
    fn operations_wait_whatever_their_size() {
        let throttle = Throttle::default();
        throttle.change(1_000_000, 10);
        let now = Instant::now();
        assert_eq!(throttle.take(1, now), Some(now + Duration::from_millis(100)));
        assert_eq!(
            throttle.take(1_000_000, now),
            Some(now + Duration::from_millis(1000) + Duration::from_micros(1))
        );
    }

    #[test]
    fn a_full_quota_refuses_and_a_removal_makes_room() {
        let quota = Quota::new(Limits { bytes: 4096, inodes: 1, ..Limits::default() });
        quota.moved(0, 8);
        assert_eq!(quota.admit_bytes(1), Err(Errno::DQUOT));
        quota.moved(8, 0);
        assert_eq!(quota.admit_bytes(4096), Ok(()));
    }
}
