//! What callers want of the monitor, one word at a time: each order is carried out at once and answered, or, where it
//! waits for the container's end, answered by the monitor's story. It knows nothing of the loop that hears them.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::cgroup::device;
use crate::cgroup::hold::Change;
use crate::container::call::FromMonitor;
use crate::container::folder::{Container, Healthiness};
use crate::container::health::Entry;
use crate::container::state::State;
use crate::error::Error;
use crate::launch::parent::Running;
use crate::spec::exec::Exec;
use crate::spec::life::{OnFailure, Stream};
use crate::spec::resources::Limits;
use crate::supervise::callers::Order;
use crate::supervise::health::Checkup;
use crate::supervise::member::{self, Bond};
use crate::supervise::monitor::{End, GRACE, Monitor};
use crate::supervise::streams::Sink;
use crate::sys::terminal;
use crate::view::server::View;

/// Whether a caller may have more to say first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    More,
    Last,
}

impl Monitor {
    /// One word of a caller.
    pub fn hear(
        &mut self,
        caller: u64,
        container: &mut Container,
        running: Option<&Running>,
    ) -> Result<Heard> {
        let Some(order) = self.callers.hear(caller) else {
            self.inlet.forget(caller);
            if self.still_for == Some(caller) {
                told(container, "unpause", |it| self.unpause(it));
            }
            return Ok(Heard::Last);
        };
        let answer = match order {
            Order::Attach { stdin, sinks } => {
                stdin.into_iter().for_each(|fd| self.inlet.add(fd, Some(caller)));
                for (stream, to) in sinks {
                    let (Ok(sink), Some(outlet)) =
                        (Sink::of_caller(to), self.outlets.iter_mut().find(|outlet| outlet.stream == stream))
                    else {
                        continue;
                    };
                    outlet.sinks.push(sink);
                }
                container.tell("attach", &[]);
                Some(FromMonitor::Done)
            }
            Order::Leave => {
                self.inlet.release(caller);
                container.tell("detach", &[]);
                Some(FromMonitor::Released)
            }
            Order::Resize(window) => {
                self.window = Some(window);
                running.and_then(|running| running.master.as_ref()).into_iter().for_each(|master| {
                    let _ = terminal::set_window(master.as_fd(), window);
                });
                None
            }
            Order::Signal { signal, for_good } => {
                self.send(running, signal);
                container.tell("kill", &[("signal", signal.to_string())]);
                if for_good {
                    self.end = End::Stopped;
                }
                Some(FromMonitor::Done)
            }
            Order::Stop { signal, seconds, end } => {
                self.stop(container, running, signal, seconds);
                self.end = end;
                None
            }
            Order::Rename(name) => Some(answer(container.rename(name))),
            Order::Update(limits, restart) => Some(told(container, "update", |it| {
                it.status.restart = restart.or(it.status.restart);
                self.update(it, &limits)
            })),
            Order::Pause => Some(told(container, "pause", |it| self.pause(it))),
            Order::StandStill => {
                let answer = told(container, "pause", |it| self.pause(it));
                self.still_for = matches!(answer, FromMonitor::Done).then_some(caller);
                Some(answer)
            }
            Order::Unpause => Some(told(container, "unpause", |it| self.unpause(it))),
            Order::Exec { exec, streams } => {
                self.exec(caller, container, *exec, &streams);
                return Ok(Heard::Last);
            }
            Order::CheckHealth => self.check_now(caller, container, running),
            Order::Begin => return Ok(Heard::Last),
            Order::Nothing => None,
        };
        if let Some(answer) = answer {
            self.callers.tell(caller, &answer);
        }
        Ok(Heard::More)
    }

    /// Has a further program started; from then on its parent talks with the caller.
    fn exec(&mut self, caller: u64, container: &Container, exec: Exec, streams: &[(Stream, OwnedFd)]) {
        let Some(line) = self.callers.dismiss(caller) else { return };
        match member::start(&container.folder, exec, line.as_fd(), streams, Bond::Stays) {
            Ok(stage) => self.stages.push(stage),
            Err(error) => drop(line.say(&FromMonitor::failed(&error), None)),
        }
    }

    /// The caller is told once the check has ended.
    fn check_now(
        &mut self,
        caller: u64,
        container: &mut Container,
        running: Option<&Running>,
    ) -> Option<FromMonitor> {
        let Some(checkup) = &mut self.checkup else {
            let sentence = format!("container {} has no defined healthcheck", container.made.id);
            return Some(FromMonitor::Refused(sentence));
        };
        if container.status.state != State::Running {
            let sentence = format!("container {} is not running", container.made.id);
            return Some(FromMonitor::Refused(sentence));
        }
        checkup.askers.push(caller);
        let entry = checkup.begin();
        self.take_in(container, running, entry);
        None
    }

