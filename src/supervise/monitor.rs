//! The monitor: one loop that waits for the container's streams, its end, signals, callers and the clock. It is
//! the same for a container in the foreground, whose monitor is the `kelp run` that the user started, and for one
//! in the background. It outlives the program when a restart policy starts that again, and knows no verb.

use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;

use crate::cgroup::scope::Standing;
use crate::container::call::{self, FromMonitor, Line};
use crate::container::folder::Container;
use crate::container::log::Log;
use crate::launch::child::Streams;
use crate::launch::orphans;
use crate::launch::parent::Running;
use crate::rootfs::fuse::Rates;
use crate::spec::Spec;
use crate::spec::life::Stream;
use crate::supervise::callers::Callers;
use crate::supervise::health::Checkup;
use crate::supervise::orders::Heard;
use crate::supervise::restraint::Restraint;
use crate::supervise::service::{Server, Service};
use crate::supervise::signals;
use crate::supervise::streams::{self, Audience, Inlet, Outlet, Wants};
use crate::supervise::unreaped::{self, BURIAL};
use crate::sys::{memory, process};
use crate::view::server::View;

/// Once its first process has ended, what it wrote is still moved, but nobody is waited for longer than this:
/// a process that it left to the host's pid namespace may hold a pipe open.
const LINGER: u16 = 200;

/// An attached reader that takes nothing for so long, in milliseconds, keeps a container that has ended no more.
const STUCK: u16 = 60_000;

/// How long a container has to end by itself: docker's `--stop-timeout`.
pub const GRACE: Duration = Duration::from_secs(10);

/// How a run of the program came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, or by a signal from anywhere.
    Itself,
    /// By a user's word, which no restart policy overrules.
    Stopped,
    /// By `kelp kill` or `rm -f`, likewise.
    Killed,
    /// By `kelp restart`.
    Restart,
}

impl End {
    /// Whether no restart policy is asked.
    pub fn is_for_good(self) -> bool {
        matches!(self, Self::Stopped | Self::Killed)
    }
}

pub struct Monitor {
    pub signals: SignalFd,
    pub callers: Callers,
    audience: Audience,
    pub inlet: Inlet,
    pub outlets: Vec<Outlet>,
    log: Log,
    pub window: Option<(u16, u16)>,
    buffer: Vec<u8>,
    pub restraint: Restraint,
    /// The caller with whom a pause ends.
    pub still_for: Option<u64>,
    pub checkup: Option<Checkup>,
    /// Processes that run further programs: to be reaped, no more.
    pub stages: Vec<Child>,
    pub servers: Vec<Server>,
    /// The container's own numbers in /proc.
    pub view: Option<View>,
    /// Where the server of its root hears of other rates.
    pub rates: Option<Rates>,
    servers_ended: bool,
    /// When the container is killed.
    pub kill_at: Option<Instant>,
    /// When a container that was killed, or has nothing more to say, should have ended.
    dead_by: Option<Instant>,
    pub end: End,
}

/// What a descriptor of the loop belongs to.
#[derive(Clone, Copy)]
enum Whose {
    Signals,
    Program,
    Caller(u64),
    Outlet(usize),
    Inlet,
    Checkup,
    Server,
    View,
    Memory,
}

impl Monitor {
    pub fn new(container: &Container, signals: SignalFd, audience: Audience) -> Self {
        let request = &container.made.request;
        Self {
            signals,
            callers: Callers::default(),
            audience,
            inlet: Inlet::new(request.ends_with_its_input()),
            outlets: vec![Outlet::new(Stream::Stdout), Outlet::new(Stream::Stderr)],
            log: Log::new(&container.folder, &request.life.log),
            window: None,
            buffer: Vec::new(),
            restraint: Restraint::default(),
            still_for: None,
            checkup: None,
            stages: Vec::new(),
            servers: Vec::new(),
            view: None,
            rates: None,
            servers_ended: false,
            kill_at: None,
            dead_by: None,
            end: End::Itself,
        }
    }

    /// The streams for a start of the program; with a terminal they are replaced at once.
    pub fn connect(&mut self, with_terminal: bool, interactive: bool) -> io::Result<Streams> {
        if with_terminal {
            return Ok(Streams {
                stdin: Some(streams::null()?),
                stdout: Some(streams::null()?),
                stderr: Some(streams::null()?),
            });
        }
        streams::connect(self.audience, interactive, &mut self.inlet, &mut self.outlets)
    }

