//! What serves a container from outside, each a process of its own: what is lost if one is killed while the container
//! runs. One that ends by itself has nothing to serve any more, such as the server of a root that is unmounted.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

use crate::supervise::unreaped;

/// What is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    Root,
    Network,
}

impl Service {
    /// What it is called in events.
    pub fn word(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Network => "network",
        }
    }

    /// What the end of its server means.
    pub fn loss(self) -> &'static str {
        match self {
            Self::Root => "the server of its root file system was killed, and the container with it",
            Self::Network => "its network engine was killed: it has its own loopback interface only",
        }
    }
}

/// A server that is watched.
#[derive(Debug)]
pub struct Server {
    pub service: Service,
    pub pidfd: OwnedFd,
}

impl Server {
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether it was ended by somebody else; it is reaped by whoever started it.
    pub fn was_killed(&self) -> bool {
        !matches!(self.status(), Ok(WaitStatus::Exited(_, 0)))
    }

    pub fn lives(&self) -> bool {
        matches!(self.status(), Ok(WaitStatus::StillAlive))
    }

    /// One that is ending is waited for: the container notices that nobody serves it before its parent can reap it.
    fn status(&self) -> nix::Result<WaitStatus> {
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        match waitid(Id::PIDFd(self.pidfd.as_fd()), look | WaitPidFlag::WNOHANG) {
            Ok(WaitStatus::StillAlive) if self.is_ending() => waitid(Id::PIDFd(self.pidfd.as_fd()), look),
            other => other,
        }
    }

    fn is_ending(&self) -> bool {
        let entry = format!("/proc/self/fdinfo/{}", self.pidfd.as_raw_fd());
        let text = std::fs::read_to_string(entry).unwrap_or_default();
        let pid = text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
        pid.and_then(unreaped::is_exiting).unwrap_or(false)
    }
}
