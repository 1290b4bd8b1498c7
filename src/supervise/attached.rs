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

use crate::container::call::{FromMonitor, Line, ToMonitor};
use crate::error::{Error, Kind};
use crate::spec::life::Stream;
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
    pub hang_up: HangUp,
}

/// What it means that the caller's terminal goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HangUp {
    /// The program is told: the container was made on this terminal.
    Passes,
    /// Only the caller is gone.
    Leaves,
}

/// How it came to an end.
#[derive(Debug)]
pub enum Left {
    Ended(i32),
    /// The keys were typed.
    Detached,
    /// The terminal is gone.
    HungUp,
    /// Nobody reads the output any more.
    Broken,
    /// All input was sent, and nothing else is attached.
    Delivered,
    /// A signal that is not passed on.
    Interrupted(i32),
    /// The monitor is gone.
    Lost,
}

/// An attachment whose pipes the monitor has.
#[derive(Debug)]
pub struct Attached<'a> {
    line: &'a Line,
    what: Attachment,
    pumps: Vec<Pump>,
    begun: bool,
    raw: Option<Raw>,
}

/// One direction: what is read from one end is written to the other, never more than a piece ahead.
#[derive(Debug)]
struct Pump {
    from: Option<OwnedFd>,
    /// Input that nobody takes is still read: the keys that detach may be in it.
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
            pumps.push(Pump { from: Some(from), to: Some(to), held: Vec::new(), stream: *stream });
        }
        if what.terminal {
            tell_window(line);
        }
        line.say(&ToMonitor::Attach, None)?;
        Ok(Self { line, what, pumps, begun: false, raw: None })
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
            let turned = self.turn(&moving, &ready);
            let signalled = if ready.get(1) == Some(&true) { self.pass_signals(signals)? } else { None };
            if let Some(left) = turned.or(signalled) {
                self.leave();
                return Ok(left);
            }
            if ready.first() == Some(&true) {
                let outcome = match self.line.hear::<FromMonitor>()?.map(|(words, _)| words) {
                    Some(FromMonitor::Ended(status)) => Left::Ended(status),
                    Some(FromMonitor::Running) => {
                        self.begin()?;
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
    pub fn begin(&mut self) -> Result<()> {
        self.begun = true;
        if self.what.terminal && self.what.streams.contains(&Stream::Stdin) && self.raw.is_none() {
            self.raw = Raw::enter()?;
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

    /// Moves what can be moved; says whether that was the end of being attached.
    fn turn(&mut self, moving: &[usize], ready: &[bool]) -> Option<Left> {
        for (number, _) in moving.iter().zip(ready.iter().skip(2)).filter(|(_, ready)| **ready) {
            let left = self.pumps.get_mut(*number).and_then(|pump| pump.turn(self.what.keys.as_mut()));
            if matches!(left, Some(Left::Detached)) || self.what.hang_up == HangUp::Leaves && left.is_some() {
                return left;
            }
        }
        // What nobody takes would fill its pipe, and then the container would wait.
        self.pumps.retain(|pump| pump.from.is_some());
        let only_input = self.what.streams == [Stream::Stdin];
        (only_input && self.begun && self.pumps.is_empty()).then_some(Left::Delivered)
    }

    /// Before the streams are closed, so that it is no end of input for the program.
    fn leave(&mut self) {
        if self.line.say(&ToMonitor::Leave, None).is_err() {
            return;
        }
        while let Ok(Some((words, _))) = self.line.hear::<FromMonitor>() {
            if matches!(words, FromMonitor::Released | FromMonitor::Ended(_)) {
                return;
            }
        }
    }

    /// Says whether a signal was the end of being attached.
    fn pass_signals(&self, signals: &SignalFd) -> Result<Option<Left>> {
        while let Some(found) = signals.read_signal()? {
            let signal = found.ssi_signo as i32;
            match signal {
                libc::SIGCHLD | libc::SIGPIPE => {}
                libc::SIGWINCH if self.what.terminal => tell_window(self.line),
                libc::SIGWINCH => {}
                libc::SIGHUP if self.what.hang_up == HangUp::Leaves => return Ok(Some(Left::HungUp)),
                libc::SIGHUP if self.what.terminal => {
                    let _ = self.line.say(&ToMonitor::Signal { signal, for_good: false }, None);
                    return Ok(Some(Left::HungUp));
                }
                _ if self.what.pass_signals => {
                    self.line.say(&ToMonitor::Signal { signal, for_good: false }, None)?;
                }
                libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT => {
                    return Ok(Some(Left::Interrupted(signal)));
                }
                _ => {}
            }
        }
        Ok(None)
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
        let from = self.from.as_ref()?;
        Some(match &self.to {
            Some(to) if !self.held.is_empty() => (to.as_fd(), PollFlags::POLLOUT),
            _ => (from.as_fd(), PollFlags::POLLIN),
        })
    }

    /// Moves one piece; the end of the source, or a broken target, closes the direction. Says whether somebody has
    /// left by that.
    fn turn(&mut self, keys: Option<&mut Keys>) -> Option<Left> {
        if !self.held.is_empty() {
            return self.pour();
        }
        let mut piece = vec![0u8; PIECE];
        match nix::unistd::read(self.from.as_ref()?, &mut piece) {
            Ok(length @ 1..) => piece.truncate(length),
            Err(Errno::EAGAIN | Errno::EINTR) => return None,
            ended => {
                self.close();
                return (ended == Err(Errno::EIO)).then_some(Left::HungUp);
            }
        }
        let mut detached = false;
        self.held = piece;
        if let Some(keys) = keys.filter(|_| self.stream == Stream::Stdin) {
            (self.held, detached) = keys.filter(&self.held);
        }
        if self.to.is_none() {
            self.held.clear();
        }
        if detached {
            // What was typed before goes on, unless the program takes nothing.
            let room =
                |to: &OwnedFd| poll(&mut [PollFd::new(to.as_fd(), PollFlags::POLLOUT)], PollTimeout::ZERO);
            if !self.held.is_empty() && self.to.as_ref().is_some_and(|to| room(to) == Ok(1)) {
                self.pour();
            }
            return Some(Left::Detached);
        }
        None
    }

    fn pour(&mut self) -> Option<Left> {
        match nix::unistd::write(self.to.as_ref()?, &self.held) {
            Ok(length) => drop(self.held.drain(..length)),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) if self.stream == Stream::Stdin => {
                self.to = None;
                self.held.clear();
            }
            Err(_) => {
                self.close();
                return Some(Left::Broken);
            }
        }
        None
    }

    fn close(&mut self) {
        self.from = None;
        self.to = None;
        self.held.clear();
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