    /// A container in the foreground ends with the job that it is part of.
    pub fn standing(&self) -> Standing {
        if self.audience == Audience::Nobody { Standing::Moves } else { Standing::Stays }
    }

    /// Somebody who is there before the container starts.
    pub fn admit(&mut self, line: Line) {
        self.callers.admit(line);
    }

    /// Hears whoever started this monitor up to the word that begins; a starter that is gone wants it too.
    pub fn greet(&mut self, container: &mut Container, line: Line) -> Result<()> {
        let starter = self.callers.admit(line);
        while self.hear(starter, container, None)? == Heard::More {}
        Ok(())
    }

    /// Serves the program to its end; gives its exit status, 128+n if signal n ended it, and how that came.
    /// What is lost meanwhile is told to `warn`.
    pub fn serve(
        &mut self,
        container: &mut Container,
        running: &Running,
        spec: &Spec,
        warn: &mut dyn FnMut(&str),
    ) -> Result<(i32, End)> {
        (self.end, self.dead_by) = (End::Itself, None);
        let timeout = spec.timeout.filter(|timeout| !timeout.is_zero());
        self.kill_at = timeout.map(|timeout| Instant::now() + timeout);
        if let Some(master) = &running.master {
            streams::connect_terminal(master, spec.process.stdin, &mut self.inlet, &mut self.outlets)?;
        }
        let health = container.made.request.health();
        self.checkup = health.map(|health| Checkup::new(container.folder.clone(), health));
        let (mut settled, mut silent) = (Some(Instant::now() + memory::SETTLING), false);
        loop {
            let check = self.checkup.as_ref().and_then(Checkup::next);
            let own = [self.kill_at, self.dead_by, settled, check, self.restraint.next()];
            let due = own.into_iter().flatten().min();
            let ended = self.turn(container, Some(running), due)?;
            self.restraint.turn();
            self.check(container, Some(running));
            // A program may end by the loss of its root before the loss is seen.
            self.servers_ended |= ended;
            self.miss(container, running, warn)?;
            if settled.take_if(|at| *at <= Instant::now()).is_some() {
                self.settle();
            }
            if self.kill_at.is_some_and(|at| at <= Instant::now()) {
                self.kill_at = None;
                self.send(Some(running), libc::SIGKILL);
            }
            if !silent && self.outlets.iter().all(Outlet::has_ended) {
                silent = true;
                self.dead_by.get_or_insert(Instant::now() + BURIAL);
            }
            let kept = if ended { None } else { self.kept(container) };
            if ended || kept.is_some() {
                self.tell_of_memory(container);
                let status = match kept {
                    Some(sentence) => self.give_up(container, sentence, warn),
                    None => signals::reap(running.pidfd.as_fd())?,
                };
                for asker in self.checkup.take().map(Checkup::end).unwrap_or_default() {
                    let ended = FromMonitor::Refused("the container has ended meanwhile".to_owned());
                    self.callers.tell(asker, &ended);
                }
                (self.view, self.rates) = (None, None);
                self.finish();
                return Ok((status, self.end));
            }
        }
    }

    /// Sends a signal to the program if it runs. After one that kills it is looked what keeps it from ending.
    pub fn send(&mut self, running: Option<&Running>, signal: i32) {
        if let Some(running) = running {
            let _ = process::pidfd_send_signal(running.pidfd.as_fd(), signal);
        }
        if signal == libc::SIGKILL {
            self.dead_by = Some(Instant::now() + BURIAL);
        }
    }

    /// Who keeps a container from ending whose program has ended.
    fn kept(&mut self, container: &Container) -> Option<String> {
        self.dead_by.take_if(|at| *at <= Instant::now())?;
        let first = container.status.process.as_ref()?.pid;
        self.dead_by = unreaped::is_exiting(first)?.then(|| Instant::now() + BURIAL);
        unreaped::keeping(first)
    }

