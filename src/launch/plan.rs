//! The plan: an ordered list of kernel steps with nothing left to decide, made by one pure function from the
//! spec. It can be printed (`--explain`), compared with a golden text, and carried out by the child.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};

use crate::rootfs::host::Piece;
use crate::rootfs::overlay::Persistence;
use crate::rootfs::rung::Rung;
use crate::spec::mount::{Mount, MountKind};
use crate::spec::seccomp::Profile;
use crate::spec::{Device, Process, Root, Sharing, Spec, TimeOffsets};
use crate::userns::maps::IdMaps;

/// Everything that the child does, in order, and what it becomes at the end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// `CLONE_NEW*` of the one clone.
    pub namespaces: u64,
    /// How many of the first steps need no id, and so no map: the child takes them while the helpers write it.
    pub early: usize,
    pub steps: Vec<Step>,
    pub process: Process,
    pub maps: IdMaps,
    pub first: First,
    pub keeper: Keeper,
}

/// What becomes of the process that was cloned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum First {
    /// It is the program.
    Program,
    /// `--init`: kelp stays as pid 1, and the program is its child.
    Init,
    /// `--pid host`: no namespace ends what the program leaves behind, so kelp stays to end it.
    Adopter,
}

/// Whose end is the program's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Keeper {
    Monitor,
    Nobody,
}

/// One step of the child. `Display` is its name in an error and in `--explain`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Step {
    TimeOffsets(TimeOffsets),
    OomScore(i32),
    BecomeRoot {
        keep_groups: bool,
    },
    Seal,
    Hide,
    Root(RootStep),
    Mount {
        mount: Mount,
        shown: String,
    },
    Console,
    Device(Device),
    Link {
        #[serde(with = "crate::raw::path")]
        to: PathBuf,
        #[serde(with = "crate::raw::path")]
        at: PathBuf,
    },
    /// A file of kelp's own (hosts, hostname, resolv.conf) over the container's.
    File {
        #[serde(with = "crate::raw::path")]
        target: PathBuf,
        text: String,
    },
    /// A file in memory that only the container sees.
    Secret(SecretFile),
    /// The container's own numbers over the machine's.
    View,
    Mask(#[serde(with = "crate::raw::path")] PathBuf),
    ReadOnly(#[serde(with = "crate::raw::path")] PathBuf),
    /// The root, and the overlays that a root of pieces is covered with.
    ReadOnlyRoot(#[serde(with = "crate::raw::paths")] Vec<PathBuf>),
    Pivot,
    CgroupNamespace,
    /// `CLONE_NEW*` that the child makes itself while its maps are written: a network namespace takes longer to
    /// make than all others together.
    Unshare(u64),
    Loopback,
    Hostname(String),
    Domainname(String),
    Sysctl {
        name: String,
        value: String,
    },
}

/// A secret and who may read it inside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SecretFile {
    #[serde(with = "crate::raw::path")]
    pub target: PathBuf,
    pub content: Hidden,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub mode: u32,
}

/// Bytes that nobody prints.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Hidden(pub Vec<u8>);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("...")
    }
}

/// How the root is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RootStep {
    pub rung: Rung,
    /// The container's folder, where the child stands meanwhile.
    #[serde(with = "crate::raw::path")]
    pub folder: PathBuf,
    pub source: RootSource,
    pub persistence: Persistence,
    pub upper: Upper,
}

