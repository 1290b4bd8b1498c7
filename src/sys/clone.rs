//! The one clone of the program: `clone3(2)` straight into new namespaces and, if given, a cgroup. The caller
//! has one thread, so the child is a whole copy and may run ordinary code: no lock can be held by a thread
//! that does not exist in it. Threads start only in stages that never clone.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Which side of the clone the caller is.
#[derive(Debug)]
pub enum Cloned {
    Parent { pid: i32, pidfd: OwnedFd },
    Child,
}

/// `linux/sched.h`; the crate's constant overflows its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` of `clone3(2)`, as of Linux 5.7.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// `clone3(2)` without `CLONE_VM`: the child is a copy of the caller in the namespaces named by `flags`
/// (`CLONE_NEW*`), its death is told by `SIGCHLD` and by the returned pidfd.
///
/// # Errors
/// The errno of the call: `EPERM` and `ENOSPC` mean that user namespaces are refused (`user_namespaces(7)`).
/// On kernels before 5.3, or under a filter that answers `ENOSYS`, `clone(2)` is used and the cgroup is left
/// to the caller.
pub fn clone(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    let mut pidfd: i32 = -1;
    let mut args = CloneArgs {
        flags: flags | libc::CLONE_PIDFD as u64,
        pidfd: &raw mut pidfd as u64,
        // A brother has the signal of its brother, and clone3 wants no other.
        exit_signal: if flags & libc::CLONE_PARENT as u64 == 0 { libc::SIGCHLD as u64 } else { 0 },
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `args` is a valid clone_args of its whole size and outlives the call; without CLONE_VM the child
    // gets its own copy of this stack, and the program has one thread (see the header).
    let mut pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    if pid < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ENOSYS) {
        // SAFETY: as above; a null stack means that the child goes on on its copy of ours, and the third
        // argument is where clone(2) stores the pidfd with CLONE_PIDFD.
        pid = unsafe {
            libc::syscall(
                libc::SYS_clone,
                flags | libc::CLONE_PIDFD as u64 | libc::SIGCHLD as u64,
                0,
                &raw mut pidfd,
                0,
                0,
            )
        };
    }
    match pid {
        0 => Ok(Cloned::Child),
        pid if pid > 0 => {
            // SAFETY: the kernel stored a fresh close-on-exec descriptor that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent { pid: pid as i32, pidfd })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends the process without running exit handlers, which belong to the process that it was cloned from.
pub fn exit(status: i32) -> ! {
    // SAFETY: _exit(2) takes no pointer and does not return.
    unsafe { libc::_exit(status) }
}
