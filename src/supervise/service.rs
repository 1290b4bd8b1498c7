//! What serves a container from outside, each a process of its own: what is lost if one is killed while the container
//! runs. One that ends by itself has nothing to serve any more, such as the server of a root that is unmounted.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

/// What is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    Root,
    Network,
}

impl Service {
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

    fn status(&self) -> nix::Result<WaitStatus> {
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
        waitid(Id::PIDFd(self.pidfd.as_fd()), look)
    }
}
