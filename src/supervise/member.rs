//! A further program in a container that runs: planned like the container's own, joined by its namespaces and its
//! control group. Its parent is `kelp-exec`: a copy of the `exec` that asks for it, or, where that may not join and for a
//! health check, kelp started again by the monitor. It outlives the command, because a container does not end before
//! each of its processes is reaped (`pid_namespaces(7)`), and not every machine has a first process that does. It tells
//! of the program over a line:
//!
//! | parent | | whoever asked |
//! |---|---|---|
//! | `Warn`s, `Joined` with the program's pidfd, `Console` with the master of its terminal, `Running` | -> | sends signals, moves streams |
//! | `Elsewhere`, `Failed` or `Ended` | -> | |

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Child;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use crate::cgroup::group::Group;
use crate::cgroup::hold;
use crate::container::call::{FromMonitor, Line};
use crate::container::folder::Known;
use crate::container::journal::Journal;
use crate::container::state::State;
use crate::error::Error;
use crate::ids::ContainerName;
use crate::launch::child::Streams;
use crate::launch::join::{self, Refused, Target};
use crate::launch::orphans;
use crate::launch::parent::Running;
use crate::launch::plan::{First, Keeper, Plan};
use crate::launch::stage as launch;
use crate::paths::Paths;
use crate::spec::Sharing;
use crate::spec::capability::CapabilitySet;
use crate::spec::exec::Exec;
use crate::spec::life::Stream;
use crate::spec::request::Request;
use crate::spec::resolve::{self, Facts};
use crate::stage::{self, Number};
use crate::supervise::streams::{become_background, end_with, null};
use crate::supervise::{secrets, signals};
use crate::sys::clone::{self, Cloned};
use crate::sys::{memory, process, socket};
use crate::userns::maps::IdMaps;

/// `argv[0]` of the stage, and what the copy is called.
pub const NAME: &str = "kelp-exec";
const COPY: &std::ffi::CStr = c"kelp-exec";

/// A program that is about to join a container.
#[derive(Debug)]
pub struct Member {
    target: Target,
    plan: Plan,
    /// The group that holds the container's limits.
    pub group: Option<OwnedFd>,
}

impl Member {
    /// # Errors
    /// The container does not run.
    pub fn new(paths: &Paths, known: &Known, exec: &Exec) -> Result<Self> {
        let id = &known.made.id;
        let refusal = |sentence: String| anyhow::Error::from(Error::usage(sentence).exit(1));
        let not_running = || refusal(format!("container {id} is not running"));
        match known.status.state {
            State::Running => {}
            State::Paused => {
                return Err(refusal(format!("container {id} is paused, unpause the container before exec")));
            }
            _ => return Err(not_running()),
        }
        let first = known.status.process.clone().ok_or_else(not_running)?;
        let pidfd = process::pidfd_open(first.pid).map_err(|_| not_running())?;
        if !first.lives() {
            return Err(not_running());
        }
        let maps = IdMaps::of_process(first.pid)?;
        let mut plan = plan(&known.made.request, exec, facts(id.clone(), &maps), maps)?;
        // A secret that was removed meanwhile is known to the container's own program only.
        let secrets = secrets::variables(paths, &known.made.request).unwrap_or_default();
        secrets::add_variables(&secrets, &mut plan.process.environment);
        let mut limits = known.made.request.resources.limits.clone();
        limits.update(&known.status.limits);
        plan.process.inherited = hold::of_one_that_joins(&limits, &known.status.enforced);
        let group = known.status.group.as_ref().map(Group::open).transpose();
        let group = group.context("cannot open the container's cgroup")?;
        Ok(Self { target: Target { pid: first.pid, pidfd }, plan, group })
    }

    /// Whether kelp's own file could be written to by the container's ids.
    pub fn needs_seal(&self) -> Result<bool> {
        launch::needs_seal(&self.plan.maps)
    }

    /// Runs it.
    pub fn join(&self, streams: Streams, warn: &mut dyn FnMut(&str)) -> Result<Running> {
        join::join(&self.target, &self.plan, self.group.as_ref().map(AsFd::as_fd), streams, warn)
    }
}

