//! The other side of an attached container: a command moves its own streams to and from pipes that the monitor
//! holds, watches for the keys that detach, tells the size of its window and passes signals on. The caller's
//! terminal is raw meanwhile and is restored on every path; the container does not depend on it.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::Result;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;
use nix::sys::termios::{self, SetArg, Termios};

use crate::container::call::{FromMonitor, Line, Stream, ToMonitor};
use crate::error::{Error, Kind};
use crate::supervise::keys::Keys;
use crate::supervise::streams::{PIECE, pipe};
use crate::sys::terminal;

/// What is attached, and how.
#[derive(Debug)]
pub struct Attachment {
    pub streams: Vec<Stream>,
    /// The container has a terminal.
    pub terminal: bool,
    /// `None`: no keys detach.
    pub keys: Option<Keys>,
    pub pass_signals: bool,
}

/// How it came to an end.
#[derive(Debug)]
pub enum Left {
    Ended(i32),
    /// The keys were typed.
    Detached,
    /// The terminal is gone; the container was told.
    HungUp,
    /// The monitor is gone.
    Lost,
}

/// An attachment whose pipes the monitor has.
#[derive(Debug)]
pub struct Attached<'a> {
    line: &'a Line,
    what: Attachment,
    pumps: Vec<Pump>,
    _raw: Option<Raw>,
}

/// One direction: what is read from one end is written to the other, never more than a piece ahead.
#[derive(Debug)]
struct Pump {
    from: OwnedFd,
    to: Option<OwnedFd>,
    held: Vec<u8>,
    stream: Stream,
}

impl<'a> Attached<'a> {
    /// Gives the monitor its ends.
    pub fn new(line: &'a Line, what: Attachment) -> Result<Self> {
        let mut pumps = Vec::new();
        for stream in &what.streams {
            let (read, write) = pipe()?;
            let own = |fd: BorrowedFd<'_>| fd.try_clone_to_owned();
            let (theirs, from, to) = match stream {
                Stream::Stdin => (read, own(io::stdin().as_fd())?, write),
                Stream::Stdout => (write, read, own(io::stdout().as_fd())?),
                Stream::Stderr => (write, read, own(io::stderr().as_fd())?),
            };
            line.say(&ToMonitor::Stream(*stream), Some(theirs.as_fd()))?;
            pumps.push(Pump { from, to: Some(to), held: Vec::new(), stream: *stream });
        }
        if what.terminal {
            tell_window(line);
        }
        line.say(&ToMonitor::Attach, None)?;
        Ok(Self { line, what, pumps, _raw: None })
    }

    /// Moves the streams until the container ends or the keys are typed. What the monitor says before it runs
    /// goes to `warn`, or is the error.
    pub fn serve(mut self, signals: &SignalFd, warn: &mut dyn FnMut(&str)) -> Result<Left> {
        loop {
            let mut polled = vec![
                PollFd::new(self.line.as_fd(), PollFlags::POLLIN),
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            ];
            let moving = self.poll_pumps(&mut polled);
            match poll(&mut polled, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let ready: Vec<bool> = polled.iter().map(|fd| fd.any().unwrap_or(false)).collect();
            drop(polled);
            if self.turn(&moving, &ready) {
                return Ok(Left::Detached);
            }
            if ready.get(1) == Some(&true) && self.pass_signals(signals)? {
                return Ok(Left::HungUp);
            }
            if ready.first() == Some(&true) {
                let outcome = match self.line.hear::<FromMonitor>()?.map(|(words, _)| words) {
                    Some(FromMonitor::Ended(status)) => Left::Ended(status),
                    Some(FromMonitor::Running) => {
                        self.enter_raw()?;
                        continue;
                    }
                    Some(words) => {
                        heard(words, warn)?;
                        continue;
                    }
                    None => Left::Lost,
                };
                self.finish();
                return Ok(outcome);
            }
        }
    }

    /// The container runs: from now on its terminal does what the caller's did.
    pub fn enter_raw(&mut self) -> Result<()> {
        if self.what.terminal && self.what.streams.contains(&Stream::Stdin) && self._raw.is_none() {
            self._raw = Raw::enter()?;
        }
        Ok(())
    }

    fn poll_pumps<'b>(&'b self, polled: &mut Vec<PollFd<'b>>) -> Vec<usize> {
        let mut moving = Vec::new();
        for (number, pump) in self.pumps.iter().enumerate() {
            if let Some((fd, events)) = pump.waits_on() {
                polled.push(PollFd::new(fd, events));
                moving.push(number);
            }
        }
        moving
    }

