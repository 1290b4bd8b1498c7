//! The folder of one container in the store: `lock` (held by the monitor), `upper`, `work` and `root`, and a log.
//! The lock file is also the record: its first page is the status, which the lock's holder replaces in place,
//! and behind it stands what never changes. Few files on purpose: ext4 searches long for an inode number that
//! was not freed in the last seconds (docs/decisions/0003).

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::cgroup::group::Group;
use crate::cgroup::hold::Enforced;
use crate::container::journal::{Journal, Kind};
use crate::container::state::State;
use crate::container::{names, spare};
use crate::error::Error;
use crate::ids::{ContainerName, Name};
use crate::paths::{self, Paths};
use crate::record::{self, Held, Inscription, Lock};
use crate::rootfs::rung::Rung;
use crate::rootfs::tree;
use crate::spec::Sharing;
use crate::spec::life::Restart;
use crate::spec::request::{Request, UserNamespace};
use crate::spec::resources::Limits;
use crate::sys::path::spread_folders;
use crate::sys::process;
use crate::units;
use crate::userns::maps::{self, IdMaps};
use crate::userns::within;

/// What never changes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Made {
    pub id: ContainerName,
    /// Nanoseconds since 1970, as all times here.
    pub created: i64,
    pub request: Request,
}

/// What changes; only the holder of the lock changes it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    pub state: State,
    /// Without one, the name that `names` makes of the id.
    pub name: Option<Name>,
    /// The container is removed when it has ended.
    pub remove: bool,
    /// Who watches it.
    pub monitor: Option<Process>,
    /// Its first process.
    pub process: Option<Process>,
    pub started: i64,
    pub finished: i64,
    pub exit: i32,
    pub error: String,
    pub oom_killed: bool,
    /// The most memory that its last run held, where the kernel keeps it.
    pub memory_peak: Option<u64>,
    /// What `update` changed of its limits.
    pub limits: Limits,
    /// Who enforces its limits, by flag.
    pub enforced: Enforced,
    /// Its control group, while it runs.
    pub group: Option<Group>,
    pub restarts: u32,
    /// What `update` made of its restart policy.
    pub restart: Option<Restart>,
    /// Ended by a user's word, so that no restart policy starts it again.
    pub stopped: bool,
    pub rung: Option<Rung>,
    pub health: Option<Healthiness>,
}

impl Status {
    /// The restart policy as it is now.
    pub fn policy(&self, made: &Made) -> Restart {
        self.restart.unwrap_or(made.request.life.restart)
    }
}

impl Default for Status {
    fn default() -> Self {
        Self {
            state: State::Starting,
            name: None,
            remove: true,
            monitor: None,
            process: None,
            started: 0,
            finished: 0,
            exit: 0,
            error: String::new(),
            oom_killed: false,
            memory_peak: None,
            limits: Limits::default(),
            enforced: Enforced::new(),
            group: None,
            restarts: 0,
            restart: None,
            stopped: false,
            rung: None,
            health: None,
        }
    }
}

/// What the health check found last, in docker's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Healthiness {
    Starting,
    Healthy,
    Unhealthy,
}

impl Healthiness {
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// A process that can be told from a stranger with the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`: clock ticks since boot.
    pub started: u64,
    pub boot: String,
}

impl Process {
    /// The process with that number now.
    pub fn of(pid: i32) -> Option<Self> {
        Some(Self { pid, started: start_time(pid)?, boot: paths::boot_id() })
    }

    /// Whether it is still the same one.
    pub fn lives(&self) -> bool {
        self.boot == paths::boot_id() && start_time(self.pid) == Some(self.started)
    }
}

fn start_time(pid: i32) -> Option<u64> {
    process::stat(pid, 22)
}

/// What the name of a folder that is being removed begins with: nobody takes it for a container any more.
pub const GONE: &str = ".gone-";

/// How long a lock is waited for whose holder is about to let it go.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest sentence that is kept.
const LONGEST_ERROR: usize = 1500;

/// A container whose lock is ours.
#[derive(Debug)]
pub struct Container {
    pub folder: PathBuf,
    pub made: Made,
    pub status: Status,
    lock: Lock,
    journal: Journal,
    /// Its layer may hold what another container left, until `clear_leftovers`.
    from_spare: bool,
}

