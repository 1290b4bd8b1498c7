//! What the kernel shows of a container that runs: the namespaces of its first process. No monitor is asked, and
//! a process that ends meanwhile is no error.

use std::fs;

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
