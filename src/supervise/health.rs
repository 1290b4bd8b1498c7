//! The health check of a container that runs (docker's semantics): when the next one is due, the one that is under
//! way, and what its result means. The monitor waits for its descriptors and its times with everything else, and a
//! container without a check costs nothing.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::container::call::{FromMonitor, Line};
use crate::container::folder::Healthiness;
use crate::container::health::{Entry, Findings, LONGEST, Phase};
use crate::spec::exec::Exec;
use crate::spec::life::{Health, NEVER, Stream};
use crate::supervise::member::{self, Bond};
use crate::supervise::streams::pipe;
use crate::sys::{process, socket};
use crate::units;

/// The checks of one run of the program.
#[derive(Debug)]
pub struct Checkup {
    folder: PathBuf,
    health: Health,
    started: Instant,
    /// When the next check is due; none while one is under way, and of a paused container.
    due: Option<Instant>,
    probe: Option<Probe>,
    pub found: Findings,
    /// Who asked for the result of the one that is under way.
    pub askers: Vec<u64>,
}

/// A check that is under way.
#[derive(Debug)]
struct Probe {
    stage: Child,
    line: Line,
    output: Option<OwnedFd>,
    said: Vec<u8>,
    program: Option<OwnedFd>,
    start: i64,
    deadline: Instant,
    late: bool,
    exit: Option<i32>,
}

impl Checkup {
    /// The program has just started.
    pub fn new(folder: PathBuf, health: Health) -> Self {
        let found = Findings::none();
        let mut checkup = Self {
            folder,
            health,
            started: Instant::now(),
            due: None,
            probe: None,
            found,
            askers: Vec::new(),
        };
        checkup.rest();
        let _ = checkup.found.keep(&checkup.folder);
        checkup
    }

    /// When it wants a turn though no descriptor is ready.
    pub fn next(&self) -> Option<Instant> {
        self.probe.as_ref().map_or(self.due, |probe| (!probe.late).then_some(probe.deadline))
    }

    /// What it waits for.
    pub fn waits_on(&self) -> Vec<BorrowedFd<'_>> {
        let probe = self.probe.iter();
        probe.flat_map(|probe| probe.output.iter().map(AsFd::as_fd).chain([probe.line.as_fd()])).collect()
    }

    /// Starts what is due, ends what is late, and gives what has come out.
    pub fn turn(&mut self) -> Option<Entry> {
        let now = Instant::now();
        if self.due.is_some_and(|due| due <= now) {
            return self.begin();
        }
        let timeout = self.health.timeout;
        let probe = self.probe.as_mut()?;
        probe.listen();
        if !probe.late && probe.exit.is_none() && probe.deadline <= now {
            probe.kill();
        }
        let exit = probe.exit?;
        let probe = self.probe.take()?;
        Some(self.take_in(probe.end(exit, timeout)))
    }

    /// Begins a check now, unless one is under way; a check that can't be begun has failed.
    pub fn begin(&mut self) -> Option<Entry> {
        self.due = None;
        if self.probe.is_some() {
            return None;
        }
        match Probe::start(self) {
            Ok(probe) => {
                self.probe = Some(probe);
                None
            }
            Err(error) => {
                let (now, output) = (units::now(), format!("{error:#}"));
                Some(self.take_in(Entry { start: now, end: now, exit: -1, output }))
            }
        }
    }

    fn take_in(&mut self, entry: Entry) -> Entry {
        let coming = self.started.elapsed() < self.health.start_period;
        let phase = if coming { Phase::ComingUp } else { Phase::Up };
        self.found.add(entry.clone(), self.health.retries, phase);
        let _ = self.found.keep(&self.folder);
        self.rest();
        entry
    }

    /// The next check is due after docker's interval: a short one while the container comes up.
    fn rest(&mut self) {
        let coming =
            self.found.status == Healthiness::Starting && self.started.elapsed() < self.health.start_period;
        let interval = if coming { self.health.start_interval } else { self.health.interval };
        self.due =
            Some(interval).filter(|_| self.health.interval < NEVER).map(|interval| Instant::now() + interval);
    }

    /// A paused container is not checked.
    pub fn pause(&mut self) {
        self.due = None;
    }

    pub fn unpause(&mut self) {
        if self.probe.is_none() {
            self.rest();
        }
    }

    /// The program has ended, and the check with it; gives who waits for that.
    pub fn end(self) -> Vec<u64> {
        if let Some(mut probe) = self.probe {
            probe.kill();
            let _ = probe.stage.kill();
            let _ = probe.stage.wait();
        }
        self.askers
    }
}

impl Probe {
    fn start(checkup: &Checkup) -> Result<Self> {
        let (ours, theirs) = socket::pair()?;
        let (read, write) = pipe()?;
        fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let exec = Exec { command: checkup.health.command(), ..Exec::default() };
        let streams = [(Stream::Stdout, write.try_clone()?), (Stream::Stderr, write)];
        let stage = member::start(&checkup.folder, exec, theirs.as_fd(), &streams, Bond::Dies)?;
        Ok(Self {
            stage,
            line: Line::new(ours),
            output: Some(read),
            said: Vec::new(),
            program: None,
            start: units::now(),
            deadline: Instant::now() + checkup.health.timeout,
            late: false,
            exit: None,
        })
    }

    /// Hears what is there without waiting.
    fn listen(&mut self) {
        while let Some(output) = &self.output {
            let mut piece = [0u8; LONGEST];
            match nix::unistd::read(output, &mut piece) {
                Ok(length @ 1..) => {
                    let room = LONGEST.saturating_sub(self.said.len()).min(length);
                    self.said.extend_from_slice(piece.get(..room).unwrap_or_default());
                }
                Err(nix::errno::Errno::EAGAIN) => break,
                Err(nix::errno::Errno::EINTR) => {}
                Ok(0) | Err(_) => self.output = None,
            }
        }
        while self.exit.is_none() && is_ready(&self.line) {
            match self.line.hear::<FromMonitor>() {
                Ok(Some((FromMonitor::Joined, pidfd))) => {
                    self.program = pidfd;
                    if self.late {
                        self.kill();
                    }
                }
                Ok(Some((FromMonitor::Ended(status), _))) => self.exit = Some(status),
                Ok(Some((FromMonitor::Failed { sentence, exit, .. }, _))) => {
                    self.said.extend_from_slice(sentence.as_bytes());
                    self.exit = Some(i32::from(exit));
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => self.exit = Some(-1),
            }
        }
    }

    fn kill(&mut self) {
        self.late = true;
        if let Some(program) = &self.program {
            let _ = process::pidfd_send_signal(program.as_fd(), libc::SIGKILL);
        }
    }

    fn end(mut self, exit: i32, timeout: Duration) -> Entry {
        self.listen();
        let _ = self.stage.wait();
        let said = String::from_utf8_lossy(&self.said).into_owned();
        let (exit, output) = match (self.late, said.is_empty()) {
            (false, _) => (exit, said),
            (true, true) => (-1, format!("Health check exceeded timeout ({timeout:?})")),
            (true, false) => (-1, format!("Health check exceeded timeout ({timeout:?}): {said}")),
        };
        Entry { start: self.start, end: units::now(), exit, output }
    }
}

fn is_ready(line: &Line) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut polled = [PollFd::new(line.as_fd(), PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO).map_err(io::Error::from).is_ok_and(|ready| ready > 0)
}
