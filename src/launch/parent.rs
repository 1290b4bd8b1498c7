//! The parent's story, from the plan to a running program. It makes the one clone, writes the id maps, keeps
//! the record between `Ready` and `Start`, and turns a child's failure into an error.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::Result;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::{SignalFd, siginfo};

use crate::error::{Error, Kind};
use crate::launch::beside;
use crate::launch::child::{self, Streams, Task};
use crate::launch::message::{self, Failure, ToChild, ToParent};
use crate::launch::plan::{Plan, Step};
use crate::sys::clone::{self, Cloned};
use crate::sys::{process, socket};
use crate::userns::{refusal, within};

/// A program that runs.
#[derive(Debug)]
pub struct Running {
    pub pidfd: OwnedFd,
    /// The master of the container's terminal, with `-t`.
    pub master: Option<OwnedFd>,
}

/// How a launch ended.
#[derive(Debug)]
pub enum Launched {
    Running(Running),
    /// The rung of the root was refused; the sentence says why.
    RootRefused {
        reason: String,
        lasting: bool,
    },
    /// The id maps could not be written by the helpers.
    MapsRefused(anyhow::Error),
    /// A signal came before the program ran.
    Interrupted(i32),
}

/// What the launch tells while it happens.
pub trait Watcher {
    /// The child exists, its maps are being written; what takes time and needs no map is done now.
    fn meanwhile(&mut self) -> Result<()>;
    /// The first process of the container whose user and network namespaces the child is born into.
    fn neighbour(&self) -> Option<BorrowedFd<'_>>;
    /// The control group that the container is born in.
    fn group(&self) -> Option<BorrowedFd<'_>>;
    /// The child exists and waits; its maps are written.
    fn cloned(&mut self, pid: i32) -> Result<()>;
    fn warn(&mut self, sentence: &str);
    /// Whether something outside, which `plan` does not tell of, must be ready before the program runs.
    fn has_servers(&self) -> bool;
    /// The container is made; returns once everything outside is ready for the program.
    fn ready(&mut self) -> Result<()>;
    /// The root is a user-space overlay on `device`, in the user namespace of the child; returns once it is
    /// served. `processes` is a procfs that shows the child's pid namespace.
    fn serve_root(&mut self, device: OwnedFd, processes: Option<OwnedFd>) -> Result<()>;
    /// A signal arrived that does not end the start.
    fn signal(&mut self, found: &siginfo);
    /// The container's own numbers are asked on `device`.
    fn begin_view(&mut self, device: OwnedFd) -> Result<()>;
    /// They are asked by system calls too.
    fn begin_listening(&mut self, listener: OwnedFd);
    /// What can be read when the numbers are asked.
    fn view(&self) -> Vec<BorrowedFd<'_>>;
    fn answer_view(&mut self);
    /// The container's terminal was made; the program does not run yet.
    fn terminal(&mut self, master: &OwnedFd);
}

/// Starts the container of `plan`. `signals` is read only to see that the user wants out.
pub fn launch(
    plan: &Plan,
    streams: Streams,
    signals: &SignalFd,
    watcher: &mut dyn Watcher,
) -> Result<Launched> {
    let (ours, theirs) = socket::pair()?;
    let cloned = match watcher.neighbour() {
        Some(neighbour) => beside::clone(neighbour, plan, watcher.group())?,
        None => clone::clone(plan.namespaces, watcher.group()).map_err(|error| refusal::of_clone(&error))?,
    };
    let (pid, pidfd) = match cloned {
        Cloned::Child => child::run(Task { plan, streams }, theirs),
        Cloned::Parent { pid, pidfd } => (pid, pidfd),
    };
    drop((theirs, streams));
    let child = Child { pid, pidfd, socket: ours };
    match child.bring_up(plan, signals, watcher) {
        Ok(Progress::Running(master)) => Ok(Launched::Running(Running { pidfd: child.pidfd, master })),
        Ok(Progress::Ended(launched)) => {
            child.end();
            Ok(launched)
        }
        Err(error) => {
            child.end();
            Err(error)
        }
    }
}

struct Child {
    pid: i32,
    pidfd: OwnedFd,
    socket: OwnedFd,
}

enum Progress {
    Running(Option<OwnedFd>),
    Ended(Launched),
}

