//! `kelp run`: from a request to the exit status of the program. In the foreground without a terminal the kelp
//! that the user started is the monitor; else a monitor of its own is started and, but for `-d`, attached to.
//! It puts rooms together and prints nothing.

use anyhow::Result;

use crate::container::call::{FromMonitor, Line, Stream, ToMonitor};
use crate::container::folder::{Container, Naming};
use crate::container::sweep;
use crate::error::Error;
use crate::ids::ContainerName;
use crate::paths::Paths;
use crate::spec::life::LogFormat;
use crate::spec::request::Request;
use crate::supervise::attached::{self, Attached, Attachment, Left};
use crate::supervise::keys::{self, Keys};
use crate::supervise::monitor::Monitor;
use crate::supervise::signals;
use crate::supervise::streams::Audience;
use crate::verbs::{life, monitor};

/// Told the id once the container is made.
type Made<'a> = &'a mut dyn FnMut(&ContainerName) -> Result<()>;

/// Runs `request` in the foreground; `warn` is told what is weaker than it could be.
///
/// # Errors
/// Whatever keeps the program from running.
pub fn run(request: Request, made: Made<'_>, warn: &mut dyn FnMut(&str)) -> Result<i32> {
    if request.terminal {
        return in_a_terminal(request, made, warn);
    }
    let signals = signals::signals()?;
    let paths = Paths::find()?;
    sweep::sweep(&paths)?;
    let (naming, audience) = match request.life.log.format {
        LogFormat::Passthrough => (Naming::Reserved, Audience::Through),
        _ if request.remove => (Naming::OfId, Audience::Through),
        _ => (Naming::Reserved, Audience::Own),
    };
    let container = Container::create(&paths, request, naming)?;
    made(&container.made.id)?;
    let monitor = Monitor::new(&container, signals, audience);
    life::live(&paths, container, monitor, warn)
}

/// Runs `request` in the background; gives the id once the program runs.
pub fn detached(request: Request, made: Made<'_>, warn: &mut dyn FnMut(&str)) -> Result<ContainerName> {
    let paths = Paths::find()?;
    sweep::sweep(&paths)?;
    let container = Container::create(&paths, request, Naming::Reserved)?;
    made(&container.made.id)?;
    let id = container.made.id.clone();
    let line = monitor::start(container)?;
    line.say(&ToMonitor::Begin, None)?;
    await_running(&line, warn)?;
    Ok(id)
}

/// Waits until the program runs.
///
/// # Errors
/// Why it does not.
pub fn await_running(line: &Line, warn: &mut dyn FnMut(&str)) -> Result<()> {
    loop {
        match line.hear::<FromMonitor>()? {
            Some((FromMonitor::Running, _)) => return Ok(()),
            // It was interrupted before it ran.
            Some((FromMonitor::Ended(_), _)) => return Ok(()),
            Some((words, _)) => attached::heard(words, warn)?,
            None => return Err(Error::host("the container's monitor ended before its program ran").into()),
        }
    }
}

fn in_a_terminal(request: Request, made: Made<'_>, warn: &mut dyn FnMut(&str)) -> Result<i32> {
    let signals = signals::signals()?;
    let paths = Paths::find()?;
    sweep::sweep(&paths)?;
    let keys = Keys::parse(request.life.detach_keys.as_deref().unwrap_or(keys::DEFAULT))?;
    let mut streams = vec![Stream::Stdout];
    if request.interactive {
        streams.push(Stream::Stdin);
    }
    let container = Container::create(&paths, request, Naming::Reserved)?;
    made(&container.made.id)?;
    let line = monitor::start(container)?;
    let what = Attachment { streams, terminal: true, keys: Some(keys), pass_signals: true };
    let attached = Attached::new(&line, what)?;
    line.say(&ToMonitor::Begin, None)?;
    match attached.serve(&signals, warn)? {
        Left::Ended(status) => Ok(status),
        Left::Detached => Ok(0),
        Left::HungUp => Ok(128 + libc::SIGHUP),
        Left::Lost => {
            sweep::sweep(&paths)?;
            Err(Error::host("the container's monitor was killed").into())
        }
    }
}
