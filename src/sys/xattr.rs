//! Extended attributes by descriptor (`xattr(7)`), which `nix` does not wrap, and `mknodat(2)` of the one
//! device that needs no privilege.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

fn done(value: libc::c_int) -> io::Result<()> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `fsetxattr(2)`: makes or replaces the attribute.
pub fn fsetxattr(file: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> io::Result<()> {
    // SAFETY: `name` is NUL-terminated, the pointer and length describe `value`; both outlive the call.
    done(unsafe { libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) })
}

/// `mknodat(2)` of the character device 0/0, overlayfs's whiteout. Linux 5.8 lets everybody make it.
pub fn whiteout(folder: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    // SAFETY: `name` is NUL-terminated and outlives the call; the other arguments are passed by value.
    done(unsafe { libc::mknodat(folder.as_raw_fd(), name.as_ptr(), libc::S_IFCHR, 0) })
}
