//! The folder of one container in the store: `lock` (held by the monitor), `record.json`, `upper`, `work`,
//! `root`, and the files that are bound into it.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::ids::{ContainerName, Name};
use crate::paths::{self, Paths};
use crate::record::{self, Durability, Lock};
use crate::rootfs::tree;
use crate::userns::maps::IdMaps;
use crate::userns::within;

/// What later commands need to know of a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub id: ContainerName,
    pub name: Option<Name>,
    pub process: Option<Process>,
    /// Removed with its monitor.
    pub remove: bool,
    pub exit: Option<i32>,
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

/// A container whose lock is ours.
#[derive(Debug)]
pub struct Container {
    pub folder: PathBuf,
    pub record: Record,
    /// Held, not read: the kernel lets it go with the process.
    #[allow(dead_code)]
    lock: Lock,
}

impl Container {
    /// Makes the folder of a new container and takes its lock.
    pub fn create(paths: &Paths, id: ContainerName, name: Option<Name>, remove: bool) -> Result<Self> {
        let parent = paths.containers();
        let folder = parent.join(id.as_str());
        make_folder(&parent, &folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let lock = Lock::now(&folder.join("lock"))?
            .ok_or_else(|| Error::host(format!("cannot lock {}", folder.display())))?;
        let record = Record { id, name, process: None, remove, exit: None };
        let container = Self { folder, record, lock };
        container.take_name(paths)?;
        container.save()?;
        Ok(container)
    }

    /// A name belongs to the container whose id the link of that name holds.
    fn take_name(&self, paths: &Paths) -> Result<()> {
        let Some(name) = &self.record.name else { return Ok(()) };
        let names = paths.store.join("names");
        paths::private_folder(&names)?;
        match std::os::unix::fs::symlink(self.record.id.as_str(), names.join(name.as_str())) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let holder = fs::read_link(names.join(name.as_str())).unwrap_or_default();
                let _ = tree::remove(&self.folder);
                Err(Error::usage(format!(
                    "the container name {name} is already in use by container {}",
                    holder.display()
                ))
                .hint("remove that container, or use another name")
                .into())
            }
            Err(error) => Err(error).with_context(|| format!("cannot take the name {name}")),
        }
    }

    /// Writes the record.
    pub fn save(&self) -> Result<()> {
        record::write(&self.folder.join("record.json"), &self.record, Durability::Boot)
    }

    /// Takes up a folder whose monitor is gone; `None` while it lives.
    pub fn adopt(folder: &Path) -> Result<Option<Self>> {
        let Some(lock) = Lock::now(&folder.join("lock"))? else { return Ok(None) };
        let record = record::read(&folder.join("record.json")).ok().flatten();
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let record = record.unwrap_or(Record {
            id: ContainerName::from_folder(name),
            name: None,
            process: None,
            remove: true,
            exit: None,
        });
        Ok(Some(Self { folder: folder.to_owned(), record, lock }))
    }

    /// Removes the folder with all layers; with `maps`, as the root that made them where the user alone can't.
    pub fn remove(self, paths: &Paths, maps: Option<&IdMaps>) -> Result<()> {
        if let Some(name) = &self.record.name {
            let link = paths.store.join("names").join(name.as_str());
            if fs::read_link(&link).is_ok_and(|id| id == Path::new(self.record.id.as_str())) {
                let _ = fs::remove_file(link);
            }
        }
        remove_layers(&self.folder, maps).with_context(|| format!("cannot remove {}", self.folder.display()))
    }

    /// Removes what a refused rung left, so that the next one starts afresh.
    pub fn clear_layers(&self, maps: &IdMaps) -> Result<()> {
        for name in ["upper", "work", "root", "copy"] {
            remove_layers(&self.folder.join(name), Some(maps))?;
        }
        Ok(())
    }
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
fn remove_layers(folder: &Path, maps: Option<&IdMaps>) -> Result<()> {
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
