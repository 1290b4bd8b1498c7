//! newuidmap and newgidmap: the setuid programs that write maps of more than one id for users who own ranges
//! (`newuidmap(1)`). Both run side by side: each costs milliseconds, most of them its own start.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::sys::signal::SigSet;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::sys::clone::{self, Cloned};
use crate::sys::process;
use crate::userns::maps::{IdMaps, Line};

/// The programs found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetuidPrograms {
    #[serde(with = "crate::raw::path")]
    pub newuidmap: PathBuf,
    #[serde(with = "crate::raw::path")]
    pub newgidmap: PathBuf,
}

/// Looks in `$PATH`, then in /usr/bin, for both and checks that they can do their work.
///
/// # Errors
/// A sentence that says which is missing or lacks the setuid bit.
pub fn find() -> Result<SetuidPrograms, String> {
    let one = |name: &str| {
        let path = search(name).ok_or_else(|| format!("{name} is not installed"))?;
        let privileged = is_privileged(&path);
        if privileged { Ok(path) } else { Err(format!("{} has no setuid bit", path.display())) }
    };
    Ok(SetuidPrograms { newuidmap: one("newuidmap")?, newgidmap: one("newgidmap")? })
}

/// The first file of that name in `$PATH`.
pub fn search(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.metadata().is_ok_and(|found| found.is_file() && found.mode() & 0o111 != 0))
}

/// Setuid root, or with file capabilities as some distributions ship it.
fn is_privileged(path: &Path) -> bool {
    let setuid = path.metadata().is_ok_and(|found| found.mode() & 0o4000 != 0 && found.uid() == 0);
    setuid || has_file_capabilities(path)
}

fn has_file_capabilities(path: &Path) -> bool {
    let Ok(name) = std::ffi::CString::new(path.as_os_str().as_bytes()) else { return false };
    crate::sys::path::xattr_length(&name, c"security.capability").is_ok_and(|length| length > 0)
}

/// Starts both programs for the process `pid`; something else is done `meanwhile`.
///
/// # Errors
/// A program that can't be started, or that refuses the map, with its own words.
pub fn write(programs: &SetuidPrograms, pid: i32, maps: &IdMaps, meanwhile: impl FnOnce()) -> Result<()> {
    let gate = Gate::new()?;
    let uids = start(&programs.newuidmap, pid, &maps.uid, &gate)?;
    let gids = start(&programs.newgidmap, pid, &maps.gid, &gate);
    if let Ok(gids) = &gids {
        gate.set_apart(uids.pid, gids.pid);
    }
    drop(gate);
    meanwhile();
    let uids = finish(&programs.newuidmap, uids);
    gids.and_then(|gids| finish(&programs.newgidmap, gids))?;
    uids
}

/// Where both programs wait until they are made. On two processors the scheduler often leaves both on one of them while
/// the other is idle: what is idle for less than half a millisecond at a time looks for no work
/// (`sched_migration_cost_ns`), and the first may run to its end before the second is made. So they are set apart, and
/// are bound to nothing once they have passed.
struct Gate {
    closed: OwnedFd,
    held: OwnedFd,
    processors: Option<CpuSet>,
}

impl Gate {
    fn new() -> Result<Self> {
        let (closed, held) = pipe2(OFlag::O_CLOEXEC)?;
        Ok(Self { closed, held, processors: sched_getaffinity(Pid::from_raw(0)).ok() })
    }

    fn set_apart(&self, one: Pid, other: Pid) {
        let may_use = |cpu: &usize| self.processors.is_some_and(|all| all.is_set(*cpu).unwrap_or(false));
        let allowed: Vec<usize> = (0..CpuSet::count()).filter(may_use).collect();
        let (Ok(own), [first, second]) = (sched_getcpu(), &allowed[..]) else { return };
        let away = if own == *first { *second } else { *first };
        for (pid, cpu) in [(one, away), (other, own)] {
            let mut only = CpuSet::new();
            let _ = only.set(cpu).and_then(|()| sched_setaffinity(pid, &only));
        }
    }

    /// Waits until nobody holds the gate any more; for a copy of the process that made it, which held it too.
    fn pass(&self) {
        let _ = nix::unistd::close(self.held.as_raw_fd());
        let _ = nix::unistd::read(&self.closed, &mut [0]);
        if let Some(all) = &self.processors {
            let _ = sched_setaffinity(Pid::from_raw(0), all);
        }
    }
}

/// A program that was started, and what it says.
struct Started {
    pid: Pid,
    said: File,
}

/// Starts a program without waiting until it runs, which the standard library does: on a small machine the scheduler runs
/// the first of two to its end before the second is started.
fn start(program: &Path, pid: i32, lines: &[Line], gate: &Gate) -> Result<Started> {
    let mut words = vec![CString::new(program.as_os_str().as_bytes())?, CString::new(pid.to_string())?];
    for line in lines {
        let numbers = [line.container.to_string(), line.host.to_string(), line.count.to_string()];
        for number in numbers {
            words.push(CString::new(number)?);
        }
    }
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let (said, says) = pipe2(OFlag::O_CLOEXEC)?;
    match clone::clone(0, None).with_context(|| format!("cannot start {}", program.display()))? {
        Cloned::Parent { pid, .. } => Ok(Started { pid: Pid::from_raw(pid), said: said.into() }),
        Cloned::Child => {
            gate.pass();
            let failed = become_program(&words, null.as_fd(), says.as_fd());
            let _ = nix::unistd::write(&says, format!("cannot start it: {failed}").as_bytes());
            clone::exit(127)
        }
    }
}

fn become_program(words: &[CString], null: BorrowedFd<'_>, says: BorrowedFd<'_>) -> io::Error {
    let streams = [(null, 0), (null, 1), (says, 2)];
    let placed = streams.iter().try_for_each(|(stream, number)| process::become_stream(*stream, *number));
    if let Err(error) = placed.and_then(|()| Ok(SigSet::empty().thread_set_mask()?)) {
        return error;
    }
    match words.first().map(|program| nix::unistd::execv(program, words)) {
        Some(Err(error)) => error.into(),
        _ => io::ErrorKind::InvalidInput.into(),
    }
}

fn finish(program: &Path, mut started: Started) -> Result<()> {
    let mut said = Vec::new();
    let cannot_wait = || format!("cannot wait for {}", program.display());
    started.said.read_to_end(&mut said).with_context(cannot_wait)?;
    let status = waitpid(started.pid, None).with_context(cannot_wait)?;
    if status == WaitStatus::Exited(started.pid, 0) {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    Err(Error::host(format!("cannot map ids: {said}")).hint(hint(&said)).into())
}

fn hint(said: &str) -> String {
    if no_new_privileges() {
        return "kelp runs with no_new_privs, so setuid programs have no power: use --userns=single"
            .to_owned();
    }
    if said.contains("not allowed") {
        return format!("the ranges are too small or not yours; {}", crate::userns::subordinate::HINT);
    }
    "use --userns=single, or see `kelp doctor`".to_owned()
}

fn no_new_privileges() -> bool {
    File::open("/proc/self/status")
        .and_then(std::io::read_to_string)
        .is_ok_and(|status| status.lines().any(|line| line == "NoNewPrivs:\t1"))
}
