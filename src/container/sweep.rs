//! Putting right what a killed monitor or a reboot left: a container whose record says that it is watched, and
//! whose lock nobody holds. Its process is ended if it lives, and the container is removed if it was to be.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::Result;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::container::folder::{self, Container, GONE, Known, Process, Status};
use crate::container::state::State;
use crate::container::volume;
use crate::paths::{self, Paths};
use crate::record::Lock;
use crate::rootfs::tree;
use crate::spec::request::UserNamespace;
use crate::sys::process;
use crate::units;
use crate::userns::maps;

/// The exit status of a container whose end nobody saw: killed with its monitor, or by the end of the machine
/// (docker's number for it).
const KILLED: i32 = 128 + libc::SIGKILL;
const UNSEEN: i32 = 255;

/// Looks at every container; what can't be put right now is left for the next command.
pub fn sweep(paths: &Paths) -> Result<()> {
    let Ok(entries) = fs::read_dir(paths.containers()) else { return Ok(()) };
    for entry in entries.filter_map(Result::ok) {
        if entry.file_name().as_encoded_bytes().starts_with(GONE.as_bytes()) {
            let _ = finish(&entry.path());
            continue;
        }
        let _ = look(paths, &entry.path());
    }
    Ok(())
}

/// Removes what a kelp that was killed had begun to remove. Whoever holds the lock is still at it, or makes the
/// folder the spare one: it must not be emptied under another's hands.
fn finish(gone: &Path) -> Result<()> {
    let lock = Lock::now(&gone.join("lock"));
    if matches!(lock, Ok(None)) || !gone.exists() {
        return Ok(());
    }
    let maps = maps::choose(&UserNamespace::Auto).ok();
    match lock {
        Ok(Some(lock)) => folder::remove_gone(gone, lock, maps.as_ref()),
        _ => folder::remove_layers(gone, maps.as_ref()),
    }
}

/// The container in `folder` as it is, after putting it right; `None` if there is none.
pub fn look(paths: &Paths, folder: &Path) -> Result<Option<Known>> {
    for _ in 0..100 {
        let Some((known, held)) = Known::read(folder)? else {
            unfinished(folder)?;
            return Ok(None);
        };
        if !is_watched(&known.status) || held.now() {
            return Ok(Some(known));
        }
        if let Some(container) = Container::open(folder)? {
            recover(paths, container)?;
        }
    }
    Ok(None)
}

/// Whether a monitor, or who removes it, must be about by the record: also between the end of a container and its
/// removal.
fn is_watched(status: &Status) -> bool {
    status.state.is_live() || (status.remove && matches!(status.state, State::Exited | State::Dead))
}

/// A folder without a record belongs to a kelp that was killed before it wrote one, or that has just made it.
fn unfinished(folder: &Path) -> Result<()> {
    match Lock::now(&folder.join("lock")) {
        Ok(Some(lock)) if lock.inscription()?.is_none() => Ok(tree::remove(folder)?),
        _ => Ok(()),
    }
}

fn recover(paths: &Paths, mut container: Container) -> Result<()> {
    if !is_watched(&container.status) {
        return Ok(());
    }
    let process = container.status.process.take();
    if let Some(process) = &process {
        end(process);
    }
    if let Some(group) = container.status.group.take() {
        let _ = group.remove();
    }
    let monitor = container.status.monitor.take().or(process);
    let same_boot = monitor.is_some_and(|monitor| monitor.boot == paths::boot_id());
    let exit = if same_boot { KILLED } else { UNSEEN };
    if container.status.started > 0 && container.status.state != State::Exited {
        container.tell("die", &[("exitCode", exit.to_string())]);
    }
    if container.status.remove {
        volume::release(paths, &container.made)?;
        let maps = maps::choose(&container.made.request.userns).ok();
        return container.remove(paths, maps.as_ref());
    }
    let status = &mut container.status;
    if status.state == State::Starting && status.started == 0 {
        status.error = "kelp was killed while it started the container".to_owned();
        return container.become_state(State::Created);
    }
    status.exit = exit;
    status.error = if same_boot { "its monitor was killed" } else { "the machine went down" }.to_owned();
    status.finished = units::now();
    container.become_state(State::Exited)
}

/// Kills the process if it is still the same one, and waits until it is gone: its mounts go with it.
fn end(process: &Process) {
    let Ok(pidfd) = process::pidfd_open(process.pid) else { return };
    if !process.lives() {
        return;
    }
    if process::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL).is_ok() {
        let _ = poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::from(5000u16));
    }
}
