//! Pseudo-terminals and window sizes: the ioctls of `ioctl_tty(2)` that `nix` leaves to its users.
//! It knows nothing of who watches a terminal.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

fn done(value: libc::c_int) -> io::Result<()> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `TIOCSPTLCK` and `TIOCGPTPEER`: unlocks the master and opens its slave without walking a path.
pub fn peer(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let unlocked: libc::c_int = 0;
    // SAFETY: the ioctl reads one int, which outlives the call.
    done(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) })?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the ioctl takes its flags by value.
    let slave = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    done(slave)?;
    // SAFETY: the kernel returned a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(slave) })
}

/// `TIOCSCTTY`: makes the terminal the controlling one of the caller's session.
pub fn take(slave: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the ioctl takes its argument by value.
    done(unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0) })
}

/// `TIOCGWINSZ`: rows and columns.
pub fn window(terminal: BorrowedFd<'_>) -> io::Result<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the ioctl fills the winsize, which outlives the call.
    done(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) })?;
    Ok((size.ws_row, size.ws_col))
}

/// `TIOCSWINSZ`.
pub fn set_window(terminal: BorrowedFd<'_>, (rows, columns): (u16, u16)) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the ioctl reads the winsize, which outlives the call.
    done(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })
}
