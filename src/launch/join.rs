//! `exec`: a program in a container that runs already. A child joins the namespaces of the container's first
//! process by its pidfd, which can't have become a stranger's, and makes the program's process as a brother of
//! its own, in the container's pid namespace; from there on the story is the launch's: credentials, seccomp, exec.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use nix::sys::stat::Mode;

use crate::error::{Error, Kind};
use crate::launch::child::{self, Streams};
use crate::launch::filter;
use crate::launch::message::{self, ToParent};
use crate::launch::parent::{self, Running};
use crate::launch::plan::Plan;
use crate::spec::seccomp::Profile;
use crate::sys::clone::{self, Cloned};
use crate::sys::{process, socket, terminal};
use crate::userns::within;

/// The container's first process.
#[derive(Debug)]
pub struct Target {
    pub pid: i32,
    pub pidfd: OwnedFd,
}

/// Namespaces and their flags; those that the container shares with us are left alone.
const NAMESPACES: [(&str, i32); 8] = [
    ("user", libc::CLONE_NEWUSER),
    ("mnt", libc::CLONE_NEWNS),
    ("pid", libc::CLONE_NEWPID),
    ("net", libc::CLONE_NEWNET),
    ("ipc", libc::CLONE_NEWIPC),
    ("uts", libc::CLONE_NEWUTS),
    ("cgroup", libc::CLONE_NEWCGROUP),
    ("time", 0x80),
];

/// The container's control group may not be joined from where the caller is: both must lie below a group that is the
/// user's (`cgroups(7)`, "Delegation containment").
#[derive(Debug)]
pub struct Refused(std::io::Error);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot join the container's cgroup: {}", self.0)
    }
}

impl std::error::Error for Refused {}

/// Runs the program of `plan`, which has no steps, in the container of `target`, whose limits `group` holds.
///
/// # Errors
/// The container is gone, or the program can't be executed.
pub fn join(
    target: &Target,
    plan: &Plan,
    group: Option<BorrowedFd<'_>>,
    streams: Streams,
    warn: &mut dyn FnMut(&str),
) -> Result<Running> {
    let flags = foreign(target.pid)?;
    let (ours, theirs) = socket::pair()?;
    let cloned = clone::clone(0, group)
        .map_err(|error| if group.is_some() { Refused(error).into() } else { anyhow::Error::from(error) });
    let helper = match cloned? {
        Cloned::Child => enter(target, flags, plan, streams, theirs),
        Cloned::Parent { pid, .. } => pid,
    };
    drop((theirs, streams));
    let outcome = await_program(&ours, warn);
    let _ = within::wait(helper);
    outcome
}

fn await_program(socket: &OwnedFd, warn: &mut dyn FnMut(&str)) -> Result<Running> {
    let (mut pidfd, mut master) = (None, None);
    loop {
        match message::receive::<ToParent>(socket.as_fd())? {
            Some((ToParent::Warn(sentence), _)) => warn(&sentence),
            Some((ToParent::Joined, fd)) => pidfd = fd,
            Some((ToParent::Console, fd)) => master = fd,
            Some((ToParent::Failed(failure), _)) => {
                if let Some(pidfd) = pidfd {
                    let _ = nix::sys::wait::waitid(
                        nix::sys::wait::Id::PIDFd(pidfd.as_fd()),
                        nix::sys::wait::WaitPidFlag::WEXITED,
                    );
                }
                return Err(parent::error_of(failure).into());
            }
            Some(_) => {}
            None => {
                let pidfd =
                    pidfd.ok_or_else(|| Error::new(Kind::Bug, "the program's process ended early"))?;
                return Ok(Running { pidfd, master });
            }
        }
    }
}

/// The namespaces of `pid` that are not ours.
fn foreign(pid: i32) -> Result<i32> {
    let mut flags = 0;
    for (name, flag) in NAMESPACES {
        let Ok(own) = fs::metadata(format!("/proc/self/ns/{name}")) else { continue };
        let theirs = fs::metadata(format!("/proc/{pid}/ns/{name}"))
            .with_context(|| format!("cannot look at the container's {name} namespace"))?;
        if (own.dev(), own.ino()) != (theirs.dev(), theirs.ino()) {
            flags |= flag;
        }
    }
    Ok(flags)
}

fn enter(target: &Target, flags: i32, plan: &Plan, streams: Streams, socket: OwnedFd) -> ! {
    let filter = match &plan.process.seccomp {
        Profile::Unconfined => Vec::new(),
        Profile::Filter(profile) => filter::compile(profile),
    };
    let entered = become_member(target, flags, plan)
        .and_then(|()| clone::clone(libc::CLONE_PARENT as u64, None).context("make the program's process"));
    match entered {
        Ok(Cloned::Parent { pidfd, .. }) => {
            let _ = message::send(socket.as_fd(), &ToParent::Joined, Some(pidfd.as_fd()));
            // The brother waits for its end of file until this is said.
            clone::exit(0)
        }
        Ok(Cloned::Child) => match child::prepare(streams, socket) {
            Ok(socket) => {
                let console =
                    if plan.process.terminal { console(socket.as_fd()).map(Some) } else { Ok(None) };
                child::finish(plan, &filter, socket, console)
            }
            Err(_) => clone::exit(125),
        },
        Err(error) => child::fail(&socket, &error),
    }
}

fn become_member(target: &Target, flags: i32, plan: &Plan) -> Result<()> {
    nix::sched::setns(&target.pidfd, CloneFlags::from_bits_retain(flags))
        .context("join the container's namespaces")?;
    within::become_root(&plan.maps, plan.process.keep_groups)?;
    // The container's processes must not look into this one before it is one of them.
    Ok(process::not_dumpable()?)
}

/// A terminal of the container's own devpts; whatever else lies there is refused.
fn console(socket: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master =
        nix::fcntl::open("/dev/pts/ptmx", flags, Mode::empty()).context("open a terminal in /dev/pts")?;
    let found = nix::sys::statfs::fstatfs(&master)?;
    if found.filesystem_type() != nix::sys::statfs::FsType(0x1cd1) {
        return Err(Error::container("the container's /dev/pts is no devpts").into());
    }
    let slave = terminal::peer(master.as_fd())?;
    message::send(socket, &ToParent::Console, Some(master.as_fd()))?;
    Ok(slave)
}
