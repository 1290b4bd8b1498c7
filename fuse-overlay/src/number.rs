//! Inode numbers that the mount publishes. A number is also the node's id on the wire, so it must be unique in the
//! mount, stable over copy-up and remount, and neither 0 nor 1. Files of the first file system keep their own number;
//! the others carry the index of their file system in the top byte; what does not fit is hashed into a range of its own.

use parking_lot::RwLock;
use rustix::fs::Statx;
use std::hash::{DefaultHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

/// The root of a FUSE mount always has this id.
pub(crate) const ROOT: u64 = 1;
const SHIFT: u32 = 56;
const HASHED: u64 = 1 << 63;
const FRESH: u64 = 1 << 62;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    major: u32,
    minor: u32,
}

impl Device {
    pub(crate) fn of(stat: &Statx) -> Self {
        Self { major: stat.stx_dev_major, minor: stat.stx_dev_minor }
    }
}

#[derive(Default)]
pub(crate) struct Numbers {
    devices: RwLock<Vec<Device>>,
    fresh: AtomicU64,
}

impl Numbers {
    /// The number of inode `ino` of file system `device`.
    pub(crate) fn publish(&self, device: Device, ino: u64) -> u64 {
        let index = self.index(device);
        if ino > ROOT && ino >> SHIFT == 0 && index < 62 {
            return (index << SHIFT) | ino;
        }
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(index);
        hasher.write_u64(ino);
        HASHED | (hasher.finish() >> 2)
    }

    pub(crate) fn of(&self, stat: &Statx) -> u64 {
        self.publish(Device::of(stat), stat.stx_ino)
    }

    /// A number that no file has, for the rare file whose own number is taken by another node.
    pub(crate) fn fresh(&self) -> u64 {
        FRESH | self.fresh.fetch_add(1, Ordering::Relaxed)
    }

    fn index(&self, device: Device) -> u64 {
        let known = |devices: &[Device]| devices.iter().position(|d| *d == device);
        if let Some(index) = known(&self.devices.read()) {
            return index as u64;
        }
        let mut devices = self.devices.write();
        known(&devices).unwrap_or_else(|| {
            devices.push(device);
            devices.len() - 1
        }) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_two_file_systems_never_meet_and_the_root_number_stays_free() {
        let numbers = Numbers::default();
        let (a, b) = (Device { major: 8, minor: 1 }, Device { major: 0, minor: 40 });
        assert_eq!(numbers.publish(a, 12), 12);
        assert_ne!(numbers.publish(b, 12), 12);
        assert_ne!(numbers.publish(a, u64::MAX), numbers.publish(b, u64::MAX));
        assert!([0, 1].iter().all(|ino| numbers.publish(a, *ino) > ROOT));
        assert_eq!(numbers.publish(b, 12), numbers.publish(b, 12));
    }
}
