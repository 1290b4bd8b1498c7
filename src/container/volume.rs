//! Named volumes: folders of the store that outlive containers. A volume is a plain folder of files, so that its
//! owner can read and remove it without kelp.
//!
//!     volumes/NAME/_data         the files
//!     volumes/NAME/volume.json   when it was made, its labels; without it the folder alone is the volume
//!     volumes/NAME/fresh         until the first container has been given it
//!
//! Who has a volume is read in the containers' records. A volume appears and goes by one rename under `volumes/.lock`; what is being removed is called `.gone-...`.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::container::folder::{self, Known, Made};
use crate::container::journal::{Journal, Kind};
use crate::container::names;
use crate::error::Error;
use crate::ids::{ContainerName, Name};
use crate::paths::{self, Paths};
use crate::record::{self, Durability, Lock};
use crate::rootfs::tree;
use crate::spec::mount::{Mount, MountKind};
use crate::userns::maps::{self, IdMaps};

/// What is known of a volume beside its files.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Volume {
    pub name: Name,
    /// Seconds since 1970.
    pub created: i64,
    pub labels: BTreeMap<String, String>,
    /// Made for one container that named none: `--rm` and `rm -v` take it along.
    pub anonymous: bool,
}

impl Volume {
    pub fn named(name: Name) -> Self {
        Self { name, created: now(), labels: BTreeMap::new(), anonymous: false }
    }

    /// A volume with a name of 64 random digits, as docker's.
    pub fn anonymous() -> Result<Self> {
        let name = ContainerName::fresh()?.as_str().parse()?;
        Ok(Self { anonymous: true, ..Self::named(name) })
    }
}

/// Why a volume was not removed: the only refusals that a caller tells apart.
#[derive(Debug)]
pub enum Refusal {
    Missing,
    InUse(Vec<String>),
}

const GONE: &str = ".gone-";
const NEW: &str = ".new-";
const PATIENCE: Duration = Duration::from_secs(10);

fn now() -> i64 {
    let elapsed = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    i64::try_from(elapsed.as_secs()).unwrap_or(0)
}

fn all(paths: &Paths) -> PathBuf {
    paths.store.join("volumes")
}

/// The folder that holds the volume's files and what is known of it.
pub fn home(paths: &Paths, name: &Name) -> PathBuf {
    all(paths).join(name.as_str())
}

/// Where the files of the volume lie.
pub fn folder(paths: &Paths, name: &Name) -> PathBuf {
    home(paths, name).join("_data")
}

fn lock(paths: &Paths) -> Result<Lock> {
    let all = all(paths);
    paths::private_folder(&all).with_context(|| format!("cannot make {}", all.display()))?;
    Lock::within(&all.join(".lock"), PATIENCE)
}

/// Makes the volume unless there is one of that name.
pub fn create(paths: &Paths, volume: &Volume) -> Result<()> {
    let _lock = lock(paths)?;
    make(paths, volume)
}

fn make(paths: &Paths, volume: &Volume) -> Result<()> {
    let home = home(paths, &volume.name);
    if home.join("_data").exists() {
        return Ok(());
    }
    let new = all(paths).join(format!("{NEW}{}", volume.name));
    let made = fill_home(&new, volume).and_then(|()| Ok(fs::rename(&new, &home)?));
    if made.is_err() {
        let _ = fs::remove_dir_all(&new);
    }
    made.with_context(|| format!("cannot make volume {}", volume.name))?;
    tell(paths, "create", &volume.name);
    Ok(())
}

fn tell(paths: &Paths, action: &str, name: &Name) {
    let driver = BTreeMap::from([("driver".to_owned(), "local".to_owned())]);
    Journal::of(&paths.store).tell(Kind::Volume, action, name.as_str(), driver);
}

fn fill_home(new: &Path, volume: &Volume) -> Result<()> {
    // Under the lock nobody else makes one of this name: what is there was left by a killed kelp.
    if new.exists() {
        fs::remove_dir_all(new)?;
    }
    DirBuilder::new().mode(0o700).create(new)?;
    fs::create_dir(new.join("_data"))?;
    File::create(new.join("fresh"))?;
    record::write(&new.join("volume.json"), volume, Durability::Synced)
}

/// The volume that a mount of the container `id` is of.
pub fn of(mount: &Mount, id: &ContainerName) -> Option<Volume> {
    match &mount.kind {
        MountKind::Volume(name) => Some(Volume::named(name.clone())),
        MountKind::Anonymous => {
            let name = names::of_volume(id, &mount.target);
            Some(Volume { anonymous: true, ..Volume::named(name) })
        }
        _ => None,
    }
}

/// The volumes that a container has.
pub fn all_of(made: &Made) -> impl Iterator<Item = Volume> {
    made.request.mounts.iter().filter_map(|mount| of(mount, &made.id))
}

/// All volumes, by name.
pub fn list(paths: &Paths) -> Result<Vec<Volume>> {
    let all = all(paths);
    let entries = match fs::read_dir(&all) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("cannot read {}", all.display()))?,
    };
    let mut volumes = Vec::new();
    for entry in entries {
        let name = entry?.file_name().into_string().ok().and_then(|name| name.parse::<Name>().ok());
        if let Some(volume) = name.map(|name| read(paths, name)).transpose()? {
            volumes.extend(volume);
        }
    }
    volumes.sort_by(|a: &Volume, b| a.name.as_str().cmp(b.name.as_str()));
    Ok(volumes)
}

