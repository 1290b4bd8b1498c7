//! Records: small JSON files that are whole or absent, whatever is killed when, and advisory locks that say
//! who holds them. A record is written beside its place, synced if it must outlive a power cut, and renamed.
//! It knows nothing of what the records mean.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;
use crate::paths;

/// Whether a record must be there after a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    Synced,
    /// Worth nothing after a reboot: what it describes is gone then too.
    Boot,
}

/// Writes `value` as JSON so that a reader sees the old record or the new one.
pub fn write<T: Serialize>(path: &Path, value: &T, durability: Durability) -> Result<()> {
    let beside = paths::beside(path);
    let result = write_beside(&beside, path, value, durability);
    if result.is_err() {
        let _ = fs::remove_file(&beside);
    }
    result.with_context(|| format!("cannot write {}", path.display()))
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
            Ok(held) => Ok(Some(Self(held))),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(errno).with_context(|| format!("cannot lock {}", path.display())),
        }
    }

    /// Takes the lock, waiting at most `patience`, and writes the caller's pid and `purpose` into it.
    ///
    /// # Errors
    /// After `patience`, a sentence that names the holder.
    pub fn wait(path: &Path, purpose: &str, patience: Duration) -> Result<Self> {
        let deadline = Instant::now() + patience;
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(mut lock) = Self::now(path)? {
                lock.sign(purpose).with_context(|| format!("cannot sign {}", path.display()))?;
                return Ok(lock);
            }
            if Instant::now() >= deadline {
                let holder = fs::read_to_string(path).unwrap_or_default();
                return Err(Error::host(format!(
                    "cannot lock {}: {} holds it for {} s",
                    path.display(),
                    if holder.trim().is_empty() { "another kelp" } else { holder.trim() },
                    patience.as_secs()
                ))
                .into());
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    fn sign(&mut self, purpose: &str) -> io::Result<()> {
        let file = &mut *self.0;
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "pid {} ({purpose})", std::process::id())
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
