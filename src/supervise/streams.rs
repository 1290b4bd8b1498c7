//! The streams between caller and container. Without a terminal asked for, no descriptor of the caller's
//! terminal goes inside (CVE-2017-5226): a pipe stands between, as in docker. With `-t`, the caller's
//! terminal is raw while the container runs and is restored on every path.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;
use nix::sys::termios::{self, SetArg, Termios};

use crate::launch::child::Streams;

/// The longest piece that is moved at once.
const PIECE: usize = 64 * 1024;

/// One direction: what is read from one end is written to the other, never more than a piece ahead.
#[derive(Debug)]
pub struct Pump {
    from: OwnedFd,
    to: Option<OwnedFd>,
    held: Vec<u8>,
    /// Whether the container's output waits for the end of this direction.
    pub is_output: bool,
}

/// Which event a pump waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    Read,
    Write,
    Nothing,
}

impl Pump {
    pub fn new(from: OwnedFd, to: OwnedFd, is_output: bool) -> Self {
        Self { from, to: Some(to), held: Vec::new(), is_output }
    }

    pub fn wants(&self) -> Wants {
        match (&self.to, self.held.is_empty()) {
            (None, _) => Wants::Nothing,
            (Some(_), true) => Wants::Read,
            (Some(_), false) => Wants::Write,
        }
    }

    /// The descriptor whose event it waits for.
    pub fn waits_on(&self) -> Option<BorrowedFd<'_>> {
        match self.wants() {
            Wants::Read => Some(self.from.as_fd()),
            Wants::Write => self.to.as_ref().map(AsFd::as_fd),
            Wants::Nothing => None,
        }
    }

    /// Moves one piece; the end of the source, or a broken target, closes the direction.
    pub fn turn(&mut self) {
        let outcome = match self.wants() {
            Wants::Read => self.fill(),
            Wants::Write => self.drain(),
            Wants::Nothing => Ok(()),
        };
        if outcome.is_err() {
            self.to = None;
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut piece = vec![0u8; PIECE];
        match nix::unistd::read(&self.from, &mut piece) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => {
                piece.truncate(length);
                self.held = piece;
                Ok(())
            }
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn drain(&mut self) -> io::Result<()> {
        let Some(to) = &self.to else { return Ok(()) };
        match nix::unistd::write(to, &self.held) {
            Ok(length) => {
                self.held.drain(..length);
                Ok(())
            }
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// The container's streams without a terminal, and the pumps that serve those that the caller's terminal
/// would otherwise be.
pub fn without_terminal(interactive: bool) -> io::Result<(Streams, Vec<Pump>)> {
    let mut streams = Streams::default();
    let mut pumps = Vec::new();
    if !interactive {
        let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC;
        streams.stdin = Some(nix::fcntl::open("/dev/null", flags, Mode::empty())?);
    } else if io::stdin().is_terminal() {
        let (read, write) = pipe()?;
        streams.stdin = Some(read);
        pumps.push(Pump::new(io::stdin().as_fd().try_clone_to_owned()?, write, false));
    }
    if io::stdout().is_terminal() {
        let (read, write) = pipe()?;
        streams.stdout = Some(write);
        pumps.push(Pump::new(read, io::stdout().as_fd().try_clone_to_owned()?, true));
    }
    if io::stderr().is_terminal() {
        let (read, write) = pipe()?;
        streams.stderr = Some(write);
        pumps.push(Pump::new(read, io::stderr().as_fd().try_clone_to_owned()?, true));
    }
    Ok((streams, pumps))
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(OFlag::O_CLOEXEC)?)
}

/// The pumps of a container with a terminal of its own.
pub fn with_terminal(master: &OwnedFd, interactive: bool) -> io::Result<Vec<Pump>> {
    let mut pumps = vec![Pump::new(master.try_clone()?, io::stdout().as_fd().try_clone_to_owned()?, true)];
    if interactive {
        let stdin = io::stdin().as_fd().try_clone_to_owned()?;
        pumps.push(Pump::new(stdin, master.try_clone()?, false));
    }
    fcntl(master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(pumps)
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
