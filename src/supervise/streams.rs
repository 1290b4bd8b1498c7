//! The container's streams as its monitor holds them: what it writes goes to the log and to everybody who is
//! attached, what they type goes to its stdin. Without a terminal asked for, no descriptor of the caller's
//! terminal goes inside (CVE-2017-5226): a pipe stands between, as in docker. Nobody is read ahead of who
//! takes it, so that nothing is lost and memory stays small.

use std::ffi::CStr;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{self, AssertUnwindSafe};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;

use crate::container::log::Log;
use crate::launch::child::Streams;
use crate::spec::life::Stream;
use crate::supervise::keys::Keys;
use crate::sys::{clone, process};

/// The longest piece that is moved at once.
pub const PIECE: usize = 64 * 1024;

/// What may be written to a pipe that says it is writable without ever waiting: `PIPE_BUF` of `pipe(7)`.
const ATOMIC: usize = 4096;

/// Somebody who takes output.
#[derive(Debug)]
pub struct Sink {
    to: OwnedFd,
    held: Vec<u8>,
    piece: usize,
}

impl Sink {
    /// The end of a pipe that an attached caller made for us.
    pub fn of_caller(to: OwnedFd) -> io::Result<Self> {
        without_waiting(&to)?;
        Ok(Self { to, held: Vec::new(), piece: PIECE })
    }

    /// A stream of this process, which others may hold too: its flags are not ours to change.
    fn own(to: OwnedFd) -> Self {
        Self { to, held: Vec::new(), piece: ATOMIC }
    }