impl Child {
    fn bring_up(&self, plan: &Plan, signals: &SignalFd, watcher: &mut dyn Watcher) -> Result<Progress> {
        let mut prepared = Ok(());
        let mut meanwhile = || prepared = watcher.meanwhile();
        let written = if plan.is_beside() {
            meanwhile();
            Ok(())
        } else {
            within::write_maps(&plan.maps, self.pid, meanwhile)
        };
        if let Err(error) = written {
            return self.why_no_maps(error);
        }
        prepared?;
        watcher.cloned(self.pid)?;
        // Where nothing is waited for, the child need not wait for that.
        let at_once = !watcher.has_servers() && plan.steps.iter().all(Step::is_done_inside);
        message::send(self.socket.as_fd(), &ToChild::Proceed { start: at_once }, None)?;
        let mut master = None;
        let mut started = false;
        let mut processes = None;
        loop {
            if let Some(signal) = self.wait(signals, watcher)? {
                return Ok(Progress::Ended(Launched::Interrupted(signal)));
            }
            match message::receive::<ToParent>(self.socket.as_fd())? {
                Some((ToParent::Warn(sentence), _)) => watcher.warn(&sentence),
                Some((ToParent::Joined, _)) => {}
                Some((ToParent::Console, fd)) => {
                    fd.iter().for_each(|fd| watcher.terminal(fd));
                    master = fd;
                }
                Some((ToParent::Processes, fd)) => processes = fd,
                Some((ToParent::Device, fd)) => {
                    let device = fd.ok_or_else(|| Error::new(Kind::Bug, "the device did not arrive"))?;
                    if let Err(error) = watcher.serve_root(device, processes.take()) {
                        return Ok(Progress::Ended(Launched::RootRefused {
                            reason: format!("{error:#}"),
                            lasting: false,
                        }));
                    }
                    message::send(self.socket.as_fd(), &ToChild::Served, None)?;
                }
                Some((ToParent::View, fd)) => {
                    watcher
                        .begin_view(fd.ok_or_else(|| Error::new(Kind::Bug, "the device did not arrive"))?)?;
                }
                Some((ToParent::Listener, fd)) => {
                    fd.into_iter().for_each(|fd| watcher.begin_listening(fd));
                }
                Some((ToParent::Ready, _)) => {
                    if !at_once {
                        watcher.ready()?;
                        message::send(self.socket.as_fd(), &ToChild::Start, None)?;
                    }
                    started = true;
                }
                Some((ToParent::Failed(failure), _)) => return failed(failure),
                None if started => return Ok(Progress::Running(master)),
                None => return Err(Error::new(Kind::Bug, "the container's first process ended early").into()),
            }
        }
    }

    /// A child that failed in an early step is gone before its maps are written; then its word counts.
    fn why_no_maps(&self, error: anyhow::Error) -> Result<Progress> {
        let mut polled = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        while poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
            match message::receive::<ToParent>(self.socket.as_fd())? {
                Some((ToParent::Failed(failure), _)) => return failed(failure),
                Some(_) => {}
                None => break,
            }
        }
        Ok(Progress::Ended(Launched::MapsRefused(error)))
    }

    /// Waits for the child's next word, or for a signal that asks us to end.
    fn wait(&self, signals: &SignalFd, watcher: &mut dyn Watcher) -> Result<Option<i32>> {
        loop {
            let all = [self.socket.as_fd(), signals.as_fd()].into_iter().chain(watcher.view());
            let mut polled: Vec<PollFd<'_>> = all.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            match poll(&mut polled, PollTimeout::NONE) {
                Ok(_) => {}
                Err(nix::errno::Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            let ready = |at: usize| polled.get(at).and_then(PollFd::any).unwrap_or(false);
            let (word, signal, asked) = (ready(0), ready(1), ready(2) || ready(3));
            if word {
                return Ok(None);
            }
            if asked {
                watcher.answer_view();
            }
            if signal {
                let Some(found) = signals.read_signal()? else { continue };
                let signal = found.ssi_signo as i32;
                if [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT].contains(&signal) {
                    return Ok(Some(signal));
                }
                watcher.signal(&found);
            }
        }
    }

    fn end(self) {
        let _ = process::pidfd_send_signal(self.pidfd.as_fd(), libc::SIGKILL);
        drop(self.socket);
        let _ = within::wait(self.pid);
    }
}

fn failed(failure: Failure) -> Result<Progress> {
    if failure.root_refused {
        return Ok(Progress::Ended(Launched::RootRefused {
            reason: failure.sentence,
            lasting: failure.lasting,
        }));
    }
    Err(error_of(failure).into())
}

/// A child's failure as an error.
pub fn error_of(failure: Failure) -> Error {
    let kind = if failure.exit == 125 { Kind::Host } else { Kind::Container };
    let mut error = Error::new(kind, failure.sentence).exit(failure.exit);
    error.hint = failure.hint;
    error
}
