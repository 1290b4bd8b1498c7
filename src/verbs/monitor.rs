//! The monitor of a container in the background: a copy of the command that starts it, in a session of its own, with
//! its streams on /dev/null. It holds the container's lock and one end of a line, over which it says that the program
//! runs, or why it does not. A copy and not kelp started again: that took a millisecond more, a seventh of the start.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};

use crate::container::call::{FromMonitor, Line};
use crate::container::folder::{Container, Process};
use crate::paths::Paths;
use crate::supervise::monitor::Monitor;
use crate::supervise::signals;
use crate::supervise::streams::{self, Audience};
use crate::sys::clone::{self, Cloned};
use crate::sys::socket;
use crate::verbs::life;

/// What the monitor is called in `ps`.
const NAME: &std::ffi::CStr = c"kelp-monitor";

/// Starts the monitor of `container`, whose state is `Starting`, and gives it the lock. It waits for `Begin`.
pub fn start(paths: &Paths, container: Container) -> Result<Line> {
    let (ours, theirs) = socket::pair()?;
    match clone::clone(0, None).context("make the monitor's process")? {
        Cloned::Parent { .. } => Ok(Line::new(ours)),
        Cloned::Child => streams::end_with(|| serve(paths, container, theirs)),
    }
}

fn serve(paths: &Paths, mut container: Container, line: OwnedFd) -> Result<()> {
    let kept: Vec<BorrowedFd<'_>> = container.descriptors().chain([line.as_fd()]).collect();
    streams::become_background(NAME, &kept)?;
    nix::unistd::chdir("/")?;
    let line = Line::new(line);
    let signals = signals::signals()?;
    container.status.monitor = Process::of(std::process::id() as i32);
    container.keep()?;
    let mut monitor = Monitor::new(&container, signals, Audience::Nobody);
    let reporter = Line::new(line.as_fd().try_clone_to_owned()?);
    monitor.greet(&mut container, line)?;
    let mut warn = |sentence: &str| {
        let _ = reporter.say(&FromMonitor::Warn(sentence.to_owned()), None);
    };
    // Whoever waits was told why it failed.
    let _ = life::live(paths, container, monitor, &mut warn);
    Ok(())
}
