//! Talking with a monitor. Nothing waits for callers: a caller makes a socket in its runtime folder and sends the
//! monitor a signal with the number of that folder's descriptor; the monitor connects to it through
//! /proc/CALLER/fd (docs/decisions/0500). One SOCK_SEQPACKET, one JSON datagram a message:
//!
//! | caller | monitor |
//! |---|---|
//! | `Begin`, of whoever started the monitor | starts the program: `Warn`, then `Running` or `Failed` |
//! | `Stream` with a descriptor, up to three, `Attach` | moves the container's streams; `Ended` at the end |
//! | `Stream`s, `Exec` | a process that it starts answers from then on (supervise/member.rs) |
//! | `Stop`, `Wait` | `Ended`, when it has; others: an answer, `Done` or `Refused`, or nothing to be said |

use std::fs::{self, File};
use std::io::BufReader;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect, getsockopt, listen, socket,
    sockopt,
};
use nix::sys::stat::{Mode, fchmod};
use serde::{Deserialize, Serialize};

use crate::container::folder::Process;
use crate::error::{self, Error};
use crate::ids::Name;
use crate::spec::exec::Exec;
use crate::spec::life::{Restart, Stream};
use crate::spec::resources::Limits;
use crate::sys::{memory, process, socket as message};

/// What a caller says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToMonitor {
    /// Whoever started the monitor has said all that comes first.
    Begin,
    /// Comes with the monitor's end of one stream.
    Stream(Stream),
    Attach,
    /// The caller goes, and the end of its input is not the end of the container's.
    Leave,
    /// The window of the container's terminal.
    Resize {
        rows: u16,
        columns: u16,
    },
    /// A signal for the container's first process; `stays` if it ends the container for good.
    Signal {
        signal: i32,
        for_good: bool,
    },
    /// Ends the container: its stop signal, or this one, and a kill after so many seconds (never, if negative).
    Stop {
        signal: Option<i32>,
        seconds: Option<i64>,
        then: Then,
    },
    Wait(Condition),
    /// Other limits from now on, and another policy if one is given.
    Update(Limits, Option<Restart>),
    Pause,
    /// A pause that ends with the caller, if it is not ended before.
    StandStill,
    Unpause,
    Rename(Name),
    /// Starts a program in the container, with the streams that were sent; from then on the caller talks with the
    /// process that runs it.
    Exec(Box<Exec>),
    /// Runs the health check now.
    CheckHealth,
}

/// What a monitor says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FromMonitor {
    /// Something is weaker than it could be.
    Warn(String),
    /// The program runs.
    Running,
    /// The program's parent may not stand where the program is to be born.
    Elsewhere,
    /// The program could not be started.
    Failed {
        sentence: String,
        hint: Option<String>,
        exit: u8,
    },
    Done,
    Refused(String),
    /// Whoever leaves may go.
    Released,
    Ended(i32),
    /// The health check's exit status.
    Health(i32),
    /// Comes with the pidfd of a program that was started.
    Joined,
    /// Comes with the master of its terminal.
    Console,
}

impl FromMonitor {
    /// Why there is no program.
    pub fn failed(error: &anyhow::Error) -> Self {
        let named = error::find(error);
        Self::Failed {
            sentence: format!("{error:#}"),
            hint: named.and_then(|named| named.hint.clone()),
            exit: named.map_or(125, |named| named.exit),
        }
    }
}

/// What becomes of a container that was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Then {
    Stay,
    /// The same, by `kill` or `rm -f`, which docker's events tell apart from a stop.
    Die,
    /// It is started again, by its monitor.
    Restart,
}

/// `kelp wait --condition`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// At once if it does not run.
    NotRunning,
    NextExit,
    Removed,
}

/// The signal by which a monitor is called.
pub const CALL: i32 = 64;

/// How long a monitor may take to answer, in milliseconds.
const PATIENCE: u16 = 30_000;

/// A datagram that is longer than this lies in a file in memory, and the one that brings it says only that.
const LONGEST: usize = 32 << 10;
const ASIDE: &[u8] = b"\"aside\"";

