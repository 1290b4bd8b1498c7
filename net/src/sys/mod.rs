#![allow(unsafe_code)]
//! The only unsafe code of the crate: one system call a function, by the man page's name, with borrowed descriptors in
//! and owned descriptors out. It knows no policy and no protocol.

pub(crate) mod process;
pub(crate) mod socket;
pub(crate) mod stream;
pub(crate) mod tun;

use std::io;

/// Turns the C convention of -1 and errno into a result.
pub(crate) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// As `check`, for calls that return a count.
pub(crate) fn check_len(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