    /// The exit status of a container that would not end before somebody else has reaped what is his.
    fn give_up(&self, container: &mut Container, sentence: String, warn: &mut dyn FnMut(&str)) -> i32 {
        warn(&sentence);
        self.callers.tell_all(&FromMonitor::Warn(sentence.clone()));
        container.status.error = sentence;
        let first = container.status.process.as_ref();
        first.and_then(|first| unreaped::status(first.pid)).unwrap_or(128 + libc::SIGKILL)
    }

    /// What can wait until the program has long been running: only memory, and what `ps` shows, are at stake.
    fn settle(&self) {
        if self.audience == Audience::Nobody {
            let _ = process::forget_words();
        }
        let _ = memory::release_code();
        memory::release_heap();
    }

    /// Waits before the program is started again; callers are served meanwhile. Says whether it is to be started.
    pub fn rest(&mut self, container: &mut Container, pause: Duration) -> Result<bool> {
        self.end = End::Itself;
        let until = Instant::now() + pause;
        while Instant::now() < until && !self.end.is_for_good() {
            self.turn(container, None, Some(until))?;
            if self.end == End::Restart {
                return Ok(true);
            }
        }
        Ok(!self.end.is_for_good())
    }

    /// Waits once and does what there is to do; says whether the program has ended.
    fn turn(
        &mut self,
        container: &mut Container,
        running: Option<&Running>,
        until: Option<Instant>,
    ) -> Result<bool> {
        let (mut polled, mut whose) = (Vec::with_capacity(6), Vec::with_capacity(6));
        let mut add = |fd, wants, who| {
            let events = if wants == Wants::Write { PollFlags::POLLOUT } else { PollFlags::POLLIN };
            polled.push(PollFd::new(fd, events));
            whose.push(who);
        };
        add(self.signals.as_fd(), Wants::Read, Whose::Signals);
        if let Some(running) = running {
            add(running.pidfd.as_fd(), Wants::Read, Whose::Program);
        }
        for (number, line) in self.callers.lines() {
            add(line.as_fd(), Wants::Read, Whose::Caller(number));
        }
        for (number, outlet) in self.outlets.iter().enumerate() {
            outlet.waits_on().into_iter().for_each(|(fd, wants)| add(fd, wants, Whose::Outlet(number)));
        }
        self.inlet.waits_on().into_iter().for_each(|(fd, wants)| add(fd, wants, Whose::Inlet));
        self.checkup.iter().flat_map(Checkup::waits_on).for_each(|fd| add(fd, Wants::Read, Whose::Checkup));
        self.servers.iter().for_each(|server| add(server.as_fd(), Wants::Read, Whose::Server));
        self.restraint.memory_events().into_iter().for_each(|fd| add(fd, Wants::Read, Whose::Memory));
        self.view.iter().flat_map(View::waits_on).for_each(|fd| add(fd, Wants::Read, Whose::View));
        match poll(&mut polled, remaining(until)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ready: Vec<bool> = polled.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        drop(polled);
        let inputs: Vec<bool> = whose
            .iter()
            .zip(&ready)
            .filter(|(who, _)| matches!(who, Whose::Inlet))
            .map(|(_, ready)| *ready)
            .collect();
        if inputs.contains(&true) {
            self.inlet.turn(&inputs);
        }
        let (mut ended, mut served) = (false, HashSet::new());
        for (who, _) in whose.into_iter().zip(ready).filter(|(_, ready)| *ready) {
            match who {
                Whose::Signals => self.heed(container, running)?,
                Whose::Program => ended = true,
                Whose::Caller(number) => {
                    self.hear(number, container, running)?;
                }
                Whose::Outlet(number) if served.insert(number) => self.pour(number),
                Whose::Outlet(_) | Whose::Inlet | Whose::Checkup => {}
                Whose::Server => self.servers_ended = true,
                Whose::Memory => self.tell_of_memory(container),
                Whose::View => self.view.iter_mut().for_each(View::turn),
            }
        }
        Ok(ended)
    }

    /// Servers that have ended are watched no more; what is lost with them is kept and told.
    fn miss(
        &mut self,
        container: &mut Container,
        running: &Running,
        warn: &mut dyn FnMut(&str),
    ) -> Result<()> {
        if !std::mem::take(&mut self.servers_ended) {
            return Ok(());
        }
        let (living, ended): (Vec<_>, Vec<_>) = self.servers.drain(..).partition(Server::lives);
        self.servers = living;
        for lost in ended.iter().filter(|server| server.was_killed()).map(|server| server.service) {
            container.status.error = lost.loss().to_owned();
            container.keep()?;
            container.tell("lost", &[("service", lost.word().to_owned())]);
            self.log.write(Stream::Stderr, format!("kelp: warning: {}\n", lost.loss()).as_bytes());
            warn(lost.loss());
            if lost == Service::Root {
                self.send(Some(running), libc::SIGKILL);
            }
        }
        Ok(())
    }

    /// The kernel may have killed one of several, and the container goes on.
    fn tell_of_memory(&mut self, container: &mut Container) {
        if self.restraint.ran_out_of_memory() {
            container.tell("oom", &[]);
        }
    }

    fn pour(&mut self, number: usize) {
        if let Some(outlet) = self.outlets.get_mut(number) {
            outlet.turn(&mut self.log, &mut self.buffer);
        }
    }

    /// Pending signals: calls are answered, others go on to the program or end it.
    fn heed(&mut self, container: &mut Container, running: Option<&Running>) -> Result<()> {
        while let Some(found) = self.signals.read_signal()? {
            let signal = found.ssi_signo as i32;
            let in_foreground = self.audience != Audience::Nobody;
            match signal {
                call::CALL if found.ssi_code == libc::SI_QUEUE => {
                    signals::caller(&found).into_iter().for_each(|line| self.admit(line));
                }
                libc::SIGCHLD => self.stages.retain_mut(|stage| matches!(stage.try_wait(), Ok(None))),
                libc::SIGWINCH | libc::SIGPIPE => {}
                libc::SIGHUP if !in_foreground || signals::ignored(libc::SIGHUP) => {}
                libc::SIGHUP => self.hang_up(running),
                libc::SIGTERM | libc::SIGINT | libc::SIGQUIT if !in_foreground => {
                    self.stop(container, running, None, None);
                }
                _ => self.send(running, signal),
            }
        }
        Ok(())
    }

    /// The caller's terminal is gone, and nobody sees a container in the foreground any more. Pid 1 ignores
    /// SIGHUP unless it has a handler, so it is given as long as `docker stop` gives, and is killed then.
    fn hang_up(&mut self, running: Option<&Running>) {
        self.send(running, libc::SIGHUP);
        self.kill_at = Some(Instant::now() + GRACE);
    }

    /// How long a reader may take for the last pieces: as long as it wants if it reads from this process.
    fn slowest(&self) -> PollTimeout {
        if self.audience == Audience::Nobody { PollTimeout::from(STUCK) } else { PollTimeout::NONE }
    }

    /// Moves what the container has written to the end.
    fn finish(&mut self) {
        loop {
            let (mut polled, mut whose, mut patience) = (Vec::new(), Vec::new(), PollTimeout::from(LINGER));
            for (number, outlet) in self.outlets.iter().enumerate() {
                for (fd, wants) in outlet.waits_on() {
                    let events = if wants == Wants::Write { PollFlags::POLLOUT } else { PollFlags::POLLIN };
                    if wants == Wants::Write {
                        patience = self.slowest();
                    }
                    polled.push(PollFd::new(fd, events));
                    whose.push(number);
                }
            }
            if polled.is_empty() {
                break;
            }
            match poll(&mut polled, patience) {
                Ok(0) => break,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => break,
            }
            let ready: Vec<bool> = polled.iter().map(|fd| fd.any().unwrap_or(false)).collect();
            drop(polled);
            whose.dedup();
            for number in whose.into_iter().zip(ready).filter(|(_, ready)| *ready).map(|(number, _)| number) {
                self.pour(number);
            }
        }
        self.log.end();
    }
}

/// With the host's pid namespace nothing ends what the program left behind but its monitor.
pub fn end_orphans(spec: &Spec) {
    if spec.namespaces.pid == crate::spec::Sharing::Host {
        orphans::end();
    }
}

/// Rounded up, so that the time has come when the wait is over.
fn remaining(until: Option<Instant>) -> PollTimeout {
    let Some(until) = until else { return PollTimeout::NONE };
    let left = until.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000);
    PollTimeout::try_from(i32::try_from(left).unwrap_or(i32::MAX)).unwrap_or(PollTimeout::MAX)
}
