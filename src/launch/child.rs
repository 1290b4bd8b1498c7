//! The child's story, from the clone to exec. It is single-threaded and a copy of the parent; every descriptor
//! but the socket and its stdio is closed before anything else (CVE-2024-21626).

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::stat::{Mode, umask};

use crate::error::{self, Error};
use crate::launch::message::{self, Failure, ToChild, ToParent};
use crate::launch::plan::{First, Keeper, Plan, Step};
use crate::launch::root::Refused;
use crate::launch::step::{self, Site};
use crate::launch::{credentials, filter, hide, inherited, init, program, stage};
use crate::spec::seccomp::Profile;
use crate::spec::{Process, Rlimit};
use crate::sys::seccomp::Instruction;
use crate::sys::{clone, landlock, process, terminal};

/// The standard streams of the program, as the parent prepared them; `None` keeps the caller's.
#[derive(Debug, Default)]
pub struct Streams {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

/// Everything that the child was given.
#[derive(Debug)]
pub struct Task<'a> {
    pub plan: &'a Plan,
    pub streams: Streams,
}

/// Where the socket lies while the child prepares.
pub const SOCKET: i32 = 3;

/// Runs to the end of the process: exec, or a failure sent to the parent.
pub fn run(task: Task<'_>, socket: OwnedFd) -> ! {
    let socket = match prepare(task.streams, socket) {
        Ok(socket) => socket,
        Err(_) => clone::exit(125),
    };
    // Here, where the id maps are waited for, it costs nothing.
    let filter = match &task.plan.process.seccomp {
        Profile::Unconfined => Vec::new(),
        Profile::Filter(profile) => filter::compile(profile),
    };
    go_on(task.plan, &filter, 0, socket)
}

/// Carries the plan out from step `first` on; the sealed copy of kelp comes in here.
pub fn go_on(plan: &Plan, filter: &[Instruction], first: usize, socket: OwnedFd) -> ! {
    match carry_out(plan, filter, first, socket) {
        Ok(never) => match never {},
        Err((socket, error)) => fail(&socket, &error),
    }
}

/// The end of `exec`'s story, from the terminal to the program.
pub fn finish(plan: &Plan, filter: &[Instruction], socket: OwnedFd, console: Result<Option<OwnedFd>>) -> ! {
    let error = match console {
        Ok(console) => become_program(plan, filter, socket.as_fd(), console, &SigSet::empty()),
        Err(error) => error,
    };
    fail(&socket, &error)
}

/// Says why there will be no program, and ends.
pub fn fail(socket: &OwnedFd, error: &anyhow::Error) -> ! {
    let failure = failure(error);
    let _ = message::send(socket.as_fd(), &ToParent::Failed(failure.clone()), None);
    clone::exit(i32::from(failure.exit))
}

fn failure(error: &anyhow::Error) -> Failure {
    let named = error::find(error);
    let refused = error.downcast_ref::<Refused>().is_some();
    let sentence = error
        .chain()
        .map(ToString::to_string)
        .filter(|sentence| *sentence != Refused.to_string())
        .collect::<Vec<_>>()
        .join(": ");
    Failure {
        sentence: bounded(sentence),
        hint: named.and_then(|error| error.hint.clone()),
        exit: named.map_or(125, |error| error.exit),
        root_refused: refused,
        lasting: error.chain().filter_map(|cause| cause.downcast_ref()).any(is_lasting),
    }
}

/// Whether a refusal is the host's word, and not of the moment, such as too many open files or a full disk.
fn is_lasting(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{InvalidInput, NotFound, PermissionDenied, Unsupported};
    matches!(error.kind(), PermissionDenied | InvalidInput | Unsupported | NotFound)
}

/// A word of the user's may be longer than a message.
fn bounded(mut sentence: String) -> String {
    const LONGEST: usize = 4096;
    if sentence.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|at| sentence.is_char_boundary(*at)).unwrap_or(0);
        sentence.truncate(end);
        sentence.push('…');
    }
    sentence
}