/// Whether the throw-away layer is there from an earlier start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Upper {
    Fresh,
    Used,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum RootSource {
    Directory(#[serde(with = "crate::raw::path")] PathBuf),
    /// Lowest first.
    Layers(#[serde(with = "crate::raw::paths")] Vec<PathBuf>),
    /// The pieces of `@host`.
    Host(Vec<Piece>),
}

impl Plan {
    /// Whether the child is born into the user namespace of another container, which has its maps.
    pub fn is_beside(&self) -> bool {
        self.namespaces & libc::CLONE_NEWUSER as u64 == 0
    }
}

impl Step {
    /// Whether nothing outside goes on with what the step has made before the program runs, and the child is not another.
    pub fn is_done_inside(&self) -> bool {
        match self {
            Self::Root(root) => !root.rung.is_served(),
            Self::Console | Self::View | Self::Seal => false,
            _ => true,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimeOffsets(offsets) => write!(
                f,
                "set the clocks of a new time namespace {} s (boottime) and {} s (monotonic) ahead",
                offsets.boottime, offsets.monotonic
            ),
            Self::OomScore(score) => write!(f, "set oom_score_adj to {score}"),
            Self::BecomeRoot { keep_groups: false } => f.write_str("become root of the user namespace"),
            Self::BecomeRoot { keep_groups: true } => {
                f.write_str("become root of the user namespace, keeping the caller's groups")
            }
            Self::Seal => f.write_str("run on from a read-only copy of kelp"),
            Self::Hide => f.write_str("make the process not dumpable"),
            Self::Root(root) => write!(f, "{root}"),
            Self::Mount { shown, .. } => f.write_str(shown),
            Self::Console => f.write_str("open a terminal and bind it on /dev/console"),
            Self::Device(device) => {
                write!(f, "bind device {} on {}", device.host.display(), device.container.display())
            }
            Self::Link { to, at } => write!(f, "link {} to {}", at.display(), to.display()),
            Self::File { target, .. } => write!(f, "put kelp's {} over the container's", target.display()),
            Self::Secret(secret) => write!(f, "put a secret on {}", secret.target.display()),
            Self::View => f.write_str("put the container's own numbers over /proc and /sys"),
            Self::Mask(path) => write!(f, "mask {}", path.display()),
            Self::ReadOnly(path) => write!(f, "make {} read-only", path.display()),
            Self::ReadOnlyRoot(_) => f.write_str("make the root read-only"),
            Self::Pivot => f.write_str("pivot into the root and detach the old one"),
            Self::CgroupNamespace => f.write_str("unshare the cgroup namespace"),
            Self::Unshare(flags) => write!(f, "unshare {}", names(*flags).join(", ")),
            Self::Loopback => f.write_str("bring up lo"),
            Self::Hostname(name) => write!(f, "set the host name to {name}"),
            Self::Domainname(name) => write!(f, "set the domain name to {name}"),
            Self::Sysctl { name, value } => write!(f, "set sysctl {name} to {value}"),
        }
    }
}

impl fmt::Display for RootStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            RootSource::Directory(path) => write!(f, "make the root from {} ({})", path.display(), self.rung),

            RootSource::Layers(layers) => {
                write!(f, "make the root from {} layers ({})", layers.len(), self.rung)
            }
            RootSource::Host(_) if self.rung.is_served() => {
                write!(f, "make the root from the host's / ({})", self.rung)
            }
            RootSource::Host(pieces) => {
                let overlays: Vec<String> =
                    overlays(pieces).iter().map(|path| path.display().to_string()).collect();
                write!(f, "make the root from the host's {} ({})", overlays.join(" "), self.rung)
            }
        }
    }
}

/// What the plan needs to know beside the spec.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The container's folder in the store.
    pub folder: PathBuf,
    pub rung: Rung,
    pub persistence: Persistence,
    pub upper: Upper,
    pub maps: IdMaps,
    /// The pieces of `@host`; empty for other roots.
    pub pieces: Vec<Piece>,
    /// Whether the child goes on from a sealed copy: kelp's own file belongs to an id of the container, which
    /// could then write to it (CVE-2019-5736), or kelp stays as the first process and would show its command line.
    pub seal: bool,
    /// Files of kelp's own: where each belongs, and its text.
    pub files: Vec<(&'static str, String)>,
    pub secrets: Vec<SecretFile>,
}

/// The plan for `spec`.
pub fn from_spec(spec: &Spec, around: &Surroundings) -> Plan {
    let mut steps = early(spec);
    let early = steps.len();
    steps.extend(spec.namespaces.time.map(Step::TimeOffsets));
    // Beside another container the process that makes the child has done it: the child may not look at itself.
    steps.extend(spec.process.oom_score_adj.filter(|_| !spec.beside).map(Step::OomScore));
    steps.push(Step::BecomeRoot { keep_groups: spec.process.keep_groups });
    if around.seal {
        steps.push(Step::Seal);
    }
    steps.push(Step::Hide);
    steps.push(Step::Root(root(spec, around)));
    mounts(spec, around, &mut steps);
    steps.extend(around.secrets.iter().cloned().map(Step::Secret));
    steps.extend(spec.devices.iter().cloned().map(Step::Device));
    steps.extend(spec.links.iter().map(|(to, at)| Step::Link { to: to.clone(), at: at.clone() }));
    if spec.view {
        steps.push(Step::View);
    }
    steps.extend(spec.masked_paths.iter().cloned().map(Step::Mask));
    steps.extend(spec.read_only_paths.iter().cloned().map(Step::ReadOnly));
    if spec.read_only_root {
        let pieces = if around.rung == Rung::KernelOverlay { overlays(&around.pieces) } else { Vec::new() };
        steps.push(Step::ReadOnlyRoot(pieces));
    }
    let sysctl = |(name, value): &(String, String)| Step::Sysctl { name: name.clone(), value: value.clone() };
    let at = steps.iter().position(|step| matches!(step, Step::ReadOnly(_))).unwrap_or(steps.len());
    steps.splice(at..at, spec.sysctls.iter().map(sysctl));
    steps.push(Step::Pivot);
    Plan {
        namespaces: namespaces(spec),
        early,
        steps,
        process: spec.process.clone(),
        maps: around.maps.clone(),
        first: first(spec),
        keeper: Keeper::Monitor,
    }
}

