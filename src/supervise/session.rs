//! A program that `exec` runs beside a container's own: this process serves its streams. It is not the
//! container's monitor, and the container does not notice its end. The program's parent (member.rs) tells the exit status.

use std::os::fd::{AsFd, BorrowedFd};

use anyhow::Result;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;

use crate::container::call::{FromMonitor, Line};
use crate::container::log::Log;
use crate::launch::child::Streams;
use crate::launch::parent::Running;
use crate::spec::life::Stream;
use crate::supervise::attached::Raw;
use crate::supervise::keys::Keys;
use crate::supervise::streams::{self, Audience, Inlet, Outlet, Wants};
use crate::sys::{process, terminal};

/// Once the program has ended, what it wrote is still moved, but what it left behind is not waited for longer.
const LINGER: u16 = 200;

pub struct Session {
    inlet: Inlet,
    outlets: Vec<Outlet>,
    log: Log,
    interactive: bool,
}

impl Session {
    pub fn new(interactive: bool, keys: Option<Keys>) -> Self {
        let outlets = vec![Outlet::new(Stream::Stdout), Outlet::new(Stream::Stderr)];
        let mut inlet = Inlet::new(true);
        inlet.keys = keys;
        Self { inlet, outlets, log: Log::none(), interactive }
    }

    /// The program's ends without a terminal.
    pub fn connect(&mut self) -> Result<Streams> {
        Ok(streams::connect(Audience::Through, self.interactive, &mut self.inlet, &mut self.outlets)?)
    }

    /// Serves the program to its end, or until the keys are typed; its exit status, which is told over the line.
    pub fn serve(mut self, running: Running, signals: &SignalFd, line: &Line) -> Result<Option<i32>> {
        let mut _raw = None;
        if let Some(master) = &running.master {
            streams::connect_terminal(master, self.interactive, &mut self.inlet, &mut self.outlets)?;
            streams::sit_down(self.interactive, &mut self.inlet, &mut self.outlets)?;
            resize(master.as_fd());
            _raw = if self.interactive { Raw::enter()? } else { None };
        }
        let (mut status, mut buffer) = (None, Vec::new());
        loop {
            let mut polled = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            if status.is_none() {
                polled.push(PollFd::new(running.pidfd.as_fd(), PollFlags::POLLIN));
            }
            let fixed = polled.len();
            let mut whose = Vec::new();
            for (number, outlet) in self.outlets.iter().enumerate() {
                whose.extend(outlet.waits_on().into_iter().map(|(fd, wants)| (Some(number), fd, wants)));
            }
            let writes = whose.iter().any(|(_, _, wants)| *wants == Wants::Write);
            if status.is_some() && whose.is_empty() {
                break;
            }
            if status.is_none() {
                whose.extend(self.inlet.waits_on().into_iter().map(|(fd, wants)| (None, fd, wants)));
            }
            for (_, fd, wants) in &whose {
                let events = if *wants == Wants::Write { PollFlags::POLLOUT } else { PollFlags::POLLIN };
                polled.push(PollFd::new(*fd, events));
            }
            let wait =
                if status.is_some() && !writes { PollTimeout::from(LINGER) } else { PollTimeout::NONE };
            match poll(&mut polled, wait) {
                Ok(0) => break,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let ready: Vec<bool> = polled.iter().map(|fd| fd.any().unwrap_or(false)).collect();
            drop(polled);
            let whose: Vec<Option<usize>> = whose.into_iter().map(|(who, ..)| who).collect();
            self.turn(&whose, ready.get(fixed..).unwrap_or_default(), &mut buffer);
            if self.inlet.detached {
                // What was typed before the keys.
                self.inlet.turn(&[]);
                return Ok(None);
            }
            if ready.first() == Some(&true) {
                heed(signals, &running)?;
            }
            if status.is_none() && ready.get(1) == Some(&true) {
                status = Some(told(line)?);
            }
        }
        Ok(status)
    }

    fn turn(&mut self, whose: &[Option<usize>], ready: &[bool], buffer: &mut Vec<u8>) {
        let inputs: Vec<bool> =
            whose.iter().zip(ready).filter(|(who, _)| who.is_none()).map(|(_, ready)| *ready).collect();
        if inputs.contains(&true) {
            self.inlet.turn(&inputs);
        }
        let mut pouring: Vec<usize> =
            whose.iter().zip(ready).filter(|(_, ready)| **ready).filter_map(|(who, _)| *who).collect();
        pouring.dedup();
        for number in pouring {
            if let Some(outlet) = self.outlets.get_mut(number) {
                outlet.turn(&mut self.log, buffer);
            }
        }
    }
}

/// The exit status, from whoever is the program's parent.
fn told(line: &Line) -> Result<i32> {
    while let Some((words, _)) = line.hear::<FromMonitor>()? {
        if let FromMonitor::Ended(status) = words {
            return Ok(status);
        }
    }
    Ok(128 + libc::SIGKILL)
}

/// Signals go on to the program; a changed window size goes to its terminal.
fn heed(signals: &SignalFd, running: &Running) -> Result<()> {
    while let Some(found) = signals.read_signal()? {
        match found.ssi_signo as i32 {
            libc::SIGCHLD | libc::SIGPIPE => {}
            libc::SIGWINCH => running.master.iter().for_each(|master| resize(master.as_fd())),
            signal => {
                let _ = process::pidfd_send_signal(running.pidfd.as_fd(), signal);
            }
        }
    }
    Ok(())
}

fn resize(master: BorrowedFd<'_>) {
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let streams = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    if let Some(window) = streams.into_iter().find_map(|stream| terminal::window(stream).ok()) {
        let _ = terminal::set_window(master, window);
    }
}
