//! What restrains a container while it runs: its group, or the watcher that stands in for one, and whether it is
//! paused. The monitor gives it a turn when one is due, and asks at the end whether the container ran out of memory.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::cgroup::group::Group;
use crate::cgroup::hold::{self, Change, Enforced, Enforcer, Hold};
use crate::cgroup::soft::{Watched, Watcher};
use crate::cgroup::tree::{Process, Processes};
use crate::spec::limits::{BLKIO_WEIGHT, CPU_PERIOD, CPU_QUOTA, CPU_SHARES, CPUS, MEMORY, PIDS};

/// How long after its start a container is watched.
const SOON: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
pub struct Restraint {
    hold: Hold,
    /// The number of the container's first process.
    first: i32,
    watcher: Option<Watcher>,
    /// When it begins to watch: a program that ends before that costs nothing.
    begins: Option<Instant>,
    /// A nice value that its session is to get, and when that is tried.
    session: Option<(i32, Instant)>,
    /// What the kernel tells of its memory.
    memory: Option<MemoryEvents>,
    /// What was stopped by a pause, where no group can be frozen.
    paused: Option<Vec<Process>>,
}

impl Restraint {
    /// Restrains the container whose first process has this number, and whose program runs.
    pub fn new(hold: Hold, first: i32) -> Self {
        let watched = hold.watched;
        let nice = hold.inherited.nice;
        let session = (nice != 0).then(|| (nice, Instant::now()));
        let memory = hold.group.as_ref().and_then(|group| MemoryEvents::of(group).ok());
        let mut restraint = Self { hold, first, watcher: None, begins: None, session, memory, paused: None };
        restraint.watch(watched);
        restraint
    }

    fn watch(&mut self, watched: Watched) {
        match &mut self.watcher {
            Some(watcher) => watcher.update(watched),
            None if watched.is_empty() => self.begins = None,
            None => self.begins = Some(Instant::now() + SOON),
        }
    }

    /// When the next turn is due.
    pub fn next(&self) -> Option<Instant> {
        let watcher = self.watcher.as_ref().filter(|_| self.paused.is_none()).map(|watcher| watcher.next);
        watcher.into_iter().chain(self.begins).chain(self.session.map(|(_, at)| at)).min()
    }

    pub fn turn(&mut self) {
        if let Some((nice, at)) = self.session.filter(|(_, at)| *at <= Instant::now()) {
            let busy = set_session_nice(self.first, nice);
            self.session = busy.then(|| (nice, at + BUSY));
        }
        if self.begins.is_some_and(|at| at <= Instant::now()) {
            self.watcher = Watcher::new(self.first, self.hold.watched).ok();
            self.begins = if self.watcher.is_some() { None } else { Some(Instant::now() + SOON) };
        }
        if let Some(watcher) = self.watcher.as_mut().filter(|watcher| watcher.next <= Instant::now()) {
            watcher.turn();
        }
    }

    /// Its processes may wait for an answer of ours before they can stop: `answer` gives it.
    pub fn pause(&mut self, answer: &mut dyn FnMut()) -> Result<()> {
        if let Some(group) = &self.hold.group {
            return group.freeze(true, answer);
        }
        let processes = Processes::of(self.first)?;
        // What the watcher has stopped goes on with the rest.
        if let Some(watcher) = &mut self.watcher {
            watcher.release();
        }
        let stopped = self.paused.insert(processes.stop());
        if processes.settle(stopped).is_ok() {
            return Ok(());
        }
        self.unpause()?;
        anyhow::bail!("its processes do not stop")
    }

    pub fn unpause(&mut self) -> Result<()> {
        if let Some(group) = &self.hold.group {
            return group.freeze(false, &mut || ());
        }
        if let Some(stopped) = self.paused.take() {
            Processes::of(self.first)?.go_on(&stopped);
        }
        Ok(())
    }