/// Takes the streams, moves the socket out of the way and closes everything else.
pub fn prepare(streams: Streams, socket: OwnedFd) -> Result<OwnedFd> {
    umask(Mode::from_bits_truncate(0o022));
    process::parent_death_signal(libc::SIGKILL)?;
    for (number, stream) in [(0, streams.stdin), (1, streams.stdout), (2, streams.stderr)] {
        if let Some(stream) = stream {
            process::become_stream(stream.as_fd(), number)?;
            std::mem::forget(stream);
        }
    }
    let moved = process::duplicate_to(socket, SOCKET)?;
    process::close_from(SOCKET + 1, false)?;
    Ok(moved)
}

enum Never {}

type Ended = (OwnedFd, anyhow::Error);

fn carry_out(plan: &Plan, filter: &[Instruction], first: usize, socket: OwnedFd) -> Result<Never, Ended> {
    let console = match follow(plan, filter, first, socket.as_fd()) {
        Ok(console) => console,
        Err(error) => return Err((socket, error)),
    };
    let no_signal = SigSet::empty();
    let socket = match plan.first {
        First::Program => socket,
        First::Init | First::Adopter => match init::stay(socket, &no_signal, plan.first) {
            Ok(socket) => socket,
            Err(error) => clone::exit(error.raw_os_error().unwrap_or(125)),
        },
    };
    let error = become_program(plan, filter, socket.as_fd(), console, &no_signal);
    Err((socket, error))
}

/// The steps, up to the parent's `Start`; gives the terminal if there is one.
fn follow(
    plan: &Plan,
    filter: &[Instruction],
    first: usize,
    socket: BorrowedFd<'_>,
) -> Result<Option<OwnedFd>> {
    let mut site =
        Site { plan, socket, root: None, console: None, masks: hide::Masks::default(), files: None };
    let mut told_to_start = false;
    for (number, step) in plan.steps.iter().enumerate().skip(first) {
        if number == plan.early {
            told_to_start = matches!(expect(socket)?, ToChild::Proceed { start: true });
        }
        let done = match step {
            Step::Seal => stage::seal(plan, filter, number + 1, socket),
            _ => step::run(&mut site, step),
        };
        done.map_err(|error| {
            let refused = error.downcast_ref::<Refused>().is_some();
            let error = error.context(format!("step {}, {step}", number + 1));
            if refused { error.context(Refused) } else { error }
        })?;
    }
    message::send(socket, &ToParent::Ready, None)?;
    if !told_to_start {
        expect(socket)?;
    }
    Ok(site.console)
}

/// Waits for the parent's word; a parent that is gone ends the child.
fn expect(socket: BorrowedFd<'_>) -> Result<ToChild> {
    match message::receive::<ToChild>(socket)? {
        Some((word, _)) => Ok(word),
        None => clone::exit(125),
    }
}

/// From here on only the program's own affairs: credentials, seccomp last, exec.
fn become_program(
    plan: &Plan,
    filter: &[Instruction],
    socket: BorrowedFd<'_>,
    console: Option<OwnedFd>,
    mask: &SigSet,
) -> anyhow::Error {
    match change(plan, filter, socket, console, mask) {
        Ok(environment) => program::execute(&plan.process.arguments, &environment).into(),
        Err(error) => error,
    }
}

type Environment = Vec<(OsString, OsString)>;