/// One end of the conversation.
#[derive(Debug)]
pub struct Line(OwnedFd);

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Line {
    pub fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Calls the monitor; `None` if it is no more.
    pub fn to(runtime: &Path, monitor: &Process) -> Result<Option<Self>> {
        let Ok(pidfd) = process::pidfd_open(monitor.pid) else { return Ok(None) };
        if !monitor.lives() {
            return Ok(None);
        }
        let folder =
            nix::fcntl::open(runtime, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
                .with_context(|| format!("cannot open {}", runtime.display()))?;
        let path = place("self", folder.as_raw_fd(), std::process::id() as i32);
        let listener =
            listener(&path).with_context(|| format!("cannot make a socket in {}", runtime.display()))?;
        let answered = ring(&pidfd, &listener, folder.as_raw_fd());
        let _ = fs::remove_file(&path);
        match answered? {
            Some(socket) if peer(&socket)? == monitor.pid => Ok(Some(Self(socket))),
            Some(_) => Err(Error::host("somebody else answers for the container's monitor").into()),
            None => Ok(None),
        }
    }

    /// Sends one message. Whoever is gone does not hear it, and then there is nothing to be heard either.
    pub fn say<T: Serialize>(&self, words: &T, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        let mut text = serde_json::to_vec(words)?;
        let long =
            (text.len() > LONGEST && fd.is_none()).then(|| memory::file(c"kelp-call", &text)).transpose()?;
        if long.is_some() {
            text = ASIDE.to_vec();
        }
        match message::send(self.as_fd(), &text, fd.or(long.as_ref().map(AsFd::as_fd))) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            other => other.context("cannot reach the container's monitor"),
        }
    }

    /// Receives one message; `None` means that the other side is gone.
    pub fn hear<T: for<'de> Deserialize<'de>>(&self) -> Result<Option<(T, Option<OwnedFd>)>> {
        let (text, fd) = match message::receive(self.as_fd()) {
            Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => return Ok(None),
            other => other.context("cannot hear the container's monitor")?,
        };
        if text.is_empty() {
            return Ok(None);
        }
        let understood = match fd {
            Some(long) if text == ASIDE => {
                serde_json::from_reader(BufReader::new(File::from(long))).map(|it| (it, None))
            }
            fd => serde_json::from_slice(&text).map(|it| (it, fd)),
        };
        Ok(Some(understood.context("cannot understand the container's monitor")?))
    }

    /// Asks and waits for the answer.
    pub fn ask(&self, words: &ToMonitor) -> Result<Option<FromMonitor>> {
        if self.say(words, None).is_err() {
            return Ok(None);
        }
        Ok(self.hear::<FromMonitor>()?.map(|(words, _)| words))
    }
}

/// Waits for the monitor to connect.
fn ring(monitor: &OwnedFd, listener: &OwnedFd, folder: i32) -> Result<Option<OwnedFd>> {
    match process::pidfd_queue_signal(monitor.as_fd(), CALL, folder) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        other => other.context("cannot call the container's monitor")?,
    }
    loop {
        let mut polled = [
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(monitor.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut polled, PollTimeout::from(PATIENCE)) {
            Ok(0) => {
                return Err(Error::host("the container's monitor does not answer")
                    .hint("is it stopped?")
                    .into());
            }
            Ok(_) if polled[0].any() == Some(true) => {
                let raw = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
                return Ok(Some(process::inherited(raw)?));
            }
            Ok(_) => return Ok(None),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn place(process: &str, folder: i32, caller: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{process}/fd/{folder}/call-{caller}"))
}

fn packet_socket() -> nix::Result<OwnedFd> {
    socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
}

fn listener(path: &Path) -> Result<OwnedFd> {
    let listener = packet_socket()?;
    fchmod(&listener, Mode::S_IRUSR | Mode::S_IWUSR)?;
    let address = UnixAddr::new(path)?;
    match bind(listener.as_raw_fd(), &address) {
        // A caller that was killed had the same number.
        Err(Errno::EADDRINUSE) => {
            fs::remove_file(path)?;
            bind(listener.as_raw_fd(), &address)?;
        }
        other => other?,
    }
    listen(&listener, Backlog::new(1)?)?;
    Ok(listener)
}

fn peer(socket: &OwnedFd) -> Result<i32> {
    Ok(getsockopt(socket, sockopt::PeerCredentials)?.pid())
}

/// The monitor's side of `CALL`: connects to whoever sent it. Only a process of our own user in our own user
/// namespace is answered: a program of the container that sees us (`--pid host`) may have the same uid.
pub fn answer(caller: i32, folder: i32) -> Result<Line> {
    let own = fs::metadata("/proc/self/ns/user")?;
    let theirs = fs::metadata(format!("/proc/{caller}/ns/user"))?;
    if (own.dev(), own.ino()) != (theirs.dev(), theirs.ino()) {
        return Err(Error::host("the caller is in another user namespace").into());
    }
    let socket = packet_socket()?;
    let path = place(&caller.to_string(), folder, caller);
    connect(socket.as_raw_fd(), &UnixAddr::new(&path)?)?;
    let credentials = getsockopt(&socket, sockopt::PeerCredentials)?;
    if credentials.pid() != caller || credentials.uid() != nix::unistd::getuid().as_raw() {
        return Err(Error::host("the caller is somebody else").into());
    }
    Ok(Line(socket))
}
