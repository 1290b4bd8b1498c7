//! A container in the foreground: the kelp that the user started is its monitor. One loop waits for the
//! streams, the signals, the time limit and the end of the container's first process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use anyhow::Result;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

use crate::launch::parent::Running;
use crate::supervise::streams::{Pump, Wants};
use crate::sys::{process, terminal};

/// Blocks every signal that is proxied and gives the descriptor they are read from.
pub fn signals() -> Result<SignalFd> {
    let mut set = SigSet::all();
    for signal in [
        Signal::SIGSEGV,
        Signal::SIGBUS,
        Signal::SIGFPE,
        Signal::SIGILL,
        Signal::SIGTRAP,
        Signal::SIGABRT,
        Signal::SIGTSTP,
        Signal::SIGTTIN,
        Signal::SIGTTOU,
    ] {
        set.remove(signal);
    }
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None)?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// A running container and what serves it.
#[derive(Debug)]
pub struct Foreground<'a> {
    pub running: &'a Running,
    pub signals: &'a SignalFd,
    pub pumps: Vec<Pump>,
    pub timeout: Option<Duration>,
}

/// Once its first process has ended, what it wrote is still moved, but nobody is waited for longer than this:
/// a process that it left to the host's pid namespace may hold a pipe open.
const LINGER: u16 = 200;

/// How long a container has to end by itself: docker's `--stop-timeout`.
const GRACE: Duration = Duration::from_secs(10);

impl Foreground<'_> {
    /// Serves the container to its end; gives its exit status, 128+n if signal n ended it.
    pub fn serve(mut self) -> Result<i32> {
        let timer = self.timer()?;
        loop {
            let mut polled = vec![
                PollFd::new(self.running.pidfd.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(timer.as_fd(), PollFlags::POLLIN),
            ];
            let serving: Vec<usize> = self.poll_pumps(&mut polled);
            match poll(&mut polled, PollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let ready: Vec<bool> = polled.iter().map(|fd| fd.any().unwrap_or(false)).collect();
            drop(polled);
            let heard = self.is_heard();
            self.turn(&serving, &ready);
            if heard && !self.is_heard() {
                self.hang_up(&timer)?;
            }
            if ready.get(1) == Some(&true) {
                self.proxy(&timer)?;
            }
            if ready.get(2) == Some(&true) {
                timer.wait()?;
                let _ = process::pidfd_send_signal(self.running.pidfd.as_fd(), libc::SIGKILL);
            }
            if ready.first() == Some(&true) {
                let status = reap(self.running.pidfd.as_fd())?;
                self.finish();
                return Ok(status);
            }
        }
    }

    /// Whether somebody still takes what the container's terminal shows.
    fn is_heard(&self) -> bool {
        let output = |pump: &Pump| pump.is_output && pump.wants() != Wants::Nothing;
        self.running.master.is_none() || self.pumps.iter().any(output)
    }

    fn timer(&self) -> Result<TimerFd> {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)?;
        if let Some(timeout) = self.timeout.filter(|timeout| !timeout.is_zero()) {
            timer.set(Expiration::OneShot(TimeSpec::from(timeout)), TimerSetTimeFlags::empty())?;
        }
        Ok(timer)
    }

    /// Adds each pump's descriptor; gives the pumps' numbers in the same order.
    fn poll_pumps<'a>(&'a self, polled: &mut Vec<PollFd<'a>>) -> Vec<usize> {
        let mut serving = Vec::new();
        for (number, pump) in self.pumps.iter().enumerate() {
            if let Some(fd) = pump.waits_on() {
                let events =
                    if pump.wants() == Wants::Write { PollFlags::POLLOUT } else { PollFlags::POLLIN };
                polled.push(PollFd::new(fd, events));
                serving.push(number);
            }
        }
        serving
    }

    fn turn(&mut self, serving: &[usize], ready: &[bool]) {
        for (number, is_ready) in serving.iter().zip(ready.iter().skip(3)) {
            if let (true, Some(pump)) = (*is_ready, self.pumps.get_mut(*number)) {
                pump.turn();
            }
        }
    }

    /// Passes pending signals on; a changed window size goes to the container's terminal.
    fn proxy(&self, timer: &TimerFd) -> Result<()> {
        while let Some(found) = self.signals.read_signal()? {
            let signal = found.ssi_signo as i32;
            match signal {
                libc::SIGCHLD => {}
                libc::SIGWINCH => self.running.master.iter().for_each(resize),
                libc::SIGPIPE => {}
                libc::SIGHUP if ignored(libc::SIGHUP) => {}
                libc::SIGHUP => self.hang_up(timer)?,
                _ => {
                    let _ = process::pidfd_send_signal(self.running.pidfd.as_fd(), signal);
                }
            }
        }
        Ok(())
    }

    /// The caller's terminal is gone, and nobody can reach a container in the foreground any more. Pid 1 ignores
    /// SIGHUP unless it has a handler, so it is given as long as `docker stop` gives, and is killed then.
    fn hang_up(&self, timer: &TimerFd) -> Result<()> {
        let _ = process::pidfd_send_signal(self.running.pidfd.as_fd(), libc::SIGHUP);
        let grace = Expiration::OneShot(TimeSpec::from(GRACE));
        Ok(timer.set(grace, TimerSetTimeFlags::empty())?)
    }

    /// Moves what the container has written to the end.
    fn finish(&mut self) {
        loop {
            self.pumps.retain(|pump| pump.is_output && pump.wants() != Wants::Nothing);
            let mut polled = Vec::new();
            let serving = self.poll_pumps(&mut polled);
            if serving.is_empty() {
                return;
            }
            match poll(&mut polled, PollTimeout::from(LINGER)) {
                Ok(0) => return,
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(_) => return,
            }
            let ready: Vec<bool> =
                [false; 3].into_iter().chain(polled.iter().map(|fd| fd.any().unwrap_or(false))).collect();
            drop(polled);
            self.turn(&serving, &ready);
        }
    }
}

/// The container's terminal gets the size of the caller's, whichever stream that is.
pub fn resize(master: &OwnedFd) {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let streams = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    let _ = streams.into_iter().find(|from| terminal::copy_size(*from, master.as_fd()).is_ok());
}

/// Whether the caller ignores a signal, as under `nohup(1)`: a blocked signal arrives all the same.
fn ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|word| u64::from_str_radix(word.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 << (signal - 1) != 0)
}

/// The status of a process that has ended.
pub fn reap(pidfd: BorrowedFd<'_>) -> Result<i32> {
    loop {
        match waitid(Id::PIDFd(pidfd), WaitPidFlag::WEXITED) {
            Ok(WaitStatus::Exited(_, status)) => return Ok(status),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as i32),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