/// The volume of that name.
pub fn read(paths: &Paths, name: Name) -> Result<Option<Volume>> {
    let home = home(paths, &name);
    let Ok(found) = fs::metadata(home.join("_data")) else { return Ok(None) };
    let known = record::read(&home.join("volume.json"))?;
    Ok(Some(known.unwrap_or(Volume { created: found.ctime(), ..Volume::named(name) })))
}

/// The volume that `word` names: its whole name, or the beginning of only one.
pub fn find(paths: &Paths, word: &str) -> Result<Option<Volume>> {
    if let Some(volume) = word.parse().ok().map(|name| read(paths, name)).transpose()?.flatten() {
        return Ok(Some(volume));
    }
    let mut starts = list(paths)?;
    starts.retain(|volume| !word.is_empty() && volume.name.as_str().starts_with(word));
    if starts.len() > 1 {
        return Err(Error::usage(format!("{word} is the beginning of more than one volume's name")).into());
    }
    Ok(starts.pop())
}

/// The containers that have the volume, by id.
pub fn users(paths: &Paths, name: &Name) -> Vec<String> {
    let has = |known: &Known| all_of(&known.made).any(|volume| volume.name == *name);
    let mut ids: Vec<String> =
        folder::recorded(paths).filter(has).map(|known| known.made.id.to_string()).collect();
    ids.sort();
    ids
}

/// The volume has been filled: the image's files are not copied into it any more.
pub fn no_longer_fresh(paths: &Paths, name: &Name) -> Result<()> {
    match fs::remove_file(home(paths, name).join("fresh")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Copies `from`, a folder of an image, into a volume whose files lie in `data`, if no container had the volume
/// before. Others that start with it at the same time wait, so that nobody sees half of the files.
pub fn fill(data: &Path, from: Option<&Path>) -> Result<()> {
    let Some(home) = data.parent() else { return Ok(()) };
    let fresh = home.join("fresh");
    let file = match File::open(&fresh) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let _lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    if !fresh.exists() {
        return Ok(());
    }
    let is_empty = fs::read_dir(data)?.next().is_none();
    if let Some(from) = from.filter(|_| is_empty) {
        let filling = home.join(".filling");
        tree::remove(&filling)?;
        fs::create_dir(&filling)?;
        if let Err(error) = tree::copy(from, &filling) {
            let _ = tree::remove(&filling);
            return Err(error.into());
        }
        fs::rename(&filling, data)?;
    }
    Ok(fs::remove_file(fresh)?)
}

/// Removes the anonymous volumes of a container that is about to go, unless another has them.
pub fn release(paths: &Paths, made: &Made) -> Result<()> {
    for volume in all_of(made) {
        if read(paths, volume.name.clone())?.is_some_and(|known| known.anonymous) {
            let maps = maps::choose(&made.request.userns).ok();
            // Whoever else has it, or has removed it, sees to it.
            let _ = remove_but_for(paths, &volume.name, Some(&made.id), maps.as_ref())?;
        }
    }
    Ok(())
}

/// Removes the volume with all its files, unless a container has it.
pub fn remove(paths: &Paths, name: &Name, maps: Option<&IdMaps>) -> Result<std::result::Result<(), Refusal>> {
    remove_but_for(paths, name, None, maps)
}

/// The same, though the container `leaving` has it.
fn remove_but_for(
    paths: &Paths,
    name: &Name,
    leaving: Option<&ContainerName>,
    maps: Option<&IdMaps>,
) -> Result<std::result::Result<(), Refusal>> {
    let lock = lock(paths)?;
    let home = home(paths, name);
    if !home.join("_data").exists() {
        return Ok(Err(Refusal::Missing));
    }
    let mut users = users(paths, name);
    users.retain(|id| leaving.is_none_or(|leaving| leaving.as_str() != id));
    if !users.is_empty() {
        return Ok(Err(Refusal::InUse(users)));
    }
    let gone = all(paths).join(format!("{GONE}{}", ContainerName::fresh()?));
    fs::rename(&home, &gone).with_context(|| format!("cannot remove volume {name}"))?;
    drop(lock);
    tell(paths, "destroy", name);
    sweep(paths, maps);
    if gone.exists() {
        folder::remove_layers(&gone, maps).with_context(|| format!("cannot remove volume {name}"))?;
    }
    Ok(Ok(()))
}

/// Removes what a killed kelp was removing.
fn sweep(paths: &Paths, maps: Option<&IdMaps>) {
    let Ok(entries) = fs::read_dir(all(paths)) else { return };
    for entry in entries.filter_map(Result::ok) {
        if entry.file_name().as_encoded_bytes().starts_with(GONE.as_bytes()) {
            let _ = folder::remove_layers(&entry.path(), maps);
        }
    }
}

/// How much the regular files of the volume hold, as far as they can be seen.
pub fn size(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => size(&entry.path()),
        Ok(found) if found.is_file() => found.len(),
        _ => 0,
    };
    entries.filter_map(Result::ok).map(size).sum()
}
