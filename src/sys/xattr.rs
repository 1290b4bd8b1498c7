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

/// `fgetxattr(2)`; `None` if the file has no such attribute or the file system has none at all.
pub fn fgetxattr(file: BorrowedFd<'_>, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0u8; 64 * 1024];
    // SAFETY: `name` is NUL-terminated, the pointer and length describe `value`; both outlive the call.
    let length =
        unsafe { libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    if let Ok(length) = usize::try_from(length) {
        value.truncate(length);
        return Ok(Some(value));
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENODATA | libc::EOPNOTSUPP) => Ok(None),
        _ => Err(error),
    }
}

/// `flistxattr(2)`: the names, without their terminators.
pub fn flistxattr(file: BorrowedFd<'_>) -> io::Result<Vec<Vec<u8>>> {
    let mut names = vec![0u8; 64 * 1024];
    // SAFETY: the pointer and length describe `names`, which outlives the call.
    let length = unsafe { libc::flistxattr(file.as_raw_fd(), names.as_mut_ptr().cast(), names.len()) };
    let Ok(length) = usize::try_from(length) else {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::EOPNOTSUPP) { Ok(Vec::new()) } else { Err(error) };
    };
    names.truncate(length);
    Ok(names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
}

/// `mknodat(2)` of the character device 0/0, overlayfs's whiteout. Linux 5.8 lets everybody make it.
pub fn whiteout(folder: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    // SAFETY: `name` is NUL-terminated and outlives the call; the other arguments are passed by value.
    done(unsafe { libc::mknodat(folder.as_raw_fd(), name.as_ptr(), libc::S_IFCHR, 0) })
}

/// `syncfs(2)`: what was written to the file system of `file` is on the disk when it returns.
pub fn syncfs(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed for the call.
    done(unsafe { libc::syncfs(file.as_raw_fd()) })
}
