//! The folder of one container in the store: `lock` (held by the monitor, and saying which process it watches),
//! `record.json` (unless the container is removed with its monitor), `upper`, `work` and `root`. Few files on
//! purpose: ext4 searches long for an inode number that was not freed in the last seconds.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::ids::{ContainerName, Name};
use crate::paths::{self, Paths};
use crate::record::{self, Durability, Lock};
use crate::rootfs::tree;
use crate::userns::maps::IdMaps;
use crate::userns::within;

/// What later commands need to know of a container that stays.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub id: ContainerName,
    pub name: Option<Name>,
    #[serde(default)]
    pub image: Option<String>,
    pub exit: Option<i32>,
}

/// What the lock file says while its holder lives, and what a later kelp finds when it does not.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Watched {
    pub process: Option<Process>,
    pub name: Option<Name>,
    /// The id of its image.
    #[serde(default)]
    pub image: Option<String>,
    /// The container is removed with its monitor.
    pub remove: bool,
    /// What ends it gently.
    pub stop_signal: i32,
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
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// What the name of a folder that is being removed begins with: nobody takes it for a container any more.
pub const GONE: &str = ".gone-";

/// How long the lock of the names is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// A container whose lock is ours.
#[derive(Debug)]
pub struct Container {
    pub folder: PathBuf,
    pub id: ContainerName,
    pub watched: Watched,
    lock: Lock,
}

impl Container {
    /// Makes the folder of a new container and takes its lock. A sweep that sees the folder before its lock is
    /// held takes it for the remains of a killed kelp; then another id is used.
    pub fn create(paths: &Paths, name: Option<Name>, image: Option<&str>, remove: bool) -> Result<Self> {
        let parent = paths.containers();
        for _ in 0..100 {
            let id = ContainerName::fresh()?;
            let folder = parent.join(id.as_str());
            make_folder(&parent, &folder).with_context(|| format!("cannot make {}", folder.display()))?;
            let lock = match Lock::now(&folder.join("lock")) {
                Ok(Some(lock)) => lock,
                Ok(None) => continue,
                Err(_) if !folder.exists() => continue,
                Err(error) => {
                    let _ = tree::remove(&folder);
                    return Err(error);
                }
            };
            let image = image.map(str::to_owned);
            let watched = Watched { process: None, name, image, remove, stop_signal: libc::SIGTERM };
            let mut container = Self { folder, id, watched, lock };
            if let Err(error) = container.sign().and_then(|()| container.take_name(paths)) {
                let _ = tree::remove(&container.folder);
                return Err(error);
            }
            return Ok(container);
        }
        Err(Error::host(format!("cannot make a folder in {}: each is taken away at once", parent.display()))
            .into())
    }

    /// A name belongs to the container whose id the link of that name holds; a link to a container that is no
    /// more is what a killed kelp left.
    fn take_name(&self, paths: &Paths) -> Result<()> {
        let Some(name) = &self.watched.name else { return Ok(()) };
        let names = paths.store.join("names");
        paths::private_folder(&names)?;
        let _lock = Lock::within(&names.join(".lock"), PATIENCE)?;
        let link = names.join(name.as_str());
        if let Ok(holder) = fs::read_link(&link) {
            if paths.containers().join(&holder).exists() {
                return Err(Error::usage(format!(
                    "the container name {name} is already in use by container {}",
                    holder.display()
                ))
                .hint("remove that container, or use another name")
                .into());
            }
            fs::remove_file(&link).with_context(|| format!("cannot free the name {name}"))?;
        }
        std::os::unix::fs::symlink(self.id.as_str(), &link)
            .with_context(|| format!("cannot take the name {name}"))
    }

    /// Says which process is watched, so that whoever finds the lock free can end it.
    pub fn watch(&mut self, pid: i32) -> Result<()> {
        self.watched.process = Process::of(pid);
        self.sign()
    }

    fn sign(&mut self) -> Result<()> {
        let words = serde_json::to_string(&self.watched)?;
        self.lock.sign(&words).with_context(|| format!("cannot write {}/lock", self.folder.display()))
    }

    /// Keeps how a container that stays has ended.
    pub fn keep_exit(&self, exit: Option<i32>) -> Result<()> {
        let Watched { name, image, .. } = self.watched.clone();
        let record = Record { id: self.id.clone(), name, image, exit };
        record::write(&self.folder.join("record.json"), &record, Durability::Boot)
    }

    /// Takes up a folder whose monitor is gone; `None` while it lives, and for a container that has ended and
    /// stays.
    pub fn adopt(folder: &Path) -> Result<Option<Self>> {
        if folder.join("record.json").exists() {
            return Ok(None);
        }
        let Some(mut lock) = Lock::now(&folder.join("lock"))? else { return Ok(None) };
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let unfinished =
            Watched { process: None, name: None, image: None, remove: true, stop_signal: libc::SIGTERM };
        let watched = serde_json::from_str(&lock.signature()?).unwrap_or(unfinished);
        Ok(Some(Self { folder: folder.to_owned(), id: ContainerName::from_folder(name), watched, lock }))
    }

    /// Removes the folder with all layers; with `maps`, as the root that made them where the user alone can't.
    pub fn remove(self, paths: &Paths, maps: Option<&IdMaps>) -> Result<()> {
        if let Some(name) = &self.watched.name {
            let link = paths.store.join("names").join(name.as_str());
            if fs::read_link(&link).is_ok_and(|id| id == Path::new(self.id.as_str())) {
                let _ = fs::remove_file(link);
            }
        }
        let gone = self.folder.with_file_name(format!("{GONE}{}", self.id));
        fs::rename(&self.folder, &gone)
            .with_context(|| format!("cannot remove {}", self.folder.display()))?;
        remove_layers(&gone, maps).with_context(|| format!("cannot remove {}", gone.display()))
    }

    /// Removes what a refused rung left, so that the next one starts afresh.
    pub fn clear_layers(&self, maps: &IdMaps) -> Result<()> {
        for name in ["upper", "work", "root", "copy"] {
            remove_layers(&self.folder.join(name), Some(maps))?;
        }
        Ok(())
    }
}

/// The containers, by name or short id, that were made from the image `id`.
pub fn made_from(paths: &Paths, id: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(paths.containers()) else { return Vec::new() };
    let holder = |folder: &Path| -> Option<String> {
        let record: Option<Record> = record::read(&folder.join("record.json")).ok().flatten();
        let (image, name) = match record {
            Some(record) => (record.image, record.name),
            None => {
                let watched: Watched = record::read(&folder.join("lock")).ok().flatten()?;
                (watched.image, watched.name)
            }
        };
        let short = || folder.file_name()?.to_str()?.get(..12).map(str::to_owned);
        (image.as_deref() == Some(id)).then(|| name.map(|name| name.to_string()).or_else(short)).flatten()
    };
    entries.filter_map(|entry| holder(&entry.ok()?.path())).collect()
}

fn make_folder(parent: &Path, folder: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            paths::private_folder(parent)?;
            DirBuilder::new().mode(0o700).create(folder)
        }
        other => other,
    }
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
