//! Putting right what a killed monitor left: each folder whose lock nobody holds belonged to one. Its process
//! is killed if it lives, and a container that was to be removed is.

use std::fs;
use std::os::fd::AsFd;

use anyhow::Result;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::container::folder::{self, Container, GONE, Process};
use crate::paths::Paths;
use crate::spec::request::UserNamespace;
use crate::sys::process;
use crate::userns::maps;

/// Looks at every container; what can't be put right now is left for the next command.
pub fn sweep(paths: &Paths) -> Result<()> {
    let Ok(entries) = fs::read_dir(paths.containers()) else { return Ok(()) };
    for entry in entries.filter_map(Result::ok) {
        if entry.file_name().as_encoded_bytes().starts_with(GONE.as_bytes()) {
            let maps = maps::choose(&UserNamespace::Auto).ok();
            let _ = folder::remove_layers(&entry.path(), maps.as_ref());
            continue;
        }
        let Ok(Some(container)) = Container::adopt(&entry.path()) else { continue };
        if let Some(process) = &container.watched.process {
            end(process);
        }
        if !container.watched.remove {
            let _ = container.keep_exit(None);
        } else {
            let maps = maps::choose(&UserNamespace::Auto).ok();
            let _ = container.remove(paths, maps.as_ref());
        }
    }
    Ok(())
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
