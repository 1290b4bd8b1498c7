//! `kelp exec`: a further program in a container that runs, with the container's own credentials, capabilities
//! and seccomp filter unless it asks for others. A copy of the command is the program's parent; the monitor is asked for one
//! only where the command stands outside of the groups that are the user's, so that it may not put the program under the
//! container's limits, and with `--pid host`, so that the program ends with the container.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use nix::sys::signalfd::SignalFd;

use crate::container::call::{FromMonitor, Line, ToMonitor};
use crate::container::folder::Known;
use crate::container::journal::Journal;
use crate::container::list;
use crate::error::{Error, Kind};
use crate::ids::ContainerName;
use crate::image::store::Store;
use crate::launch::child::Streams;
use crate::launch::parent::Running;
use crate::launch::stage;
use crate::paths::Paths;
use crate::spec::Sharing;
use crate::spec::exec::Exec;
use crate::spec::life::Stream;
use crate::supervise::keys::{self, Keys};
use crate::supervise::member::{self, Member};
use crate::supervise::session::Session;
use crate::supervise::streams::null;
use crate::supervise::{attached, signals};
use crate::userns::within;
use crate::verbs::order::{self, refusal};

/// Runs it in the container that `word` means; its exit status, or 0 at once if it is detached.
pub fn exec(paths: &Paths, word: &str, mut exec: Exec, warn: &mut dyn FnMut(&str)) -> Result<i32> {
    let known = list::find(paths, word).map_err(|error| or_an_image(paths, word, error))?;
    let member = Member::new(paths, &known, &exec)?;
    if member.needs_seal()? {
        stage::run_from_copy()?;
    }
    let signals = signals::signals()?;
    let keys = exec.detach_keys.as_ref().or(known.made.request.life.detach_keys.as_ref());
    let keys = Keys::parse(keys.map_or(keys::DEFAULT, String::as_str))?;
    let session = Session::new(exec.interactive && !exec.detach, exec.terminal.then_some(keys));
    let number = ContainerName::fresh()?;
    let words = exec.command.join(OsStr::new(" ")).to_string_lossy().into_owned();
    let attributes = [("execID", number.to_string())];
    exec.number = Some(number);
    let mut journal = Journal::of(&paths.store);
    known.tell(&mut journal, &format!("exec_create: {words}"), &attributes);
    known.tell(&mut journal, &format!("exec_start: {words}"), &attributes);
    run(paths, &known, &member, exec, session, &signals, warn)
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
    let mut streams = streams(&exec, &mut session)?;
    if known.made.request.pid != Sharing::Host {
        let (parent, line, back) = member::accompany(known, member, &exec, streams)?;
        let heard = hear(&line, warn);
        if !matches!(heard, Ok(Heard::Running(_))) {
            within::wait(parent)?;
        }
        match heard? {
            Heard::Running(_) if exec.detach => return Ok(0),
            Heard::Running(running) => {
                drop(back);
                let status = session.serve(running, signals, &line)?;
                // One that was left by the keys goes on with its parent.
                return status.map_or(Ok(0), |status| within::wait(parent).map(|_| status));
            }
            Heard::Ended(status) => return Ok(status),
            Heard::Elsewhere => streams = back,
        }
    }
    let line = by_monitor(paths, known, &exec, streams)?;
    match hear(&line, warn)? {
        Heard::Running(_) if exec.detach => Ok(0),
        Heard::Running(running) => Ok(session.serve(running, signals, &line)?.unwrap_or(0)),
        Heard::Ended(status) => Ok(status),
        Heard::Elsewhere => Err(Error::new(Kind::Bug, "the monitor may not join its container").into()),
    }
}

/// How the program began, by its parent's words.
enum Heard {
    Running(Running),
    Ended(i32),
    Elsewhere,
}

fn hear(line: &Line, warn: &mut dyn FnMut(&str)) -> Result<Heard> {
    let (mut pidfd, mut master) = (None, None);
    loop {
        let heard = line.hear::<FromMonitor>()?;
        match heard.context("the container has ended meanwhile")? {
            (FromMonitor::Joined, fd) => pidfd = fd,
            (FromMonitor::Console, fd) => master = fd,
            (FromMonitor::Running, _) => break,
            (FromMonitor::Ended(status), _) => return Ok(Heard::Ended(status)),
            (FromMonitor::Elsewhere, _) => return Ok(Heard::Elsewhere),
            (words, _) => attached::heard(words, warn)?,
        }
    }
    let pidfd = pidfd.ok_or_else(|| Error::new(Kind::Bug, "the program's process was not told"))?;
    Ok(Heard::Running(Running { pidfd, master }))
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
    let own = |fd: Option<OwnedFd>, own: &dyn AsFd| fd.map_or_else(|| own.as_fd().try_clone_to_owned(), Ok);
    let Streams { stdin, stdout, stderr } = session.connect()?;
    Ok(Streams {
        stdin: Some(own(stdin, &io::stdin())?),
        stdout: Some(own(stdout, &io::stdout())?),
        stderr: Some(own(stderr, &io::stderr())?),
    })
}

/// The same by the container's monitor, which has the program started where its limits can be joined.
fn by_monitor(paths: &Paths, known: &Known, exec: &Exec, streams: Streams) -> Result<Line> {
    let (_, line) = order::reach(paths, known.made.id.as_str())?;
    let line = line.ok_or_else(|| refusal(format!("container {} is not running", known.made.id)))?;
    let Streams { stdin, stdout, stderr } = streams;
    let ends = [(Stream::Stdin, stdin), (Stream::Stdout, stdout), (Stream::Stderr, stderr)];
    for (stream, fd) in ends {
        line.say(&ToMonitor::Stream(stream), fd.as_ref().map(AsFd::as_fd))?;
    }
    line.say(&ToMonitor::Exec(Box::new(exec.clone())), None)?;
    Ok(line)
}
