//! `kelp create` and `kelp start`: a container as its request says, made now and started later, any number of
//! times, on the layer that its first start made.

use anyhow::Result;

use crate::container::call::{Line, ToMonitor};
use crate::container::folder::{Container, Known, Naming};
use crate::container::state::State;
use crate::container::{list, sweep, volume};
use crate::ids::ContainerName;
use crate::paths::Paths;
use crate::spec::request::Request;
use crate::supervise::attached::Attached;
use crate::supervise::signals;
use crate::verbs::attach::{self, Seat};
use crate::verbs::order::refusal;
use crate::verbs::{monitor, run};

/// Makes a container and starts nothing.
pub fn create(request: Request) -> Result<ContainerName> {
    let paths = Paths::find()?;
    sweep::sweep(&paths)?;
    let mut container = Container::create(&paths, request, Naming::Reserved)?;
    for volume in volume::all_of(&container.made) {
        volume::create(&paths, &volume)?;
    }
    container.become_state(State::Created)?;
    Ok(container.made.id.clone())
}

/// Starts the monitor of a container that does not run, which waits for `Begin`; `None` if it runs already.
pub fn begin(paths: &Paths, word: &str) -> Result<Option<(Known, Line)>> {
    let known = list::find(paths, word)?;
    match known.status.state {
        State::Paused => {
            return Err(refusal("cannot start a paused container, try unpause instead".to_owned()));
        }
        State::Dead => {
            return Err(refusal("container is marked for removal and cannot be started".to_owned()));
        }
        state if state.is_live() => return Ok(None),
        _ => {}
    }
    let Some(mut container) = Container::wait(&known.folder)? else { return Err(list::no_such(word)) };
    if container.status.state.is_live() {
        return Ok(None);
    }
    container.status.restarts = 0;
    container.become_state(State::Starting)?;
    Ok(Some((known, monitor::start(paths, container)?)))
}

/// Starts a container and waits until its program runs.
pub fn start(paths: &Paths, word: &str, warn: &mut dyn FnMut(&str)) -> Result<()> {
    match begin(paths, word)? {
        Some((_, line)) => {
            line.say(&ToMonitor::Begin, None)?;
            run::await_running(&line, warn)
        }
        None => Ok(()),
    }
}

/// Starts a container and attaches to it; to one that runs it only attaches. Gives its exit status.
pub fn attached(paths: &Paths, word: &str, seat: &Seat, warn: &mut dyn FnMut(&str)) -> Result<i32> {
    let signals = signals::signals()?;
    let Some((known, line)) = begin(paths, word)? else {
        return attach::attach(paths, word, seat, warn);
    };
    let attached = Attached::new(&line, seat.before(&known.made.request)?)?;
    line.say(&ToMonitor::Begin, None)?;
    let left = attached.serve(&signals, warn)?;
    attach::outcome(paths, &known.folder, &left)
}
