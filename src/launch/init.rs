//! `--init`: kelp stays as pid 1, passes signals on to the program and reaps whatever is left to it
//! (`pid_namespaces(7)`). After the clone nothing may fail: from there on the container runs.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::sys::clone::{self, Cloned};
use crate::sys::process;

/// Splits into pid 1 and the program's process; returns in the latter.
pub fn stay(socket: OwnedFd, mask: &SigSet) -> std::io::Result<OwnedFd> {
    let all = SigSet::all();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&all), None)?;
    match clone::clone(0, None)? {
        Cloned::Child => {
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(mask), None)?;
            Ok(socket)
        }
        Cloned::Parent { pid, pidfd } => {
            drop(socket);
            let _ = process::rename(&std::ffi::CString::from(c"kelp-init"));
            clone::exit(reap(Pid::from_raw(pid), &pidfd, &all))
        }
    }
}

/// The exit status of the program, 128+n if signal n ended it.
fn reap(program: Pid, pidfd: &OwnedFd, all: &SigSet) -> i32 {
    loop {
        match all.wait() {
            Ok(Signal::SIGCHLD) => {
                if let Some(status) = reap_all(program) {
                    return status;
                }
            }
            Ok(signal) => {
                let _ = process::pidfd_send_signal(pidfd.as_fd(), signal as i32);
            }
            Err(_) => {}
        }
    }
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
