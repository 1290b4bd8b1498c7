//! Where we may make groups, found by trying: the current group and its ancestors where they are ours (a delegated
//! folder, a Slurm job, the root of a container's cgroup namespace), else a scope of the systemd user manager's. In a
//! folder that systemd's user manager keeps, only the units that it delegates are ours ("single-writer rule"), so
//! there we ask it. Groups of v1 are recognised and never written.
//!
//! "No internal processes" (`cgroups(7)`): a group that has processes can't hand controllers on, so ours stand beside
//! the processes that are there, which may have to move one level down first.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::unistd::{AccessFlags, access};

use crate::cgroup::scope::{self, Standing};
use crate::error::Error;

/// A folder of the hierarchy in which groups with these controllers can be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ground {
    pub folder: PathBuf,
    pub controllers: BTreeSet<String>,
    pub by: By,
}

/// Who gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Cgroup,
    Scope,
}

/// What we ask for where we can.
pub const WANTED: [&str; 6] = ["cpu", "cpuset", "io", "memory", "pids", "hugetlb"];

/// Where processes go that stand in the way of controllers.
const REST: &str = "kelp-rest";

const V2_MEND: &str = "an administrator can boot with systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all";

/// What lies at hand, before anything is changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Folders that are ours, nearest first.
    Writable(Vec<PathBuf>),
    /// The user's own systemd would make a scope.
    Manager(PathBuf),
}

/// The ground for a group; the calling process moves where it must.
///
/// # Errors
/// Why there is none, with the mend as its hint.
pub fn take(standing: Standing) -> Result<Ground> {
    match find()? {
        Found::Writable(folders) => clear(&folders),
        Found::Manager(runtime) => {
            let folder = scope::enter(&runtime, standing)?;
            Ok(Ground { controllers: hand_on(&folder), folder, by: By::Scope })
        }
    }
}

/// `--cgroup-parent`: a folder of the hierarchy that the user names.
pub fn below(parent: &str) -> Result<Ground> {
    let folder = hierarchy()?.join(parent.trim_start_matches('/'));
    if !is_ours(&folder) {
        let sentence = format!("--cgroup-parent {parent}: that cgroup is not yours");
        return Err(Error::usage(sentence).into());
    }
    clear(&[folder])
}

/// `--cgroups=split`: below the current group, whoever keeps it.
pub fn split() -> Result<Ground> {
    below(&own_path()?.to_string_lossy())
}

/// The folder of the user manager: what it was delegated is what a scope can have.
pub fn kept_by_systemd() -> Result<PathBuf> {
    let uid = nix::unistd::getuid();
    Ok(hierarchy()?.join(format!("user.slice/user-{uid}.slice/user@{uid}.service")))
}

/// Looks, and changes nothing.
pub fn find() -> Result<Found> {
    let mount = hierarchy()?;
    let own = own_path()?;
    let folders = writable(&mount, &own);
    if !folders.is_empty() {
        return Ok(Found::Writable(folders));
    }
    if let Some(runtime) = scope::runtime() {
        return Ok(Found::Manager(runtime));
    }
    let shown = own.display();
    Err(Error::host(format!("the cgroup {shown} is not yours, and no systemd of yours runs"))
        .hint("an administrator can run: loginctl enable-linger YOU, or delegate a cgroup to you")
        .into())
}

/// The mount of the one hierarchy, `cgroup2`.
///
/// # Errors
/// The host still uses v1 for its controllers.
pub fn hierarchy() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
    let fields = |line: &str| {
        let (place, kind) = line.split_once(" - ")?;
        Some((PathBuf::from(place.split(' ').nth(4)?), kind.split(' ').next()?.to_owned()))
    };
    let all: Vec<(PathBuf, String)> = mounts.lines().filter_map(fields).collect();
    let v1 = all.iter().any(|(_, kind)| kind == "cgroup");
    let v2 = all.into_iter().find(|(_, kind)| kind == "cgroup2");
    match (v1, v2) {
        (false, Some((mount, _))) => Ok(mount),
        (true, _) => {
            Err(Error::host("this host uses cgroup v1, which is never delegated").hint(V2_MEND).into())
        }
        (false, None) => Err(Error::host("no cgroup file system is mounted")
            .hint("an administrator can run: mount -t cgroup2 none /sys/fs/cgroup")
            .into()),
    }
}

