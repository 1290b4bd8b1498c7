//! `landlock(7)`: only the scope of abstract Unix sockets (ABI 6, Linux 6.12), which no namespace but the
//! network's separates. It knows nothing of files or ports.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// `struct landlock_ruleset_attr`.
#[repr(C)]
#[derive(Default)]
struct RulesetAttr {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

const SCOPE_ABSTRACT_UNIX_SOCKET: u64 = 1;

/// Abstract sockets that were made outside can't be connected to by the caller and what it starts. Needs
/// no_new_privs or `CAP_SYS_ADMIN` in the caller's user namespace.
///
/// # Errors
/// `ENOSYS`, `EOPNOTSUPP`, `E2BIG` or `EINVAL` where the kernel has no such scope.
pub fn scope_abstract_sockets() -> io::Result<()> {
    let attr = RulesetAttr { scoped: SCOPE_ABSTRACT_UNIX_SOCKET, ..RulesetAttr::default() };
    // SAFETY: `attr` is a valid ruleset attribute of its whole size and outlives the call.
    let fd = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attr, size_of::<RulesetAttr>(), 0)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel returned a fresh descriptor that nobody else owns.
    let ruleset = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    use std::os::fd::AsRawFd;
    // SAFETY: the arguments are passed by value.
    let status = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
