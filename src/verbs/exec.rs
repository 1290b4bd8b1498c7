//! `kelp exec`: a further program in a container that runs, with the container's own credentials, capabilities
//! and seccomp filter unless it asks for others. The command itself is the program's parent; the monitor is asked only
//! where the command stands outside of the groups that are the user's, so that it may not put the program under the
//! container's limits, and with `--pid host`, so that the program ends with the container.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use nix::sys::signalfd::SignalFd;

use crate::container::call::{FromMonitor, ToMonitor};
use crate::container::folder::Known;
use crate::container::journal::Journal;
use crate::container::list;
use crate::error::{Error, Kind};
use crate::ids::ContainerName;
use crate::image::store::Store;
use crate::launch::child::Streams;
use crate::launch::join::Refused;
use crate::launch::parent::Running;
use crate::launch::stage;
use crate::paths::Paths;
use crate::spec::Sharing;
use crate::spec::exec::Exec;
use crate::spec::life::Stream;
use crate::supervise::keys::{self, Keys};
use crate::supervise::member::Member;
use crate::supervise::session::{self, Session};
use crate::supervise::streams::null;
use crate::supervise::{attached, signals};
use crate::verbs::order::{self, refusal};

/// Runs it in the container that `word` means; its exit status, or 0 at once if it is detached.
pub fn exec(paths: &Paths, word: &str, exec: Exec, warn: &mut dyn FnMut(&str)) -> Result<i32> {
    let known = list::find(paths, word).map_err(|error| or_an_image(paths, word, error))?;
    let member = Member::new(paths, &known, &exec)?;
    if member.needs_seal()? {
        stage::run_from_copy()?;
    }
    let signals = signals::signals()?;
    let keys = exec.detach_keys.as_ref().or(known.made.request.life.detach_keys.as_ref());
    let keys = Keys::parse(keys.map_or(keys::DEFAULT, String::as_str))?;
    let session = Session::new(exec.interactive && !exec.detach, exec.terminal.then_some(keys));
    let detach = exec.detach;
    let words = exec.command.join(OsStr::new(" ")).to_string_lossy().into_owned();
    let number = [("execID", ContainerName::fresh()?.to_string())];
    let mut journal = Journal::of(&paths.store);
    known.tell(&mut journal, &format!("exec_create: {words}"), &number);
    known.tell(&mut journal, &format!("exec_start: {words}"), &number);
    let status = run(paths, &known, &member, exec, session, &signals, warn)?;
    if !detach {
        let [number] = number;
        known.tell(&mut journal, "exec_die", &[number, ("exitCode", status.to_string())]);
    }
    Ok(status)
}

fn run(
    paths: &Paths,
    known: &Known,
    member: &Member,
    exec: Exec,
    mut session: Session,
    signals: &SignalFd,
    warn: &mut dyn FnMut(&str),
) -> Result<i32> {
    if known.made.request.pid == Sharing::Host {
        return by_monitor(paths, known, exec, session, signals, warn);
    }
    let running = match member.join(streams(&exec, &mut session)?, warn) {
        Err(error) if error.downcast_ref::<Refused>().is_some() => {
            return by_monitor(paths, known, exec, session, signals, warn);
        }
        joined => joined?,
    };
    match (exec.detach, running.master) {
        (false, master) => session.serve(Running { master, ..running }, signals, None),
        (true, Some(master)) => session::keep(master).map(|()| 0),
        (true, None) => Ok(0),
    }
}

/// Whoever comes from a tool that runs programs in images may say `exec` for it.
fn or_an_image(paths: &Paths, word: &str, error: anyhow::Error) -> anyhow::Error {
    let is_image =
        || Store::open(paths).and_then(|store| store.find(word)).is_ok_and(|found| found.is_some());
    if !list::is_absence(&error) || !(word == "@host" || is_image()) {
        return error;
    }
    let hint = format!("{word} is an image: use `kelp run {word} ...`");
    Error::usage(format!("{error:#}")).hint(hint).exit(1).into()
}

/// The program's ends.
fn streams(exec: &Exec, session: &mut Session) -> Result<Streams> {
    if exec.detach || exec.terminal {
        return Ok(Streams { stdin: Some(null()?), stdout: Some(null()?), stderr: Some(null()?) });
    }
    session.connect()
}

/// The same by the container's monitor, which has the program started where its limits can be joined.
fn by_monitor(
    paths: &Paths,
    known: &Known,
    exec: Exec,
    mut session: Session,
    signals: &SignalFd,
    warn: &mut dyn FnMut(&str),
) -> Result<i32> {
    let (_, line) = order::reach(paths, known.made.id.as_str())?;
    let line = line.ok_or_else(|| refusal(format!("container {} is not running", known.made.id)))?;
    let Streams { stdin, stdout, stderr } = streams(&exec, &mut session)?;
    let own = |fd: Option<OwnedFd>, own: &dyn AsFd| fd.map_or_else(|| own.as_fd().try_clone_to_owned(), Ok);
    for (stream, fd) in [
        (Stream::Stdin, own(stdin, &io::stdin())?),
        (Stream::Stdout, own(stdout, &io::stdout())?),
        (Stream::Stderr, own(stderr, &io::stderr())?),
    ] {
        line.say(&ToMonitor::Stream(stream), Some(fd.as_fd()))?;
    }
    let detach = exec.detach;
    line.say(&ToMonitor::Exec(Box::new(exec)), None)?;
    let (mut pidfd, mut master) = (None, None);
    loop {
        let heard = line.hear::<FromMonitor>()?;
        match heard.context("the container has ended meanwhile")? {
            (FromMonitor::Joined, fd) => pidfd = fd,
            (FromMonitor::Console, fd) => master = fd,
            (FromMonitor::Running, _) => break,
            (FromMonitor::Ended(status), _) => return Ok(status),
            (words, _) => attached::heard(words, warn)?,
        }
    }
    if detach {
        return Ok(0);
    }
    let pidfd = pidfd.ok_or_else(|| Error::new(Kind::Bug, "the program's process was not told"))?;
    session.serve(Running { pidfd, master }, signals, Some(&line))
}
