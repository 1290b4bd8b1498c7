//! `kelp attach`, and the part of `run` and `start` that is the same: a command that sits before a container whose
//! monitor is another process, until the container ends or the command leaves it.

use std::path::Path;

use anyhow::Result;

use crate::container::state::State;
use crate::container::sweep;
use crate::error::Error;
use crate::paths::Paths;
use crate::spec::life::Stream;
use crate::spec::request::Request;
use crate::supervise::attached::{Attached, Attachment, HangUp, Left};
use crate::supervise::keys::{self, Keys};
use crate::supervise::signals;
use crate::verbs::order::{self, refusal};

/// How somebody sits before a container.
#[derive(Clone, Debug)]
pub struct Seat {
    pub streams: Vec<Stream>,
    /// In place of the container's own.
    pub keys: Option<String>,
    pub pass_signals: bool,
    pub hang_up: HangUp,
}

impl Seat {
    /// All streams that a container has; stdin only if the program reads one.
    pub fn whole(keys: Option<String>, pass_signals: bool) -> Self {
        let streams = vec![Stream::Stdin, Stream::Stdout, Stream::Stderr];
        Self { streams, keys, pass_signals, hang_up: HangUp::Leaves }
    }

    /// What is attached of a container of this request.
    pub fn before(&self, request: &Request) -> Result<Attachment> {
        let keys = self.keys.as_deref().or(request.life.detach_keys.as_deref()).unwrap_or(keys::DEFAULT);
        let mut streams = self.streams.clone();
        streams.retain(|stream| match stream {
            Stream::Stdin => request.interactive,
            Stream::Stdout => true,
            // A terminal has one stream for both.
            Stream::Stderr => !request.terminal,
        });
        Ok(Attachment {
            streams,
            terminal: request.terminal,
            // Other input is not typed, and may hold any bytes.
            keys: Some(Keys::parse(keys)?).filter(|_| request.terminal),
            pass_signals: self.pass_signals,
            hang_up: self.hang_up,
        })
    }
}

/// Attaches to a container that runs; gives its exit status, or 0 if it was left running.
pub fn attach(paths: &Paths, word: &str, seat: &Seat, warn: &mut dyn FnMut(&str)) -> Result<i32> {
    let signals = signals::signals()?;
    let (known, line) = order::reach(paths, word)?;
    let refused = match known.status.state {
        State::Running => None,
        State::Paused => Some("You cannot attach to a paused container, unpause it first"),
        State::Restarting => Some("You cannot attach to a restarting container, wait until it is running"),
        _ => Some("You cannot attach to a stopped container, start it first"),
    };
    if let Some(sentence) = refused {
        return Err(refusal(sentence.to_owned()));
    }
    let line = line.ok_or_else(|| refusal(format!("container {} is not running", known.name())))?;
    let mut attached = Attached::new(&line, seat.before(&known.made.request)?)?;
    attached.begin()?;
    let left = attached.serve(&signals, warn)?;
    outcome(paths, &known.folder, &left)
}

/// Says how it was left, as an exit status.
pub fn outcome(paths: &Paths, folder: &Path, left: &Left) -> Result<i32> {
    match left {
        Left::Ended(status) => Ok(*status),
        Left::Detached | Left::Delivered => Ok(0),
        Left::HungUp => Ok(128 + libc::SIGHUP),
        Left::Broken => Ok(128 + libc::SIGPIPE),
        Left::Interrupted(signal) => Ok(128 + signal),
        Left::Lost => {
            let known = sweep::look(paths, folder)?;
            let ended = known.filter(|known| known.status.error.is_empty() && !known.status.state.is_live());
            let lost = || Error::host("the container's monitor was killed").into();
            ended.map(|known| known.status.exit).ok_or_else(lost)
        }
    }
}
