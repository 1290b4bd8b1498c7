//! The signals of a monitor, read from a descriptor, and the end of a container's first process. It knows which
//! signal is a call, not what callers want.

use std::os::fd::BorrowedFd;

use anyhow::Result;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

use crate::container::call::{self, Line};

/// Blocks every signal that is proxied and gives the descriptor they are read from.
pub fn signals() -> Result<SignalFd> {
    let mut set = SigSet::all();
    for signal in [
        Signal::SIGSEGV,
        Signal::SIGBUS,
        Signal::SIGFPE,
        Signal::SIGILL,
        Signal::SIGTRAP,
        Signal::SIGABRT,
        Signal::SIGTSTP,
        Signal::SIGTTIN,
        Signal::SIGTTOU,
    ] {
        set.remove(signal);
    }
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None)?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// Who calls the monitor by this signal, if it is a call and somebody who may.
pub fn caller(found: &siginfo) -> Option<Line> {
    let is_call = found.ssi_signo == call::CALL as u32 && found.ssi_code == libc::SI_QUEUE;
    if is_call { call::answer(found.ssi_pid as i32, found.ssi_int).ok() } else { None }
}

/// Whether the caller ignores a signal, as under `nohup(1)`: a blocked signal arrives all the same.
pub fn ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|word| u64::from_str_radix(word.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 << (signal - 1) != 0)
}

/// The status of a process that has ended.
pub fn reap(pidfd: BorrowedFd<'_>) -> Result<i32> {
    loop {
        match waitid(Id::PIDFd(pidfd), WaitPidFlag::WEXITED) {
            Ok(WaitStatus::Exited(_, status)) => return Ok(status),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as i32),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