    fn drain(&mut self) -> io::Result<()> {
        let piece = self.held.get(..self.piece.min(self.held.len())).unwrap_or_default();
        match nix::unistd::write(&self.to, piece) {
            Ok(length) => {
                self.held.drain(..length);
                Ok(())
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// One stream that the container writes.
#[derive(Debug)]
pub struct Outlet {
    pub stream: Stream,
    from: Option<OwnedFd>,
    pub sinks: Vec<Sink>,
}

impl Outlet {
    pub fn new(stream: Stream) -> Self {
        Self { stream, from: None, sinks: Vec::new() }
    }

    /// Whether nothing comes any more.
    pub fn has_ended(&self) -> bool {
        self.from.is_none()
    }

    /// What it waits for: whoever has not taken the last piece yet, else the next one.
    pub fn waits_on(&self) -> Vec<(BorrowedFd<'_>, Wants)> {
        let slow: Vec<_> = self.sinks.iter().filter(|sink| !sink.held.is_empty()).collect();
        if slow.is_empty() {
            return self.from.iter().map(|from| (from.as_fd(), Wants::Read)).collect();
        }
        slow.into_iter().map(|sink| (sink.to.as_fd(), Wants::Write)).collect()
    }

    /// Moves what can be moved; whoever is gone is forgotten.
    pub fn turn(&mut self, log: &mut Log, buffer: &mut Vec<u8>) {
        if self.sinks.iter().all(|sink| sink.held.is_empty()) {
            self.fill(log, buffer);
        } else {
            self.sinks.retain_mut(|sink| sink.held.is_empty() || sink.drain().is_ok());
        }
    }

    fn fill(&mut self, log: &mut Log, buffer: &mut Vec<u8>) {
        let Some(from) = &self.from else { return };
        buffer.resize(PIECE, 0);
        match nix::unistd::read(from, buffer) {
            Ok(length @ 1..) => {
                let piece = buffer.get(..length).unwrap_or_default();
                log.write(self.stream, piece);
                for sink in &mut self.sinks {
                    sink.held.extend_from_slice(piece);
                }
                self.sinks.retain_mut(|sink| sink.piece == ATOMIC || sink.drain().is_ok());
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            // The end, or EIO: nobody holds the terminal any more.
            Ok(0) | Err(_) => self.from = None,
        }
    }
}

/// What a descriptor is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    Read,
    Write,
}

/// The container's stdin.
#[derive(Debug, Default)]
pub struct Inlet {
    to: Option<OwnedFd>,
    from: Vec<Source>,
    held: Vec<u8>,
    /// The end of an input is the end of stdin: docker's StdinOnce.
    once: bool,
    /// Nothing is moved any more until the program is started again.
    closed: bool,
    /// The keys that detach, and whether they were typed.
    pub keys: Option<Keys>,
    pub detached: bool,
}

/// Somebody who types.
#[derive(Debug)]
struct Source {
    from: OwnedFd,
    caller: Option<u64>,
    /// It has said that it goes: its end is nobody else's.
    leaves: bool,
}

impl Inlet {
    pub fn new(once: bool) -> Self {
        Self { once, ..Self::default() }
    }

    pub fn add(&mut self, from: OwnedFd, caller: Option<u64>) {
        self.from.push(Source { from, caller, leaves: false });
    }

    /// A caller is gone. What it sent is still in its pipe, and is dropped only if nobody takes it.
    pub fn forget(&mut self, caller: u64) {
        if self.closed {
            self.from.retain(|source| source.caller != Some(caller));
        }
    }

    fn open(&mut self, to: OwnedFd) {
        self.to = Some(to);
        self.closed = false;
        self.held.clear();
    }

    fn close(&mut self) {
        self.to = None;
        self.closed = true;
        self.held.clear();
    }

    /// The end of what this caller sends is no end for the program.
    pub fn release(&mut self, caller: u64) {
        for source in self.from.iter_mut().filter(|source| source.caller == Some(caller)) {
            source.leaves = true;
        }
    }

    pub fn waits_on(&self) -> Vec<(BorrowedFd<'_>, Wants)> {
        match &self.to {
            None => Vec::new(),
            Some(to) if !self.held.is_empty() => vec![(to.as_fd(), Wants::Write)],
            Some(_) => self.from.iter().map(|source| (source.from.as_fd(), Wants::Read)).collect(),
        }
    }

    /// Moves one piece; `ready` says of each awaited descriptor whether it is ready.
    pub fn turn(&mut self, ready: &[bool]) {
        let Some(to) = &self.to else { return };
        if !self.held.is_empty() {
            match nix::unistd::write(to, &self.held) {
                Ok(length) => drop(self.held.drain(..length)),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(_) => self.close(),
            }
            return;
        }
        let Some(at) = ready.iter().position(|ready| *ready) else { return };
        let Some(Source { from, .. }) = self.from.get(at) else { return };
        let mut piece = vec![0; PIECE];
        match nix::unistd::read(from, &mut piece) {
            Ok(length @ 1..) => {
                piece.truncate(length);
                if let Some(keys) = &mut self.keys {
                    (piece, self.detached) = keys.filter(&piece);
                }
                self.held = piece;
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Ok(0) | Err(_) => {
                let source = self.from.remove(at);
                if self.once && !source.leaves {
                    self.close();
                }
            }
        }
    }
}

/// Who takes the container's output beside those who call later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// The streams of this process go inside as they are, but for terminals.
    Through,
    /// This process's own streams, by way of the monitor.
    Own,
    /// Nobody yet.
    Nobody,
}

/// Connects a new container without a terminal: its ends, and ours in `inlet` and `outlets` (stdout and stderr).
pub fn connect(
    audience: Audience,
    interactive: bool,
    inlet: &mut Inlet,
    outlets: &mut [Outlet],
) -> io::Result<Streams> {
    let mut streams = Streams::default();
    let through = audience == Audience::Through;
    if !interactive {
        streams.stdin = Some(null()?);
    } else if !through || io::stdin().is_terminal() {
        let (read, write) = pipe()?;
        without_waiting(&write)?;
        streams.stdin = Some(read);
        inlet.open(write);
        if audience != Audience::Nobody && inlet.from.is_empty() {
            inlet.add(io::stdin().as_fd().try_clone_to_owned()?, None);
        }
    }
    for outlet in outlets {
        let own = || match outlet.stream {
            Stream::Stderr => (io::stderr().as_fd().try_clone_to_owned(), io::stderr().is_terminal()),
            _ => (io::stdout().as_fd().try_clone_to_owned(), io::stdout().is_terminal()),
        };
        if through && !own().1 {
            continue;
        }
        let (read, write) = pipe()?;
        if outlet.stream == Stream::Stderr {
            streams.stderr = Some(write)
        } else {
            streams.stdout = Some(write)
        }
        outlet.from = Some(read);
        if audience != Audience::Nobody && outlet.sinks.is_empty() {
            outlet.sinks.push(Sink::own(own().0?));
        }
    }
    Ok(streams)
}

/// Connects a terminal's master.
pub fn connect_terminal(
    master: &OwnedFd,
    interactive: bool,
    inlet: &mut Inlet,
    outlets: &mut [Outlet],
) -> io::Result<()> {
    without_waiting(master)?;
    if interactive {
        inlet.open(master.try_clone()?);
    }
    if let Some(outlet) = outlets.first_mut() {
        outlet.from = Some(master.try_clone()?);
    }
    Ok(())
}

/// This process's own streams on a terminal that it serves itself.
pub fn sit_down(interactive: bool, inlet: &mut Inlet, outlets: &mut [Outlet]) -> io::Result<()> {
    if interactive {
        inlet.add(io::stdin().as_fd().try_clone_to_owned()?, None);
    }
    if let Some(outlet) = outlets.first_mut() {
        outlet.sinks.push(Sink::own(io::stdout().as_fd().try_clone_to_owned()?));
    }
    Ok(())
}

/// /dev/null for both directions.
pub fn null() -> io::Result<OwnedFd> {
    Ok(nix::fcntl::open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Does the work of a copy of a command, and ends the copy: nothing of the command's own calls may go on in it, after a
/// panic neither.
pub fn end_with(work: impl FnOnce() -> anyhow::Result<()>) -> ! {
    let done = panic::catch_unwind(AssertUnwindSafe(work));
    clone::exit(if matches!(done, Ok(Ok(()))) { 0 } else { 125 })
}

/// Leaves the session, the streams, the name and all descriptors but `kept` of the command that this process is a copy of.
pub fn become_background(name: &CStr, kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let _ = process::rename(name);
    nix::unistd::setsid()?;
    let null = null()?;
    (0..=2).try_for_each(|number| process::become_stream(null.as_fd(), number))?;
    drop(null);
    process::close_others(kept)
}

/// `pipe2(2)`, close-on-exec: the end that is read, and the end that is written.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(OFlag::O_CLOEXEC)?)
}

fn without_waiting(fd: &OwnedFd) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}
