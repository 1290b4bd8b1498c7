//! `--pid host`: no first process of a namespace ends the others with it, so what they leave behind is adopted
//! (`PR_SET_CHILD_SUBREAPER`) and ended, by the container's first process and, should that be killed, the monitor.

use std::fs;
use std::io;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::sys::process;

/// Makes the calling process the adopter, before the container starts.
pub fn adopt() -> io::Result<()> {
    process::child_subreaper()
}

/// Ends every process that is left; whoever they leave becomes ours in turn.
pub fn end() {
    loop {
        for pid in children() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        if waitpid(None, None).is_err() {
            return;
        }
    }
}

/// /proc/PID/task/TID/children (`proc_pid_task(5)`).
fn children() -> Vec<i32> {
    let own = std::process::id();
    let text = fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}
