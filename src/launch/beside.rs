//! A first process in the user and network namespaces of another container (`--network container:NAME`). A network
//! namespace can be joined by who has capabilities in the user namespace that owns it only, so both are joined, by a
//! helper, which makes the process as a brother of its own and ends.

use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result, anyhow};
use nix::sched::CloneFlags;

use crate::launch::plan::Plan;
use crate::sys::clone::{self, Cloned};
use crate::sys::{process, socket};
use crate::userns::within;

/// As `clone`, beside the container whose first process `neighbour` is. The caller has one thread.
///
/// # Errors
/// That container is gone, or the kernel refuses.
pub fn clone(neighbour: BorrowedFd<'_>, plan: &Plan, group: Option<BorrowedFd<'_>>) -> Result<Cloned> {
    let (ours, theirs) = socket::pair()?;
    match clone::clone(0, None)? {
        Cloned::Child => {
            drop(ours);
            let made = enter(neighbour, plan.process.oom_score_adj)
                .and_then(|()| Ok(clone::clone(plan.namespaces | libc::CLONE_PARENT as u64, group)?));
            let (words, pidfd) = match made {
                Ok(Cloned::Child) => return Ok(Cloned::Child),
                Ok(Cloned::Parent { pid, pidfd }) => (pid.to_string(), Some(pidfd)),
                Err(error) => (format!("{error:#}"), None),
            };
            let _ = socket::send(theirs.as_fd(), words.as_bytes(), pidfd.as_ref().map(AsFd::as_fd));
            clone::exit(0)
        }
        Cloned::Parent { pid: helper, .. } => {
            drop(theirs);
            let told = socket::receive(ours.as_fd());
            let _ = within::wait(helper);
            let (words, pidfd) = told?;
            let words = String::from_utf8_lossy(&words).into_owned();
            let pidfd = pidfd.ok_or_else(|| anyhow!("cannot start beside the other container: {words}"))?;
            Ok(Cloned::Parent { pid: words.parse()?, pidfd })
        }
    }
}

fn enter(neighbour: BorrowedFd<'_>, oom_score: Option<i32>) -> Result<()> {
    if let Some(score) = oom_score {
        std::fs::write("/proc/self/oom_score_adj", score.to_string())
            .with_context(|| format!("set oom_score_adj to {score}"))?;
    }
    nix::sched::setns(neighbour, CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)
        .context("join its user and network namespaces")?;
    // The other container's processes must not look into this one before it is one of its own container's.
    Ok(process::not_dumpable()?)
}
