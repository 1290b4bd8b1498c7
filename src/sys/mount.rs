//! The mount calls by descriptor that `nix` lacks: `open_tree(2)`, `move_mount(2)`, `mount_setattr(2)`,
//! `fsopen(2)`, `fsconfig(2)`, `fsmount(2)`. A mount made here is detached until `move_mount` puts it on a
//! descriptor, so no path is walked twice.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::fcntl::OFlag;

pub const MOUNT_ATTR_RDONLY: u64 = 0x1;
pub const MOUNT_ATTR_NOSUID: u64 = 0x2;
pub const MOUNT_ATTR_NODEV: u64 = 0x4;
pub const MOUNT_ATTR_NOEXEC: u64 = 0x8;

const OPEN_TREE_CLONE: u32 = 1;
const AT_RECURSIVE: u32 = 0x8000;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;
const FSOPEN_CLOEXEC: u32 = 1;
const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;
const FSMOUNT_CLOEXEC: u32 = 1;

/// Whether a call reaches the mounts below the named one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    This,
    Recursive,
}

fn owned(value: libc::c_long) -> io::Result<OwnedFd> {
    if value < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: each caller passes the result of a call that returns a fresh descriptor which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(value as i32) })
}

fn done(value: libc::c_long) -> io::Result<()> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `open_tree(2)` with `OPEN_TREE_CLONE`: a detached copy of the mount (and, recursively, those below) that
/// `from` lies on, with `from` as its root. Linux 5.2.
pub fn open_tree(from: BorrowedFd<'_>, depth: Depth) -> io::Result<OwnedFd> {
    let recursive = if depth == Depth::Recursive { AT_RECURSIVE } else { 0 };
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as u32 | libc::AT_EMPTY_PATH as u32 | recursive;
    // SAFETY: the path is a static empty string and the descriptor is borrowed for the call.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, from.as_raw_fd(), c"".as_ptr(), flags) })
}

/// `move_mount(2)` of a detached mount onto the directory or file that `target` is open on. Linux 5.2.
pub fn move_mount(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: both paths are static empty strings and both descriptors are borrowed for the call.
    done(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            flags,
        )
    })
}

/// Puts a detached mount on top of `/`, a place that always exists.
pub fn cover_root(mount: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let place = nix::fcntl::open("/", flags, nix::sys::stat::Mode::empty())?;
    move_mount(mount, place.as_fd())
}

/// `struct mount_attr` of `mount_setattr(2)`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct MountAttr {
    pub set: u64,
    pub clear: u64,
    /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`, or 0 to keep it.
    pub propagation: u64,
    pub userns_fd: u64,
}

/// `mount_setattr(2)` on the mount that `mount` is open on. Linux 5.12.
pub fn mount_setattr(mount: BorrowedFd<'_>, depth: Depth, attr: MountAttr) -> io::Result<()> {
    let recursive = if depth == Depth::Recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: `attr` is a valid mount_attr of its whole size, and the path is a static empty string.
    done(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH as u32 | recursive,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    })
}

/// One option of a file system context.
#[derive(Clone, Debug)]
pub enum FsOption {
    Flag(CString),
    Text(CString, CString),
}

/// `fsopen(2)`, `fsconfig(2)` and `fsmount(2)` in one: a detached new mount of file system `kind` with
/// `MOUNT_ATTR_*` attributes. Linux 5.2.
///
/// # Errors
/// The errno of the step that failed, with what the kernel wrote to the context's log if it wrote anything.
pub fn fsmount(kind: &CStr, options: &[FsOption], attributes: u64) -> io::Result<OwnedFd> {
    // SAFETY: `kind` is a NUL-terminated string that outlives the call.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) })?;
    for option in options {
        match option {
            FsOption::Flag(key) => fsconfig(context.as_fd(), FSCONFIG_SET_FLAG, Some(key), None),
            FsOption::Text(key, value) => {
                fsconfig(context.as_fd(), FSCONFIG_SET_STRING, Some(key), Some(value))
            }
        }?;
    }
    fsconfig(context.as_fd(), FSCONFIG_CMD_CREATE, None, None)?;
    // SAFETY: the context is borrowed for the call and the other arguments are plain numbers.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, attributes) })
        .map_err(|error| with_log(context.as_fd(), error))
}

fn fsconfig(
    context: BorrowedFd<'_>,
    command: u32,
    key: Option<&CStr>,
    value: Option<&CStr>,
) -> io::Result<()> {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: both strings are NUL-terminated or null as the command demands, and outlive the call.
    done(unsafe {
        libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, pointer(key), pointer(value), 0)
    })
    .map_err(|error| with_log(context, error))
}

/// The kernel's own words about a refused context, which are better than the errno.
fn with_log(context: BorrowedFd<'_>, error: io::Error) -> io::Error {
    let mut line = [0u8; 512];
    match nix::unistd::read(context, &mut line) {
        Ok(length) if length > 2 => {
            let said = String::from_utf8_lossy(&line[2..length.min(line.len())]).trim().to_owned();
            io::Error::new(error.kind(), format!("{error} ({said})"))
        }
        _ => error,
    }
}
