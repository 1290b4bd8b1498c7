//! The only unsafe code of the crate, and the small questions to the kernel that no crate wraps. It knows nothing of
//! layers or nodes.
#![allow(unsafe_code)]

use rustix::process::{Resource, getrlimit, setrlimit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// The path of `name` below an open directory, or of the descriptor itself when `name` is empty.
pub(crate) fn proc_path(fd: impl AsFd, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()).into_bytes();
    if !name.is_empty() {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    path
}

/// Raises our soft limit of open files to the hard one and returns how many of them may be cached.
pub(crate) fn descriptor_budget() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(1 << 20);
    let raised = rustix::process::Rlimit { current: Some(hard), maximum: limit.maximum };
    let usable = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => hard,
        Err(_) => limit.current.unwrap_or(1024),
    };
    (usable / 2).clamp(64, 8192) as usize
}

/// The uid and gid that files made by this process get.
pub(crate) fn file_ids() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

/// Starts writing a file's dirty pages to the disk without waiting, which makes ext4 allocate their blocks now
/// (`sync_file_range(2)`).
pub(crate) fn start_writeback(fd: BorrowedFd<'_>) -> rustix::io::Result<()> {
    // SAFETY: the call takes numbers only and the descriptor is open for as long as it is borrowed.
    let outcome = unsafe { libc::sync_file_range(fd.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    if outcome == 0 { Ok(()) } else { Err(last_error()) }
}

/// Gives free heap back (`malloc_trim(3)`).
pub(crate) fn release_heap() {
    // SAFETY: the call takes a number and touches nothing that is allocated.
    unsafe { libc::malloc_trim(0) };
}

fn last_error() -> rustix::io::Errno {
    rustix::io::Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(rustix::io::Errno::IO)
}

/// Which of the two processes we are after `split`.
pub enum Side {
    Parent,
    Child,
}

/// Splits the process in two. Only for a process that has one thread, because locks held by others stay locked.
pub fn split() -> rustix::io::Result<Side> {
    // SAFETY: the program calls this before it starts any thread, so the child may go on with ordinary code.
    match unsafe { libc::fork() } {
        -1 => Err(last_error()),
        0 => Ok(Side::Child),
        _ => Ok(Side::Parent),
    }
}

/// Gives the calling thread the policy `SCHED_IDLE` and the shortest slice. An ordinary user cannot take it back.
pub(crate) fn become_idle_thread() -> rustix::io::Result<()> {
    /// `struct sched_attr` of Linux 3.14, which every later kernel takes.
    #[repr(C)]
    struct Attributes {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    let attributes = Attributes {
        size: size_of::<Attributes>() as u32,
        policy: libc::SCHED_IDLE as u32,
        flags: 0,
        nice: 0,
        priority: 0,
        runtime: 100_000,
        deadline: 0,
        period: 0,
    };
    // SAFETY: the kernel reads `size` bytes of a structure that outlives the call.
    let outcome = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if outcome == 0 { Ok(()) } else { Err(last_error()) }
}
