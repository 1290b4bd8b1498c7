//! What the user asked, unresolved: only words that were said, no default, no look at the machine. Filled by
//! a door, turned into a `Spec` by `resolve`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::Name;
use crate::spec::life::{Health, HealthChoice, LogDriver, OnFailure, Restart, Stream};
use crate::spec::mount::Mount;
use crate::spec::resources::Resources;
use crate::spec::{Device, Dns, Rlimit, Root, Sharing, TimeOffsets};
use crate::units::Bytes;

/// What an image says of the containers that are made from it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ImageDefaults {
    /// The image's id, kept with the container so that the image is not removed under it.
    pub id: String,
    #[serde(with = "crate::raw::variables")]
    pub environment: Vec<(OsString, OsString)>,
    #[serde(with = "crate::raw::words")]
    pub entrypoint: Vec<OsString>,
    #[serde(with = "crate::raw::words")]
    pub command: Vec<OsString>,
    /// Ports that its services listen on, as `80/tcp`.
    #[serde(default)]
    pub exposed: Vec<String>,
    /// Where it wants volumes.
    #[serde(default)]
    pub volumes: Vec<String>,
    pub user: Option<String>,
    #[serde(with = "crate::raw::maybe_path")]
    pub cwd: Option<PathBuf>,
    pub stop_signal: Option<i32>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub health: Option<Health>,
}

/// `kelp run` or `kelp create`, as asked; kept with the container, which is started again from it. A field that
/// is added later has a default, so that older containers can still be read.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    pub root: Root,
    /// What the user called the root: `debian:12`, `@host`, or a directory.
    #[serde(default)]
    pub root_name: String,
    pub image: ImageDefaults,
    pub read_only: bool,
    pub name: Option<Name>,
    pub remove: bool,
    /// The image goes with the container, unless another is made from it.
    #[serde(default)]
    pub remove_image: bool,
    pub init: bool,
    pub interactive: bool,
    pub terminal: bool,
    #[serde(with = "crate::raw::words")]
    pub command: Vec<OsString>,
    #[serde(default, with = "crate::raw::word")]
    pub entrypoint: Option<OsString>,
    #[serde(with = "crate::raw::variables")]
    pub environment: Vec<(OsString, OsString)>,
    #[serde(default, with = "crate::raw::maybe_path")]
    pub cwd: Option<PathBuf>,
    pub user: Option<String>,
    pub groups: Vec<String>,
    pub hostname: Option<String>,
    pub domainname: Option<String>,
    pub add_hosts: Vec<(String, String)>,
    pub mounts: Vec<Mount>,
    /// The words of `--volumes-from`; what they mean is among the mounts.
    #[serde(default)]
    pub volumes_from: Vec<String>,
    #[serde(default)]
    pub secrets: Vec<SecretUse>,
    pub devices: Vec<Device>,
    /// Symbolic links that a device's libraries want: what each leads to, and where it is.
    #[serde(default)]
    pub links: Vec<(PathBuf, PathBuf)>,
    pub shm_size: Option<Bytes>,
    pub userns: UserNamespace,
    pub network: Network,
    #[serde(default)]
    pub backend: Backend,
    #[serde(default)]
    pub dns: Dns,
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
    #[serde(default)]
    pub resources: Resources,
    #[serde(default)]
    pub life: Life,
}

impl Request {
    /// What ends the container gently.
    pub fn stop_signal(&self) -> i32 {
        self.stop_signal.or(self.image.stop_signal).unwrap_or(libc::SIGTERM)
    }

