//! A file's attributes as the mount shows them, and the changes a caller may ask for. Plain values: times are whole
//! seconds and nanoseconds from end to end, because a clock type panics on a file older than 1970.

use rustix::fs::{FileType, Statx, StatxFlags, StatxTimestamp};

/// What every `statx` of this crate asks for.
pub(crate) const WANTED: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    pub sec: i64,
    pub nsec: u32,
}

impl From<StatxTimestamp> for Time {
    fn from(stamp: StatxTimestamp) -> Self {
        Self { sec: stamp.tv_sec, nsec: stamp.tv_nsec }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    pub ino: u64,
    pub size: u64,
    pub blocks: u64,
    pub atime: Time,
    pub mtime: Time,
    pub ctime: Time,
    /// Type and permission bits, as `st_mode`.
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    /// As `mknod(2)` of the kernel encodes it in 32 bits.
    pub rdev: u32,
    pub blksize: u32,
}

impl Attr {
    pub(crate) fn new(ino: u64, stat: &Statx) -> Self {
        Self {
            ino,
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            atime: stat.stx_atime.into(),
            mtime: stat.stx_mtime.into(),
            ctime: stat.stx_ctime.into(),
            mode: u32::from(stat.stx_mode),
            nlink: stat.stx_nlink,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            rdev: encode_device(stat.stx_rdev_major, stat.stx_rdev_minor),
            blksize: stat.stx_blksize,
        }
    }

    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }
}

/// A time that a caller sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamp {
    Now,
    At(Time),
}

/// What `setattr` changes; `None` leaves it alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<Stamp>,
    pub mtime: Option<Stamp>,
}

/// Who asks: a new file belongs to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    /// Permissions that a new file does not get, unless its directory has a default access control list.
    pub umask: u32,
}

/// The kernel's `new_encode_dev`.
pub(crate) fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The reverse of `encode_device`, as a `dev_t` of the C library.
pub(crate) fn decode_device(rdev: u32) -> u64 {
    rustix::fs::makedev((rdev & 0xf_ff00) >> 8, (rdev & 0xff) | ((rdev >> 12) & 0xf_ff00))
}

pub(crate) fn kind_of(stat: &Statx) -> FileType {
    FileType::from_raw_mode(u32::from(stat.stx_mode))
}

/// A character device 0/0: the name is deleted (overlayfs.rst, "whiteouts and opaque directories").
pub(crate) fn is_whiteout(stat: &Statx) -> bool {
    kind_of(stat) == FileType::CharacterDevice && stat.stx_rdev_major == 0 && stat.stx_rdev_minor == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_number_survives_encoding() {
        for (major, minor) in [(0, 0), (1, 3), (8, 255), (259, 70_000), (4095, 0xf_ffff)] {
            assert_eq!(decode_device(encode_device(major, minor)), rustix::fs::makedev(major, minor));
        }
    }
}