/// What is known of this host for a container with these maps.
pub fn facts(id: ContainerName, maps: &IdMaps) -> Facts {
    let shared = ["/dev/shm", "/dev/mqueue"].map(PathBuf::from);
    Facts {
        id,
        one_id: maps.one_id() && maps.has_root(),
        term: std::env::var_os("TERM"),
        neighbour: None,
        shared_memory: shared.into_iter().filter(|path| path.exists()).collect(),
    }
}

fn plan(request: &Request, exec: &Exec, facts: Facts, maps: IdMaps) -> Result<Plan> {
    let mut request = request.clone();
    // The container's monitor listens to the container's own program.
    request.resources.host_view = true;
    request.terminal = exec.terminal;
    request.interactive = exec.interactive;
    request.environment.extend(exec.environment.iter().cloned());
    request.entrypoint = Some(std::ffi::OsString::new());
    request.command.clone_from(&exec.command);
    request.cwd = exec.cwd.clone().or(request.cwd);
    request.user = exec.user.clone().or(request.user);
    let mut process = resolve::resolve(&request, &facts)?.process;
    if exec.privileged {
        process.capabilities = CapabilitySet::with(&["ALL".to_owned()], &[])?;
    }
    Ok(Plan {
        namespaces: 0,
        early: 0,
        steps: Vec::new(),
        process,
        maps,
        first: First::Program,
        keeper: Keeper::Nobody,
    })
}

#[derive(Debug, Serialize, Deserialize)]
struct Task {
    #[serde(with = "crate::raw::path")]
    folder: PathBuf,
    exec: Exec,
    line: Number,
    streams: Vec<(Stream, Number)>,
    bond: Bond,
}

/// What becomes of the program when nobody is at the other end of the line any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bond {
    /// It is killed.
    Dies,
    /// It goes on, as docker's does.
    Stays,
}

/// Starts the stage for the container in `folder`, which tells of the program over `line`.
pub fn start(
    folder: &Path,
    exec: Exec,
    line: BorrowedFd<'_>,
    streams: &[(Stream, OwnedFd)],
    bond: Bond,
) -> Result<Child> {
    let (known, _) = Known::read(folder)?.context("the container has no record")?;
    let seal = Member::new(&Paths::find()?, &known, &exec)?.needs_seal()?;
    let copy = if seal { Some(launch::memory_copy().context("copy kelp's own file")?) } else { None };
    let numbers = streams.iter().map(|(stream, fd)| (*stream, fd.as_raw_fd())).collect();
    let folder = folder.to_owned();
    let task = Task { folder, exec, line: line.as_raw_fd(), streams: numbers, bond };
    let kept: Vec<BorrowedFd<'_>> = streams.iter().map(|(_, fd)| fd.as_fd()).chain([line]).collect();
    stage::start_from(copy.as_ref().map(AsFd::as_fd), NAME, &task, &kept)
}

/// The program's parent as a copy of the caller, which blocks the signals that it hears of: its number, and its line. The
/// streams come back for whoever has to ask elsewhere.
pub fn accompany(
    known: &Known,
    member: &Member,
    exec: &Exec,
    streams: Streams,
) -> Result<(i32, Line, Streams)> {
    let (ours, theirs) = socket::pair()?;
    match clone::clone(0, None).context("make the program's parent")? {
        Cloned::Parent { pid, .. } => Ok((pid, Line::new(ours), streams)),
        Cloned::Child => end_with(|| {
            let ends = [&streams.stdin, &streams.stdout, &streams.stderr].into_iter().flatten();
            let kept = ends.chain(&member.group).chain([&member.target.pidfd, &theirs]).map(AsFd::as_fd);
            become_background(COPY, &kept.collect::<Vec<_>>())?;
            tell(known, member, exec, &Line::new(theirs), streams, Bond::Stays);
            Ok(())
        }),
    }
}

/// The stage.
pub fn serve() -> Result<()> {
    let task: Task = stage::request()?;
    let line = Line::new(stage::take(task.line)?);
    let mut streams = Streams { stdin: Some(null()?), stdout: Some(null()?), stderr: Some(null()?) };
    for (stream, number) in &task.streams {
        let fd = Some(stage::take(*number)?);
        match stream {
            Stream::Stdin => streams.stdin = fd,
            Stream::Stdout => streams.stdout = fd,
            Stream::Stderr => streams.stderr = fd,
        }
    }
    let _ = nix::unistd::setsid();
    // Reading the descriptor is for others: here it only keeps signals from ending the stage.
    let _signals = signals::signals()?;
    let found = Known::read(&task.folder).and_then(|found| found.context("the container has no record"));
    let found = found.and_then(|(known, _)| {
        let member = Member::new(&Paths::find()?, &known, &task.exec)?;
        Ok((known, member))
    });
    match found {
        Ok((known, member)) => tell(&known, &member, &task.exec, &line, streams, task.bond),
        Err(error) => drop(line.say(&FromMonitor::failed(&error), None)),
    }
    Ok(())
}

