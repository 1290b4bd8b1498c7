//! A scope of the systemd user manager's: the group that a user may have without an administrator. All containers of the
//! user stand in the same one, so only the first asks the manager, over its own socket (no bus has to run), and the others
//! make a folder in it. It goes away by itself when the last process has left it, whoever was killed.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{AccessFlags, access};

use crate::cgroup::bus::{self, Value};
use crate::cgroup::delegation;
use crate::error::Error;

/// The scope.
const UNIT: &str = "kelp.scope";

/// The leaf in which monitors stand, beside the containers.
const MONITORS: &str = "monitors";

/// How long the manager has.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A job that has not moved us by then has failed: the scope that it was for went away meanwhile.
const AGAIN: Duration = Duration::from_millis(500);

/// What is in the way after so many questions, each after twice the time, is not a scope that is about to go.
const WAITS: u32 = 5;

/// The runtime folder of the caller's own manager, if one runs.
pub fn runtime() -> Option<PathBuf> {
    let uid = nix::unistd::getuid();
    let named = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let usual = PathBuf::from(format!("/run/user/{uid}"));
    named.into_iter().chain([usual]).find(|folder| {
        let ours = fs::metadata(folder).is_ok_and(|found| found.uid() == uid.as_raw());
        ours && socket(folder).exists()
    })
}

/// Where the manager listens for `systemctl --user`.
fn socket(runtime: &Path) -> PathBuf {
    runtime.join("systemd/private")
}

/// Whether the path lies in what a user's manager keeps.
pub fn is_kept(path: &Path) -> bool {
    path.iter().any(|part| {
        let part = part.to_string_lossy();
        part.starts_with("user@") && part.ends_with(".service")
    })
}

/// Whether systemd says that the group is its unit's own: `user.delegate`, of systemd 251.
pub fn is_delegated(folder: &Path) -> bool {
    crate::sys::xattr::getxattr(folder, c"user.delegate").is_ok_and(|value| value == b"1")
}

/// Whether the calling process may stay where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is part of a job of the user's, and ends with it.
    Stays,
    /// It outlives whoever started it, so it must not stand in somebody else's unit.
    Moves,
}

/// The scope, in which groups can be made from now on. Whether it is still there when the container is born in it is
/// seen then: another container, which was the last in it, may end meanwhile.
pub fn enter(runtime: &Path, standing: Standing) -> Result<PathBuf> {
    let (mount, deadline) = (delegation::hierarchy()?, Instant::now() + PATIENCE);
    let mut turn = Turn::default();
    loop {
        let own = delegation::own_path()?;
        if let Some(path) = own.ancestors().find(|path| path.file_name().is_some_and(|name| name == UNIT)) {
            let folder = at(&mount, path);
            delegation::move_down(&folder, MONITORS).with_context(|| format!("cannot use {UNIT}"))?;
            return Ok(folder);
        }
        let outcome = match alive()? {
            // Whoever ends before systemd has moved it is in the scope for ever, as systemd sees it.
            _ if turn.is_answered() => Ok(None),
            Some(folder) => stand_in(runtime, &mount, &own, &folder, standing).map(|()| Some(folder)),
            None => turn.ask(runtime).context("ask systemd for a scope").map(|()| None),
        };
        match outcome {
            Ok(Some(folder)) => return Ok(folder),
            Err(error) if Instant::now() > deadline => return Err(error),
            Ok(None) if Instant::now() > deadline => {
                return Err(Error::host(format!("systemd did not move kelp into {UNIT}")).into());
            }
            // Whoever was the last in it ends at this moment, and the manager has not noticed yet.
            Ok(None) | Err(_) => {}
        }
        // The manager moves us when its job runs; there is no event for it.
        std::thread::sleep(turn.pause());
    }
}

/// One asks at a time: a manager that many ask without pause comes to no job of its own, and to moving nobody.
#[derive(Default)]
struct Turn {
    lock: Option<Flock<File>>,
    answered: Option<Instant>,
    /// How often it wanted to ask.
    waits: u32,
}

impl Turn {
    fn ask(&mut self, runtime: &Path) -> Result<()> {
        self.waits += 1;
        if self.is_ours() {
            start(runtime).or_else(|error| self.join_nobody(runtime).map_err(|_| error))?;
            self.answered = Some(Instant::now());
        }
        Ok(())
    }

