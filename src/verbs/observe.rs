//! What the kernel shows of a container that runs: the namespaces of its first process, and all its
//! processes by the host's numbers. No monitor is asked, and
//! a process that ends meanwhile is no error.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

/// `USER_HZ`: what /proc counts processor time in, on every machine.
const TICKS: f64 = 100.0;

/// One namespace of a process.
#[derive(Debug)]
pub struct Namespace {
    pub kind: &'static str,
    /// Its flag of `clone(2)`.
    pub flag: &'static str,
    pub inode: u64,
    /// It is the caller's own.
    pub shared: bool,
}

const NAMESPACES: [(&str, &str); 8] = [
    ("user", "CLONE_NEWUSER"),
    ("mnt", "CLONE_NEWNS"),
    ("pid", "CLONE_NEWPID"),
    ("net", "CLONE_NEWNET"),
    ("ipc", "CLONE_NEWIPC"),
    ("uts", "CLONE_NEWUTS"),
    ("cgroup", "CLONE_NEWCGROUP"),
    ("time", "CLONE_NEWTIME"),
];

/// The namespaces of a process, as far as they can be seen; it may have ended.
pub fn namespaces(pid: i32) -> Vec<Namespace> {
    let see = |(kind, flag)| {
        let inode = inode(&pid.to_string(), kind)?;
        Some(Namespace { kind, flag, inode, shared: self::inode("self", kind) == Some(inode) })
    };
    NAMESPACES.into_iter().filter_map(see).collect()
}

/// The number in `net:[4026531840]`.
fn inode(process: &str, kind: &str) -> Option<u64> {
    let link = fs::read_link(format!("/proc/{process}/ns/{kind}")).ok()?;
    link.to_str()?.split_once('[')?.1.trim_end_matches(']').parse().ok()
}

/// One process of a container, as the host sees it.
#[derive(Debug)]
pub struct Seen {
    pub pid: i32,
    pub parent: i32,
    pub uid: u32,
    /// The kernel's number of its terminal; 0 is none.
    pub terminal: u32,
    /// Processor time.
    pub used: Duration,
    /// How long ago it started.
    pub age: Duration,
    pub command: String,
}

/// The processes of a container by their host's numbers: those in the pid namespace of its first process, or, if
/// that is the caller's own, the first process and what descends from it.
pub fn processes(first: i32) -> Vec<Seen> {
    let namespace = inode(&first.to_string(), "pid");
    let shared = namespace == inode("self", "pid");
    let uptime = uptime();
    let mut all: Vec<Seen> = pids().into_iter().filter_map(|pid| seen(pid, uptime)).collect();
    all.sort_by_key(|process| process.pid);
    if !shared {
        all.retain(|process| inode(&process.pid.to_string(), "pid") == namespace);
        return all;
    }
    let mut family = HashSet::from([first]);
    while let Some(child) =
        all.iter().find(|process| family.contains(&process.parent) && !family.contains(&process.pid))
    {
        family.insert(child.pid);
    }
    all.retain(|process| family.contains(&process.pid));
    all
}

fn pids() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

fn uptime() -> f64 {
    let text = fs::read_to_string("/proc/uptime").unwrap_or_default();
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0)
}

/// `proc_pid_stat(5)`; `None` if it has ended meanwhile.
fn seen(pid: i32, uptime: f64) -> Option<Seen> {
    let folder = format!("/proc/{pid}");
    let stat = fs::read_to_string(format!("{folder}/stat")).ok()?;
    let (head, tail) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = tail.split_whitespace().collect();
    // The first field here is the third of the manual.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let seconds = |ticks: u64| ticks as f64 / TICKS;
    let words = fs::read(format!("{folder}/cmdline")).unwrap_or_default();
    let words = String::from_utf8_lossy(&words).replace('\0', " ");
    Some(Seen {
        pid,
        parent: i32::try_from(field(4)?).ok()?,
        uid: fs::metadata(&folder).ok()?.uid(),
        terminal: u32::try_from(field(7)?).unwrap_or(0),
        used: Duration::from_secs_f64(seconds(field(14)? + field(15)?)),
        age: Duration::from_secs_f64((uptime - seconds(field(22)?)).max(0.0)),
        command: match words.trim_end() {
            "" => format!("[{}]", head.split_once('(')?.1),
            words => words.to_owned(),
        },
    })
}
