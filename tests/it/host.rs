//! The host as a test sees it: processes below this one, subordinate ranges, its loopback, and waiting for a
//! fact with a deadline where the kernel offers no event.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::time::{Duration, Instant};

/// Whether the fact came true within ten seconds.
pub(crate) fn soon(mut fact: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !fact() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// A service on the host's loopback that says `host` to everybody; its port.
pub(crate) fn service() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        listener.incoming().flatten().try_for_each(|mut caller| caller.write_all(b"host"))
    });
    port
}

/// A port that nobody has now.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Pid, parent and name of every process that this user can see.
fn processes() -> Vec<(i32, i32, String)> {
    let pids =
        fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    let read = pids.filter_map(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (head, tail) = stat.rsplit_once(')')?;
        let mut words = tail.split_whitespace();
        let dead = words.next() == Some("Z");
        let parent = words.next()?.parse().ok()?;
        let name = head.split_once('(')?.1.to_string();
        (!dead).then_some((pid, parent, name))
    });
    read.collect()
}

/// The children of `parent` that are in a pid namespace below ours, those that have ended too.
pub(crate) fn children_in_containers(parent: i32) -> Vec<i32> {
    let parent = parent.to_string();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let found = entries.filter_map(|entry| {
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        let line = |key: &str| status.lines().find_map(|line| line.strip_prefix(key));
        let is_ours = line("PPid:")?.trim() == parent;
        let numbers: Vec<&str> = line("NSpid:")?.split_whitespace().collect();
        (is_ours && numbers.len() > 1).then(|| numbers[0].parse().ok())?
    });
    found.collect()
}

/// Everything alive below a process, itself left out.
pub(crate) fn below(top: i32) -> Vec<(i32, String)> {
    let all = processes();
    let mut found: Vec<(i32, String)> = Vec::new();
    let mut parents = vec![top];
    while let Some(parent) = parents.pop() {
        for (pid, _, name) in all.iter().filter(|(_, above, _)| *above == parent) {
            found.push((*pid, name.clone()));
            parents.push(*pid);
        }
    }
    found
}

/// Start and count of this user's ranges in `/etc/subuid` or `/etc/subgid`.
pub(crate) fn subordinate(file: &str) -> Vec<(u32, u32)> {
    let uid = crate::sys::uid();
    let name = user_name(uid).unwrap_or_default();
    let text = fs::read_to_string(file).unwrap_or_default();
    let ranges = text.lines().filter_map(|line| {
        let words: Vec<&str> = line.split(':').collect();
        let [owner, start, count] = words[..] else { return None };
        let mine = owner == name || owner == uid.to_string();
        mine.then_some((start.parse().ok()?, count.parse().ok()?))
    });
    ranges.collect()
}

pub(crate) fn user_name(uid: u32) -> Option<String> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    let line = passwd.lines().find(|line| line.split(':').nth(2) == Some(&uid.to_string()))?;
    line.split(':').next().map(str::to_string)
}

pub(crate) fn hostname() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_string()
}

/// A namespace of this process, as `kind:[inode]`.
pub(crate) fn namespace(kind: &str) -> String {
    fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().to_str().unwrap().to_string()
}

/// Mount points of this mount namespace below a folder.
pub(crate) fn mounts_below(folder: &str) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let targets = table.lines().filter_map(|line| line.split(' ').nth(4));
    targets.filter(|target| target.starts_with(folder)).map(str::to_string).collect()
}

/// What the store and the runtime folder of a test hold for single containers.
pub(crate) fn containers(dir: &crate::dir::Dir) -> Vec<String> {
    let tops = ["store/containers", "run/containers"].map(|name| dir.path(name));
    let entries = tops.iter().flat_map(|top| fs::read_dir(top).into_iter().flatten().flatten());
    entries.map(|entry| entry.path().display().to_string()).collect()
}
