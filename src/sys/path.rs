//! Opening by descriptor: `openat2(2)` with `RESOLVE_IN_ROOT`, so that no symlink of a container's root
//! leads outside it, and the file-handle of an inode for comparing two files.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

pub const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
pub const RESOLVE_NO_SYMLINKS: u64 = 0x04;
pub const RESOLVE_IN_ROOT: u64 = 0x10;

/// `struct open_how` of `openat2(2)`.
#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

/// `openat2(2)`, close-on-exec, tried again when a rename raced with the walk (`EAGAIN`). Linux 5.6.
pub fn openat2(
    root: BorrowedFd<'_>,
    path: &CStr,
    flags: i32,
    mode: u32,
    resolve: u64,
) -> io::Result<OwnedFd> {
    let how = OpenHow { flags: (flags | libc::O_CLOEXEC) as u64, mode: u64::from(mode), resolve };
    for _ in 0..128 {
        // SAFETY: `how` is a valid open_how of its whole size and `path` is NUL-terminated; both outlive it.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                root.as_raw_fd(),
                path.as_ptr(),
                &raw const how,
                size_of::<OpenHow>(),
            )
        };
        if fd >= 0 {
            // SAFETY: the kernel returned a fresh descriptor that nobody else owns.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) });
        }
        let error = io::Error::last_os_error();
        if !matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) {
            return Err(error);
        }
    }
    Err(io::Error::from_raw_os_error(libc::EAGAIN))
}

/// `FS_IOC_SETFLAGS` with `FS_TOPDIR_FL` (`chattr +T`): ext4 puts each folder that is made in this one into a
/// part of the disk of its own, as it does with those of the root folder.
pub fn spread_folders(folder: BorrowedFd<'_>) -> io::Result<()> {
    const FS_TOPDIR_FL: libc::c_long = 0x0002_0000;
    let mut flags: libc::c_long = 0;
    // SAFETY: the ioctl writes an int into `flags`, which is at least as long and outlives the call.
    if unsafe { libc::ioctl(folder.as_raw_fd(), libc::FS_IOC_GETFLAGS, &raw mut flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    if flags & FS_TOPDIR_FL != 0 {
        return Ok(());
    }
    flags |= FS_TOPDIR_FL;
    // SAFETY: the ioctl reads an int from `flags`, which outlives the call.
    if unsafe { libc::ioctl(folder.as_raw_fd(), libc::FS_IOC_SETFLAGS, &raw const flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// `getxattr(2)` with no buffer: the length of the attribute's value.
pub fn xattr_length(path: &CStr, name: &CStr) -> io::Result<usize> {
    // SAFETY: both strings are NUL-terminated and a null buffer of length 0 asks for the length only.
    let length = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) };
    usize::try_from(length).map_err(|_| io::Error::last_os_error())
}
