//! Entering: the one clone with its id maps, for whoever needs a process inside a user namespace. The child
//! blocks on a socket until its maps are written, so that it never acts under ids that it does not have yet.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::Result;
use nix::sched::CloneFlags;

use crate::error::Error;
use crate::sys::clone::{self, Cloned};
use crate::sys::{process, socket};
use crate::userns::maps::{IdMaps, Line, Writer};
use crate::userns::{refusal, setuid};

/// Writes both maps of the process `pid`, which is in a fresh user namespace of ours. Something else is done
/// `meanwhile`, before the maps are there.
pub fn write_maps(maps: &IdMaps, pid: i32, meanwhile: impl FnOnce()) -> Result<()> {
    if let Writer::SetuidPrograms(programs) = &maps.writer {
        return setuid::write(programs, pid, maps, meanwhile);
    }
    meanwhile();
    let file = |name: &str, text: &str| {
        fs::write(format!("/proc/{pid}/{name}"), text).map_err(|error| refusal::of_maps(&error))
    };
    if maps.deny_setgroups {
        file("setgroups", "deny")?;
    }
    file("gid_map", &text(&maps.gid))?;
    file("uid_map", &text(&maps.uid))?;
    Ok(())
}

fn text(lines: &[Line]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// Becomes root of the user namespace that the caller is in, if it has one, and drops the caller's groups
/// where that is allowed and not unwanted.
pub fn become_root(maps: &IdMaps, keep_groups: bool) -> io::Result<()> {
    if !maps.deny_setgroups && !keep_groups {
        process::setgroups(&[])?;
    }
    if maps.has_root() {
        process::setresgid(0)?;
        process::setresuid(0)?;
    }
    Ok(())
}

/// Runs `work` in a child that is root of a new user namespace with `maps`, and gives its exit status. The
/// caller has one thread. With `namespaces`, further `CLONE_NEW*` flags.
///
/// # Errors
/// The namespace is refused, or the maps are.
pub fn run(maps: &IdMaps, namespaces: u64, work: impl FnOnce() -> i32) -> Result<i32> {
    Ok(beside(maps, namespaces, work, || ())?.0)
}

/// As `run`, and the caller does something `meanwhile`.
pub fn beside<T>(
    maps: &IdMaps,
    namespaces: u64,
    work: impl FnOnce() -> i32,
    meanwhile: impl FnOnce() -> T,
) -> Result<(i32, T)> {
    let (ours, theirs) = socket::pair()?;
    let flags = libc::CLONE_NEWUSER as u64 | namespaces;
    match clone::clone(flags, None).map_err(|error| refusal::of_clone(&error))? {
        Cloned::Child => {
            drop(ours);
            clone::exit(child(maps, theirs, work))
        }
        Cloned::Parent { pid, .. } => {
            drop(theirs);
            let written = write_maps(maps, pid, || ());
            if let Err(error) = written {
                drop(ours);
                wait(pid)?;
                return Err(error);
            }
            socket::send(ours.as_fd(), b"proceed", None)?;
            drop(ours);
            let done = meanwhile();
            Ok((wait(pid)?, done))
        }
    }
}

/// Runs `work` in a child that is root of the user namespace that `process` is in, and sees its mounts; the
/// caller does something `meanwhile`. The child stays outside its pid namespace, where nobody in it can reach
/// the child. The caller has one thread.
pub fn join<T>(
    process: BorrowedFd<'_>,
    work: impl FnOnce() -> i32,
    meanwhile: impl FnOnce() -> T,
) -> Result<(i32, T)> {
    match clone::clone(0, None)? {
        Cloned::Child => clone::exit(match enter(process) {
            Ok(()) => work(),
            Err(_) => 125,
        }),
        Cloned::Parent { pid, .. } => {
            let done = meanwhile();
            Ok((wait(pid)?, done))
        }
    }
}

fn enter(process: BorrowedFd<'_>) -> io::Result<()> {
    process::not_dumpable()?;
    nix::sched::setns(process, CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
    process::setresgid(0)?;
    process::setresuid(0)?;
    process::not_dumpable()?;
    process::parent_death_signal(libc::SIGKILL)
}

fn child(maps: &IdMaps, socket: OwnedFd, work: impl FnOnce() -> i32) -> i32 {
    let _ = process::parent_death_signal(libc::SIGKILL);
    match socket::receive(socket.as_fd()) {
        Ok((message, _)) if !message.is_empty() => {}
        _ => return 125,
    }
    drop(socket);
    match become_root(maps, true) {
        Ok(()) => {
            // A change of ids clears it (prctl(2)).
            let _ = process::parent_death_signal(libc::SIGKILL);
            work()
        }
        Err(_) => 125,
    }
}

/// Waits for a child and gives its status as a shell would.
pub fn wait(pid: i32) -> Result<i32> {
    use nix::sys::wait::{WaitStatus, waitpid};
    loop {
        match waitpid(nix::unistd::Pid::from_raw(pid), None) {
            Ok(WaitStatus::Exited(_, status)) => return Ok(status),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as i32),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => {
                return Err(Error::new(crate::error::Kind::Bug, format!("cannot wait: {errno}")).into());
            }
        }
    }
}

/// Runs `work` as `run` does and gives its words: `Ok` for what it found, `Err` for why it could not.
pub fn ask(
    maps: &IdMaps,
    namespaces: u64,
    work: impl FnOnce() -> Result<String>,
) -> Result<std::result::Result<String, String>> {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let status = run(maps, namespaces, || {
        let (words, status) = match work() {
            Ok(words) => (words, 0),
            Err(error) => (format!("{error:#}"), 1),
        };
        let _ = nix::unistd::write(&write, words.as_bytes());
        status
    })?;
    drop(write);
    let words = io::read_to_string(fs::File::from(read))?;
    Ok(if status == 0 { Ok(words) } else { Err(words) })
}
