//! The system calls of the bench, and all of its unsafe: terminals, signals, descriptors that a child inherits,
//! the subreaper that lets a test count what kelp leaves behind.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

pub(crate) fn uid() -> u32 {
    // SAFETY: takes nothing and can't fail.
    unsafe { libc::getuid() }
}

pub(crate) fn gid() -> u32 {
    // SAFETY: takes nothing and can't fail.
    unsafe { libc::getgid() }
}

pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: takes numbers only.
    checked(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Orphans below this process become its children, so that none can hide.
pub(crate) fn adopt_orphans() {
    // SAFETY: this form of prctl(2) takes numbers only.
    checked(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }).unwrap();
}

/// Takes every dead child off the list.
pub(crate) fn reap() {
    // SAFETY: a null status is allowed.
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
}

/// Reaps one child, if it has ended.
pub(crate) fn reap_one(pid: i32) {
    // SAFETY: a null status is allowed.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) };
}

/// A new terminal: the end that a person sits at, and the end that a program gets.
pub(crate) fn terminal() -> (OwnedFd, OwnedFd) {
    let (mut ours, mut theirs) = (-1, -1);
    let null = std::ptr::null_mut();
    // SAFETY: two valid places for descriptors; name, attributes and size may be null.
    checked(unsafe {
        libc::openpty(&mut ours, &mut theirs, null, std::ptr::null_mut(), std::ptr::null_mut())
    })
    .unwrap();
    // SAFETY: openpty(3) has just made both, and nothing else owns them.
    unsafe {
        libc::fcntl(ours, libc::F_SETFD, libc::FD_CLOEXEC);
        libc::fcntl(theirs, libc::F_SETFD, libc::FD_CLOEXEC);
        (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs))
    }
}

pub(crate) fn resize(terminal: &OwnedFd, rows: u16, columns: u16) {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads the structure that it is given.
    checked(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &size) }).unwrap();
}

/// The four flag words of a terminal, to see whether it was put back.
pub(crate) fn modes(terminal: &OwnedFd) -> [u32; 4] {
    // SAFETY: termios is plain numbers, for which zero is a valid value.
    let mut modes: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: a valid place for the structure.
    checked(unsafe { libc::tcgetattr(terminal.as_raw_fd(), &mut modes) }).unwrap();
    [modes.c_iflag, modes.c_oflag, modes.c_cflag, modes.c_lflag]
}

/// The modes that every terminal of this host begins with.
pub(crate) fn fresh_modes() -> [u32; 4] {
    let (_ours, theirs) = terminal();
    modes(&theirs)
}

/// The command leads a session of its own whose terminal is its standard input.
pub(crate) fn own_session(command: &mut Command) {
    // SAFETY: setsid(2) and ioctl(2) may be called between fork and exec.
    unsafe {
        command.pre_exec(|| {
            checked(libc::setsid())?;
            checked(libc::ioctl(0, libc::TIOCSCTTY, 0)).map(drop)
        });
    }
}

/// The command inherits this descriptor under a number of the test's choice.
pub(crate) fn inherit(command: &mut Command, from: &impl AsRawFd, to: RawFd) {
    let from = from.as_raw_fd();
    // SAFETY: dup2(2) may be called between fork and exec; `from` is open until then in the parent.
    unsafe {
        command.pre_exec(move || checked(libc::dup2(from, to)).map(drop));
    }
}

/// The command starts with a mask, an ignored signal and a blocked one, as careless callers leave them.
pub(crate) fn careless(command: &mut Command) {
    // SAFETY: umask(2), signal(2) and sigprocmask(2) may be called between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::umask(0o077);
            libc::signal(libc::SIGUSR1, libc::SIG_IGN);
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGUSR2);
            libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            Ok(())
        });
    }
}

/// The command starts with a mask that lets everybody write.
pub(crate) fn careless_umask(command: &mut Command) {
    // SAFETY: umask(2) may be called between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::umask(0);
            Ok(())
        });
    }
}

/// The command runs below a filter that refuses clone(2) and unshare(2), as in docker's containers.
pub(crate) fn refuse_namespaces(command: &mut Command) {
    let load = |offset: u32| (0x20u16, 0u8, 0u8, offset);
    let equal = |value: i64, yes: u8, no: u8| (0x15u16, yes, no, value as u32);
    let masked = |mask: i32| (0x45u16, 0u8, 1u8, mask as u32);
    let end = |value: u32| (0x06u16, 0u8, 0u8, value);
    let refuse = |errno: i32| end(0x0005_0000 | errno as u32);
    // Load the number; clone3 is unknown; clone and unshare with CLONE_NEWUSER are not permitted.
    let program = [
        load(0),
        equal(libc::SYS_clone3, 0, 1),
        refuse(libc::ENOSYS),
        equal(libc::SYS_clone, 1, 0),
        equal(libc::SYS_unshare, 0, 3),
        load(16),
        masked(libc::CLONE_NEWUSER),
        refuse(libc::EPERM),
        end(0x7fff_0000),
    ];
    let filter: Vec<libc::sock_filter> =
        program.iter().map(|&(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k }).collect();
    // SAFETY: prctl(2) may be called between fork and exec; the filter lives in the closure until then.
    unsafe {
        command.pre_exec(move || {
            let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
            checked(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
            checked(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program)).map(drop)
        });
    }
}

pub(crate) fn fifo(path: &str) {
    let path = std::ffi::CString::new(path).unwrap();
    // SAFETY: a C string that outlives the call.
    checked(unsafe { libc::mkfifo(path.as_ptr(), 0o666) }).unwrap();
}

/// The version of Landlock that the kernel speaks, 0 without it; scopes of abstract sockets came with 6.
pub(crate) fn landlock() -> i64 {
    // SAFETY: asking for the version (flag 1) takes a null ruleset of length 0.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0, 1) }.max(0)
}

/// Exchanges two names at once (renameat2(2)).
pub(crate) fn exchange(one: &str, other: &str) -> io::Result<()> {
    let (one, other) = (std::ffi::CString::new(one)?, std::ffi::CString::new(other)?);
    let at = libc::AT_FDCWD;
    // SAFETY: two C strings that outlive the call.
    checked(unsafe { libc::renameat2(at, one.as_ptr(), at, other.as_ptr(), libc::RENAME_EXCHANGE) }).map(drop)
}

/// The monotonic clock, which every container shares unless its clocks were moved.
pub(crate) fn monotonic() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime(2) writes one timespec, which outlives the call.
    checked(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) }).unwrap();
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
