//! Limits that the program starts with where no controller is ours: on which processors it runs, its nice value and its
//! I/O priority, how many processes there may be. Its children have them too; a program may make them stricter.

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::spec::Inherited;
use crate::sys::clone::{self, Cloned};
use crate::sys::process;

/// Takes them on.
pub fn assume(inherited: &Inherited) -> Result<()> {
    if let Some(processors) = &inherited.affinity {
        let mut set = CpuSet::new();
        for number in &processors.0 {
            set.set(*number as usize)?;
        }
        sched_setaffinity(Pid::from_raw(0), &set)
            .with_context(|| format!("run on processors {processors}"))?;
    }
    if inherited.nice != 0 {
        process::setpriority(0, inherited.nice)
            .with_context(|| format!("take nice value {}", inherited.nice))?;
    }
    if let Some(level) = inherited.io_priority {
        process::set_io_priority(0, level).with_context(|| format!("take I/O priority {level}"))?;
    }
    if let Some(most) = inherited.processes {
        limit_processes(most).context("limit the processes")?;
    }
    Ok(())
}

/// RLIMIT_NPROC counts within the user namespace since Linux 5.14; before, it counted all of the user's processes and
/// so would refuse everything: that is tried with one process, and then only the watcher is left.
fn limit_processes(most: u64) -> Result<()> {
    let before = process::getrlimit(libc::RLIMIT_NPROC)?;
    let most = most.min(before.1);
    process::setrlimit(libc::RLIMIT_NPROC, most, before.1)?;
    if most > 1 {
        match clone::clone(0, None) {
            Ok(Cloned::Child) => clone::exit(0),
            Ok(Cloned::Parent { pid, .. }) => drop(nix::sys::wait::waitpid(Pid::from_raw(pid), None)),
            Err(_) => return Ok(process::setrlimit(libc::RLIMIT_NPROC, before.0, before.1)?),
        }
    }
    Ok(process::setrlimit(libc::RLIMIT_NPROC, most, most)?)
}