    /// Says whether the keys were typed.
    fn turn(&mut self, moving: &[usize], ready: &[bool]) -> bool {
        for (number, _) in moving.iter().zip(ready.iter().skip(2)).filter(|(_, ready)| **ready) {
            if let Some(pump) = self.pumps.get_mut(*number)
                && pump.turn(self.what.keys.as_mut())
            {
                return true;
            }
        }
        false
    }

    /// Says whether the caller's terminal is gone.
    fn pass_signals(&self, signals: &SignalFd) -> Result<bool> {
        while let Some(found) = signals.read_signal()? {
            let signal = found.ssi_signo as i32;
            match signal {
                libc::SIGCHLD | libc::SIGPIPE => {}
                libc::SIGWINCH if self.what.terminal => tell_window(self.line),
                libc::SIGWINCH => {}
                libc::SIGHUP if self.what.terminal => {
                    let _ = self.line.say(&ToMonitor::Signal { signal, for_good: false }, None);
                    return Ok(true);
                }
                _ if self.what.pass_signals => {
                    self.line.say(&ToMonitor::Signal { signal, for_good: false }, None)?;
                }
                libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT => {
                    return Err(Error::new(Kind::Usage, "interrupted").exit(128 + signal as u8).into());
                }
                _ => {}
            }
        }
        Ok(false)
    }

    /// The monitor has closed its ends: what is in the pipes is all there is.
    fn finish(&mut self) {
        self.pumps.retain(|pump| pump.stream != Stream::Stdin);
        loop {
            let mut polled = Vec::new();
            let moving = self.poll_pumps(&mut polled);
            if polled.is_empty() || !matches!(poll(&mut polled, PollTimeout::NONE), Ok(_) | Err(Errno::EINTR))
            {
                return;
            }
            let ready: Vec<bool> =
                [false; 2].into_iter().chain(polled.iter().map(|fd| fd.any().unwrap_or(false))).collect();
            drop(polled);
            self.turn(&moving, &ready);
        }
    }
}

/// A word that is no end: a warning, or the reason why there is nothing to be attached to.
pub fn heard(words: FromMonitor, warn: &mut dyn FnMut(&str)) -> Result<()> {
    match words {
        FromMonitor::Warn(sentence) => warn(&sentence),
        FromMonitor::Failed { sentence, hint, exit } => {
            let kind = if exit == 125 { Kind::Host } else { Kind::Container };
            let mut error = Error::new(kind, sentence).exit(exit);
            error.hint = hint;
            return Err(error.into());
        }
        FromMonitor::Refused(sentence) => return Err(Error::host(sentence).into()),
        _ => {}
    }
    Ok(())
}

fn tell_window(line: &Line) {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let streams = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    if let Some((rows, columns)) = streams.into_iter().find_map(|stream| terminal::window(stream).ok()) {
        let _ = line.say(&ToMonitor::Resize { rows, columns }, None);
    }
}

impl Pump {
    fn waits_on(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let to = self.to.as_ref()?;
        Some(if self.held.is_empty() {
            (self.from.as_fd(), PollFlags::POLLIN)
        } else {
            (to.as_fd(), PollFlags::POLLOUT)
        })
    }

    /// Moves one piece; the end of the source, or a broken target, closes the direction. Says whether the keys
    /// were typed.
    fn turn(&mut self, keys: Option<&mut Keys>) -> bool {
        let Some(to) = &self.to else { return false };
        if !self.held.is_empty() {
            match nix::unistd::write(to, &self.held) {
                Ok(length) => drop(self.held.drain(..length)),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(_) => self.to = None,
            }
            return false;
        }
        let mut piece = vec![0u8; PIECE];
        match nix::unistd::read(&self.from, &mut piece) {
            Ok(length @ 1..) => piece.truncate(length),
            Err(Errno::EAGAIN | Errno::EINTR) => return false,
            Ok(0) | Err(_) => {
                self.to = None;
                return false;
            }
        }
        match keys.filter(|_| self.stream == Stream::Stdin) {
            Some(keys) => {
                let (passed, detached) = keys.filter(&piece);
                self.held = passed;
                detached
            }
            None => {
                self.held = piece;
                false
            }
        }
    }
}

/// The caller's terminal in raw mode until this value ends.
#[derive(Debug)]
pub struct Raw {
    terminal: OwnedFd,
    before: Termios,
}

impl Raw {
    /// `None` where stdin is no terminal.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let terminal = stdin.as_fd().try_clone_to_owned()?;
        let before = termios::tcgetattr(&terminal)?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(&terminal, SetArg::TCSADRAIN, &raw)?;
        Ok(Some(Self { terminal, before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(&self.terminal, SetArg::TCSADRAIN, &self.before);
    }
}
