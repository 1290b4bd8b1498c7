//! Kelp as the first process of a container, with the program as its child: it passes signals on and reaps whatever
//! is left to it. With `--init` it is pid 1 (`pid_namespaces(7)`). With `--pid host` no namespace ends what the
//! program leaves behind; kelp adopts that and ends it, with the program or with a monitor that is killed. After
//! the clone nothing may fail: from there on the container runs.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getppid};

use crate::launch::orphans;
use crate::launch::plan::First;
use crate::sys::clone::{self, Cloned};
use crate::sys::process;

/// Splits into the first process and the program's; returns in the latter.
pub fn stay(socket: OwnedFd, mask: &SigSet, first: First) -> std::io::Result<OwnedFd> {
    let all = SigSet::all();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&all), None)?;
    let monitor = getppid();
    if first == First::Adopter {
        orphans::adopt()?;
        // Told instead of killed, so that the others can be ended first.
        process::parent_death_signal(libc::SIGTERM)?;
    }
    match clone::clone(0, None)? {
        Cloned::Child => {
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(mask), None)?;
            process::parent_death_signal(libc::SIGKILL)?;
            Ok(socket)
        }
        Cloned::Parent { pid, pidfd } => {
            drop(socket);
            let _ = process::rename(c"kelp-init");
            let watched = || first != First::Adopter || getppid() == monitor;
            let status = reap(Pid::from_raw(pid), &pidfd, &all, watched);
            if first == First::Adopter {
                orphans::end();
            }
            clone::exit(status)
        }
    }
}

/// The exit status of the program, 128+n if signal n ended it; 137 if there is no monitor any more.
fn reap(program: Pid, pidfd: &OwnedFd, all: &SigSet, watched: impl Fn() -> bool) -> i32 {
    while watched() {
        match all.wait() {
            Ok(Signal::SIGCHLD) => {
                if let Some(status) = reap_all(program) {
                    return status;
                }
            }
            Ok(_) if !watched() => break,
            Ok(signal) => {
                let _ = process::pidfd_send_signal(pidfd.as_fd(), signal as i32);
            }
            Err(_) => {}
        }
    }
    128 + libc::SIGKILL
}

fn reap_all(program: Pid) -> Option<i32> {
    let mut ended = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == program => ended = Some(status),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == program => ended = Some(128 + signal as i32),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return ended,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return ended,
        }
    }
}
