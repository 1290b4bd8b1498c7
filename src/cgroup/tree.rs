//! The processes of a container as /proc shows them, where no group holds them: those that the container's own procfs
//! lists, so that one that joined later counts too, or, where the container sees the host's processes, the descendants
//! of its first. They are signalled through their folders, which are pidfds (`pidfd_send_signal(2)`), never by a number
//! that may be somebody else's by now.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::sys::clone::{self, Cloned};
use crate::sys::{process, socket};
use crate::units::CpuSet;

/// Where they are looked for.
#[derive(Debug)]
pub struct Processes {
    proc: OwnedFd,
    /// The first of them, if `proc` shows others too.
    root: Option<i32>,
}

const FOLDER: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// How long the server of a root may take to let us in, in milliseconds.
const STUCK: u16 = 2000;

/// How long a stop may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(5);

/// One process: `/proc/PID/stat` (`proc_pid_stat(5)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    pub state: u8,
    /// Its own time and that of the children it has waited for, in nanoseconds.
    pub cpu: u64,
    pub threads: u64,
    pub started: u64,
    pub resident: u64,
}

impl Processes {
    /// Those that descend from the process with this number, by the numbers that we know them by.
    pub fn below(first: i32) -> Result<Self> {
        let proc =
            nix::fcntl::open("/proc", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
        Ok(Self { proc: proc.context("cannot open /proc")?, root: Some(first) })
    }

    /// Those of the container whose first process has this number outside.
    pub fn of(first: i32) -> Result<Self> {
        if let Ok(proc) = own_procfs(first) {
            return Ok(Self { proc, root: None });
        }
        Self::below(first)
    }

    /// All of them, parents before children.
    pub fn list(&self) -> Vec<Process> {
        let found: Vec<Process> = match self.root {
            None => self.numbers().into_iter().filter_map(|pid| self.look(pid)).collect(),
            Some(root) => self.descendants(root),
        };
        in_order(found)
    }

    fn numbers(&self) -> Vec<i32> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let Ok(mut folder) = Dir::openat(&self.proc, ".", flags, Mode::empty()) else { return Vec::new() };
        let entries = folder.iter().filter_map(Result::ok);
        entries.filter_map(|entry| entry.file_name().to_str().ok()?.parse().ok()).collect()
    }

    fn descendants(&self, root: i32) -> Vec<Process> {
        let (mut found, mut waiting) = (Vec::new(), vec![root]);
        while let Some(pid) = waiting.pop() {
            let Some(process) = self.look(pid) else { continue };
            found.push(process);
            let threads = if process.threads == 1 { vec![pid] } else { self.threads(pid) };
            for thread in threads {
                let children = self.read(&format!("{pid}/task/{thread}/children")).unwrap_or_default();
                waiting.extend(children.split_whitespace().filter_map(|word| word.parse::<i32>().ok()));
            }
        }
        found
    }

