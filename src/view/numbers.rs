//! What the container has and uses, from its group's files where it has one, else from its limits and its processes.
//! It knows no file format of the kernel's /proc but those that it reads.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::cgroup::group::Group;
use crate::cgroup::tree::{Process, Processes};
use crate::spec::limits;
use crate::spec::resources::Limits;
use crate::units::CpuSet;

/// Whom it is about.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Subject {
    /// The first process, as it is numbered outside.
    pub first: i32,
    pub limits: Limits,
    #[serde(with = "crate::raw::paths")]
    pub group: Vec<PathBuf>,
}

/// All that the files say, at one moment. Sizes are in bytes, times in ticks of a hundredth of a second.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Numbers {
    /// The processors that are shown, by the machine's numbers.
    pub processors: Vec<u32>,
    pub memory: u64,
    pub used: u64,
    pub cached: u64,
    pub shared: u64,
    pub swap: u64,
    pub swap_used: u64,
    pub user: u64,
    pub system: u64,
    pub uptime: f64,
    pub running: u64,
    pub threads: u64,
    pub last: i32,
    pub load: [f64; 3],
    /// Of each block device: numbers, reads, bytes read, writes, bytes written.
    pub devices: Vec<(u32, u32, [u64; 4])>,
}

/// Looks again only when the last look is so old: a file that is read in a loop costs little.
const FRESH: Duration = Duration::from_millis(50);

/// The source of numbers; it remembers the last ones.
#[derive(Debug)]
pub struct Source {
    pub subject: Subject,
    group: Option<Group>,
    processes: Option<Processes>,
    host_memory: u64,
    host_swap: u64,
    last: Option<(Instant, Numbers)>,
}

impl Source {
    pub fn new(subject: Subject) -> Self {
        let group = subject.group.first().map(|folder| Group { folder: folder.clone() });
        let host = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let (host_memory, host_swap) = (kilobytes(&host, "MemTotal:"), kilobytes(&host, "SwapTotal:"));
        Self { subject, group, processes: None, host_memory, host_swap, last: None }
    }

    pub fn limits_are(&mut self, limits: &Limits) {
        self.subject.limits = limits.clone();
        self.last = None;
    }

    pub fn numbers(&mut self) -> Numbers {
        if let Some((at, numbers)) = &self.last
            && at.elapsed() < FRESH
        {
            return numbers.clone();
        }
        let numbers = self.look();
        self.last = Some((Instant::now(), numbers.clone()));
        numbers
    }

    fn look(&mut self) -> Numbers {
        if self.processes.is_none() {
            self.processes = Processes::of(self.subject.first).ok();
        }
        let list = self.processes.as_ref().map(Processes::list).unwrap_or_default();
        let mut numbers = Numbers { processors: self.processors(), ..Numbers::default() };
        self.memory(&list, &mut numbers);
        self.time(&list, &mut numbers);
        numbers.devices = self.devices();
        numbers
    }

    /// Those that the container may run on, no more than it has time of.
    fn processors(&self) -> Vec<u32> {
        let read = |path: &str| fs::read_to_string(path).ok()?.parse::<CpuSet>().ok();
        let online = read("/sys/devices/system/cpu/online").unwrap_or_else(|| CpuSet([0].into()));
        let effective =
            self.group.as_ref().and_then(|group| group.read("cpuset.cpus.effective").parse().ok());
        let allowed =
            effective.or_else(|| self.subject.limits.set(limits::CPUSET).cloned()).unwrap_or(online);
        let time = self.nano_cpus().map_or(usize::MAX, |nano| nano.div_ceil(1_000_000_000).max(1) as usize);
        allowed.0.into_iter().take(time).collect()
    }