    /// A turn of the health check.
    pub fn check(&mut self, container: &mut Container, running: Option<&Running>) {
        let entry = self.checkup.as_mut().and_then(Checkup::turn);
        self.take_in(container, running, entry);
    }

    /// What the result of a check means for the container.
    fn take_in(&mut self, container: &mut Container, running: Option<&Running>, entry: Option<Entry>) {
        let (Some(entry), Some(checkup)) = (entry, &mut self.checkup) else { return };
        let status = checkup.found.status;
        let changed = container.status.health.replace(status) != Some(status);
        if changed {
            let _ = container.keep();
            container.tell(&format!("health_status: {}", status.word()), &[]);
        }
        // Whoever looks after this sees it kept.
        for asker in std::mem::take(&mut checkup.askers) {
            self.callers.tell(asker, &FromMonitor::Health(entry.exit));
        }
        // One that a user is ending already is not started again.
        if !changed || status != Healthiness::Unhealthy || self.end != End::Itself {
            return;
        }
        match container.made.request.life.on_failure {
            OnFailure::None => {}
            OnFailure::Kill => self.send(running, libc::SIGKILL),
            OnFailure::Stop => self.stop(container, running, None, None),
            OnFailure::Restart => {
                self.stop(container, running, None, None);
                self.end = End::Restart;
            }
        }
    }

    fn update(&mut self, container: &mut Container, limits: &Limits) -> Result<()> {
        let mut together = container.limits();
        together.update(limits);
        let served = self.rates.as_ref().filter(|_| limits.has_devices());
        let devices = served.map(|_| device::behind(&container.folder)).unwrap_or_default();
        let throttle = together.throttles(&devices);
        let change = Change { changed: limits, together: &together, devices };
        let enforced = self.restraint.update(&change, &container.status.enforced)?;
        served.map_or(Ok(()), |rates| rates.change(throttle))?;
        self.view.iter_mut().for_each(|view| view.limits_are(&together));
        container.status.enforced.extend(enforced);
        container.status.limits.update(limits);
        container.keep()
    }

    fn pause(&mut self, container: &mut Container) -> Result<()> {
        container.status.state.moved(State::Paused)?;
        let view = &mut self.view;
        self.restraint.pause(&mut || view.iter_mut().for_each(View::turn))?;
        self.checkup.iter_mut().for_each(Checkup::pause);
        container.become_state(State::Paused)
    }

    fn unpause(&mut self, container: &mut Container) -> Result<()> {
        self.still_for = None;
        if container.status.state != State::Paused {
            return Err(Error::usage("the container is not paused").into());
        }
        self.restraint.unpause()?;
        self.checkup.iter_mut().for_each(Checkup::unpause);
        container.become_state(State::Running)
    }

    /// Sends the stop signal, and a kill later; with no seconds to wait for only the kill, as podman does, since which
    /// of two signals sent at once a program sees first is chance.
    pub fn stop(
        &mut self,
        container: &mut Container,
        running: Option<&Running>,
        signal: Option<i32>,
        seconds: Option<i64>,
    ) {
        let _ = self.restraint.unpause();
        let request = &container.made.request;
        let patience = seconds.or(request.life.stop_timeout).unwrap_or(GRACE.as_secs() as i64);
        let signal =
            if patience == 0 { libc::SIGKILL } else { signal.unwrap_or_else(|| request.stop_signal()) };
        self.send(running, signal);
        if let Ok(seconds) = u64::try_from(patience) {
            self.kill_at = Some(Instant::now() + Duration::from_secs(seconds));
        }
        self.end = End::Stopped;
        container.tell("kill", &[("signal", signal.to_string())]);
    }
}

/// An order that is told in the journal once it is carried out.
fn told(
    container: &mut Container,
    action: &str,
    order: impl FnOnce(&mut Container) -> Result<()>,
) -> FromMonitor {
    let done = order(container);
    if done.is_ok() {
        container.tell(action, &[]);
    }
    answer(done)
}

fn answer(outcome: Result<()>) -> FromMonitor {
    outcome.map_or_else(|error| FromMonitor::Refused(format!("{error:#}")), |()| FromMonitor::Done)
}
