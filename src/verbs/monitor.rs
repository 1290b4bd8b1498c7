//! The monitor of a container in the background: kelp started again as a stage, in a session of its own, with
//! its streams on /dev/null. The command that starts it gives it the container's lock and one end of a line,
//! over which it says that the program runs, or why it does not.

use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::container::call::{FromMonitor, Line};
use crate::container::folder::{Container, Process};
use crate::paths::Paths;
use crate::stage::{self, Number};
use crate::supervise::monitor::Monitor;
use crate::supervise::signals;
use crate::supervise::streams::{self, Audience};
use crate::sys::{process, socket};
use crate::verbs::life;

/// `argv[0]` of the monitor.
pub const NAME: &str = "kelp-monitor";

#[derive(Debug, Serialize, Deserialize)]
struct Request {
    #[serde(with = "crate::raw::path")]
    folder: PathBuf,
    lock: Number,
    line: Number,
}

/// Starts the monitor of `container`, whose state is `Starting`, and gives it the lock. It waits for `Begin`.
pub fn start(container: Container) -> Result<Line> {
    let (ours, theirs) = socket::pair()?;
    let lock = container.lock();
    let folder = container.folder.clone();
    let request = Request { folder, lock: lock.as_raw_fd(), line: theirs.as_raw_fd() };
    stage::start(NAME, &request, &[lock, theirs.as_fd()])?;
    Ok(Line::new(ours))
}

/// The monitor.
pub fn serve() -> Result<()> {
    let request: Request = stage::request()?;
    let (lock, line) = (stage::take(request.lock)?, Line::new(stage::take(request.line)?));
    nix::unistd::setsid().context("make a session")?;
    process::become_stream(streams::null()?.as_fd(), 2)?;
    nix::unistd::chdir("/")?;
    let signals = signals::signals()?;
    let paths = Paths::find()?;
    let mut container = Container::inherited(&request.folder, lock)?;
    container.status.monitor = Process::of(std::process::id() as i32);
    container.keep()?;
    let mut monitor = Monitor::new(&container, signals, Audience::Nobody);
    let reporter = Line::new(line.as_fd().try_clone_to_owned()?);
    monitor.greet(&mut container, line)?;
    let mut warn = |sentence: &str| {
        let _ = reporter.say(&FromMonitor::Warn(sentence.to_owned()), None);
    };
    // Whoever waits was told why it failed.
    let _ = life::live(&paths, container, monitor, &mut warn);
    Ok(())
}
