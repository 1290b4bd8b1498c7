//! What callers want of the monitor, one word at a time: each order is carried out at once and answered, or, where it
//! waits for the container's end, answered by the monitor's story. It knows nothing of the loop that hears them.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::container::call::FromMonitor;
use crate::container::folder::Container;
use crate::container::state::State;
use crate::error::Error;
use crate::launch::parent::Running;
use crate::spec::resources::Limits;
use crate::supervise::callers::Order;
use crate::supervise::monitor::{End, GRACE, Monitor};
use crate::supervise::streams::Sink;
use crate::sys::{process, terminal};

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
                Some(FromMonitor::Done)
            }
            Order::Leave => {
                self.inlet.release(caller);
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
                send(running, signal);
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
            Order::Rename(name) => {
                container.status.name = Some(name);
                Some(answer(container.keep()))
            }
            Order::Update(limits) => Some(answer(self.update(container, &limits))),
            Order::Pause => Some(answer(self.pause(container))),
            Order::Unpause => Some(answer(self.unpause(container))),
            Order::Refuse(sentence) => Some(FromMonitor::Refused(sentence)),
            Order::Begin => return Ok(Heard::Last),
            Order::Nothing => None,
        };
        if let Some(answer) = answer {
            self.callers.tell(caller, &answer);
        }
        Ok(Heard::More)
    }

    fn update(&mut self, container: &mut Container, limits: &Limits) -> Result<()> {
        let mut together = container.limits();
        together.update(limits);
        let enforced = self.restraint.update(limits, &together, &container.status.enforced)?;
        container.status.enforced.extend(enforced);
        container.status.limits.update(limits);
        container.keep()
    }

    fn pause(&mut self, container: &mut Container) -> Result<()> {
        container.status.state.moved(State::Paused)?;
        self.restraint.pause()?;
        container.become_state(State::Paused)
    }

    fn unpause(&mut self, container: &mut Container) -> Result<()> {
        if container.status.state != State::Paused {
            return Err(Error::usage("the container is not paused").into());
        }
        self.restraint.unpause()?;
        container.become_state(State::Running)
    }

    /// Sends the stop signal, and a kill later.
    pub fn stop(
        &mut self,
        container: &Container,
        running: Option<&Running>,
        signal: Option<i32>,
        seconds: Option<i64>,
    ) {
        let _ = self.restraint.unpause();
        let request = &container.made.request;
        let patience = seconds.or(request.life.stop_timeout).unwrap_or(GRACE.as_secs() as i64);
        send(running, signal.unwrap_or_else(|| request.stop_signal()));
        if let Ok(seconds) = u64::try_from(patience) {
            self.kill_at = Some(Instant::now() + Duration::from_secs(seconds));
        }
        self.end = End::Stopped;
    }
}

fn answer(outcome: Result<()>) -> FromMonitor {
    outcome.map_or_else(|error| FromMonitor::Refused(format!("{error:#}")), |()| FromMonitor::Done)
}

/// Sends a signal to the program if it runs.
pub fn send(running: Option<&Running>, signal: i32) {
    if let Some(running) = running {
        let _ = process::pidfd_send_signal(running.pidfd.as_fd(), signal);
    }
}
