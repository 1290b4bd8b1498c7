//! The protocol between parent and child, one SOCK_SEQPACKET pair, one JSON datagram a message:
//!
//! | parent | | child |
//! |---|---|---|
//! | clone, id maps, `Proceed` | -> | blocks, then becomes root inside and runs the steps |
//! | has it served, `Served` | <-> | `Processes`, `Device` with the opened /dev/fuse, on T1 and T2; `View` with one more, unanswered |
//! | | <- | `Warn` (any number), `Console` with the terminal's master |
//! | keeps the record | <- | `Ready`, or `Failed` and the end |
//! | `Start`, unless `Proceed` said so | -> | credentials, seccomp, whose `Listener` comes with the view, exec |
//! | | <- | end of file: exec happened; or `Failed` and the end |

use std::os::fd::{BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::sys::socket;

#[derive(Debug, Serialize, Deserialize)]
pub enum ToChild {
    /// With `start`, the program too is not to wait, and no `Start` comes.
    Proceed {
        start: bool,
    },
    /// The user-space overlay is served.
    Served,
    Start,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum ToParent {
    Warn(String),
    /// Comes with the master of the container's terminal.
    Console,
    /// Comes with a procfs of the container's own, for the server of its root; not where a fresh one is refused.
    Processes,
    /// Comes with the opened /dev/fuse of a root that the parent is to have served.
    Device,
    /// Comes with the one of the container's own numbers.
    View,
    /// Comes with the one that is asked for `sysinfo(2)`.
    Listener,
    Ready,
    /// Of `exec`: comes with the pidfd of the program's process.
    Joined,
    Failed(Failure),
}

/// How the child ended before exec.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// From the step to the cause.
    pub sentence: String,
    pub hint: Option<String>,
    /// 125, 126 or 127.
    pub exit: u8,
    /// The root could not be made on the rung that the plan names: the next one may work.
    pub root_refused: bool,
    /// It will be refused the next time too, until the host is changed.
    pub lasting: bool,
}

/// Sends one message. A parent or child that is gone gives an error.
pub fn send<T: Serialize>(to: BorrowedFd<'_>, message: &T, fd: Option<BorrowedFd<'_>>) -> Result<()> {
    let text = serde_json::to_vec(message)?;
    socket::send(to, &text, fd).context("cannot send over the launch socket")
}

/// Receives one message; `None` means that the other side is gone or has executed the program.
pub fn receive<T: for<'de> Deserialize<'de>>(from: BorrowedFd<'_>) -> Result<Option<(T, Option<OwnedFd>)>> {
    let (text, fd) = socket::receive(from).context("cannot receive from the launch socket")?;
    if text.is_empty() {
        return Ok(None);
    }
    let message = serde_json::from_slice(&text).context("cannot understand the launch socket")?;
    Ok(Some((message, fd)))
}
