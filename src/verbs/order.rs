//! Orders to a container that may run: stop, kill, wait, restart, rename. Each is given to the monitor if there
//! is one; a container that nobody watches is seen to here. An order to several is given to all before anybody
//! is waited for.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::container::call::{Condition, FromMonitor, Line, Then, ToMonitor};
use crate::container::folder::{Container, Known};
use crate::container::state::State;
use crate::container::{list, names, sweep};
use crate::error::Error;
use crate::ids::Name;
use crate::paths::Paths;
use crate::verbs::{run, start};

/// How long a container may be about to start.
const PATIENCE: Duration = Duration::from_secs(30);

/// A container that an order was given to.
#[derive(Debug)]
pub struct Given {
    pub known: Known,
    line: Option<Line>,
}

/// Docker's refusal, with its exit status.
pub fn refusal(sentence: String) -> anyhow::Error {
    Error::usage(sentence).exit(1).into()
}

/// The container that `word` means and the line to its monitor, once it is not about to start.
pub fn reach(paths: &Paths, word: &str) -> Result<(Known, Option<Line>)> {
    let deadline = Instant::now() + PATIENCE;
    let mut known = list::find(paths, word)?;
    loop {
        match (&known.status.monitor, known.status.state) {
            (_, State::Starting) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            (Some(monitor), state) if state.is_live() => {
                if let Some(line) = Line::to(&paths.runtime, monitor)? {
                    return Ok((known, Some(line)));
                }
                if Instant::now() > deadline {
                    return Ok((known, None));
                }
            }
            _ => return Ok((known, None)),
        }
        known = match sweep::look(paths, &known.folder)? {
            Some(known) => known,
            None => return Err(list::no_such(word)),
        };
    }
}

/// Begins to stop a container; one that does not run is stopped already.
pub fn stop(
    paths: &Paths,
    word: &str,
    signal: Option<i32>,
    seconds: Option<i64>,
    then: Then,
) -> Result<Given> {
    let (known, line) = reach(paths, word)?;
    if let Some(line) = &line {
        let _ = line.say(&ToMonitor::Stop { signal, seconds, then }, None);
    }
    Ok(Given { known, line })
}

impl Given {
    /// Waits until the container has ended; its exit status. What is not as it should be is told to `warn`.
    pub fn ended(&self, paths: &Paths, warn: &mut dyn FnMut(&str)) -> Result<i32> {
        if let Some(line) = &self.line {
            while let Some((words, _)) = line.hear::<FromMonitor>()? {
                match words {
                    FromMonitor::Ended(status) => return Ok(status),
                    FromMonitor::Refused(sentence) => return Err(refusal(sentence)),
                    FromMonitor::Warn(sentence) => warn(&sentence),
                    _ => {}
                }
            }
        }
        // Its monitor was killed meanwhile, or it did not run.
        let known = sweep::look(paths, &self.known.folder)?;
        Ok(known.map_or(self.known.status.exit, |known| known.status.exit))
    }
}

/// Stops a container and starts it again; one that does not run is only started.
pub fn restart(
    paths: &Paths,
    word: &str,
    signal: Option<i32>,
    seconds: Option<i64>,
    warn: &mut dyn FnMut(&str),
) -> Result<()> {
    let given = stop(paths, word, signal, seconds, Then::Restart)?;
    match given.line {
        Some(line) => run::await_running(&line, warn),
        None => start::start(paths, word, warn),
    }
}

/// Sends a signal; a kill is waited for.
pub fn kill(paths: &Paths, word: &str, signal: i32, warn: &mut dyn FnMut(&str)) -> Result<()> {
    let (known, line) = reach(paths, word)?;
    let id = &known.made.id;
    let not_running = || refusal(format!("cannot kill container: {word}: container {id} is not running"));
    let line = line.filter(|_| known.status.state.is_live()).ok_or_else(not_running)?;
    if signal == libc::SIGKILL {
        line.say(&ToMonitor::Stop { signal: Some(signal), seconds: Some(-1), then: Then::Die }, None)?;
        return Given { known, line: Some(line) }.ended(paths, warn).map(|_| ());
    }
    let for_good = signal == known.made.request.stop_signal();
    match line.ask(&ToMonitor::Signal { signal, for_good })? {
        Some(FromMonitor::Refused(sentence)) => Err(refusal(sentence)),
        Some(_) => Ok(()),
        None => Err(not_running()),
    }
}

/// Begins to wait for a container's end.
pub fn wait(paths: &Paths, word: &str, condition: Condition) -> Result<Given> {
    let (known, line) = reach(paths, word)?;
    if let Some(line) = &line {
        line.say(&ToMonitor::Wait(condition), None)?;
    }
    Ok(Given { known, line })
}

/// Runs the health check now; its exit status.
pub fn check_health(paths: &Paths, word: &str) -> Result<i32> {
    let (known, line) = reach(paths, word)?;
    let id = &known.made.id;
    let refused = |sentence: String| anyhow::Error::from(Error::usage(sentence));
    if known.made.request.health().is_none() {
        return Err(refused(format!("container {id} has no defined healthcheck")));
    }
    let line = line.ok_or_else(|| refused(format!("container {id} is not running")))?;
    match line.ask(&ToMonitor::CheckHealth)? {
        Some(FromMonitor::Health(exit)) => Ok(exit),
        Some(FromMonitor::Refused(sentence)) => Err(refused(sentence)),
        _ => Err(refused(format!("container {id} has ended meanwhile"))),
    }
}

/// Gives a container another name.
pub fn rename(paths: &Paths, word: &str, name: &Name) -> Result<()> {
    let (known, line) = reach(paths, word)?;
    let old = known.name();
    names::take(paths, name, &known.made.id)?;
    let renamed = match line {
        Some(line) => match line.ask(&ToMonitor::Rename(name.clone()))? {
            Some(FromMonitor::Done) => Ok(()),
            Some(FromMonitor::Refused(sentence)) => Err(refusal(sentence)),
            _ => Err(refusal(format!("container {old} has ended meanwhile"))),
        },
        None => match Container::wait(&known.folder)? {
            Some(mut container) => container.rename(name.clone()),
            None => Err(list::no_such(word)),
        },
    };
    let unused = if renamed.is_ok() { &old } else { name };
    if old != *name {
        names::release(paths, unused, &known.made.id);
    }
    renamed
}
