//! `kelp run`: from a request to the exit status of the program. In the foreground the kelp that the user started
//! is the monitor, unless the container must be able to go on without it: with a terminal, with a choice of streams,
//! without signals. Then a monitor of its own is started and, but for `-d`, attached to.
//! It puts rooms together and prints nothing.

use anyhow::Result;

use crate::container::call::{FromMonitor, Line, ToMonitor};
use crate::container::folder::{Container, Naming};
use crate::container::sweep;
use crate::error::Error;
use crate::ids::ContainerName;
use crate::paths::Paths;
use crate::spec::life::LogFormat;
use crate::spec::request::Request;
use crate::supervise::attached::{self, Attached, HangUp};
use crate::supervise::monitor::Monitor;
use crate::supervise::signals;
use crate::supervise::streams::Audience;
use crate::verbs::attach::{self, Seat};
use crate::verbs::{life, monitor};

/// Told the id once the container is made.
type Made<'a> = &'a mut dyn FnMut(&ContainerName) -> Result<()>;

/// Who watches a container in the foreground.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreground {
    /// The command itself.
    Itself,
    /// Another process, so that the command may leave.
    Attached { pass_signals: bool },
}

/// Runs `request` in the foreground; `warn` is told what is weaker than it could be.
///
/// # Errors
/// Whatever keeps the program from running.
pub fn run(
    request: Request,
    foreground: Foreground,
    made: Made<'_>,
    warn: &mut dyn FnMut(&str),
) -> Result<i32> {
    if let Foreground::Attached { pass_signals } = foreground {
        return attached_to(request, pass_signals, made, warn);
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
    let line = monitor::start(&paths, container)?;
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

fn attached_to(
    request: Request,
    pass_signals: bool,
    made: Made<'_>,
    warn: &mut dyn FnMut(&str),
) -> Result<i32> {
    let signals = signals::signals()?;
    let paths = Paths::find()?;
    sweep::sweep(&paths)?;
    let streams = request.life.attached.clone();
    let seat = Seat { streams, keys: None, pass_signals, hang_up: HangUp::Passes };
    let what = seat.before(&request)?;
    let container = Container::create(&paths, request, Naming::Reserved)?;
    made(&container.made.id)?;
    let folder = container.folder.clone();
    let line = monitor::start(&paths, container)?;
    let attached = Attached::new(&line, what)?;
    line.say(&ToMonitor::Begin, None)?;
    let left = attached.serve(&signals, warn)?;
    attach::outcome(&paths, &folder, &left)
}
