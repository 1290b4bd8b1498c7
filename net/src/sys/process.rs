//! The process: fork, capabilities, limits and what a confined process gives up.
//! It knows no network.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use super::check;

/// The child's end of a fork, or the child's pid.
pub(crate) enum Fork {
    Child,
    Parent(i32),
}

/// Forks. The caller must have one thread: the child goes on to allocate.
pub(crate) fn fork() -> io::Result<Fork> {
    // SAFETY: the crate starts no thread and its callers are told to have one only, so no lock can be held by a thread
    // that the child lacks.
    match check(unsafe { libc::fork() })? {
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid)),
    }
}

/// Ends the process without running destructors or the parent's exit handlers.
pub(crate) fn exit(status: i32) -> ! {
    // SAFETY: _exit has no precondition.
    unsafe { libc::_exit(status) }
}

/// Waits for a child and returns its wait status.
pub(crate) fn wait(pid: i32) -> io::Result<i32> {
    let mut status = 0;
    // SAFETY: the pointer is to one int.
    check(unsafe { libc::waitpid(pid, &mut status, 0) })?;
    Ok(status)
}

pub(crate) fn forbid_new_privileges() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)
}

pub(crate) fn forbid_dumping() -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 0)
}

fn prctl(option: i32, argument: libc::c_ulong) -> io::Result<()> {
    let zero: libc::c_ulong = 0;
    // SAFETY: these options take numbers only.
    check(unsafe { libc::prctl(option, argument, zero, zero, zero) })?;
    Ok(())
}

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CapabilitySet {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Keeps the capabilities in `kept` (a bit set) and gives up every other one, in each set and in the bounding set.
pub(crate) fn keep_capabilities(kept: u64) -> io::Result<()> {
    for capability in (0..64).filter(|capability| kept & (1 << capability) == 0) {
        // Refused for numbers that the kernel does not have, which come last, and for a process without CAP_SETPCAP, which
        // with no_new_privs can't gain from the bounding set either.
        if prctl(libc::PR_CAPBSET_DROP, capability).is_err() {
            break;
        }
    }
    let _ = prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong);
    let header = CapabilityHeader { version: 0x2008_0522, pid: 0 };
    let half = |bits: u64| CapabilitySet { effective: bits as u32, permitted: bits as u32, inheritable: 0 };
    let sets = [half(kept & 0xffff_ffff), half(kept >> 32)];
    // SAFETY: version 3 of the interface reads one header and two sets.
    check(unsafe { libc::syscall(libc::SYS_capset, &header, sets.as_ptr()) } as i32)?;
    Ok(())
}

pub(crate) const CAP_NET_ADMIN: u64 = 1 << 12;
pub(crate) const CAP_NET_RAW: u64 = 1 << 13;

/// Raises the soft limit of open descriptors to the hard one and says how many that is.
pub(crate) fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to one struct rlimit.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: as above.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })?;
    Ok(limit.rlim_cur)
}

/// A write to a socket whose peer is gone is an error, not the end of the process: splice(2) has no flag that says so.
pub(crate) fn ignore_broken_pipes() {
    // SAFETY: SIG_IGN runs no code of ours; the signal's number is valid.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

pub(crate) fn forbid_core_files() -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to one struct rlimit.
    check(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &limit) })?;
    Ok(())
}

/// Closes every descriptor above 2 that is not in `kept`.
pub(crate) fn close_all_but(kept: &[i32]) -> io::Result<()> {
    let mut kept: Vec<u32> =
        kept.iter().filter_map(|fd| u32::try_from(*fd).ok()).filter(|fd| *fd > 2).collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept.into_iter().chain([u32::MAX]) {
        if fd > first {
            // SAFETY: the caller gives up these descriptors; nothing of ours refers to them afterwards.
            check(unsafe { libc::syscall(libc::SYS_close_range, first, fd - 1, 0) } as i32)?;
        }
        first = fd.saturating_add(1);
    }
    Ok(())
}

/// A file below an open directory, read only, never through a symbolic link at the end of `name`.
pub(crate) fn open_at(directory: impl AsFd, name: &std::ffi::CStr) -> io::Result<OwnedFd> {
    let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NOFOLLOW;
    // SAFETY: `name` is a NUL-terminated string.
    let fd = check(unsafe { libc::openat(directory.as_fd().as_raw_fd(), name.as_ptr(), flags) })?;
    // SAFETY: openat succeeded, so the descriptor is open and ours alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes a descriptor by its number, as a command line gives it.
pub(crate) fn inherited(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD only looks; it fails for a number that is not open.
    check(unsafe { libc::fcntl(number, libc::F_GETFD) })?;
    // SAFETY: the descriptor is open, and by the command line's contract it was opened for us.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    // SAFETY: F_SETFD takes a number.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    Ok(fd)
}

/// Fills `buffer` from the kernel's random numbers.
pub(crate) fn random(buffer: &mut [u8]) {
    // SAFETY: the pointer and length are those of one live slice. Requests of at most 256 bytes are never cut short.
    unsafe { libc::getrandom(buffer.as_mut_ptr().cast(), buffer.len().min(256), 0) };
}