/// Lives with the program and says over the line how it ended, in the journal too.
fn tell(known: &Known, member: &Member, exec: &Exec, line: &Line, streams: Streams, bond: Bond) {
    let lived = live(known, member, line, streams, bond);
    if let (Ok(status), Some(number)) = (&lived, &exec.number)
        && let Some(store) = known.folder.parent().and_then(Path::parent)
    {
        let attributes = [("execID", number.to_string()), ("exitCode", status.to_string())];
        known.tell(&mut Journal::of(store), "exec_die", &attributes);
    }
    let words = match lived {
        Ok(status) => FromMonitor::Ended(status),
        Err(error) if error.downcast_ref::<Refused>().is_some() => FromMonitor::Elsewhere,
        Err(error) => FromMonitor::failed(&error),
    };
    let _ = line.say(&words, None);
}

fn live(known: &Known, member: &Member, line: &Line, streams: Streams, bond: Bond) -> Result<i32> {
    let mut warn = |sentence: &str| {
        let _ = line.say(&FromMonitor::Warn(sentence.to_owned()), None);
    };
    // In the host's pid namespace nothing else ends the program, and what it leaves, with the container.
    let first = (known.made.request.pid == Sharing::Host).then_some(member.target.pidfd.as_fd());
    if first.is_some() {
        orphans::adopt()?;
    }
    let running = member.join(streams, &mut warn)?;
    let _ = line.say(&FromMonitor::Joined, Some(running.pidfd.as_fd()));
    if let Some(master) = &running.master {
        let _ = line.say(&FromMonitor::Console, Some(master.as_fd()));
    }
    let _ = line.say(&FromMonitor::Running, None);
    if await_end(line, &running, bond, first)? == Whose::Container {
        orphans::end();
        return Ok(128 + libc::SIGKILL);
    }
    signals::reap(running.pidfd.as_fd())
}

/// Whose end came.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    Program,
    Container,
}

/// Waits for the program's end, or that of the container's first process where it is to be watched. Whoever asked says
/// nothing more, so what is to be read from the line is its end.
fn await_end(line: &Line, running: &Running, bond: Bond, first: Option<BorrowedFd<'_>>) -> Result<Whose> {
    let mut alone = false;
    loop {
        // Without a process to watch the program is watched twice.
        let mut polled = vec![
            PollFd::new(running.pidfd.as_fd(), PollFlags::POLLIN),
            PollFd::new(first.unwrap_or(running.pidfd.as_fd()), PollFlags::POLLIN),
        ];
        if !alone {
            polled.push(PollFd::new(line.as_fd(), PollFlags::POLLIN));
        } else if let Some(master) = &running.master {
            polled.push(PollFd::new(master.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut polled, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ready = |at: usize| polled.get(at).and_then(PollFd::any).unwrap_or(false);
        if ready(0) {
            return Ok(Whose::Program);
        }
        if ready(1) {
            return Ok(Whose::Container);
        }
        if ready(2) && !alone {
            alone = true;
            if bond == Bond::Dies {
                let _ = process::pidfd_send_signal(running.pidfd.as_fd(), libc::SIGKILL);
            }
            let _ = memory::release_code();
            memory::release_heap();
        } else if ready(2) && running.master.as_ref().is_some_and(|master| !drain(master)) {
            // Nobody has the terminal open any more, and that would be told again and again.
            let _ = poll(&mut [PollFd::new(running.pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE);
            return Ok(Whose::Program);
        }
    }
}

/// Takes what is written to a terminal that nobody looks at; says whether there may be more.
fn drain(master: &OwnedFd) -> bool {
    let mut piece = [0u8; 4096];
    matches!(nix::unistd::read(master, &mut piece), Ok(1..) | Err(Errno::EAGAIN | Errno::EINTR))
}
