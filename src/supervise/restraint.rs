//! What restrains a container while it runs: its group, or the watcher that stands in for one, and whether it is
//! paused. The monitor gives it a turn when one is due, and asks at the end whether the container ran out of memory.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::cgroup::hold::{self, Enforced, Hold};
use crate::cgroup::soft::{Watched, Watcher};
use crate::cgroup::tree::{Process, Processes};
use crate::spec::resources::Limits;

#[derive(Debug, Default)]
pub struct Restraint {
    hold: Hold,
    /// The number of the container's first process.
    first: i32,
    watcher: Option<Watcher>,
    /// A nice value that its session is to get, and when that is tried.
    session: Option<(i32, Instant)>,
    /// What was stopped by a pause, where no group can be frozen.
    paused: Option<Vec<Process>>,
}

impl Restraint {
    /// Restrains the container whose first process has this number, and whose program runs.
    pub fn new(hold: Hold, first: i32) -> Result<Self> {
        let watched = hold.watched;
        let nice = hold.inherited.nice;
        let session = (nice != 0).then(|| (nice, Instant::now()));
        let mut restraint = Self { hold, first, watcher: None, session, paused: None };
        restraint.watch(watched)?;
        Ok(restraint)
    }

    fn watch(&mut self, watched: Watched) -> Result<()> {
        match &mut self.watcher {
            Some(watcher) => watcher.update(watched),
            None if watched.is_empty() => {}
            None => {
                self.watcher = Some(Watcher::new(self.first, watched).context("cannot watch the container")?)
            }
        }
        Ok(())
    }

    /// When the next turn is due.
    pub fn next(&self) -> Option<Instant> {
        let watcher = self.watcher.as_ref().filter(|_| self.paused.is_none()).map(|watcher| watcher.next);
        watcher.into_iter().chain(self.session.map(|(_, at)| at)).min()
    }

    pub fn turn(&mut self) {
        if let Some((nice, at)) = self.session.filter(|(_, at)| *at <= Instant::now()) {
            let busy = set_session_nice(self.first, nice);
            self.session = busy.then(|| (nice, at + BUSY));
        }
        if let Some(watcher) = self.watcher.as_mut().filter(|watcher| watcher.next <= Instant::now()) {
            watcher.turn();
        }
    }

    /// Its processes may wait for an answer of ours before they can stop: `answer` gives it.
    pub fn pause(&mut self, answer: &mut dyn FnMut()) -> Result<()> {
        if let Some(group) = &self.hold.group {
            return group.freeze(true, answer);
        }
        let processes = Processes::of(self.first)?;
        // What the watcher has stopped goes on with the rest.
        if let Some(watcher) = &mut self.watcher {
            watcher.release();
        }
        let stopped = self.paused.insert(processes.stop());
        if processes.settle(stopped).is_ok() {
            return Ok(());
        }
        self.unpause()?;
        anyhow::bail!("its processes do not stop")
    }

    pub fn unpause(&mut self) -> Result<()> {
        if let Some(group) = &self.hold.group {
            return group.freeze(false, &mut || ());
        }
        if let Some(stopped) = self.paused.take() {
            Processes::of(self.first)?.go_on(&stopped);
        }
        Ok(())
    }

    /// Some limits have changed, so that these hold together from now on; gives who enforces them.
    pub fn update(&mut self, changed: &Limits, together: &Limits, before: &Enforced) -> Result<Enforced> {
        let changed = hold::update(changed, together, self.hold.group.as_ref(), before)?;
        self.hold.watched.update(changed.watched);
        self.watch(self.hold.watched)?;
        if let Some(processors) = &changed.inherited.affinity {
            Processes::below(self.first)?.run_on(processors);
        }
        Ok(changed.enforced.clone())
    }

    /// Whether memory ended it, or one of its processes.
    pub fn is_out_of_memory(&self) -> bool {
        let watched = self.watcher.as_ref().is_some_and(|watcher| watcher.oom_killed);
        watched || self.hold.group.as_ref().is_some_and(|group| group.oom_kills() > 0)
    }
}

/// The kernel takes the nice value of a session once in a tenth of a second, from all users together.
const BUSY: Duration = Duration::from_millis(30);

/// Where sessions share the processors (`sched(7)`, "The autogroup feature"), the session's value counts, not its
/// processes'. The program's own process can't write it: it was not dumpable. Says whether it is to be tried again.
fn set_session_nice(first: i32, nice: i32) -> bool {
    let written = std::fs::write(format!("/proc/{first}/autogroup"), nice.to_string());
    written.is_err_and(|error| error.raw_os_error() == Some(libc::EAGAIN))
}