/// What a container is called: a name that is reserved, or, if it lives only as long as the command that made
/// it, the one that its id gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    Reserved,
    OfId,
}

impl Container {
    /// Makes the folder of a new container and takes its lock. A sweep that sees the folder before its lock is
    /// held takes it for the remains of a killed kelp; then another id is used.
    pub fn create(paths: &Paths, request: Request, naming: Naming) -> Result<Self> {
        let parent = paths.containers();
        let status = Status { name: request.name.clone(), remove: request.remove, ..Status::default() };
        for _ in 0..100 {
            let id = ContainerName::fresh()?;
            let folder = parent.join(id.as_str());
            let spare = if may_be_spare(&request, naming) { spare::take(paths, &folder) } else { None };
            let from_spare = spare.is_some();
            let Some(lock) = spare.map_or_else(|| lock_new(&parent, &folder), |lock| Ok(Some(lock)))? else {
                continue;
            };
            let made = Made { id, created: units::now(), request };
            let journal = Journal::of(&paths.store);
            let mut container = Self { folder, made, status, lock, journal, from_spare };
            if let Err(error) = container.enter(paths, naming) {
                let _ = tree::remove(&container.folder);
                return Err(error);
            }
            container.tell("create", &[]);
            return Ok(container);
        }
        Err(Error::host(format!("cannot make a folder in {}: each is taken away at once", parent.display()))
            .into())
    }

    fn enter(&mut self, paths: &Paths, naming: Naming) -> Result<()> {
        if let Some(name) = self.status.name.clone() {
            names::take(paths, &name, &self.made.id)?;
        } else if naming == Naming::Reserved {
            self.status.name = Some(names::take_any(paths, &self.made.id)?);
        }
        let words = serde_json::to_string(&self.status)?;
        let kept = serde_json::to_string(&self.made)?;
        self.lock
            .inscribe(&words, &kept)
            .with_context(|| format!("cannot write {}/lock", self.folder.display()))
    }

