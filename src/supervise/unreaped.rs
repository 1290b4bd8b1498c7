//! Why a container that was killed does not end: its first process waits until each process of its pid namespace is
//! reaped (`pid_namespaces(7)`), also those that whoever is outside has to reap. `exec` stays beside its program for that;
//! if it is killed too, the machine's first process inherits the duty, and in a CI container that may be a program that
//! never heard of it. Looked for once after a kill, and once when the container has nothing more to say.

use std::fs;
use std::time::Duration;

use crate::sys::process;

/// How long after that it is looked for.
pub const BURIAL: Duration = Duration::from_secs(2);

/// `PF_EXITING` of the kernel's flags of a process (`proc_pid_stat(5)`).
const EXITING: u64 = 4;

/// What is known of a process.
struct Seen {
    pid: i32,
    parent: i32,
    dead: bool,
    /// In how many pid namespaces below ours it has a number, and one.
    depth: usize,
}

impl Seen {
    fn of(pid: i32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        Some(Self {
            pid,
            parent: line("PPid:")?.parse().ok()?,
            dead: line("State:")?.starts_with('Z'),
            depth: line("NSpid:")?.split_whitespace().count(),
        })
    }
}

/// A sentence about who keeps the container of the first process `first` from ending, if that is what it waits for.
pub fn keeping(first: i32) -> Option<String> {
    if !is_exiting(first)? {
        return None;
    }
    let depth = Seen::of(first)?.depth;
    let pids = fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let left = pids.filter_map(Seen::of).find(|seen| {
        let from_outside = || Seen::of(seen.parent).is_some_and(|parent| parent.depth < depth);
        seen.pid != first && seen.dead && seen.depth == depth && from_outside()
    })?;
    let parent = fs::read_to_string(format!("/proc/{}/comm", left.parent)).unwrap_or_default();
    Some(format!(
        "process {} of the container has ended and its parent, process {} ({}), does not reap it: the container is taken \
         for ended (a first process that reaps, as of `docker run --init`, would help)",
        left.pid,
        left.parent,
        parent.trim()
    ))
}

/// Whether a process is on its way out, by whatever it still waits for there.
pub fn is_exiting(pid: i32) -> Option<bool> {
    Some(process::stat(pid, 9)? & EXITING != 0)
}

/// The exit status of one that is, 128+n if signal n ended it.
pub fn status(pid: i32) -> Option<i32> {
    let status = i32::try_from(process::stat(pid, 52)?).ok()?;
    Some(if status & 0x7f == 0 { status >> 8 & 0xff } else { 128 + (status & 0x7f) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_runs_is_kept_by_nobody() {
        let own = std::process::id() as i32;
        assert_eq!(is_exiting(own), Some(false));
        assert_eq!(keeping(own), None);
    }
}