    fn nano_cpus(&self) -> Option<u64> {
        let written = self.group.as_ref().map(|group| group.read("cpu.max")).unwrap_or_default();
        match written.split_once(' ') {
            Some((quota, period)) => {
                let (quota, period) = (quota.parse::<u64>().ok()?, period.trim().parse::<u64>().ok()?);
                Some(quota.saturating_mul(1_000_000_000) / period.max(1))
            }
            None => self.subject.limits.nano_cpus(),
        }
    }

    fn memory(&self, list: &[Process], numbers: &mut Numbers) {
        let number = |file: &str| self.group.as_ref()?.read(file).trim().parse::<u64>().ok();
        let held = |key: &str| self.group.as_ref()?.number("memory.stat", key);
        let asked = self.subject.limits.number(limits::MEMORY);
        let limit = if self.has("memory.max") { number("memory.max") } else { asked };
        numbers.memory = limit.unwrap_or(u64::MAX).min(self.host_memory);
        let resident = || list.iter().map(|process| process.resident).sum();
        numbers.used = number("memory.current").unwrap_or_else(resident).min(numbers.memory);
        numbers.cached = held("file").unwrap_or(0).min(numbers.used);
        numbers.shared = held("shmem").unwrap_or(0);
        let swap =
            if self.has("memory.swap.max") { number("memory.swap.max").unwrap_or(u64::MAX) } else { 0 };
        numbers.swap = swap.min(self.host_swap);
        numbers.swap_used = number("memory.swap.current").unwrap_or(0).min(numbers.swap);
    }

    fn has(&self, file: &str) -> bool {
        self.group.as_ref().is_some_and(|group| group.has(file))
    }

    fn time(&self, list: &[Process], numbers: &mut Numbers) {
        let micro = |key: &str| self.group.as_ref()?.number("cpu.stat", key).map(|micro| micro / 10_000);
        let all: u64 = list.iter().map(|process| process.cpu / 10_000_000).sum();
        numbers.user = micro("user_usec").unwrap_or(all);
        numbers.system = micro("system_usec").unwrap_or(0);
        let now = fs::read_to_string("/proc/uptime").unwrap_or_default();
        let now: f64 = now.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0);
        let started = list.iter().map(|process| process.started).min().unwrap_or(0) as f64 / 100.0;
        numbers.uptime = (now - started).max(0.01);
        numbers.running = list.iter().filter(|process| matches!(process.state, b'R' | b'D')).count() as u64;
        numbers.threads = list.iter().map(|process| process.threads).sum();
        numbers.last = list.iter().map(|process| process.pid).max().unwrap_or(1);
        numbers.load = self.load(numbers.running as f64);
    }

    /// The kernel's averages over 1, 5 and 15 minutes, carried on whenever somebody looks.
    fn load(&self, running: f64) -> [f64; 3] {
        let Some((at, before)) = &self.last else { return [running; 3] };
        let passed = at.elapsed().as_secs_f64();
        let mut load = before.load;
        for (value, minutes) in load.iter_mut().zip([1.0, 5.0, 15.0]) {
            let kept = (-passed / (minutes * 60.0)).exp();
            *value = *value * kept + running * (1.0 - kept);
        }
        load
    }

    /// `io.stat`: `MAJOR:MINOR rbytes=N wbytes=N rios=N wios=N ...`.
    fn devices(&self) -> Vec<(u32, u32, [u64; 4])> {
        let text = self.group.as_ref().map(|group| group.read("io.stat")).unwrap_or_default();
        let device = |line: &str| {
            let (numbers, counters) = line.split_once(' ')?;
            let (major, minor) = numbers.split_once(':')?;
            let counter = |key: &str| {
                counters.split(' ').find_map(|word| word.strip_prefix(key)?.parse().ok()).unwrap_or(0)
            };
            let all = ["rios=", "rbytes=", "wios=", "wbytes="].map(counter);
            Some((major.parse().ok()?, minor.parse().ok()?, all))
        };
        text.lines().filter_map(device).collect()
    }
}

/// A line of /proc/meminfo, in bytes.
fn kilobytes(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) << 10
}
