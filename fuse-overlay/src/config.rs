//! What the user asked of an overlay: plain data, decided before anything is opened. It knows no FUSE and no command
//! line; `options.rs` and kelp fill it in. A directory may come as a path or as a descriptor that the caller opened,
//! because a server in a user namespace may hold what it could not open by name any more.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// A directory of the host, by name or already open (`O_PATH` is enough).
#[derive(Debug)]
pub enum Directory {
    Path(PathBuf),
    Fd(OwnedFd),
}

/// One read-only layer, and how it is to be read.
#[derive(Debug)]
pub struct Lower {
    pub directory: Directory,
    /// Stay on the layer's own mount: whatever is mounted below it shows as an empty directory.
    pub xdev: bool,
    /// Paths relative to the layer, without a leading slash, that are not there.
    pub exclude: Vec<Vec<u8>>,
    /// The layer is an unpacked OCI archive whose `.wh.` names are whiteouts. Elsewhere they are ordinary names.
    pub raw: bool,
}

impl Lower {
    pub fn path(path: impl Into<PathBuf>) -> Self {
        Self { directory: Directory::Path(path.into()), xdev: false, exclude: Vec::new(), raw: false }
    }
}

/// A run of ids: `inside` is what the mount shows, `outside` what the layer's files carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    pub inside: u32,
    pub outside: u32,
    pub count: u32,
}

/// How owners of files are shown and stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// Files have real owners (mode A of the documentation).
    Real,
    /// Owners and modes are recorded beside the file, which stays ours (mode B).
    Recorded,
}

/// A pair of ids that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// How much the upper may hold and how fast it may be used; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub bytes: u64,
    pub inodes: u64,
    pub read_bytes_per_second: u64,
    pub write_bytes_per_second: u64,
    pub reads_per_second: u64,
    pub writes_per_second: u64,
}

/// Everything an overlay needs to be built.
#[derive(Debug)]
pub struct Config {
    /// Topmost first, as `lowerdir=` lists them.
    pub lowers: Vec<Lower>,
    /// Without one the mount is read-only.
    pub upper: Option<Directory>,
    /// A directory on the upper's file system for files that are not yet visible. Required with an upper.
    pub work: Option<Directory>,
    pub owners: Owners,
    /// Every file is shown as owned by this uid and this gid.
    pub squash_uid: Option<u32>,
    pub squash_gid: Option<u32>,
    /// Files of a lower whose owner has no name in our user namespace are shown as owned by this one.
    pub squash_unmapped: Option<Owner>,
    pub uid_map: Vec<IdRange>,
    pub gid_map: Vec<IdRange>,
    pub limits: Limits,
    /// Nothing is flushed to the disk: after a power cut the upper is worthless.
    pub volatile: bool,
    /// The layers may change behind our back: nothing is cached for longer than a second.
    pub coherent: bool,
    /// Small writes gather in the kernel's page cache.
    pub writeback: bool,
    /// A directory that a lower holds can be renamed. The kernel refuses to mount an upper where that happened.
    pub redirect: bool,
    /// Access control lists hold. They need real owners.
    pub acl: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            lowers: Vec::new(),
            upper: None,
            work: None,
            owners: Owners::Real,
            squash_uid: None,
            squash_gid: None,
            squash_unmapped: None,
            uid_map: Vec::new(),
            gid_map: Vec::new(),
            limits: Limits::default(),
            volatile: false,
            coherent: false,
            writeback: true,
            redirect: false,
            acl: true,
        }
    }
}
