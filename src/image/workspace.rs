//! A private folder in the store for what one process is making. Its lock is held as long as the process
//! lives, so whatever a `kill -9` leaves is seen to be nobody's and swept by the next kelp. A lease in it
//! names the layers that the process counts on, so that nobody collects them meanwhile.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use serde::{Deserialize, Serialize};

use crate::image::reference::Digest;
use crate::record::{self, Durability, Lock};
use crate::sys::path::spread_folders;

/// `tmp/NAME/`, with `tmp/NAME.lock` beside it.
#[derive(Debug)]
pub struct Workspace {
    pub folder: PathBuf,
    lock_path: PathBuf,
    lock: Option<Lock>,
    numbers: AtomicU64,
    leased: Mutex<Lease>,
}

/// How many names are tried for a folder on ground where nothing was deleted lately (decisions/0403).
const TRIES: u32 = 12;
/// What `mkfs.ext4` gives a block group by default, and how many of them a group that is nearly empty uses.
const INODES_OF_GROUP: u64 = 8192;
const FEW: u64 = 128;

#[derive(Debug, Default, Serialize, Deserialize)]
struct Lease {
    layers: Vec<Digest>,
    blobs: Vec<Digest>,
}

impl Workspace {
    /// Makes a fresh one below `tmp` of the store.
    pub fn create(tmp: &Path, purpose: &str) -> Result<Self> {
        // Other file systems have no such flag and no need of it.
        let _ = fs::File::open(tmp).map(|tmp| spread_folders(tmp.as_fd()));
        for attempt in 0..1000u32 {
            let name = format!("{}-{attempt}", std::process::id());
            let lock_path = tmp.join(format!("{name}.lock"));
            let Some(lock) = Lock::now(&lock_path)? else { continue };
            // A sweeper may have removed the lock file between its opening and its locking.
            if !is_linked(&lock_path, &lock) {
                continue;
            }
            let folder = tmp.join(name);
            remove(&folder)?;
            fs::create_dir(&folder)
                .with_context(|| format!("cannot make {} for {purpose}", folder.display()))?;
            if attempt < TRIES && !is_fresh_ground(&folder) {
                let _ = fs::remove_dir(&folder);
                let _ = fs::remove_file(&lock_path);
                continue;
            }
            return Ok(Self {
                folder,
                lock_path,
                lock: Some(lock),
                numbers: AtomicU64::new(0),
                leased: Mutex::default(),
            });
        }
        anyhow::bail!("cannot find a free name in {} for {purpose}", tmp.display())
    }

    /// A name in the folder that nothing has yet.
    pub fn fresh(&self) -> PathBuf {
        self.folder.join(self.numbers.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// Puts a folder that was made here in the place of another, which stays here. There is no moment without
    /// one of them: where the file system can't exchange two names, the next sweep makes up for a crash.
    pub fn replace(&self, made: &Path, place: &Path) -> Result<()> {
        let missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        match exchange(made, place) {
            Err(error) if missing(&error) => return Ok(fs::rename(made, place)?),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => {}
            other => return Ok(other?),
        }
        let aside = self.folder.join(place.file_name().context("a layer has a name")?);
        match fs::rename(place, &aside) {
            Err(error) if !missing(&error) => return Err(error.into()),
            _ => {}
        }
        fs::rename(made, place).inspect_err(|_| give_back(&aside, place)).map_err(Into::into)
    }

    /// Says which further layers and blobs this process counts on. Under the store's lock, so that nobody is
    /// just about to collect them.
    pub fn lease(&self, _: &Lock, layers: &[Digest], blobs: &[Digest]) -> Result<()> {
        let mut lease = self.leased.lock().unwrap_or_else(PoisonError::into_inner);
        lease.layers.extend_from_slice(layers);
        lease.blobs.extend_from_slice(blobs);
        record::write(&self.folder.join("lease"), &*lease, Durability::Boot)
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        // What can't be removed now is swept later.
        if remove(&self.folder).is_ok() {
            let _ = fs::remove_file(&self.lock_path);
        }
        drop(self.lock.take());
    }
}

/// ext4 does not give an inode number out again for minutes after it was freed, and searches through all such
/// numbers of the group for each new file. A folder whose own number is one of the first of its group is in a
/// group without them.
fn is_fresh_ground(folder: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(folder).is_ok_and(|found| found.ino().wrapping_sub(1) % INODES_OF_GROUP < FEW)
}

/// `renameat2(2)`; EINVAL from file systems that don't know how.
fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    Ok(renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE)?)
}

/// What stands in its place already stays there.
fn give_back(aside: &Path, place: &Path) {
    if fs::symlink_metadata(place).is_err() {
        let _ = fs::rename(aside, place);
    }
}

/// A layer that its killed owner was about to replace goes back (`Workspace::replace`).
fn give_layers_back(tmp: &Path, folder: &Path) {
    let layers = tmp.with_file_name("layers");
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| Digest::from_hex(name).is_some()) {
            give_back(&entry.path(), &layers.join(name));
        }
    }
}

fn is_linked(path: &Path, lock: &Lock) -> bool {
    use std::os::unix::fs::MetadataExt;
    let (Ok(linked), Ok(held)) = (fs::metadata(path), lock.metadata()) else { return false };
    linked.ino() == held.ino()
}

/// Removes a folder and all in it; one that is not there is removed already.
pub fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

fn locks(tmp: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(tmp).with_context(|| format!("cannot read {}", tmp.display()))?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    Ok(paths.filter(|path| path.extension().is_some_and(|end| end == "lock")).collect())
}

/// Removes the folders of processes that are gone; returns how many there were.
pub fn sweep(tmp: &Path) -> Result<usize> {
    let mut swept = 0;
    for lock_path in locks(tmp)? {
        let Some(lock) = Lock::now(&lock_path)? else { continue };
        if is_linked(&lock_path, &lock) {
            give_layers_back(tmp, &lock_path.with_extension(""));
            remove(&lock_path.with_extension(""))?;
            let _ = fs::remove_file(&lock_path);
            swept += 1;
        }
    }
    Ok(swept)
}

/// The layers and blobs that living processes count on.
pub fn leased(tmp: &Path) -> Result<(HashSet<Digest>, HashSet<Digest>)> {
    let (mut layers, mut blobs) = (HashSet::new(), HashSet::new());
    for lock_path in locks(tmp)? {
        let lease: Option<Lease> = record::read(&lock_path.with_extension("").join("lease"))?;
        if let (Some(lease), None) = (lease, Lock::now(&lock_path)?) {
            layers.extend(lease.layers);
            blobs.extend(lease.blobs);
        }
    }
    Ok((layers, blobs))
}