fn change(
    plan: &Plan,
    filter: &[Instruction],
    socket: BorrowedFd<'_>,
    console: Option<OwnedFd>,
    mask: &SigSet,
) -> Result<Environment> {
    let process = &plan.process;
    let identity = credentials::look_up(process, &plan.maps, None)?;
    if plan.maps.deny_setgroups && !process.keep_groups && !process.additional_groups.is_empty() {
        let groups = process.additional_groups.join(", ");
        let sentence =
            format!("group {groups} is not added: with one id the kernel refuses supplementary groups");
        let _ = message::send(socket, &ToParent::Warn(sentence), None);
    }
    nix::unistd::setsid().context("make a session")?;
    if let Some(console) = console {
        take_terminal(console, identity.uid, identity.gid)?;
    }
    for limit in &process.rlimits {
        process::setrlimit(limit.resource, limit.soft, limit.hard)
            .map_err(|error| ulimit_error(limit, &error))?;
    }
    inherited::assume(&process.inherited)?;
    umask(Mode::from_bits_truncate(process.umask));
    default_signals(mask)?;
    if !process.no_new_privileges {
        scope(process, socket);
        install(filter, socket)?;
    }
    let entered = enter_cwd(plan);
    credentials::assume(&identity, process, &plan.maps)?;
    // A folder that root may not enter may still be the user's own.
    entered.or_else(|_| enter_cwd(plan))?;
    // A program of `exec` outlives the command, as docker's does.
    process::parent_death_signal(if plan.keeper == Keeper::Monitor { libc::SIGKILL } else { 0 })?;
    if is_gone(socket) {
        clone::exit(125);
    }
    if process.no_new_privileges {
        process::no_new_privileges()?;
        scope(process, socket);
        install(filter, socket)?;
    }
    let mut environment = process.environment.clone();
    if !environment.iter().any(|(name, _)| name == "HOME") {
        environment.push(("HOME".into(), identity.home.into_os_string()));
    }
    Ok(environment)
}

fn ulimit_error(limit: &Rlimit, error: &std::io::Error) -> Error {
    let sentence = format!("set ulimit {} to {}:{}: {error}", limit.name, limit.soft, limit.hard);
    match error.raw_os_error() {
        Some(libc::EPERM) => {
            Error::usage(sentence).hint("above your own hard limit only root may go; see `ulimit -H -a`")
        }
        _ => Error::host(sentence),
    }
}

fn take_terminal(console: OwnedFd, uid: u32, gid: u32) -> Result<()> {
    let owner = |id| if id == 0 { None } else { Some(id) };
    let _ = std::os::unix::fs::fchown(&console, owner(uid), if uid == 0 { None } else { Some(gid) });
    terminal::take(console.as_fd()).context("take the terminal")?;
    for number in 0..=2 {
        process::become_stream(console.as_fd(), number)?;
    }
    if console.as_raw_fd() <= 2 {
        std::mem::forget(console);
    }
    Ok(())
}

/// Signals that the caller ignores or blocks are not the container's business.
fn default_signals(mask: &SigSet) -> Result<()> {
    for signal in Signal::iterator() {
        if !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP) {
            process::default_action(signal as i32)?;
        }
    }
    Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(mask), None)?)
}

/// `-w`: made if it is missing, and checked to be inside the root.
fn enter_cwd(plan: &Plan) -> Result<()> {
    let cwd = &plan.process.cwd;
    if !cwd.exists() {
        std::fs::create_dir_all(cwd).with_context(|| format!("make the working folder {}", cwd.display()))?;
    }
    nix::unistd::chdir(cwd).with_context(|| format!("enter the working folder {}", cwd.display()))?;
    let here = nix::unistd::getcwd().context("find the working folder inside the root")?;
    if here.is_absolute() {
        return Ok(());
    }
    Err(Error::usage(format!("the working folder {} is outside the root", cwd.display())).into())
}

fn is_gone(socket: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(socket, PollFlags::empty())];
    let hung_up = |polled: &[PollFd<'_>; 1]| {
        polled[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
    };
    poll(&mut polled, PollTimeout::ZERO).is_ok() && hung_up(&polled)
}

/// With the host's network its abstract sockets are in reach unless Landlock keeps them away (CVE-2020-15257).
fn scope(process: &Process, socket: BorrowedFd<'_>) {
    if process.scope_abstract_sockets && landlock::scope_abstract_sockets().is_err() {
        let sentence =
            "the host's abstract Unix sockets can be reached: this kernel has no Landlock scopes (6.12)";
        let _ = message::send(socket, &ToParent::Warn(sentence.to_owned()), None);
    }
}

fn install(filter: &[Instruction], socket: BorrowedFd<'_>) -> Result<()> {
    if filter.is_empty() {
        return Ok(());
    }
    if let Some(listener) = filter::install(filter).context("install the seccomp filter")? {
        message::send(socket, &ToParent::Listener, Some(listener.as_fd()))?;
    }
    Ok(())
}