    /// Some limits have changed; gives who enforces them.
    pub fn update(&mut self, change: &Change<'_>, before: &Enforced) -> Result<Enforced> {
        let changed = hold::update(change, self.hold.group.as_ref(), before)?;
        let has = |flag: &str| change.changed.0.contains_key(flag);
        let watched = &mut self.hold.watched;
        if has(MEMORY) {
            watched.memory = changed.watched.memory;
        }
        if has(PIDS) {
            watched.pids = changed.watched.pids;
        }
        if [CPUS, CPU_QUOTA, CPU_PERIOD].into_iter().any(has) {
            watched.nano_cpus = changed.watched.nano_cpus;
        }
        self.watch(self.hold.watched);
        if let Some(processors) = &changed.inherited.affinity {
            Processes::below(self.first)?.run_on(processors);
        }
        let mut served = changed.served.clone();
        if let Some(level) = changed.inherited.io_priority
            && !Processes::below(std::process::id().cast_signed())?.set_io_priority(level)
        {
            served.insert(BLKIO_WEIGHT.to_owned(), Enforcer::None);
        }
        if served.get(CPU_SHARES) == Some(&Enforcer::Soft) && !self.renice(changed.inherited.nice) {
            served.insert(CPU_SHARES.to_owned(), Enforcer::None);
        }
        Ok(served)
    }

    /// Where sessions share the processors, only the session's value counts.
    fn renice(&mut self, nice: i32) -> bool {
        self.session = Some((nice, Instant::now()));
        let taken = Processes::below(self.first).is_ok_and(|processes| processes.renice(nice));
        taken || std::fs::read_to_string(SESSIONS).is_ok_and(|text| text.trim() == "1")
    }

    /// It can be read when the kernel has something to tell of its memory.
    pub fn memory_events(&self) -> Option<BorrowedFd<'_>> {
        self.memory.as_ref().map(|memory| memory.changes.as_fd())
    }

    /// Whether a process of its was killed for memory since this was asked last.
    pub fn ran_out_of_memory(&mut self) -> bool {
        let watched = self.watcher.as_mut().is_some_and(|watcher| std::mem::take(&mut watcher.untold));
        let more = match (&mut self.memory, &self.hold.group) {
            (Some(memory), Some(group)) => memory.has_more(group),
            _ => false,
        };
        watched || more
    }

    pub fn memory_peak(&self) -> Option<u64> {
        self.hold.group.as_ref().and_then(Group::memory_peak)
    }

    /// Whether memory ended it, or one of its processes.
    pub fn is_out_of_memory(&self) -> bool {
        let watched = self.watcher.as_ref().is_some_and(|watcher| watcher.oom_killed);
        watched || self.hold.group.as_ref().is_some_and(|group| group.oom_kills() > 0)
    }
}

/// `memory.events` of a group.
#[derive(Debug)]
struct MemoryEvents {
    changes: Inotify,
    told: u64,
}

impl MemoryEvents {
    fn of(group: &Group) -> nix::Result<Self> {
        let changes = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        changes.add_watch(&group.folder.join("memory.events"), AddWatchFlags::IN_MODIFY)?;
        Ok(Self { changes, told: 0 })
    }

    /// Other counters change too; and where all are killed together, each of them is counted when its turn comes.
    fn has_more(&mut self, group: &Group) -> bool {
        while self.changes.read_events().is_ok_and(|events| !events.is_empty()) {}
        let kills = group.oom_kills();
        let told = std::mem::replace(&mut self.told, kills);
        kills > told && (told == 0 || !group.is_killed_whole())
    }
}

const SESSIONS: &str = "/proc/sys/kernel/sched_autogroup_enabled";

/// The kernel takes the nice value of a session once in a tenth of a second, from all users together.
const BUSY: Duration = Duration::from_millis(30);

/// Where sessions share the processors (`sched(7)`, "The autogroup feature"), the session's value counts, not its
/// processes'. The program's own process can't write it: it was not dumpable. Says whether it is to be tried again.
fn set_session_nice(first: i32, nice: i32) -> bool {
    let written = std::fs::write(format!("/proc/{first}/autogroup"), nice.to_string());
    written.is_err_and(|error| error.raw_os_error() == Some(libc::EAGAIN))
}