    /// Its lock, and whatever else it has open: for a process that goes on with it and nothing else.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.journal.descriptor().into_iter().chain([self.lock.as_fd()])
    }

    /// Takes the lock of a container that nobody watches; `None` while somebody does, and if it is gone.
    pub fn open(folder: &Path) -> Result<Option<Self>> {
        match Lock::now(&folder.join("lock")) {
            Ok(Some(lock)) => Self::read(folder, lock),
            Ok(None) => Ok(None),
            Err(_) if !folder.exists() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The same, waiting for a holder who is about to let it go.
    pub fn wait(folder: &Path) -> Result<Option<Self>> {
        match Lock::within(&folder.join("lock"), PATIENCE) {
            Ok(lock) => Self::read(folder, lock),
            Err(_) if !folder.exists() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read(folder: &Path, lock: Lock) -> Result<Option<Self>> {
        let Some(Inscription { signature, kept }) = lock.inscription()? else { return Ok(None) };
        let made = serde_json::from_str(&kept).with_context(|| unreadable(folder))?;
        let status = serde_json::from_str(&signature).with_context(|| unreadable(folder))?;
        let store = folder.ancestors().nth(2).unwrap_or(folder);
        let journal = Journal::of(store);
        Ok(Some(Self { folder: folder.to_owned(), made, status, lock, journal, from_spare: false }))
    }

    /// Says in the journal what has happened to it.
    pub fn tell(&mut self, action: &str, more: &[(&str, String)]) {
        let attributes = attributes(&self.made, &self.status, more);
        self.journal.tell(Kind::Container, action, self.made.id.as_str(), attributes);
    }

    /// Its limits as they are now.
    pub fn limits(&self) -> Limits {
        let mut limits = self.made.request.resources.limits.clone();
        limits.update(&self.status.limits);
        limits
    }

    /// What it is called.
    pub fn name(&self) -> Name {
        called(&self.status, &self.made.id)
    }

    /// Says which process is watched, so that whoever finds the lock free can end it.
    pub fn watch(&mut self, pid: i32) -> Result<()> {
        self.status.process = Process::of(pid);
        self.keep()
    }

    /// Goes to `next` and keeps it with whatever else has changed.
    pub fn become_state(&mut self, next: State) -> Result<()> {
        self.status.state = self.status.state.moved(next)?;
        self.keep()
    }

    /// Gives it another name, which is taken already.
    pub fn rename(&mut self, name: Name) -> Result<()> {
        let old = self.name().to_string();
        self.status.name = Some(name);
        self.keep()?;
        self.tell("rename", &[("oldName", old)]);
        Ok(())
    }

    /// Keeps the status.
    pub fn keep(&self) -> Result<()> {
        let mut status = self.status.clone();
        if status.error.len() > LONGEST_ERROR {
            let end = (0..=LONGEST_ERROR).rev().find(|at| status.error.is_char_boundary(*at));
            status.error.truncate(end.unwrap_or(0));
        }
        let words = serde_json::to_string(&status)?;
        self.lock.turn_page(&words).with_context(|| format!("cannot write {}/lock", self.folder.display()))
    }

    /// Removes the folder with all layers; with `maps`, as the root that made them where the user alone can't.
    pub fn remove(mut self, paths: &Paths, maps: Option<&IdMaps>) -> Result<()> {
        let gone = self.leave(paths)?;
        remove_gone(&gone, self.lock, maps)
    }

    /// Removes a container that has just ended under this monitor's eyes, so that nobody else is in its layer;
    /// its folder may serve the next one.
    pub fn retire(mut self, paths: &Paths) -> Result<()> {
        let userns = self.made.request.userns.clone();
        let alone =
            self.made.request.pid == Sharing::Private && self.status.rung.is_some_and(Rung::is_kernels);
        let gone = self.leave(paths)?;
        if alone && spare::give(paths, &gone) {
            return Ok(());
        }
        let maps = maps::choose(&userns)?;
        remove_gone(&gone, self.lock, Some(&maps))
    }

    /// Gives up the place among the containers, and the name.
    fn leave(&mut self, paths: &Paths) -> Result<PathBuf> {
        let gone = self.folder.with_file_name(format!("{GONE}{}", self.made.id));
        if let Err(error) = fs::rename(&self.folder, &gone) {
            if !self.status.state.is_live() && self.status.state != State::Dead {
                let _ = self.become_state(State::Dead);
            }
            return Err(error).with_context(|| format!("cannot remove {}", self.folder.display()));
        }
        if let Some(name) = &self.status.name {
            names::release(paths, name, &self.made.id);
        }
        self.tell("destroy", &[]);
        Ok(gone)
    }

    /// Empties what came from the spare folder, or what kernel overlay left of its last mount, which it would remove
    /// itself and wait for the disk; called when there is nothing else to do, before a root is made.
    pub fn clear_leftovers(&mut self) -> Result<()> {
        if std::mem::take(&mut self.from_spare) {
            spare::clean(&self.folder).context("cannot clean the spare folder")?;
        }
        if self.status.rung.is_some_and(Rung::is_kernels) {
            let _ = tree::remove(&self.folder.join("work/work"));
        }
        Ok(())
    }

    /// Whether there is something in its layer that was put there before its first start.
    pub fn is_filled(&self) -> bool {
        let upper = || fs::read_dir(self.folder.join("upper")).ok()?.next();
        !self.from_spare && upper().is_some()
    }

    /// Removes what a refused rung left, so that the next one starts afresh.
    pub fn clear_layers(&self, maps: &IdMaps) -> Result<()> {
        for name in ["upper", "work", "root", "copy"] {
            remove_layers(&self.folder.join(name), Some(maps))?;
        }
        Ok(())
    }
}

fn unreadable(folder: &Path) -> String {
    format!("cannot read {}/lock: it is not a record of this kelp", folder.display())
}

/// What an event says of a container: its labels, image and name, and what belongs to the event.
fn attributes(made: &Made, status: &Status, more: &[(&str, String)]) -> BTreeMap<String, String> {
    let mut attributes = made.request.labels();
    attributes.insert("image".to_owned(), made.request.root_name.clone());
    attributes.insert("name".to_owned(), called(status, &made.id).to_string());
    attributes.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    attributes
}

/// What a container is called.
pub fn called(status: &Status, id: &ContainerName) -> Name {
    status.name.clone().unwrap_or_else(|| names::of(id))
}

/// A container as it stands, whoever holds its lock.
#[derive(Clone, Debug)]
pub struct Known {
    pub folder: PathBuf,
    pub made: Made,
    pub status: Status,
}

impl Known {
    /// Reads the record; `None` if there is no container, or none yet. With it, what tells whether it is watched.
    pub fn read(folder: &Path) -> Result<Option<(Self, Held)>> {
        let Some((Inscription { signature, kept }, held)) = record::look(&folder.join("lock"))? else {
            return Ok(None);
        };
        let made = serde_json::from_str(&kept).with_context(|| unreadable(folder))?;
        let status = serde_json::from_str(&signature).with_context(|| unreadable(folder))?;
        Ok(Some((Self { folder: folder.to_owned(), made, status }, held)))
    }

    /// What it is called.
    pub fn name(&self) -> Name {
        called(&self.status, &self.made.id)
    }

    /// Says in the journal what has happened to it, of somebody who does not hold its lock.
    pub fn tell(&self, journal: &mut Journal, action: &str, more: &[(&str, String)]) {
        let attributes = attributes(&self.made, &self.status, more);
        journal.tell(Kind::Container, action, self.made.id.as_str(), attributes);
    }
}

/// The ids of all containers, and of folders that are about to become one.
pub fn ids(paths: &Paths) -> Vec<String> {
    let Ok(entries) = fs::read_dir(paths.containers()) else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| !name.starts_with(GONE)).collect()
}

/// All containers as their records say: it only looks, also in places where nothing can be put right.
pub fn recorded(paths: &Paths) -> impl Iterator<Item = Known> {
    let read = |id: String| Some(Known::read(&paths.containers().join(id)).ok()??.0);
    ids(paths).into_iter().filter_map(read)
}

/// Only whoever starts the container at once cleans a spare folder; and the layer in it belongs to the user, who
/// is root inside with these maps only.
fn may_be_spare(request: &Request, naming: Naming) -> bool {
    naming == Naming::OfId && matches!(request.userns, UserNamespace::Auto | UserNamespace::Single)
}

/// Makes the folder and takes its lock; `None` if somebody took it away in between.
fn lock_new(parent: &Path, folder: &Path) -> Result<Option<Lock>> {
    make_folder(parent, folder).with_context(|| format!("cannot make {}", folder.display()))?;
    match Lock::now(&folder.join("lock")) {
        Err(_) if !folder.exists() => Ok(None),
        Err(error) => {
            let _ = tree::remove(folder);
            Err(error)
        }
        found => found,
    }
}

fn make_folder(parent: &Path, folder: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            paths::private_folder(parent)?;
            // On ext4 a container then begins where no inode was freed lately (decision 0005); others need no such flag.
            let _ = fs::File::open(parent).map(|parent| spread_folders(parent.as_fd()));
            DirBuilder::new().mode(0o700).create(folder)
        }
        other => other,
    }
}