    fn threads(&self, pid: i32) -> Vec<i32> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let Ok(mut folder) = Dir::openat(&self.proc, format!("{pid}/task").as_str(), flags, Mode::empty())
        else {
            return Vec::new();
        };
        folder.iter().filter_map(|entry| entry.ok()?.file_name().to_str().ok()?.parse().ok()).collect()
    }

    fn look(&self, pid: i32) -> Option<Process> {
        parse(pid, &self.read_short(&format!("{pid}/stat")).ok()?)
    }

    fn read(&self, path: &str) -> io::Result<String> {
        let file = openat(&self.proc, path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        let mut text = String::with_capacity(1024);
        File::from(file).read_to_string(&mut text)?;
        Ok(text)
    }

    /// A file that the kernel gives whole in one piece.
    fn read_short(&self, path: &str) -> io::Result<String> {
        let file = openat(&self.proc, path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        let mut text = vec![0u8; 4096];
        let length = nix::unistd::read(&file, &mut text)?;
        text.truncate(length);
        String::from_utf8(text).or_else(|error| Ok(String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    /// What the process holds of memory, in bytes, each shared page in part (`Pss` of `proc_pid_smaps(5)`).
    pub fn proportional(&self, process: &Process) -> u64 {
        let text = self.read_short(&format!("{}/smaps_rollup", process.pid)).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
        let kilobytes = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        kilobytes.map_or(process.resident, |kilobytes| kilobytes << 10)
    }

    /// Bytes that it made block devices read and write (`proc_pid_io(5)`).
    pub fn transferred(&self, process: &Process) -> (u64, u64) {
        let text = self.read(&format!("{}/io", process.pid)).unwrap_or_default();
        let number = |key| text.lines().find_map(|line: &str| line.strip_prefix(key)?.trim().parse().ok());
        (number("read_bytes:").unwrap_or(0), number("write_bytes:").unwrap_or(0))
    }

    pub fn signal(&self, process: &Process, signal: i32) -> io::Result<()> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let folder = openat(&self.proc, process.pid.to_string().as_str(), flags, Mode::empty())?;
        process::pidfd_send_signal(folder.as_fd(), signal)
    }

    /// SIGSTOP for all, parents first, so that no parent sees its child stop; gives those that it stopped.
    pub fn stop(&self) -> Vec<Process> {
        let mut stopped: Vec<Process> = Vec::new();
        // Whoever was forked behind our back is found in the next round.
        for _ in 0..4 {
            let known = |process: &Process| stopped.iter().any(|one| is_same(one, process));
            let running: Vec<Process> = self
                .list()
                .into_iter()
                .filter(|process| !matches!(process.state, b'T' | b't' | b'Z') && !known(process))
                .collect();
            if running.is_empty() {
                break;
            }
            stopped.extend(running.into_iter().filter(|process| self.signal(process, libc::SIGSTOP).is_ok()));
        }
        stopped
    }

    /// Waits until every thread of those has stopped, or is in a call of the kernel's that it can't return from
    /// before it stops: that is so between `vfork(2)` and the child's program.
    pub fn settle(&self, stopped: &[Process]) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while stopped.iter().any(|process| self.runs(process)) {
            anyhow::ensure!(Instant::now() < deadline, "they go on");
            // There is no event for a stop of somebody else's child.
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    fn runs(&self, process: &Process) -> bool {
        let state = |thread: i32| {
            let now = parse(thread, &self.read(&format!("{}/task/{thread}/stat", process.pid)).ok()?)?;
            Some(now.state)
        };
        let threads = self.threads(process.pid).into_iter();
        threads.filter_map(state).any(|state| matches!(state, b'R' | b'S'))
    }

    /// SIGCONT for those, children first: when a parent looks, its children run again.
    pub fn go_on(&self, stopped: &[Process]) {
        for process in stopped.iter().rev() {
            if self.look(process.pid).is_some_and(|now| is_same(&now, process)) {
                let _ = self.signal(process, libc::SIGCONT);
            }
        }
    }

    /// Every thread of all of them, by the numbers that they have for us; none where only those inside are known.
    fn every_thread(&self) -> impl Iterator<Item = i32> {
        let all = self.list().into_iter().filter(|_| self.root.is_some());
        all.flat_map(|process| self.threads(process.pid))
    }

    /// Changes every thread; says whether the kernel refused none. Those that have ended meanwhile do not count.
    fn change(&self, change: impl Fn(i32) -> io::Result<()>) -> bool {
        let refused = |error: io::Error| matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM));
        !self.every_thread().filter_map(|thread| change(thread).err()).any(refused)
    }

    /// Every thread of all of them on these processors.
    pub fn run_on(&self, processors: &CpuSet) {
        let mut set = nix::sched::CpuSet::new();
        if processors.0.iter().all(|number| set.set(*number as usize).is_ok()) {
            for thread in self.every_thread() {
                let _ = nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(thread), &set);
            }
        }
    }

    /// This nice value for every thread of all of them; says whether the kernel took it. Downwards is root's.
    pub fn renice(&self, nice: i32) -> bool {
        self.change(|thread| process::setpriority(thread.cast_unsigned(), nice))
    }

    /// This I/O priority for every thread of all of them; says whether the kernel took it. It refuses those that run as
    /// other users.
    pub fn set_io_priority(&self, level: u8) -> bool {
        self.change(|thread| process::set_io_priority(thread, level))
    }

    /// SIGKILL for all, the first first: in a pid namespace of its own that ends the others.
    pub fn kill(&self) {
        for process in self.list() {
            let _ = self.signal(&process, libc::SIGKILL);
        }
    }
}

fn is_same(one: &Process, other: &Process) -> bool {
    (one.pid, one.started) == (other.pid, other.started)
}

/// The procfs that the process sees, if it belongs to a pid namespace in which the process is the first.
fn own_procfs(first: i32) -> Result<OwnedFd> {
    let outside = nix::fcntl::readlink(format!("/proc/{first}/ns/pid").as_str())?;
    let own = nix::fcntl::readlink("/proc/self/ns/pid")?;
    anyhow::ensure!(outside != own, "it shows our processes");
    let proc = match nix::fcntl::open(format!("/proc/{first}/root/proc").as_str(), FOLDER, Mode::empty()) {
        Err(Errno::EACCES) => opened_inside(first)?,
        opened => opened?,
    };
    let is_proc = fstatfs(&proc)?.filesystem_type() == PROC_SUPER_MAGIC;
    let inside = nix::fcntl::readlinkat(&proc, "1/ns/pid")?;
    anyhow::ensure!(is_proc && inside == outside, "it shows other processes");
    Ok(proc)
}

/// A root that a server makes lets nobody through who is not of its user namespace (`allow_other` of `fuse(4)`), so a
/// child of ours goes there, opens the folder and hands it out. It joins no pid namespace, so nobody inside sees it.
fn opened_inside(first: i32) -> Result<OwnedFd> {
    let target = process::pidfd_open(first)?;
    let (ours, theirs) = socket::pair()?;
    match clone::clone(0, None)? {
        Cloned::Child => {
            let hand_out = || -> Result<()> {
                process::not_dumpable()?;
                process::parent_death_signal(libc::SIGKILL)?;
                setns(&target, CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
                let proc = nix::fcntl::open("/proc", FOLDER, Mode::empty())?;
                Ok(socket::send(theirs.as_fd(), b"proc", Some(proc.as_fd()))?)
            };
            clone::exit(i32::from(hand_out().is_err()))
        }
        Cloned::Parent { pid, pidfd } => {
            drop(theirs);
            // Its server may be gone, or stuck.
            let mut polled = [PollFd::new(ours.as_fd(), PollFlags::POLLIN)];
            let answers = poll(&mut polled, PollTimeout::from(STUCK)).is_ok_and(|ready| ready > 0);
            if !answers {
                process::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL)?;
            }
            let received = if answers { socket::receive(ours.as_fd())?.1 } else { None };
            let _ = waitpid(Pid::from_raw(pid), None);
            received.context("its /proc can't be opened from inside")
        }
    }
}

/// Parents before children, whatever their numbers.
fn in_order(found: Vec<Process>) -> Vec<Process> {
    let mut below: BTreeMap<i32, Vec<Process>> = BTreeMap::new();
    let known = |pid: i32| found.iter().any(|process| process.pid == pid);
    let mut ordered: Vec<Process> = found.iter().copied().filter(|process| !known(process.parent)).collect();
    for process in found.iter().filter(|process| known(process.parent)) {
        below.entry(process.parent).or_default().push(*process);
    }
    let mut at = 0;
    while let Some(pid) = ordered.get(at).map(|process| process.pid) {
        ordered.extend(below.remove(&pid).unwrap_or_default());
        at += 1;
    }
    ordered
}

/// Nanoseconds of one tick of `stat`: USER_HZ is 100 on every architecture that kelp runs on.
const TICK: u64 = 10_000_000;

fn parse(pid: i32, stat: &str) -> Option<Process> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    // Numbers of `proc_pid_stat(5)`; the third field is the first behind the name.
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let ticks = (14..=17).map(|field| number(field).unwrap_or(0)).sum::<u64>();
    Some(Process {
        pid,
        parent: number(4)? as i32,
        state: *fields.first()?.as_bytes().first()?,
        cpu: ticks * TICK,
        threads: number(20)?,
        started: number(22)?,
        resident: number(24)? * page_size(),
    })
}

fn page_size() -> u64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().map_or(4096, |size| size as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32) -> Process {
        Process { pid, parent, state: b'S', cpu: 0, threads: 1, started: 0, resident: 0 }
    }

    #[test]
    fn parents_come_before_children_whatever_their_numbers() {
        let found = vec![process(1, 0), process(2, 9), process(9, 1), process(5, 0)];
        let order: Vec<i32> = in_order(found).iter().map(|process| process.pid).collect();
        assert_eq!(order, [1, 5, 9, 2]);
    }

    #[test]
    fn a_name_with_spaces_and_brackets_is_no_field() {
        let stat =
            "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 3 4 5 6 20 0 2 0 1234 1000000 250 18446744073709551615";
        let found = parse(7, stat).unwrap();
        assert_eq!((found.parent, found.state, found.cpu), (1, b'S', 18 * TICK));
        assert_eq!((found.threads, found.started, found.resident), (2, 1234, 250 * page_size()));
    }
}