    /// The image's labels, and the user's over them.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.image.labels.clone();
        labels.extend(self.life.labels.clone());
        labels
    }

    /// The health check, if there is one.
    pub fn health(&self) -> Option<Health> {
        self.life.health.clone().unwrap_or_default().over(self.image.health.as_ref())
    }

    /// Whether the end of an attached input is the end of the program's: docker's StdinOnce. Of a container that was
    /// made to be attached to later, and of a terminal, it is not.
    pub fn ends_with_its_input(&self) -> bool {
        self.interactive && !self.terminal && self.life.attached.contains(&Stream::Stdin)
    }

    /// The user's entrypoint takes the place of the image's with its command; the user's command that of the image's.
    pub fn arguments(&self) -> Vec<OsString> {
        let image = &self.image;
        let words: Vec<OsString> = match &self.entrypoint {
            Some(program) => [program]
                .into_iter()
                .filter(|program| !program.is_empty())
                .chain(&self.command)
                .cloned()
                .collect(),
            None if self.command.is_empty() => {
                image.entrypoint.iter().chain(&image.command).cloned().collect()
            }
            None => image.entrypoint.iter().chain(&self.command).cloned().collect(),
        };
        if words.is_empty() && self.root == Root::Host {
            return vec![OsString::from("/bin/sh")];
        }
        words
    }
}

/// What is asked of a container beside what it is: how it is watched and told apart.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Life {
    pub restart: Restart,
    /// How long `stop` waits; docker's ten seconds if nothing is said.
    pub stop_timeout: Option<i64>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub log: LogDriver,
    /// `None` is the image's.
    pub health: Option<HealthChoice>,
    #[serde(default)]
    pub on_failure: OnFailure,
    /// What the command that makes the container attaches: nothing with `-d`, the choice of `-a`, or all.
    #[serde(default)]
    pub attached: Vec<Stream>,
    /// The keys that leave an attached container running; docker's grammar.
    pub detach_keys: Option<String>,
    #[serde(default, with = "crate::raw::maybe_path")]
    pub pidfile: Option<PathBuf>,
}

/// `--secret`: a secret of the store by name. What it says is read at each start and stands in no record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretUse {
    pub name: Name,
    pub id: String,
    pub place: SecretPlace,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SecretPlace {
    Variable(String),
    File {
        #[serde(with = "crate::raw::path")]
        target: PathBuf,
        /// Without one, the container's root.
        uid: Option<u32>,
        gid: Option<u32>,
        mode: u32,
    },
}

/// `--storage-driver` and `--storage-opt`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Storage {
    pub driver: Option<Driver>,
    /// How much the throw-away layer may hold; 0 is no limit.
    pub bytes: u64,
    pub inodes: u64,
}

/// What makes the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Driver {
    Overlay,
    OverlayOnFuse,
    Fuse,
    Copy,
}

/// `--security-opt`, taken apart.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Security {
    pub no_new_privileges: bool,
    pub seccomp: SeccompChoice,
    #[serde(with = "crate::raw::paths")]
    pub mask: Vec<PathBuf>,
    pub unmask: Unmask,
    /// Whether refused changes of owner, groups and ids are answered with success when only one id is mapped.
    pub root_emulation: bool,
}

/// Which seccomp profile to use.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum SeccompChoice {
    Default,
    Unconfined,
    /// The text of a profile in docker's JSON format, with the name of the file it came from.
    Text(#[serde(with = "crate::raw::path")] PathBuf, String),
}

/// Which default masks and read-only paths are lifted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Unmask {
    Paths(#[serde(with = "crate::raw::paths")] Vec<PathBuf>),
    All,
}

/// `--userns`, `--uidmap`, `--gidmap`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UserNamespace {
    Auto,
    Single,
    KeepId { uid: Option<u32>, gid: Option<u32> },
    Maps { uid: Vec<Extent>, gid: Vec<Extent> },
}

/// One line of an id map as the user writes it: CONTAINER:HOST:COUNT, where HOST counts the ids that the
/// user has (0 is the user's own id, 1 the first subordinate one), as in `podman-run(1)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    pub container: u32,
    pub host: u32,
    pub count: u32,
}

/// `--network`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Network {
    None,
    Host,
    /// A network of its own, carried by a user-mode engine.
    User(Box<kelp_net::config::Config>),
    /// That of another container: the user's word for it, and once the container is made its id.
    Container(String),
}

/// `--network-backend`: who carries a network of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backend {
    #[default]
    Kelp,
    Slirp4netns,
    Pasta,
}

impl Backend {
    /// What it is called, and its program.
    pub fn word(self) -> &'static str {
        match self {
            Self::Kelp => "kelp",
            Self::Slirp4netns => "slirp4netns",
            Self::Pasta => "pasta",
        }
    }
}
