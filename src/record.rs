//! Records: small JSON files that are whole or absent, whatever is killed when, and advisory locks that say
//! who holds them. A record is written beside its place, synced if it must outlive a power cut, and renamed.
//! It knows nothing of what the records mean.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
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

/// A process that was killed is listed until it is reaped (`proc_pid_stat(5)`, state Z).
fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// What writers that are gone left beside the records of a folder.
pub fn unfinished(folder: &Path) -> Result<Vec<PathBuf>> {
    let is_left = |name: &str| {
        let writer = name.strip_prefix('.').and_then(|name| name.rsplit_once('.')?.1.parse::<u32>().ok());
        writer.is_some_and(|writer| !is_alive(writer))
    };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("cannot read {}", folder.display()))?,
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter(|name| is_left(name)).map(|name| folder.join(name)).collect())
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
pub struct Lock(File);

impl Lock {
    /// Takes the lock if nobody holds it.
    pub fn now(path: &Path) -> Result<Option<Self>> {
        let file = lock_file(path)?;
        match file.try_lock() {
            // Whoever held it before may have removed the file between our open and our lock.
            Ok(()) if is_at(&file, path) => Ok(Some(Self(file))),
            Ok(()) | Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock {}", path.display()))
            }
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

    /// Replaces what the lock file says by who holds it.
    pub fn sign(&self, words: &str) -> io::Result<()> {
        self.0.write_all_at(words.as_bytes(), 0)?;
        self.0.set_len(words.len() as u64)
    }

    /// Writes words that never change, and before them the first page: a record with a page is whole.
    pub fn inscribe(&self, words: &str, kept: &str) -> io::Result<()> {
        self.0.write_all_at(kept.as_bytes(), PAGE as u64)?;
        self.0.set_len((PAGE + kept.len()) as u64)?;
        self.turn_page(words)
    }

    /// Makes what the lock file says void. Its blocks stay: to free them can mean to wait for the disk.
    pub fn void(&self) -> io::Result<()> {
        self.0.write_all_at(&[0; SUM], 0)
    }

    /// Replaces the first page: one `write(2)` over blocks that exist, so that a full disk does not matter. A
    /// reader that is in the middle of it sees a wrong sum and looks again.
    pub fn turn_page(&self, words: &str) -> io::Result<()> {
        self.0.write_all_at(&page(words)?, 0)
    }

    /// What `fstat(2)` says of the lock's file, to compare with what its path names now.
    pub fn metadata(&self) -> io::Result<fs::Metadata> {
        self.0.metadata()
    }

    /// What the last holder wrote.
    pub fn inscription(&self) -> io::Result<Option<Inscription>> {
        inscription(&self.0)
    }

    /// The lock's descriptor: a lock belongs to the open file, so it is held for as long as a process has it open.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The text of a lock file: what its holder says, and what never changes.
#[derive(Debug)]
pub struct Inscription {
    pub signature: String,
    pub kept: String,
}

/// A lock file's text, and whether somebody holds the lock. Looking does not keep others from taking it for more
/// than a moment.
pub fn look(path: &Path) -> Result<Option<(Inscription, Held)>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot open {}", path.display())),
    };
    let cannot = || format!("cannot read {}", path.display());
    let Some(found) = inscription(&file).with_context(cannot)? else { return Ok(None) };
    Ok(Some((found, Held(file))))
}

/// An opened lock file of somebody else.
#[derive(Debug)]
pub struct Held(File);

impl Held {
    /// Whether its lock is held.
    pub fn now(self) -> bool {
        matches!(self.0.try_lock_shared(), Err(TryLockError::WouldBlock))
    }
}

const PAGE: usize = 4096;

/// The digits of a page's sum.
const SUM: usize = 16;

/// Sum, words, and white space up to the end of the page.
fn page(words: &str) -> io::Result<Vec<u8>> {
    let mut page = format!("{:016x} {words}", sum(words.as_bytes())).into_bytes();
    if page.len() >= PAGE {
        return Err(io::Error::other("the words do not fit on a page"));
    }
    page.resize(PAGE - 1, b' ');
    page.push(b'\n');
    Ok(page)
}

/// `None` for a file that was never signed, or whose page was torn by a crash of the machine.
fn inscription(file: &File) -> io::Result<Option<Inscription>> {
    for tried in 0..100 {
        let mut text = vec![0; 16 * 1024];
        let mut length = 0;
        loop {
            match file.read_at(&mut text[length..], length as u64)? {
                0 => break,
                count => length += count,
            }
            if length == text.len() {
                text.resize(2 * length, 0);
            }
        }
        text.truncate(length);
        let kept = text.split_off(PAGE.min(length));
        let words = text.get(SUM + 1..).unwrap_or_default().trim_ascii_end();
        if text.get(..SUM) == Some(format!("{:016x}", sum(words)).as_bytes()) {
            let word = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            return Ok(Some(Inscription { signature: word(words), kept: word(&kept) }));
        }
        if words.first().is_none_or(|byte| *byte == 0) {
            return Ok(None);
        }
        // On a busy machine a writer can be off its processor in the middle of the page.
        std::thread::sleep(Duration::from_millis(tried / 10));
    }
    Ok(None)
}

/// FNV-1a, 64 bits.
fn sum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Whether a file was not put aside, replaced or removed since it was opened by this path.
pub fn is_at(file: &File, path: &Path) -> bool {
    let same =
        |here: fs::Metadata, there: fs::Metadata| (here.dev(), here.ino()) == (there.dev(), there.ino());
    file.metadata().ok().zip(fs::metadata(path).ok()).is_some_and(|(here, there)| same(here, there))
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