/// What the cloned process becomes.
pub fn first(spec: &Spec) -> First {
    match spec.namespaces.pid {
        Sharing::Host => First::Adopter,
        _ if spec.init => First::Init,
        _ => First::Program,
    }
}

/// Steps that act with capabilities only. Kernel overlay is not among them: its work folder has mode 000, and
/// who may pass that is decided by the id map.
fn early(spec: &Spec) -> Vec<Step> {
    let mut steps = Vec::new();
    let own = unshared(spec);
    if own != 0 {
        steps.push(Step::Unshare(own));
    }
    if spec.namespaces.network == Sharing::Private && !spec.beside {
        steps.push(Step::Loopback);
    }
    if spec.namespaces.uts == Sharing::Private {
        steps.extend(spec.hostname.clone().map(Step::Hostname));
        steps.extend(spec.domainname.clone().map(Step::Domainname));
    }
    if spec.namespaces.cgroup == Sharing::Private {
        steps.push(Step::CgroupNamespace);
    }
    steps
}

fn overlays(pieces: &[Piece]) -> Vec<PathBuf> {
    let covered = pieces.iter().filter_map(|piece| match piece {
        Piece::Overlay(path) => Some(path.clone()),
        _ => None,
    });
    covered.collect()
}

/// What the one clone makes: the namespaces that a child can only be born in, and the network's where the engine
/// looks for it at once. Beside another container it is born into that one's user and network namespaces.
fn namespaces(spec: &Spec) -> u64 {
    let pid = if spec.namespaces.pid == Sharing::Private { libc::CLONE_NEWPID } else { 0 };
    let network = if spec.engine.is_some() { libc::CLONE_NEWNET } else { 0 };
    let user = if spec.beside { 0 } else { libc::CLONE_NEWUSER };
    (user | libc::CLONE_NEWNS | pid | network) as u64
}

/// What the child makes itself.
fn unshared(spec: &Spec) -> u64 {
    let is_there = spec.engine.is_some() || spec.beside;
    let network = if is_there { Sharing::Host } else { spec.namespaces.network };
    let wanted = [
        (spec.namespaces.ipc, libc::CLONE_NEWIPC),
        (spec.namespaces.uts, libc::CLONE_NEWUTS),
        (network, libc::CLONE_NEWNET),
    ];
    let private = wanted.iter().filter(|(sharing, _)| *sharing == Sharing::Private);
    private.fold(0, |flags, (_, flag)| flags | *flag as u64)
}

fn root(spec: &Spec, around: &Surroundings) -> RootStep {
    let source = match &spec.root {
        Root::Directory { path, .. } => RootSource::Directory(path.clone()),
        Root::Layers(layers) => RootSource::Layers(layers.clone()),
        Root::Host => RootSource::Host(around.pieces.clone()),
    };
    let (folder, persistence, upper) = (around.folder.clone(), around.persistence, around.upper);
    RootStep { rung: around.rung, folder, source, persistence, upper }
}

/// The default mounts, kelp's files, then the user's mounts, so that a user can cover any of them.
fn mounts(spec: &Spec, around: &Surroundings, steps: &mut Vec<Step>) {
    let is_default = |mount: &Mount| {
        matches!(mount.kind, MountKind::Proc | MountKind::Sysfs | MountKind::Mqueue | MountKind::Cgroup)
    };
    let last = spec.mounts.iter().rposition(is_default).map_or(0, |at| at + 1);
    let (defaults, asked) = spec.mounts.split_at(last);
    for mount in defaults {
        steps.push(mount_step(mount));
        if mount.kind == MountKind::Devpts && spec.process.terminal {
            steps.push(Step::Console);
        }
    }
    for (target, text) in &around.files {
        if !asked.iter().any(|mount| mount.target == Path::new(target)) {
            steps.push(Step::File { target: PathBuf::from(target), text: text.clone() });
        }
    }
    steps.extend(asked.iter().map(mount_step));
}

