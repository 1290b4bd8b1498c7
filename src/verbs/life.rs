//! The life of a container under its monitor: started, served, started again if its policy says so, and closed.
//! The same story for `kelp run` in the foreground and for a monitor in the background.

use std::fs;
use std::os::fd::AsFd;

use anyhow::{Context, Result};

use crate::container::call::{Condition, FromMonitor};
use crate::container::folder::{Container, Healthiness, Process};
use crate::container::state::State;
use crate::container::volume;
use crate::error;
use crate::paths::Paths;
use crate::record;
use crate::spec::life::{STEADY, back_off};
use crate::supervise::monitor::{self, End, Monitor};
use crate::supervise::restraint::Restraint;
use crate::supervise::signals;
use crate::sys::process;
use crate::units;
use crate::verbs::begin::{self, Begun, Start};
use crate::verbs::remove;

/// Lives the life of `container`, whose state is `Starting`; gives the exit status of its program.
///
/// # Errors
/// The program could not be started the first time.
pub fn live(
    paths: &Paths,
    mut container: Container,
    mut monitor: Monitor,
    warn: &mut dyn FnMut(&str),
) -> Result<i32> {
    let outcome = starts(paths, &mut container, &mut monitor, warn);
    if let Err(error) = &outcome {
        failed(&mut container, error);
        monitor.callers.tell_all(&FromMonitor::failed(error));
    }
    let kept = close(paths, container, warn);
    if let Ok(status) = &outcome {
        monitor.callers.announce(*status, &[Condition::NextExit, Condition::NotRunning, Condition::Removed]);
    }
    kept.and(outcome)
}

fn starts(
    paths: &Paths,
    container: &mut Container,
    monitor: &mut Monitor,
    warn: &mut dyn FnMut(&str),
) -> Result<i32> {
    let (mut in_a_row, mut restarted) = (0, false);
    loop {
        let begun = match begin::begin(paths, container, monitor, warn)? {
            Start::Begun(begun) => *begun,
            Start::Interrupted(signal) => {
                end(container, 128 + signal, State::Exited)?;
                return Ok(128 + signal);
            }
        };
        run(container, &begun)?;
        container.tell("start", &[]);
        if std::mem::take(&mut restarted) {
            container.tell("restart", &[]);
        }
        monitor.callers.tell_all(&FromMonitor::Running);
        let (status, how) = serve(container, monitor, begun, warn)?;
        if units::now() - container.status.started > STEADY.as_nanos() as i64 {
            in_a_row = 0;
        }
        ended(container, status, how);
        let again = match how {
            End::Restart => true,
            End::Stopped | End::Killed => false,
            End::Itself => container.status.policy(&container.made).after(status, container.status.restarts),
        };
        container.status.stopped = how.is_for_good();
        restarted = how == End::Restart;
        if !again {
            end(container, status, State::Exited)?;
            return Ok(status);
        }
        end(container, status, State::Restarting)?;
        monitor.callers.announce(status, &[Condition::NextExit]);
        if how == End::Itself {
            container.status.restarts += 1;
            if !monitor.rest(container, back_off(in_a_row))? {
                container.status.stopped = true;
                container.become_state(State::Exited)?;
                return Ok(status);
            }
            in_a_row += 1;
        }
    }
}

/// Docker's events of an end.
fn ended(container: &mut Container, status: i32, how: End) {
    let lasted = (units::now() - container.status.started) / 1_000_000_000;
    container.tell("die", &[("exitCode", status.to_string()), ("execDuration", lasted.to_string())]);
    if matches!(how, End::Stopped | End::Restart) {
        container.tell("stop", &[]);
    }
}

fn run(container: &mut Container, begun: &Begun) -> Result<()> {
    let status = &mut container.status;
    status.started = units::now();
    status.error.clear();
    status.stopped = false;
    status.health = container.made.request.health().map(|_| Healthiness::Starting);
    if status.monitor.is_none() {
        status.monitor = Process::of(std::process::id() as i32);
    }
    let moved = container.become_state(State::Running).and_then(|()| name_program(container));
    if moved.is_err() {
        let _ = process::pidfd_send_signal(begun.running.pidfd.as_fd(), libc::SIGKILL);
    }
    moved
}

/// `--pidfile`: the number of the program, so that whoever finds the file finds all of it.
fn name_program(container: &Container) -> Result<()> {
    let (Some(path), Some(process)) = (&container.made.request.life.pidfile, &container.status.process)
    else {
        return Ok(());
    };
    let beside = record::beside(path);
    let written = fs::write(&beside, process.pid.to_string()).and_then(|()| fs::rename(&beside, path));
    written.with_context(|| format!("cannot write the pid file {}", path.display()))
}

fn serve(
    container: &mut Container,
    monitor: &mut Monitor,
    begun: Begun,
    warn: &mut dyn FnMut(&str),
) -> Result<(i32, End)> {
    monitor.servers = begun.servers();
    let served = monitor.serve(container, &begun.running, &begun.spec, warn);
    monitor.servers.clear();
    if served.is_err() {
        let _ = process::pidfd_send_signal(begun.running.pidfd.as_fd(), libc::SIGKILL);
        let _ = signals::reap(begun.running.pidfd.as_fd());
    }
    container.status.oom_killed = monitor.restraint.is_out_of_memory();
    container.status.memory_peak = monitor.restraint.memory_peak();
    container.status.group = None;
    monitor::end_orphans(&begun.spec);
    monitor.restraint = Restraint::default();
    begun.end();
    served
}

fn end(container: &mut Container, exit: i32, next: State) -> Result<()> {
    container.status.exit = exit;
    container.status.finished = units::now();
    container.status.process = None;
    container.become_state(next).context("cannot keep the exit status")
}

/// A container that could not be started stays as it was before, with the reason, as docker keeps it.
fn failed(container: &mut Container, reason: &anyhow::Error) {
    let status = &mut container.status;
    status.process = None;
    status.error = format!("{reason:#}");
    status.exit = error::find(reason).map_or(125, |error| i32::from(error.exit));
    let next = if status.started == 0 { State::Created } else { State::Exited };
    let _ =
        container.become_state(if container.status.state == State::Starting { next } else { State::Exited });
}

fn close(paths: &Paths, container: Container, warn: &mut dyn FnMut(&str)) -> Result<()> {
    if !container.status.remove {
        return Ok(());
    }
    let released = volume::release(paths, &container.made);
    let with_image = container.made.request.remove_image.then(|| container.made.request.clone());
    let retired = released.and_then(|()| container.retire(paths));
    let gone = retired.and_then(|()| with_image.map_or(Ok(()), |request| remove::image_of(paths, &request)));
    if let Err(error) = gone {
        warn(&format!("{error:#}"));
    }
    Ok(())
}