    /// The lock lies on a folder of systemd's, so nothing of it is left; where that is not to be seen there is none.
    fn is_ours(&mut self) -> bool {
        let kept = || File::open(delegation::kept_by_systemd().ok()?).ok();
        match (&self.lock, kept()) {
            (None, Some(kept)) => {
                self.lock = Flock::lock(kept, FlockArg::LockExclusiveNonblock).ok();
                self.lock.is_some()
            }
            _ => true,
        }
    }

    /// Goes into a scope that is there though nobody is in it: whoever asked for it had ended when it was to be moved.
    /// The kernel moves nobody who ends and calls that a success, so systemd waits for the end of what never began.
    fn join_nobody(&self, runtime: &Path) -> Result<()> {
        anyhow::ensure!(self.waits > WAITS, "it may be on its way out");
        places()?.iter().for_each(|folder| drop(fs::create_dir(folder.join(MONITORS))));
        attach(runtime)
    }

    fn is_answered(&self) -> bool {
        self.answered.is_some_and(|at| at.elapsed() < AGAIN)
    }

    fn pause(&self) -> Duration {
        Duration::from_millis(1 << self.waits.min(WAITS))
    }
}

fn at(mount: &Path, path: &Path) -> PathBuf {
    mount.join(path.strip_prefix("/").unwrap_or(path))
}

/// Where the scope may lie: older managers keep scopes beside their slices.
fn places() -> Result<[PathBuf; 2]> {
    let kept = delegation::kept_by_systemd()?;
    Ok([kept.join("app.slice").join(UNIT), kept.join(UNIT)])
}

/// The scope, if somebody is in it and has prepared it.
fn alive() -> Result<Option<PathBuf>> {
    let is_alive = |folder: &PathBuf| {
        let events = fs::read_to_string(folder.join("cgroup.events")).unwrap_or_default();
        let prepared = folder.join(MONITORS).exists() && delegation::processes(folder).is_empty();
        prepared && events.contains("populated 1")
    };
    Ok(places()?.into_iter().find(is_alive))
}

/// Whether a process that stands at `own` may be moved, or its child be born, below the folder: whoever does that must
/// be able to write to what lies above both (`cgroups(7)`, "Delegation containment").
fn reaches(mount: &Path, own: &Path, folder: &Path) -> bool {
    let own = at(mount, own);
    let above = own.ancestors().find(|above| folder.starts_with(above)).unwrap_or(mount);
    access(&above.join("cgroup.procs"), AccessFlags::W_OK).is_ok()
}

/// Moves this process in beside the other monitors, if it must stand there.
fn stand_in(runtime: &Path, mount: &Path, own: &Path, folder: &Path, standing: Standing) -> Result<()> {
    let joined = match (reaches(mount, own, folder), standing) {
        (true, Standing::Stays) => Ok(()),
        (true, Standing::Moves) => {
            let own = std::process::id().to_string();
            fs::write(folder.join(MONITORS).join("cgroup.procs"), own).map_err(anyhow::Error::from)
        }
        (false, _) => attach(runtime),
    };
    joined.with_context(|| format!("join {UNIT}"))
}

/// Has the manager move this process in beside the other monitors.
fn attach(runtime: &Path) -> Result<()> {
    let [unit, leaf] = [UNIT.to_owned(), format!("/{MONITORS}")].map(Value::Text);
    let own = Value::Numbers(vec![std::process::id()]);
    bus::call(&socket(runtime), "AttachProcessesToUnit", &[unit, leaf, own])
}

/// `StartTransientUnit` of org.freedesktop.systemd1(5).
fn start(runtime: &Path) -> Result<()> {
    let properties = vec![
        ("PIDs", Value::Numbers(vec![std::process::id()])),
        ("Delegate", Value::Boolean(true)),
        ("CollectMode", Value::Text("inactive-or-failed".to_owned())),
    ];
    let [unit, mode] = [UNIT, "fail"].map(|word| Value::Text(word.to_owned()));
    let values = [unit, mode, Value::Properties(properties), Value::NoUnits];
    bus::call(&socket(runtime), "StartTransientUnit", &values)
}
