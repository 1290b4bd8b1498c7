//! Limits without a controller: a watcher that the monitor gives a turn whenever it asks for one. It measures what the
//! processes use and acts on them from outside, so each limit can be outrun for as long as the watcher sleeps.
//!
//! | limit | measured | held by |
//! |---|---|---|
//! | processors' time | `stat` of each process, against a budget that refills | SIGSTOP for all when the budget is spent, SIGCONT when it is not |
//! | memory | the sum of resident pages; when that is more, the sum of proportional ones | SIGKILL for all, told like an OOM kill |
//! | processes | threads of all | SIGKILL for the youngest; RLIMIT_NPROC before it comes to that |

use std::time::{Duration, Instant};

use nix::unistd::{SysconfVar, sysconf};
use serde::{Deserialize, Serialize};

use crate::cgroup::tree::{Process, Processes};

/// What is watched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    /// Billionths of a processor.
    pub nano_cpus: Option<u64>,
    pub memory: Option<u64>,
    pub pids: Option<u64>,
}

impl Watched {
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// How long the watcher sleeps far from a limit: it is noticed that late, if all is used at once.
const LONG: Duration = Duration::from_millis(100);

/// How long it sleeps near one, or where processors' time is counted.
const SLEEP: Duration = Duration::from_millis(50);

/// How long it sleeps at least.
const NAP: Duration = Duration::from_millis(5);

/// The budget is refilled up to what a period gives.
const PERIOD: Duration = Duration::from_millis(100);

/// A look at proportional pages walks all page tables, so it is taken again only after so many times its duration.
const REST_AFTER_LOOK: u32 = 100;

#[derive(Debug)]
pub struct Watcher {
    processes: Processes,
    watched: Watched,
    cpu: Budget,
    memory: Look,
    /// When it wants its turn.
    pub next: Instant,
    /// Whether it ended the container because of its memory.
    pub oom_killed: bool,
    /// Whether nobody was told that yet.
    pub untold: bool,
}

/// Processors' time that may be used, in nanoseconds; negative is what was used too much.
#[derive(Debug)]
struct Budget {
    left: i64,
    used: u64,
    at: Instant,
    stopped: Option<Vec<Process>>,
}

/// The last look at proportional pages.
#[derive(Debug)]
struct Look {
    again: Instant,
    proportional: u64,
    resident: u64,
}

impl Watcher {
    /// Watches the container whose first process has this number.
    pub fn new(first: i32, watched: Watched) -> anyhow::Result<Self> {
        let now = Instant::now();
        let processes = Processes::of(first)?;
        let used = total(&processes.list());
        let left = watched.nano_cpus.map_or(0, |nano| share(nano, PERIOD));
        Ok(Self {
            processes,
            watched,
            cpu: Budget { left, used, at: now, stopped: None },
            memory: Look { again: now, proportional: 0, resident: 0 },
            next: now,
            oom_killed: false,
            untold: false,
        })
    }

    /// Other limits from now on.
    pub fn update(&mut self, watched: Watched) {
        self.watched = watched;
        if watched.nano_cpus.is_none() {
            self.release();
        }
        self.next = Instant::now();
    }

    /// One turn: measures, acts, and says when the next is due.
    pub fn turn(&mut self) {
        let now = Instant::now();
        let list = self.processes.list();
        let mut sleep = LONG;
        if let Some(limit) = self.watched.memory {
            sleep = sleep.min(self.hold_memory(limit, &list, now));
        }
        if let Some(limit) = self.watched.pids {
            self.hold_pids(limit, &list);
        }
        if let Some(nano) = self.watched.nano_cpus {
            sleep = sleep.min(self.hold_cpu(nano, &list, now));
        }
        self.next = now + sleep.max(NAP);
    }

    /// Everybody who was stopped goes on.
    pub fn release(&mut self) {
        if let Some(stopped) = self.cpu.stopped.take() {
            self.processes.go_on(&stopped);
        }
    }

    fn hold_cpu(&mut self, nano: u64, list: &[Process], now: Instant) -> Duration {
        let (used, passed) = (total(list), now - self.cpu.at);
        // Time of a process that nobody waited for is lost with it.
        let spent = used.saturating_sub(self.cpu.used) as i64;
        self.cpu.left = (self.cpu.left - spent + share(nano, passed)).min(share(nano, PERIOD));
        (self.cpu.used, self.cpu.at) = (used, now);
        if self.cpu.left <= 0 && self.cpu.stopped.is_none() {
            self.cpu.stopped = Some(self.processes.stop());
        } else if self.cpu.stopped.is_some() && self.cpu.left >= share(nano, PERIOD) / 2 {
            self.release();
        }
        let wanted = share(nano, PERIOD) / 2;
        if self.cpu.stopped.is_some() {
            let missing = (wanted - self.cpu.left).max(0) as u64;
            return Duration::from_nanos(missing.saturating_mul(1_000_000_000) / nano);
        }
        let idle = spent < share(nano, passed) / 4;
        let threads: u64 = list.iter().map(|process| process.threads).sum();
        let at_once = threads.clamp(1, processors());
        if idle { SLEEP } else { Duration::from_nanos(self.cpu.left as u64 / at_once).min(SLEEP) }
    }

    fn hold_memory(&mut self, limit: u64, list: &[Process], now: Instant) -> Duration {
        let resident: u64 = list.iter().map(|process| process.resident).sum();
        if resident <= limit {
            return if resident > limit / 2 { SLEEP } else { LONG };
        }
        // Pages that came since the last look may all be new; pages that are no longer shared are seen by the next.
        let most = self.memory.proportional + resident.saturating_sub(self.memory.resident);
        if most > limit || now >= self.memory.again {
            let proportional = list.iter().map(|process| self.processes.proportional(process)).sum();
            let took = now.elapsed();
            self.memory = Look { again: now + (took * REST_AFTER_LOOK).max(SLEEP), proportional, resident };
            if proportional > limit {
                self.processes.kill();
                self.untold |= !self.oom_killed;
                self.oom_killed = true;
            }
        }
        SLEEP
    }

    /// What was killed and is not reaped yet counts no more, or the next look would kill as many again; the oldest
    /// process is the container's first one, and is left.
    fn hold_pids(&self, limit: u64, list: &[Process]) {
        let mut living: Vec<&Process> = list.iter().filter(|process| process.state != b'Z').collect();
        living.sort_by_key(|process| (process.started, process.pid));
        let mut count: u64 = living.iter().map(|process| process.threads).sum();
        while count > limit && living.len() > 1 {
            let Some(process) = living.pop() else { return };
            let _ = self.processes.signal(process, libc::SIGKILL);
            count = count.saturating_sub(process.threads);
        }
    }
}

fn total(list: &[Process]) -> u64 {
    list.iter().map(|process| process.cpu).sum()
}

/// What a limit gives in some time.
fn share(nano: u64, time: Duration) -> i64 {
    let product = u128::from(nano) * time.as_nanos() / 1_000_000_000;
    i64::try_from(product).unwrap_or(i64::MAX)
}

fn processors() -> u64 {
    sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten().map_or(1, |count| count.max(1) as u64)
}
