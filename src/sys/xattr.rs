//! Extended attributes by descriptor (`xattr(7)`), which `nix` does not wrap, and `mknodat(2)` of the one
//! device that needs no privilege.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

fn done(value: libc::c_int) -> io::Result<()> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `fsetxattr(2)`: makes or replaces the attribute.
pub fn fsetxattr(file: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> io::Result<()> {
    // SAFETY: `name` is NUL-terminated, the pointer and length describe `value`; both outlive the call.
    done(unsafe { libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) })
}

/// `getxattr(2)`: a short value, whole.
pub fn getxattr(path: &Path, name: &CStr) -> io::Result<Vec<u8>> {
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    let mut value = vec![0u8; 256];
    // SAFETY: both names are NUL-terminated, the pointer and length describe `value`; all outlive the call.
    let length =
        unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    value.truncate(length);
    Ok(value)
}

/// `mknodat(2)` of the character device 0/0, overlayfs's whiteout. Linux 5.8 lets everybody make it.
pub fn whiteout(folder: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    // SAFETY: `name` is NUL-terminated and outlives the call; the other arguments are passed by value.
    done(unsafe { libc::mknodat(folder.as_raw_fd(), name.as_ptr(), libc::S_IFCHR, 0) })
}

/// `fgetxattr(2)`: the value, or `None` where there is no such attribute or no place for attributes.
pub fn fgetxattr(file: BorrowedFd<'_>, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    let read = |buffer: &mut [u8]| {
        // SAFETY: `name` is NUL-terminated, the pointer and length describe `buffer`; a length of 0 only asks.
        unsafe { libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) }
    };
    match sized(read) {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// `flistxattr(2)`: the names of all attributes.
pub fn flistxattr(file: BorrowedFd<'_>) -> io::Result<Vec<std::ffi::CString>> {
    let read = |buffer: &mut [u8]| {
        // SAFETY: the pointer and length describe `buffer`; a length of 0 only asks for the length.
        unsafe { libc::flistxattr(file.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) }
    };
    let names = match sized(read) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(Vec::new()),
        names => names?,
    };
    Ok(names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .filter_map(|name| std::ffi::CString::new(name).ok())
        .collect())
}

/// What `read` fills a buffer with, asked for its length first, and again if that grew meanwhile.
fn sized(read: impl Fn(&mut [u8]) -> libc::ssize_t) -> io::Result<Vec<u8>> {
    loop {
        let length = usize::try_from(read(&mut [])).map_err(|_| io::Error::last_os_error())?;
        let mut buffer = vec![0; length];
        if length == 0 {
            return Ok(buffer);
        }
        match usize::try_from(read(&mut buffer)) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.raw_os_error() != Some(libc::ERANGE) {
                    return Err(error);
                }
            }
        }
    }
}
