//! What a container uses now, from its group's files or, without a group, from /proc. One value, whoever asks: it knows
//! no unit of people's.

use serde::Serialize;

use crate::cgroup::group::Group;
use crate::cgroup::tree::Processes;

/// Counters since the start, and what is held now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Nanoseconds of processors' time.
    pub cpu: u64,
    pub memory: u64,
    /// The most memory that there was, where the kernel keeps it.
    pub memory_peak: Option<u64>,
    pub pids: u64,
    pub read: u64,
    pub written: u64,
}

impl Usage {
    /// `cpu.stat`, `memory.current`, `pids.current`, `io.stat` (`cgroup-v2.rst`); what the group lacks from /proc.
    pub fn of_group(group: &Group, processes: &Processes) -> Self {
        let number = |file: &str| group.read(file).trim().parse::<u64>().ok();
        let shown = Self::of_processes(processes);
        // memory.current counts the page cache, which is given back when somebody needs it (docker's number).
        let cache = group.number("memory.stat", "inactive_file").unwrap_or(0);
        let transferred = group.has("io.stat").then(|| (sum(group, "rbytes="), sum(group, "wbytes=")));
        let (read, written) = transferred.unwrap_or((shown.read, shown.written));
        Self {
            cpu: group.number("cpu.stat", "usage_usec").map_or(shown.cpu, |micro| micro * 1000),
            memory: number("memory.current").map_or(shown.memory, |bytes| bytes.saturating_sub(cache)),
            memory_peak: group.memory_peak(),
            pids: number("pids.current").unwrap_or(shown.pids),
            read,
            written,
        }
    }

    pub fn of_processes(processes: &Processes) -> Self {
        let mut usage = Self::default();
        for process in processes.list() {
            let (read, written) = processes.transferred(&process);
            usage.cpu += process.cpu;
            usage.memory += processes.proportional(&process);
            usage.pids += process.threads;
            usage.read += read;
            usage.written += written;
        }
        usage
    }
}

fn sum(group: &Group, key: &str) -> u64 {
    let text = group.read("io.stat");
    text.split_whitespace().filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok()).sum()
}
