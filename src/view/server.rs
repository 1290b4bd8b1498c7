//! The view, served by the monitor in the loop in which it waits for everything else: no process and no thread is
//! started for it, and a container that never looks costs nothing. Each request is answered before the next is read,
//! so that none is in our hands while we wait, and whoever asks can be killed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{read, write};

use crate::view::files::Files;
use crate::view::numbers::{Source, Subject};
use crate::view::wire;

/// Whoever asks without end must not keep the monitor from its other duties.
const AT_ONCE: usize = 64;

/// A mounted view; its files can't be read any more once this is dropped.
#[derive(Debug)]
pub struct View {
    device: OwnedFd,
    files: Files,
    buffer: Vec<u8>,
}

impl View {
    /// Serves what the child has mounted, from the first turn on.
    pub fn new(subject: Subject, device: OwnedFd) -> std::io::Result<Self> {
        fcntl(&device, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let files = Files::new(Source::new(subject));
        Ok(Self { device, files, buffer: vec![0; wire::LARGEST] })
    }

    /// It can be read when there is something to answer.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    /// Answers what was asked; says whether the view is still mounted somewhere.
    pub fn turn(&mut self) -> bool {
        for _ in 0..AT_ONCE {
            let length = match read(&self.device, &mut self.buffer) {
                Ok(length) => length,
                Err(Errno::EAGAIN) => return true,
                // The asker gave up meanwhile.
                Err(Errno::EINTR | Errno::ENOENT) => continue,
                Err(_) => return false,
            };
            let request = self.buffer.get(..length).and_then(wire::parse);
            if let Some(answer) = request.and_then(|request| self.files.answer(request)) {
                // Likewise.
                let _ = write(&self.device, &answer.0);
            }
        }
        true
    }
}
