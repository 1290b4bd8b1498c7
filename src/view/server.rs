//! The process that serves the view: a helper of the monitor's in the container's user namespace and outside its pid
//! namespace, as the server of a root is. It is started while the child makes the root, and given the device later.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::Child;

use anyhow::{Context, Result};
use nix::sched::CloneFlags;
use serde::{Deserialize, Serialize};

use crate::stage::{self, Number};
use crate::sys::{memory, process, socket};
use crate::view::files;
use crate::view::numbers::{Source, Subject};

/// `argv[0]` of the helper.
pub const NAME: &str = "kelp-view";

/// How many threads it has.
pub const THREADS: u64 = 2;

#[derive(Debug, Serialize, Deserialize)]
struct Ask {
    subject: Subject,
    has_root: bool,
    user_namespace: Number,
    line: Number,
}

/// A started helper; it is ended with the value.
#[derive(Debug)]
pub struct View {
    helper: Child,
    line: OwnedFd,
}

impl View {
    /// Starts it in the user namespace.
    pub fn start(subject: Subject, has_root: bool, namespace: BorrowedFd<'_>) -> Result<Self> {
        let (ours, theirs) = socket::pair()?;
        let ask = Ask { subject, has_root, user_namespace: namespace.as_raw_fd(), line: theirs.as_raw_fd() };
        let helper = stage::start(NAME, &ask, &[namespace, theirs.as_fd()])?;
        Ok(Self { helper, line: ours })
    }

    /// The number of its process.
    pub fn pid(&self) -> u32 {
        self.helper.id()
    }

    /// Gives it the device that the child has mounted; returns when it is served.
    pub fn serve(&self, device: OwnedFd) -> Result<()> {
        socket::send(self.line.as_fd(), b"device", Some(device.as_fd())).context("send the device")?;
        drop(device);
        match socket::receive(self.line.as_fd())? {
            (words, _) if words == b"1" => Ok(()),
            (words, _) if words.is_empty() => anyhow::bail!("the view's helper ended without a word"),
            (words, _) => anyhow::bail!("{}", String::from_utf8_lossy(&words)),
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        let _ = self.helper.kill();
        let _ = self.helper.wait();
    }
}

/// The helper.
pub fn serve() -> Result<()> {
    let ask: Ask = stage::request()?;
    let line = stage::take(ask.line)?;
    process::parent_death_signal(libc::SIGKILL)?;
    let namespace = stage::take(ask.user_namespace)?;
    nix::sched::setns(namespace, CloneFlags::CLONE_NEWUSER).context("join the user namespace")?;
    if ask.has_root {
        process::setresgid(0)?;
        process::setresuid(0)?;
    }
    process::no_new_privileges()?;
    process::not_dumpable()?;
    process::parent_death_signal(libc::SIGKILL)?;
    let source = Source::new(ask.subject);
    let (_, device) = socket::receive(line.as_fd())?;
    let device = device.context("the device did not arrive")?;
    files::serve(source, device, || {
        // Only memory is at stake.
        let _ = memory::release_code();
        let _ = socket::send(line.as_fd(), b"1", None);
        drop(line);
    })
    .context("cannot serve the container's numbers")
}
