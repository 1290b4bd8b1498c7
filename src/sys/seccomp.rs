//! `seccomp(2)` with `SECCOMP_SET_MODE_FILTER`: installs a program that was compiled in the parent.
//! It knows nothing of profiles.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// One instruction of a classic BPF program (`struct sock_filter`).
pub type Instruction = libc::sock_filter;

/// Installs `program` for the calling thread and all that it starts. Needs no_new_privs or `CAP_SYS_ADMIN`
/// in the caller's user namespace.
pub fn install(program: &[Instruction]) -> io::Result<()> {
    set(program, 0).map(drop)
}

/// The same, for a program that leaves some calls to the listener that is given (Linux 5.0).
pub fn install_with_listener(program: &[Instruction]) -> io::Result<OwnedFd> {
    let listener = set(program, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)?;
    // SAFETY: with this flag the call gives a descriptor that nobody else has, close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(listener) })
}

fn set(program: &[Instruction], flags: libc::c_ulong) -> io::Result<i32> {
    let header = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the header describes `program`, which outlives the call; the kernel only reads both.
    let status =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const header) };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(status as i32) }
}

/// A call that waits for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    pub id: u64,
    pub pid: u32,
    /// Whether it was made in the way of this machine, and not of an older one that it can be.
    pub is_native: bool,
    /// The first argument.
    pub argument: u64,
}

/// What becomes of the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It returns 0.
    Done,
    /// The kernel carries it out (Linux 5.5).
    Goes,
}

#[cfg(target_arch = "x86_64")]
const NATIVE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const NATIVE: u32 = 0xC000_00B7;

/// `SECCOMP_IOCTL_NOTIF_RECV` of `seccomp_unotify(2)`; waits where nothing does.
pub fn receive(listener: BorrowedFd<'_>) -> io::Result<Asked> {
    // SAFETY: it is all numbers, and the kernel wants it zeroed.
    let mut found: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut found)?;
    Ok(Asked {
        id: found.id,
        pid: found.pid,
        is_native: found.data.arch == NATIVE,
        argument: found.data.args[0],
    })
}

/// `SECCOMP_IOCTL_NOTIF_ID_VALID`: an error says that whoever asked has ended.
pub fn is_valid(listener: BorrowedFd<'_>, id: u64) -> io::Result<()> {
    let mut id = id;
    ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw mut id)
}

/// `SECCOMP_IOCTL_NOTIF_SEND`.
pub fn respond(listener: BorrowedFd<'_>, id: u64, outcome: Outcome) -> io::Result<()> {
    let goes = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
    let flags = if outcome == Outcome::Goes { goes } else { 0 };
    let mut answer = libc::seccomp_notif_resp { id, val: 0, error: 0, flags };
    ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer)
}

fn ioctl<T>(listener: BorrowedFd<'_>, request: libc::Ioctl, value: *mut T) -> io::Result<()> {
    // SAFETY: each caller passes the structure that its request names, which outlives the call.
    let status = unsafe { libc::ioctl(listener.as_raw_fd(), request, value) };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
