//! One direction of one connection: bytes from a socket to a socket. Short messages are copied (one `recv`, one `send`),
//! bulk is spliced through a pipe that is only held while there is bulk. What the far side does not take stays in the
//! pipe, and nothing more is read: each kernel's window tells its peer.
//!
//!   open --end of file--> ended --pipe empty, shutdown passed on--> shut
//!
//! Until a lane is shut, the close of the socket that it leads to is a reset: whoever reads there must not take the end of
//! a killed engine for the end of the stream.

use std::io;
use std::os::fd::OwnedFd;

use crate::sys::{socket, stream};

/// Bytes that a pipe is asked to hold, and that one splice moves at most.
const BULK: usize = 1 << 20;
/// Bytes moved for one connection before others have their turn.
const TURN: usize = 4 << 20;
/// A splice below this is a message rather than bulk.
const SHORT: usize = 16 << 10;

type Pipe = (OwnedFd, OwnedFd);

/// Pipes that are empty and in no use.
#[derive(Default)]
pub(crate) struct Pipes(Vec<Pipe>);

impl Pipes {
    fn take(&mut self) -> io::Result<Pipe> {
        self.0.pop().map_or_else(|| stream::pipe(BULK as i32), Ok)
    }

    fn put_back(&mut self, pipe: Pipe) {
        if self.0.len() < 32 {
            self.0.push(pipe);
        }
    }
}

#[derive(Default)]
pub(crate) struct Lane {
    pipe: Option<Pipe>,
    held: usize,
    /// What is held beside the pipe, and comes behind it: it was too small, or there is none.
    kept: Vec<u8>,
    short: u8,
    /// The end of what is read may already be there: a short read must not be taken for the last. It is told once only, maybe
    /// while nothing can be read because the far side is full.
    hung_up: bool,
    ended: bool,
    shut: bool,
    /// Bytes passed on so far.
    pub(crate) moved: u64,
}

/// Where bytes come from, and how many may.
pub(crate) struct Source<'a> {
    pub(crate) socket: &'a OwnedFd,
    /// Whether it was said that its end may be there.
    pub(crate) hung_up: bool,
    pub(crate) allowance: usize,
}

/// Why a pump stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pause {
    /// Until the next event.
    Idle,
    /// It had its turn; there is more.
    More,
}

impl Lane {
    pub(crate) fn is_shut(&self) -> bool {
        self.shut
    }

    /// Whether bytes are held that the far side has not taken, or only its end is left to be told.
    pub(crate) fn is_waiting(&self) -> bool {
        self.held > 0 || !self.kept.is_empty() || (self.ended && !self.shut)
    }

    /// Gives the pipe back, if it is empty; one that still holds bytes is closed.
    pub(crate) fn release(&mut self, pipes: &mut Pipes) {
        if let Some(pipe) = self.pipe.take()
            && self.held == 0
        {
            pipes.put_back(pipe);
        }
    }

    /// Whether the next bytes come by splice.
    fn is_bulk(&self) -> bool {
        self.pipe.is_some()
    }

    /// Moves what can be moved. `last` says that the other lane is shut: the close that then follows says the end.
    pub(crate) fn pump(
        &mut self,
        from: Source<'_>,
        (to, last): (&OwnedFd, bool),
        (pipes, scratch): (&mut Pipes, &mut [u8]),
    ) -> io::Result<Pause> {
        self.hung_up |= from.hung_up;
        let stop = self.moved + from.allowance.min(TURN) as u64;
        let scratch_size = scratch.len();
        loop {
            if !self.flush(to, pipes)? || self.shut {
                return Ok(Pause::Idle);
            }
            if self.ended {
                socket::end_on_close(to)?;
                if !last {
                    socket::shutdown_write(to)?;
                }
                self.shut = true;
                return Ok(Pause::Idle);
            }
            if self.moved >= stop {
                return Ok(Pause::More);
            }
            let left = (stop - self.moved) as usize;
            let drained = match self.is_bulk() {
                true => self.fill(from.socket, left)?,
                false => self.copy(
                    (from.socket, to),
                    pipes,
                    scratch.get_mut(..left.min(scratch_size)).unwrap_or(&mut []),
                )?,
            };
            if drained && self.held == 0 && self.kept.is_empty() {
                return Ok(Pause::Idle);
            }
        }
    }

    /// Empties what is held; false if the far side is full.
    fn flush(&mut self, to: &OwnedFd, pipes: &mut Pipes) -> io::Result<bool> {
        while let Some((read_end, _)) = self.pipe.as_ref().filter(|_| self.held > 0) {
            match stream::splice(read_end, to, self.held)? {
                Some(count) => {
                    self.held -= count.min(self.held);
                    self.moved += count as u64;
                }
                None => return Ok(false),
            }
        }
        while !self.kept.is_empty() {
            let Some(count) = stream::send(to, &self.kept)? else { return Ok(false) };
            self.kept.drain(..count);
            self.moved += count as u64;
        }
        if (self.ended || self.short >= 8)
            && let Some(pipe) = self.pipe.take()
        {
            self.short = 0;
            pipes.put_back(pipe);
        }
        Ok(true)
    }

    /// Splices into the pipe; true if there was nothing.
    fn fill(&mut self, from: &OwnedFd, left: usize) -> io::Result<bool> {
        let Some((_, write_end)) = &self.pipe else { return Ok(true) };
        match stream::splice(from, write_end, BULK.min(left))? {
            None => return Ok(true),
            Some(0) => self.ended = true,
            Some(count) => {
                self.held = count;
                self.short = if count < SHORT { self.short.saturating_add(1) } else { 0 };
            }
        }
        Ok(false)
    }

    /// Reads and writes through `buffer`; true if that was all there was. A read that fills it is the start of bulk.
    fn copy(
        &mut self,
        (from, to): (&OwnedFd, &OwnedFd),
        pipes: &mut Pipes,
        buffer: &mut [u8],
    ) -> io::Result<bool> {
        let Some(count) = stream::recv(from, buffer, 0)? else { return Ok(true) };
        if count == 0 {
            self.ended = true;
            return Ok(false);
        }
        let sent = stream::send(to, buffer.get(..count).unwrap_or(&[]))?.unwrap_or(0);
        self.moved += sent as u64;
        let rest = buffer.get(sent..count).unwrap_or(&[]);
        if !rest.is_empty() || count == buffer.len() {
            self.begin_bulk(rest, pipes)?;
        }
        Ok(count < buffer.len() && !self.hung_up)
    }

    /// Takes a pipe, and holds `rest` in it as far as it goes: a user with many pipes gets small ones. Without descriptors
    /// to spare what comes is copied, bulk or not.
    fn begin_bulk(&mut self, rest: &[u8], pipes: &mut Pipes) -> io::Result<()> {
        if let Ok(pipe) = pipes.take() {
            self.held = if rest.is_empty() { 0 } else { stream::write(&pipe.1, rest)?.unwrap_or(0) };
            self.pipe = Some(pipe);
        }
        self.kept = rest.get(self.held..).unwrap_or(&[]).to_vec();
        Ok(())
    }
}
