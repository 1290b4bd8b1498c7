//! Records: small JSON files that are whole or absent, whatever is killed when, and advisory locks that say
//! who holds them. A record is written beside its place, synced if it must outlive a power cut, and renamed.
//! It knows nothing of what the records mean.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;

/// Whether a record must be there after a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    Synced,
    /// Worth nothing after a reboot: what it describes is gone then too.
    Boot,
}

/// Writes `value` as JSON so that a reader sees the old record or the new one.
pub fn write<T: Serialize>(path: &Path, value: &T, durability: Durability) -> Result<()> {
    let aside = beside(path);
    let result = write_beside(&aside, path, value, durability);
    if result.is_err() {
        let _ = fs::remove_file(&aside);
    }
    result.with_context(|| format!("cannot write {}", path.display()))
}

/// A name beside `path` that no other process uses, for write-beside and rename.
pub fn beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    path.with_file_name(name)
}

fn write_beside<T: Serialize>(beside: &Path, path: &Path, value: &T, durability: Durability) -> Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(beside)?;
    let mut text = serde_json::to_vec(value)?;
    text.push(b'\n');
    file.write_all(&text)?;
    if durability == Durability::Synced {
        file.sync_all()?;
    }
    fs::rename(beside, path)?;
    if let (Durability::Synced, Some(folder)) = (durability, path.parent()) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Reads a record; `None` if there is none.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let value = serde_json::from_slice(&text)
        .with_context(|| format!("cannot read {}: it is not a record of this kelp", path.display()))?;
    Ok(Some(value))
}

/// A held lock; it ends with the value or with the process.
#[derive(Debug)]
pub struct Lock(Flock<File>);

impl Lock {
    /// Takes the lock if nobody holds it.
    pub fn now(path: &Path) -> Result<Option<Self>> {
        let file = lock_file(path)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) if is_at(&held, path) => Ok(Some(Self(held))),
            Ok(_) => Ok(None),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(errno).with_context(|| format!("cannot lock {}", path.display())),
        }
    }

    /// Takes the lock, waiting at most `patience`; the wait is short, since holders only rename and link.
    ///
    /// # Errors
    /// After `patience`, a sentence that names the file.
    pub fn within(path: &Path, patience: Duration) -> Result<Self> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(lock) = Self::now(path)? {
                return Ok(lock);
            }
            if Instant::now() >= deadline {
                let held = format!("cannot lock {}: another kelp holds it", path.display());
                return Err(Error::host(held).hint("see who has it open, such as by fuser(1)").into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Replaces what the lock file says of its holder: one `write(2)`, so that a reader sees it whole unless
    /// the machine itself goes down.
    pub fn sign(&mut self, words: &str) -> io::Result<()> {
        let file = &mut *self.0;
        file.rewind()?;
        file.write_all(words.as_bytes())?;
        file.set_len(words.len() as u64)
    }

    /// What `fstat(2)` says of the lock's file, to compare with what its path names now.
    pub fn metadata(&self) -> io::Result<fs::Metadata> {
        self.0.metadata()
    }

    /// What the last holder wrote.
    pub fn signature(&mut self) -> io::Result<String> {
        let mut text = String::new();
        self.0.rewind()?;
        self.0.read_to_string(&mut text)?;
        Ok(text)
    }
}

/// Whoever held the lock before may have removed the file between our open and our lock.
fn is_at(held: &File, path: &Path) -> bool {
    let same =
        |here: fs::Metadata, there: fs::Metadata| (here.dev(), here.ino()) == (there.dev(), there.ino());
    held.metadata().ok().zip(fs::symlink_metadata(path).ok()).is_some_and(|(here, there)| same(here, there))
}

fn lock_file(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
}
