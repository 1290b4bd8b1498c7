//! The view, served by the monitor in the loop in which it waits for everything else: no process and no thread is
//! started for it, and a container that never looks costs nothing. Each request is answered before the next is read,
//! so that none is in our hands while we wait, and whoever asks can be killed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{read, write};

use crate::spec::resources::Limits;
use crate::view::calls::Calls;
use crate::view::files::Files;
use crate::view::numbers::{Source, Subject};
use crate::view::wire;

/// Whoever asks without end must not keep the monitor from its other duties.
const AT_ONCE: usize = 64;

/// What answers for the machine; its files can't be read any more once this is dropped.
#[derive(Debug)]
pub struct View {
    source: Source,
    mounted: Option<Mounted>,
    calls: Option<Calls>,
}

#[derive(Debug)]
struct Mounted {
    device: OwnedFd,
    files: Files,
    buffer: Vec<u8>,
}

impl View {
    pub fn new(subject: Subject) -> Self {
        Self { source: Source::new(subject), mounted: None, calls: None }
    }

    /// The number of the container's first process.
    pub fn is_of(&mut self, first: i32) {
        self.source.subject.first = first;
    }

    /// From now on.
    pub fn limits_are(&mut self, limits: &Limits) {
        self.source.limits_are(limits);
    }

    /// The child has mounted this.
    pub fn mounted(&mut self, device: OwnedFd) -> std::io::Result<()> {
        fcntl(&device, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        self.mounted = Some(Mounted { device, files: Files::default(), buffer: vec![0; wire::LARGEST] });
        Ok(())
    }

    /// The program's filter asks this.
    pub fn listen(&mut self, listener: OwnedFd) {
        self.calls = Some(Calls(listener));
    }

    /// They can be read when there is something to answer.
    pub fn waits_on(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let device = self.mounted.as_ref().map(|mounted| mounted.device.as_fd());
        device.into_iter().chain(self.calls.as_ref().map(Calls::as_fd))
    }

    /// Answers what was asked.
    pub fn turn(&mut self) {
        let source = &mut self.source;
        self.mounted.take_if(|mounted| !mounted.turn(source));
        self.calls.take_if(|calls| !heed(calls, source));
    }
}

impl Mounted {
    /// Says whether it is still mounted somewhere.
    fn turn(&mut self, source: &mut Source) -> bool {
        for _ in 0..AT_ONCE {
            let length = match read(&self.device, &mut self.buffer) {
                Ok(length) => length,
                Err(Errno::EAGAIN) => return true,
                // The asker gave up meanwhile.
                Err(Errno::EINTR | Errno::ENOENT) => continue,
                Err(_) => return false,
            };
            let request = self.buffer.get(..length).and_then(wire::parse);
            if let Some(answer) = request.and_then(|request| self.files.answer(request, source)) {
                // Likewise.
                let _ = write(&self.device, &answer.0);
            }
        }
        true
    }
}

/// Says whether anybody is left who could ask.
fn heed(calls: &Calls, source: &mut Source) -> bool {
    for _ in 0..AT_ONCE {
        // To receive where nothing waits would wait.
        let mut polled = [PollFd::new(calls.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polled, PollTimeout::ZERO) {
            Ok(0) | Err(Errno::EINTR) => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
        let asks = polled[0].revents().is_some_and(|events| events.contains(PollFlags::POLLIN));
        if !asks || calls.answer(source).is_err() {
            return false;
        }
    }
    true
}
