//! `kelp unshare`: a program as root of the user's own user namespace, with the machine's files as they are:
//! where the lines of a container tutorial run as typed.

use std::ffi::OsString;
use std::os::fd::AsFd;

use anyhow::{Context, Result};

use crate::error::Error;
use crate::launch::program;
use crate::spec::request::UserNamespace;
use crate::sys::mount::{Depth, fsmount, move_mount, open_tree};
use crate::sys::process;
use crate::userns::{maps, within};

/// What to unshare beside the user and mount namespaces, and what to run.
#[derive(Clone, Debug)]
pub struct Unshare {
    pub network: bool,
    pub pid: bool,
    pub ipc: bool,
    pub uts: bool,
    pub cgroup: bool,
    pub userns: UserNamespace,
    pub command: Vec<OsString>,
}

/// Runs it and gives its exit status; `complain` is told why it could not start.
pub fn unshare(request: &Unshare, warn: &dyn Fn(&str), complain: &dyn Fn(&Error)) -> Result<i32> {
    let maps = maps::choose(&request.userns)?;
    if let Some(because) = &maps.weaker_because {
        warn(&format!("only one id is mapped: {because}"));
    }
    let wanted = [
        (request.network, libc::CLONE_NEWNET),
        (request.pid, libc::CLONE_NEWPID),
        (request.ipc, libc::CLONE_NEWIPC),
        (request.uts, libc::CLONE_NEWUTS),
        (request.cgroup, libc::CLONE_NEWCGROUP),
    ];
    let flags = wanted.iter().filter(|(on, _)| *on).fold(libc::CLONE_NEWNS, |flags, (_, flag)| flags | flag);
    ignore_keys()?;
    within::run(&maps, flags as u64, || {
        let error = match prepare(request) {
            Ok(()) => program::execute(&request.command, &std::env::vars_os().collect::<Vec<_>>()),
            Err(error) => Error::host(format!("cannot prepare the namespaces: {error:#}")),
        };
        complain(&error);
        i32::from(error.exit)
    })
}

/// The terminal's keys reach the program by themselves; kelp only waits for it.
fn ignore_keys() -> Result<()> {
    for signal in [libc::SIGINT, libc::SIGQUIT] {
        process::ignore(signal).context("cannot ignore the terminal's signals")?;
    }
    Ok(())
}

fn prepare(request: &Unshare) -> Result<()> {
    for signal in [libc::SIGINT, libc::SIGQUIT] {
        process::default_action(signal)?;
    }
    if request.pid {
        let proc = fsmount(c"proc", &[], 0).context("mount proc")?;
        move_mount(proc.as_fd(), std::fs::File::open("/proc")?.as_fd()).context("mount proc on /proc")?;
    }
    if request.network {
        process::loopback_up().context("bring up lo")?;
        private_netns_names().context("make a private /run/netns")?;
    }
    Ok(())
}

/// `ip netns` keeps its names in /run/netns, which belongs to the host's root: a small file system of our own
/// over /run, with everything that was there bound into it, gives the names a place.
fn private_netns_names() -> Result<()> {
    let run = std::fs::File::open("/run")?;
    let tmpfs = fsmount(c"tmpfs", &[], 0)?;
    let before = open_tree(run.as_fd(), Depth::Recursive)?;
    let entries: Vec<_> = std::fs::read_dir("/run")?.filter_map(Result::ok).collect();
    move_mount(tmpfs.as_fd(), run.as_fd())?;
    for entry in entries.into_iter().filter(|entry| entry.file_name() != "netns") {
        let path = entry.path();
        let kind = entry.file_type()?;
        let old = nix::fcntl::openat(
            &before,
            entry.file_name().as_os_str(),
            nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC | nix::fcntl::OFlag::O_NOFOLLOW,
            nix::sys::stat::Mode::empty(),
        );
        let Ok(old) = old else { continue };
        if kind.is_symlink() {
            let to = nix::fcntl::readlinkat(&before, entry.file_name().as_os_str())?;
            std::os::unix::fs::symlink(to, &path)?;
            continue;
        }
        if kind.is_dir() {
            std::fs::create_dir(&path)?;
        } else {
            std::fs::write(&path, b"")?;
        }
        let Ok(tree) = open_tree(old.as_fd(), Depth::Recursive) else { continue };
        move_mount(tree.as_fd(), open_place(&path)?.as_fd())?;
    }
    std::fs::create_dir_all("/run/netns")?;
    Ok(())
}

fn open_place(path: &std::path::Path) -> Result<std::os::fd::OwnedFd> {
    let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC | nix::fcntl::OFlag::O_NOFOLLOW;
    Ok(nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty())?)
}
