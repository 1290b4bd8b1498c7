//! Waiting until something in a folder changes (`inotify(7)`), in place of looking again and again. It says that
//! there may be something new, never what: whoever waits looks for himself, and looks once more after every wait.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// A folder that is watched from now on.
#[derive(Debug)]
pub struct Watch(Inotify);

impl Watch {
    /// Writing, closing and removing what lies in it counts, and that it is itself moved away.
    pub fn new(folder: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let events = AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        inotify.add_watch(folder, events)?;
        Ok(Self(inotify))
    }

    /// Waits for a change, or until the time has come.
    pub fn wait(&self, until: Option<Instant>) -> io::Result<()> {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()).as_millis() + 1);
        let timeout = left.map_or(PollTimeout::NONE, |left| {
            PollTimeout::try_from(i32::try_from(left).unwrap_or(i32::MAX)).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        // What was told is enough; a queue that ran over tells it too.
        while self.0.read_events().is_ok_and(|events| !events.is_empty()) {}
        Ok(())
    }
}
