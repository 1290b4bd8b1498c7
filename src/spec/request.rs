//! What the user asked, unresolved: only words that were said, no default, no look at the machine. Filled by
//! a door, turned into a `Spec` by `resolve`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::ids::Name;
use crate::spec::mount::Mount;
use crate::spec::{Device, Rlimit, Root, Sharing, TimeOffsets};
use crate::units::Bytes;

/// What an image says of the containers that are made from it.
#[derive(Clone, Debug, Default)]
pub struct ImageDefaults {
    /// The image's id, kept with the container so that the image is not removed under it.
    pub id: String,
    pub environment: Vec<(OsString, OsString)>,
    pub entrypoint: Vec<OsString>,
    pub command: Vec<OsString>,
    pub user: Option<String>,
    pub cwd: Option<PathBuf>,
    pub stop_signal: Option<i32>,
}

/// `kelp run`, as asked.
#[derive(Clone, Debug)]
pub struct Request {
    pub root: Root,
    pub image: ImageDefaults,
    pub read_only: bool,
    pub name: Option<Name>,
    pub remove: bool,
    pub init: bool,
    pub interactive: bool,
    pub terminal: bool,
    pub command: Vec<OsString>,
    pub entrypoint: Option<OsString>,
    pub environment: Vec<(OsString, OsString)>,
    pub cwd: Option<PathBuf>,
    pub user: Option<String>,
    pub groups: Vec<String>,
    pub hostname: Option<String>,
    pub domainname: Option<String>,
    pub add_hosts: Vec<(String, String)>,
    pub mounts: Vec<Mount>,
    pub devices: Vec<Device>,
    /// Symbolic links that a device's libraries want: what each leads to, and where it is.
    pub links: Vec<(PathBuf, PathBuf)>,
    pub shm_size: Option<Bytes>,
    pub userns: UserNamespace,
    pub network: Network,
    pub pid: Sharing,
    pub ipc: Sharing,
    pub uts: Sharing,
    pub cgroupns: Sharing,
    pub time: Option<TimeOffsets>,
    pub sysctls: Vec<(String, String)>,
    pub rlimits: Vec<Rlimit>,
    pub umask: u32,
    pub oom_score_adj: Option<i32>,
    pub cap_add: Vec<String>,
    pub cap_drop: Vec<String>,
    pub security: Security,
    pub stop_signal: Option<i32>,
    pub timeout: Option<Duration>,
    pub storage: Storage,
}

/// `--storage-driver` and `--storage-opt`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Storage {
    pub driver: Option<Driver>,
    /// How much the throw-away layer may hold; 0 is no limit.
    pub bytes: u64,
    pub inodes: u64,
}

/// What makes the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    Overlay,
    Fuse,
    Copy,
}

/// `--security-opt`, taken apart.
#[derive(Clone, Debug)]
pub struct Security {
    pub no_new_privileges: bool,
    pub seccomp: SeccompChoice,
    pub mask: Vec<PathBuf>,
    pub unmask: Unmask,
    /// Whether refused changes of owner, groups and ids are answered with success when only one id is mapped.
    pub root_emulation: bool,
}

/// Which seccomp profile to use.
#[derive(Clone, Debug)]
pub enum SeccompChoice {
    Default,
    Unconfined,
    /// The text of a profile in docker's JSON format, with the name of the file it came from.
    Text(PathBuf, String),
}

/// Which default masks and read-only paths are lifted.
#[derive(Clone, Debug)]
pub enum Unmask {
    Paths(Vec<PathBuf>),
    All,
}

/// `--userns`, `--uidmap`, `--gidmap`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserNamespace {
    Auto,
    Single,
    KeepId { uid: Option<u32>, gid: Option<u32> },
    Maps { uid: Vec<Extent>, gid: Vec<Extent> },
}

/// One line of an id map as the user writes it: CONTAINER:HOST:COUNT, where HOST counts the ids that the
/// user has (0 is the user's own id, 1 the first subordinate one), as in `podman-run(1)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub container: u32,
    pub host: u32,
    pub count: u32,
}

/// `--network`.
#[derive(Clone, Debug)]
pub enum Network {
    None,
    Host,
    /// A network of its own, carried by the user-mode engine.
    User(Box<kelp_net::config::Config>),
}
