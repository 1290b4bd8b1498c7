//! One control group: made, limited, joined by `clone3(2)` with CLONE_INTO_CGROUP, frozen, killed, removed. Whoever
//! holds its path can do the last three, so that what a killed monitor left can be put right.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::cgroup::delegation;
use crate::spec::resources::Write;

/// How long a killed group may take to become empty.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Group {
    #[serde(with = "crate::raw::path")]
    pub folder: PathBuf,
}

impl Group {
    pub fn make(ground: &Path, name: &str) -> Result<Self> {
        let folder = ground.join(name);
        fs::create_dir(&folder).with_context(|| format!("cannot make the cgroup {}", folder.display()))?;
        Ok(Self { folder })
    }

    /// For `clone3(2)`.
    pub fn open(&self) -> Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        nix::fcntl::open(&self.folder, flags, Mode::empty())
            .with_context(|| format!("cannot open the cgroup {}", self.folder.display()))
    }

    pub fn write(&self, write: &Write) -> io::Result<()> {
        fs::write(self.folder.join(&write.file), &write.text)
    }

    /// The whole text of one of its files; empty where the kernel has none.
    pub fn read(&self, file: &str) -> String {
        fs::read_to_string(self.folder.join(file)).unwrap_or_default()
    }

    pub fn has(&self, file: &str) -> bool {
        self.folder.join(file).exists()
    }

    /// One number of a file of `KEY NUMBER` lines.
    pub fn number(&self, file: &str, key: &str) -> Option<u64> {
        self.read(file)
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
    }

    /// How many of its processes the kernel has killed for memory (`memory.events`).
    pub fn oom_kills(&self) -> u64 {
        self.number("memory.events", "oom_kill").unwrap_or(0)
    }

    /// Whether the kernel ended all of them together (`memory.oom.group`; counted since Linux 5.17).
    pub fn is_killed_whole(&self) -> bool {
        self.number("memory.events.local", "oom_group_kill").is_some_and(|times| times > 0)
    }

    /// The most memory that it held (`memory.peak`, Linux 5.19).
    pub fn memory_peak(&self) -> Option<u64> {
        self.read("memory.peak").trim().parse().ok()
    }

    /// `cgroup.freeze`; returns when every process has stopped or goes on. One that waits for an answer of ours can't
    /// stop before it has it: `answer` is called meanwhile.
    pub fn freeze(&self, frozen: bool, answer: &mut dyn FnMut()) -> Result<()> {
        let word = if frozen { "1" } else { "0" };
        fs::write(self.folder.join("cgroup.freeze"), word)
            .with_context(|| format!("cannot write {}/cgroup.freeze", self.folder.display()))?;
        self.wait("frozen", u64::from(frozen), answer)
    }

    /// Ends every process of the group at once (`cgroup.kill`, Linux 5.14), or one by one.
    pub fn kill(&self) {
        if fs::write(self.folder.join("cgroup.kill"), "1").is_ok() {
            return;
        }
        for pid in delegation::processes(&self.folder) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }

    /// Kills what is left, and removes the group with those below it.
    pub fn remove(&self) -> Result<()> {
        if !self.folder.exists() {
            return Ok(());
        }
        if self.number("cgroup.events", "populated") != Some(0) {
            self.kill();
            self.wait("populated", 0, &mut || ())?;
        }
        remove_tree(&self.folder)
            .with_context(|| format!("cannot remove the cgroup {}", self.folder.display()))
    }

    /// `cgroup.events` changes without a descriptor that a timeout could be given to on every kernel, and changes
    /// within microseconds.
    fn wait(&self, key: &str, value: u64, meanwhile: &mut dyn FnMut()) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.number("cgroup.events", key).is_some_and(|now| now != value) {
            if Instant::now() > deadline {
                anyhow::bail!("the cgroup {} does not get {key} {value}", self.folder.display());
            }
            meanwhile();
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }
}

fn remove_tree(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)?.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