/// Removes the folder of a container that has given up its place, under its lock. NFS and FUSE keep an open file under
/// another name until it is closed, and the folder with it.
pub fn remove_gone(gone: &Path, lock: Lock, maps: Option<&IdMaps>) -> Result<()> {
    let mut removed = remove_layers(gone, maps);
    let not_empty = |error: &anyhow::Error| {
        error.downcast_ref::<io::Error>().is_some_and(|io| io.kind() == io::ErrorKind::DirectoryNotEmpty)
    };
    if removed.as_ref().is_err_and(not_empty) {
        drop(lock);
        removed = remove_layers(gone, maps);
    }
    removed.with_context(|| format!("cannot remove {}", gone.display()))
}

/// Files of subordinate ids, in folders that they closed, go only as root of a namespace that maps them.
pub fn remove_layers(folder: &Path, maps: Option<&IdMaps>) -> Result<()> {
    let refused = match tree::remove(folder) {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    let permission =
        refused.kind() == io::ErrorKind::PermissionDenied || refused.raw_os_error() == Some(libc::EPERM);
    match maps {
        Some(maps) if permission && !maps.one_id() => {
            let status = within::run(maps, 0, || i32::from(tree::remove(folder).is_err()))?;
            if status == 0 { Ok(()) } else { Err(refused.into()) }
        }
        _ => Err(refused.into()),
    }
}
