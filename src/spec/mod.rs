//! What a container is to be, as plain data: the OCI runtime specification's content, with every default
//! filled in and nothing left that depends on the machine's mood. `request` is what was asked, `resolve` is
//! the one pure function from there to here; the doors translate their own formats to one of the two.

pub mod capability;
pub mod cdi;
pub mod defaults;
pub mod exec;
pub mod life;
pub mod limits;
pub mod mount;
pub mod request;
pub mod resolve;
pub mod resources;
pub mod seccomp;
pub mod syscalls;

use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::spec::capability::CapabilitySet;
use crate::spec::mount::Mount;
use crate::spec::request::Backend;
use crate::spec::seccomp::Profile;
use crate::units::CpuSet;

/// One container, whole.
#[derive(Clone, Debug)]
pub struct Spec {
    pub root: Root,
    pub read_only_root: bool,
    pub mounts: Vec<Mount>,
    pub namespaces: Namespaces,
    pub hostname: Option<String>,
    pub domainname: Option<String>,
    /// The user-mode network, if the container has one, and who carries it.
    pub engine: Option<kelp_net::config::Config>,
    pub backend: Backend,
    /// Whether the network is another container's, whose user namespace is joined with it.
    pub beside: bool,
    /// The addresses that the container's files tell of: its own, or those of the container beside which it runs.
    pub addresses: Option<kelp_net::config::Config>,
    pub dns: Dns,
    pub hosts: Vec<(String, String)>,
    pub masked_paths: Vec<PathBuf>,
    pub read_only_paths: Vec<PathBuf>,
    pub devices: Vec<Device>,
    /// Symbolic links made in the root: what each leads to, and where it is.
    pub links: Vec<(PathBuf, PathBuf)>,
    pub sysctls: Vec<(String, String)>,
    pub process: Process,
    /// Whether /proc shows the container's own numbers.
    pub view: bool,
    pub init: bool,
    pub timeout: Option<Duration>,
}

/// Where the files of the root come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Root {
    /// The machine's own userland below a throw-away layer.
    Host,
    /// The unpacked layers of an image, lowest first, below a throw-away layer.
    Layers(#[serde(with = "crate::raw::paths")] Vec<PathBuf>),
    /// A directory below a throw-away layer, or written through.
    Directory {
        #[serde(with = "crate::raw::path")]
        path: PathBuf,
        writes: Writes,
    },
}

/// Where writes to the root go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Writes {
    Layer,
    Through,
}

/// Whether the container has a namespace of its own or shares the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sharing {
    Private,
    Host,
}

/// The namespaces that a user can choose; user and mount are always private.
#[derive(Clone, Debug)]
pub struct Namespaces {
    pub pid: Sharing,
    pub ipc: Sharing,
    pub uts: Sharing,
    pub cgroup: Sharing,
    pub network: Sharing,
    pub time: Option<TimeOffsets>,
}

/// Seconds that the container's clocks are ahead of the host's (`time_namespaces(7)`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeOffsets {
    pub boottime: i64,
    pub monotonic: i64,
}

/// A device node of the host that is bound into the container; nodes can't be made in a user namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    #[serde(with = "crate::raw::path")]
    pub host: PathBuf,
    #[serde(with = "crate::raw::path")]
    pub container: PathBuf,
    pub read_only: bool,
}

/// The program and what it runs with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Process {
    pub arguments: Vec<OsString>,
    pub environment: Vec<(OsString, OsString)>,
    #[serde(with = "crate::raw::path")]
    pub cwd: PathBuf,
    /// `USER[:GROUP]`, looked up in the container's own passwd and group files by the child.
    pub user: String,
    pub additional_groups: Vec<String>,
    pub keep_groups: bool,
    pub terminal: bool,
    pub stdin: bool,
    pub capabilities: CapabilitySet,
    pub no_new_privileges: bool,
    pub rlimits: Vec<Rlimit>,
    /// What stands in for controllers that are not ours.
    pub inherited: Inherited,
    /// Compiled before the launch, so the child never needs it.
    #[serde(skip)]
    pub seccomp: Profile,
    pub umask: u32,
    /// Whether abstract sockets made outside are out of reach though the network is the host's.
    pub scope_abstract_sockets: bool,
    pub oom_score_adj: Option<i32>,
}

/// Limits that the program starts with and hands on to its children.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inherited {
    pub affinity: Option<CpuSet>,
    pub nice: i32,
    /// A level of `ioprio_set(2)`'s best-effort class.
    pub io_priority: Option<u8>,
    /// How many processes and threads the user namespace may hold, with those of kelp that serve it.
    pub processes: Option<u64>,
}

/// One resource limit; `u64::MAX` is unlimited.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    pub resource: u32,
    pub name: String,
    pub soft: u64,
    pub hard: u64,
}

/// `--dns`, `--dns-search` and `--dns-option`: what resolv.conf says in place of the host's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    pub servers: Vec<std::net::IpAddr>,
    pub search: Vec<String>,
    pub options: Vec<String>,
}
