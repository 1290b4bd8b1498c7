#![allow(unsafe_code)]
//! Moving bytes: epoll, pipes, splice, read, write, recv and send on non-blocking descriptors. EINTR is retried, EAGAIN is
//! an answer (`None`), everything else an error.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use super::{check, check_len};

/// `None` where the call would block.
pub(crate) type Moved = io::Result<Option<usize>>;

fn retry(mut call: impl FnMut() -> libc::ssize_t) -> Moved {
    loop {
        match check_len(call()) {
            Ok(count) => return Ok(Some(count)),
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => return Ok(None),
                _ => return Err(error),
            },
        }
    }
}

pub(crate) fn read(fd: impl AsFd, buffer: &mut [u8]) -> Moved {
    // SAFETY: the pointer and length are those of one live mutable slice.
    retry(|| unsafe { libc::read(fd.as_fd().as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) })
}

pub(crate) fn write(fd: impl AsFd, bytes: &[u8]) -> Moved {
    // SAFETY: the pointer and length are those of one live slice.
    retry(|| unsafe { libc::write(fd.as_fd().as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) })
}

pub(crate) fn recv(fd: impl AsFd, buffer: &mut [u8], flags: libc::c_int) -> Moved {
    // SAFETY: the pointer and length are those of one live mutable slice.
    retry(|| unsafe {
        libc::recv(
            fd.as_fd().as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            flags | libc::MSG_DONTWAIT,
        )
    })
}

pub(crate) fn send(fd: impl AsFd, bytes: &[u8]) -> Moved {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the pointer and length are those of one live slice.
    retry(|| unsafe { libc::send(fd.as_fd().as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) })
}

/// Moves up to `length` bytes between a pipe and a socket without copying them.
pub(crate) fn splice(from: impl AsFd, to: impl AsFd, length: usize) -> Moved {
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    let (from, to) = (from.as_fd().as_raw_fd(), to.as_fd().as_raw_fd());
    let null = std::ptr::null_mut();
    // SAFETY: null offsets are what splice(2) requires for pipes and sockets.
    retry(|| unsafe { libc::splice(from, null, to, null, length, flags) })
}

/// A non-blocking pipe of at least its default size; a larger one where the user's pipe quota allows it.
pub(crate) fn pipe(bytes: libc::c_int) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: pipe2 writes two descriptors into the array.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK | libc::O_CLOEXEC) })?;
    // SAFETY: pipe2 succeeded, so both are open and ours alone.
    let pipe = unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
    // SAFETY: F_SETPIPE_SZ takes an int by value; a refusal leaves the default size, which only costs speed.
    unsafe { libc::fcntl(pipe.0.as_raw_fd(), libc::F_SETPIPE_SZ, bytes) };
    Ok(pipe)
}

/// An epoll instance whose events carry a caller's number.
pub(crate) struct Epoll(OwnedFd);

pub(crate) use libc::epoll_event as Event;

impl Epoll {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: no pointer is passed.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: epoll_create1 succeeded, so the descriptor is open and ours alone.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub(crate) fn add(&self, fd: impl AsFd, events: i32, number: u64) -> io::Result<()> {
        let mut event = Event { events: events as u32, u64: number };
        let (epoll, fd) = (self.0.as_raw_fd(), fd.as_fd().as_raw_fd());
        // SAFETY: `event` lives across the call.
        check(unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &mut event) })?;
        Ok(())
    }

    /// Waits for at most `milliseconds` (-1: for ever) and says how many events were stored. A signal counts as none.
    pub(crate) fn wait(&self, events: &mut [Event], milliseconds: i32) -> io::Result<usize> {
        // SAFETY: the pointer and length are those of one live mutable slice.
        let count = unsafe {
            libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), events.len() as i32, milliseconds)
        };
        match check(count) {
            Ok(count) => Ok(count as usize),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            Err(error) => Err(error),
        }
    }
}