fn mount_step(mount: &Mount) -> Step {
    let target = mount.target.display();
    let mode = if mount.flags.read_only { " read-only" } else { "" };
    let shown = match &mount.kind {
        MountKind::Bind { source, .. } => format!("bind {} on {target}{mode}", source.display()),
        MountKind::Volume(name) => format!("bind volume {name} on {target}{mode}"),
        MountKind::Anonymous => format!("bind a volume of its own on {target}{mode}"),
        MountKind::Tmpfs { .. } => format!("mount tmpfs on {target}{mode}"),
        MountKind::Proc => format!("mount proc on {target}{mode}"),
        MountKind::Sysfs => format!("mount sysfs on {target}{mode}"),
        MountKind::Cgroup => format!("mount cgroup2 on {target}{mode}"),
        MountKind::Mqueue => format!("mount mqueue on {target}{mode}"),
        MountKind::Devpts => format!("mount devpts on {target}{mode}"),
        MountKind::Dev => format!("make the device nodes in {target}"),
    };
    Step::Mount { mount: mount.clone(), shown }
}

/// The plan as text, in the order in which things happen, parent and child.
pub fn explain(plan: &Plan) -> String {
    let mut lines = vec![format!("parent: clone3 into {}", names(plan.namespaces).join(", "))];
    if plan.is_beside() {
        lines
            .insert(0, "parent: a helper joins the other container's user and network namespaces".to_owned());
    }
    let show = |lines: &[crate::userns::maps::Line]| {
        lines.iter().map(|line| format!("{line}")).collect::<Vec<_>>().join(", ")
    };
    let writer = match plan.maps.writer {
        crate::userns::maps::Writer::SetuidPrograms(_) => "newuidmap and newgidmap",
        crate::userns::maps::Writer::Direct => "itself",
    };
    let steps = plan.steps.iter().enumerate().map(|(at, step)| format!("child: step {}, {step}", at + 1));
    let mut steps: Vec<String> = steps.collect();
    let later = steps.split_off(plan.early.min(steps.len()));
    lines.extend(steps.into_iter().map(|line| line + " (meanwhile)"));
    if !plan.is_beside() {
        lines.push(format!("parent: write by {writer} uid_map {}", show(&plan.maps.uid)));
        lines.push(format!("parent: write by {writer} gid_map {}", show(&plan.maps.gid)));
    }
    if plan.namespaces & libc::CLONE_NEWNET as u64 != 0 {
        lines.push("parent: start the engine of the network, which is waited for before start".to_owned());
    }
    lines.extend(later);
    lines.push("parent: keep the record, send start".to_owned());
    match plan.first {
        First::Program => {}
        First::Init => lines.push("child: stay as pid 1 and reap; the program is its child".to_owned()),
        First::Adopter => lines.push("child: stay, adopt and end what the program leaves behind".to_owned()),
    }
    let process = &plan.process;
    lines.push(format!(
        "child: become user {:?} with capabilities {:#x}{}",
        process.user,
        process.capabilities.0,
        if process.no_new_privileges { ", no_new_privs" } else { "" }
    ));
    lines.push(match &process.seccomp {
        Profile::Unconfined => "child: no seccomp filter".to_owned(),
        Profile::Filter(filter) => format!(
            "child: seccomp filter of {} system calls",
            filter.rules.iter().map(|rule| rule.names.len()).sum::<usize>()
        ),
    });
    let words: Vec<String> = process.arguments.iter().map(|word| format!("{word:?}")).collect();
    lines.push(format!("child: exec {} in {}", words.join(" "), process.cwd.display()));
    lines.join("\n") + "\n"
}

fn names(flags: u64) -> Vec<&'static str> {
    let known = [
        (libc::CLONE_NEWUSER, "user"),
        (libc::CLONE_NEWNS, "mount"),
        (libc::CLONE_NEWPID, "pid"),
        (libc::CLONE_NEWIPC, "ipc"),
        (libc::CLONE_NEWUTS, "uts"),
        (libc::CLONE_NEWNET, "net"),
    ];
    known.iter().filter(|(flag, _)| flags & *flag as u64 != 0).map(|(_, name)| *name).collect()
}