/// The line of v2 in /proc/self/cgroup.
pub fn own_path() -> Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").context("cannot read /proc/self/cgroup")?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"));
    Ok(PathBuf::from(path.context("this process is in no cgroup of v2")?))
}

/// The own group and those above it, as long as they are ours.
fn writable(mount: &Path, own: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for path in own.ancestors() {
        let folder = mount.join(path.strip_prefix("/").unwrap_or(path));
        if !is_ours(&folder) || (scope::is_kept(path) && !scope::is_delegated(&folder)) {
            break;
        }
        folders.push(folder);
    }
    folders
}

fn is_ours(folder: &Path) -> bool {
    let writable = |path: &Path| access(path, AccessFlags::W_OK).is_ok();
    writable(folder)
        && writable(&folder.join("cgroup.procs"))
        && writable(&folder.join("cgroup.subtree_control"))
        && !is_read_only(folder)
}

fn is_read_only(folder: &Path) -> bool {
    let flags = nix::sys::statvfs::statvfs(folder).map(|found| found.flags());
    flags.is_ok_and(|flags| flags.contains(nix::sys::statvfs::FsFlags::ST_RDONLY))
}

/// The nearest folder that has no processes of its own; if each has some, those of the nearest move down.
fn clear(folders: &[PathBuf]) -> Result<Ground> {
    let folder = best(folders).context("no cgroup is yours")?;
    if !is_clear(folder) {
        move_down(folder, REST).with_context(|| format!("cannot use {}", folder.display()))?;
    }
    Ok(Ground { controllers: hand_on(folder), folder: folder.clone(), by: By::Cgroup })
}

/// The one that would be used.
pub fn best(folders: &[PathBuf]) -> Option<&PathBuf> {
    folders.iter().find(|folder| is_clear(folder)).or(folders.first())
}

fn is_clear(folder: &Path) -> bool {
    hands_on_already(folder) || processes(folder).is_empty()
}

/// The root group of the machine may have both processes and controllers.
fn hands_on_already(folder: &Path) -> bool {
    let controllers = fs::read_to_string(folder.join("cgroup.subtree_control")).unwrap_or_default();
    !controllers.trim().is_empty()
}

pub fn processes(folder: &Path) -> Vec<i32> {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Moves every process of the folder into `name` below it; those that start meanwhile too.
pub fn move_down(folder: &Path, name: &str) -> io::Result<()> {
    let below = folder.join(name);
    match fs::create_dir(&below) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => other?,
    }
    for _ in 0..100 {
        let here = processes(folder);
        if here.is_empty() {
            return Ok(());
        }
        for pid in here {
            match fs::write(below.join("cgroup.procs"), pid.to_string()) {
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                other => other?,
            }
        }
    }
    Err(io::Error::other("processes start there faster than they can be moved"))
}

/// Hands on every controller that can be; gives those that groups below have.
fn hand_on(folder: &Path) -> BTreeSet<String> {
    let words = |name: &str| -> BTreeSet<String> {
        let text = fs::read_to_string(folder.join(name)).unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect()
    };
    let (offered, already) = (words("cgroup.controllers"), words("cgroup.subtree_control"));
    let wanted = |name: &&String| WANTED.contains(&name.as_str()) && !already.contains(*name);
    let missing: Vec<String> = offered.iter().filter(wanted).map(|name| format!("+{name}")).collect();
    if missing.is_empty() {
        return already;
    }
    // All processes of the machine are held up for a moment by each write, so there is one if it will do.
    let write = |words: &str| fs::write(folder.join("cgroup.subtree_control"), words);
    if write(&missing.join(" ")).is_err() {
        missing.iter().for_each(|word| drop(write(word)));
    }
    words("cgroup.subtree_control")
}
