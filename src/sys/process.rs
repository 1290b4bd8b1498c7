//! What a process is: capabilities, groups, securebits, descriptors, signals by pidfd. Raw calls where glibc's
//! wrappers would synchronise threads that do not exist, or where `nix` has no wrapper.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;

fn done(value: libc::c_long) -> io::Result<()> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The three settable sets of `capabilities(7)` as bit masks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapabilitySets {
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapHalf {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const LINUX_CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// `capset(2)` of the calling thread.
pub fn capset(sets: CapabilitySets) -> io::Result<()> {
    let header = CapHeader { version: LINUX_CAPABILITY_VERSION_3, pid: 0 };
    let half = |shift: u32| CapHalf {
        effective: (sets.effective >> shift) as u32,
        permitted: (sets.permitted >> shift) as u32,
        inheritable: (sets.inheritable >> shift) as u32,
    };
    let halves = [half(0), half(32)];
    // SAFETY: version 3 reads one header and two data structs, which are these.
    done(unsafe { libc::syscall(libc::SYS_capset, &raw const header, halves.as_ptr()) })
}

/// `capget(2)` of the calling thread.
pub fn capget() -> io::Result<CapabilitySets> {
    let header = CapHeader { version: LINUX_CAPABILITY_VERSION_3, pid: 0 };
    let mut halves = [CapHalf::default(); 2];
    // SAFETY: version 3 reads one header and writes two data structs, which are these.
    done(unsafe { libc::syscall(libc::SYS_capget, &raw const header, halves.as_mut_ptr()) })?;
    let whole = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    Ok(CapabilitySets {
        effective: whole(halves[0].effective, halves[1].effective),
        permitted: whole(halves[0].permitted, halves[1].permitted),
        inheritable: whole(halves[0].inheritable, halves[1].inheritable),
    })
}

fn prctl(option: i32, argument: u64, second: u64) -> io::Result<()> {
    // SAFETY: the options used in this file take their arguments by value.
    done(unsafe { libc::prctl(option, argument, second, 0, 0) }.into())
}

/// `PR_CAPBSET_DROP`: `EINVAL` means that the kernel does not know the capability, which is as good.
pub fn drop_bounding(capability: u32) -> io::Result<()> {
    match prctl(libc::PR_CAPBSET_DROP, u64::from(capability), 0) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        other => other,
    }
}

/// `PR_CAP_AMBIENT_CLEAR_ALL`.
pub fn clear_ambient() -> io::Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0)
}

/// `PR_CAP_AMBIENT_RAISE`: needs the capability permitted and inheritable.
pub fn raise_ambient(capability: u32) -> io::Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, u64::from(capability))
}

/// `PR_SET_KEEPCAPS`: the permitted set survives the next change from uid 0 to another.
pub fn keep_capabilities() -> io::Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, 1, 0)
}

/// `PR_SET_NO_NEW_PRIVS`.
pub fn no_new_privileges() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0)
}

/// `PR_SET_DUMPABLE` 0: /proc/PID of the caller can't be opened by its fellows (CVE-2019-5736).
pub fn not_dumpable() -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 0, 0)
}

/// `PR_SET_PDEATHSIG`: the caller gets `signal` when the thread that cloned it ends. Cleared by the kernel
/// when the caller's ids change, so it is set again after that.
pub fn parent_death_signal(signal: i32) -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, signal as u64, 0)
}

/// `PR_SET_CHILD_SUBREAPER`.
pub fn child_subreaper() -> io::Result<()> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0)
}

/// `PR_SET_NAME`: the name in `ps`, cut at 15 bytes.
pub fn rename(name: &CStr) -> io::Result<()> {
    // SAFETY: the option reads at most 16 bytes of a NUL-terminated string that outlives the call.
    done(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) }.into())
}

/// A number that the kernel has of a process: a field after the name, counted as in `proc_pid_stat(5)`.
pub fn stat(pid: i32, field: usize) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold any; then comes the third field.
    stat.rsplit_once(')')?.1.split_whitespace().nth(field.checked_sub(3)?)?.parse().ok()
}

/// Puts the name in place of the words that the program was started with, so that all of `ps` shows it alone.
///
/// # Errors
/// The words can't be found or written, as in a process that is not dumpable.
pub fn forget_words() -> io::Result<()> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // proc_pid_stat(5): the name stands in parentheses, then comes the third field; arg_start and arg_end are 48 and 49.
    let Some((head, fields)) = stat.rsplit_once(')') else { return Err(io::ErrorKind::InvalidData.into()) };
    let name = head.split_once('(').map_or("", |(_, name)| name).as_bytes();
    let mut places = fields.split_whitespace().skip(45).map_while(|field| field.parse::<u64>().ok());
    let (Some(start), Some(end)) = (places.next(), places.next()) else {
        return Err(io::ErrorKind::NotFound.into());
    };
    let room = usize::try_from(end.saturating_sub(start)).unwrap_or(0);
    let shown = name.len().min(room.saturating_sub(1));
    let words: Vec<u8> = name.iter().copied().take(shown).chain(std::iter::repeat(0)).take(room).collect();
    std::fs::File::options().write(true).open("/proc/self/mem")?.write_all_at(&words, start)
}

/// `setresuid(2)` of the calling thread by the raw call: all three ids.
pub fn setresuid(uid: u32) -> io::Result<()> {
    // SAFETY: the ids are passed by value.
    done(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) })
}

/// `setresgid(2)` of the calling thread by the raw call: all three ids.
pub fn setresgid(gid: u32) -> io::Result<()> {
    // SAFETY: the ids are passed by value.
    done(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })
}

/// `setgroups(2)` of the calling thread by the raw call.
pub fn setgroups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: the pointer and length describe `groups`, which outlives the call.
    done(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })
}

/// `close_range(2)` from `first` on. With `CLOSE_RANGE_CLOEXEC` where `at_exec`, so that a failing exec can
/// still speak. Linux 5.9 and 5.11; before, each number of /proc/self/fd is treated alone.
pub fn close_from(first: RawFd, at_exec: bool) -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: u32 = 4;
    let flags = if at_exec { CLOSE_RANGE_CLOEXEC } else { 0 };
    // SAFETY: the numbers are passed by value; the caller owns no descriptor from `first` on that it uses later.
    match done(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flags) }) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL | libc::EPERM)) => {
            close_each(first, at_exec)
        }
        other => other,
    }
}

/// Closes whatever is no standard stream and not `kept`.
pub fn close_others(kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut numbers: Vec<RawFd> = kept.iter().map(AsRawFd::as_raw_fd).collect();
    numbers.sort_unstable();
    let mut first = 3;
    for number in numbers {
        for closed in first..number {
            // SAFETY: the caller owns no other descriptor that it uses later; a number that is not open gives EBADF.
            unsafe { libc::close(closed) };
        }
        first = first.max(number + 1);
    }
    close_from(first, false)
}

fn close_each(first: RawFd, at_exec: bool) -> io::Result<()> {
    let names = std::fs::read_dir("/proc/self/fd")?;
    let open: Vec<RawFd> = names.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    for fd in open.into_iter().filter(|fd| *fd >= first) {
        if at_exec {
            // SAFETY: F_SETFD takes its argument by value; a number that is closed by now gives EBADF.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        } else {
            // SAFETY: as for close_range: the caller owns nothing from `first` on that it uses later.
            unsafe { libc::close(fd) };
        }
    }
    Ok(())
}

/// Makes `fd` the standard stream `number` (0, 1 or 2), without close-on-exec.
pub fn become_stream(fd: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    // SAFETY: dup2 and F_SETFD take numbers; 0 to 2 belong to no OwnedFd of the program.
    unsafe {
        if fd.as_raw_fd() == number {
            return done(libc::fcntl(number, libc::F_SETFD, 0).into());
        }
        done(libc::dup2(fd.as_raw_fd(), number).into())
    }
}

/// Keeps `fd` open over exec.
pub fn keep_over_exec(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: F_SETFD takes its argument by value.
    done(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) }.into())
}

/// Takes over a descriptor that the program was started with and that a stage's request names.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD takes its argument by value and tells whether the number is open.
    done(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) }.into())?;
    // SAFETY: the number is open, was named by the process that started this stage, and is taken once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// `execveat(2)` of an open file. Returns only on failure.
pub fn execveat(file: BorrowedFd<'_>, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: both arrays end with null, point at NUL-terminated strings and outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    io::Error::last_os_error()
}

/// `pidfd_open(2)`.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the arguments are passed by value.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    done(fd)?;
    // SAFETY: the kernel returned a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// `pidfd_send_signal(2)`: can't hit a stranger that got the same number.
pub fn pidfd_send_signal(process: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let none: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: a null siginfo means the defaults of kill(2).
    done(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, none, 0) })
}

/// `siginfo_t` as `sigqueue(3)` fills it.
#[repr(C)]
struct Queued {
    signal: i32,
    errno: i32,
    code: i32,
    pad: i32,
    pid: i32,
    uid: u32,
    value: u64,
    rest: [u64; 12],
}

/// `pidfd_send_signal(2)` with a number, as `sigqueue(3)` sends it. The receiver is told the caller's pid and uid
/// by the caller itself, so it must not believe them.
pub fn pidfd_queue_signal(process: BorrowedFd<'_>, signal: i32, value: i32) -> io::Result<()> {
    let queued = Queued {
        signal,
        errno: 0,
        code: libc::SI_QUEUE,
        pad: 0,
        pid: std::process::id() as i32,
        uid: nix::unistd::getuid().as_raw(),
        value: u64::from(value as u32),
        rest: [0; 12],
    };
    // SAFETY: the struct has the size and the layout of siginfo_t and outlives the call.
    done(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, &raw const queued, 0)
    })
}

/// `prlimit(2)` of the calling process.
pub fn setrlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the call reads one rlimit, which outlives it, and writes nothing.
    done(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            &raw const limit,
            std::ptr::null_mut::<libc::rlimit>(),
        )
    })
}

/// `prlimit(2)` of the calling process: soft and hard limit.
pub fn getrlimit(resource: u32) -> io::Result<(u64, u64)> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a null new limit changes nothing, and the call writes one rlimit, which outlives it.
    done(unsafe {
        libc::syscall(libc::SYS_prlimit64, 0, resource, std::ptr::null::<libc::rlimit>(), &raw mut limit)
    })?;
    Ok((limit.rlim_cur, limit.rlim_max))
}

/// `setpriority(2)` of a thread: its nice value; 0 is the calling one.
pub fn setpriority(thread: u32, nice: i32) -> io::Result<()> {
    // SAFETY: the arguments are passed by value.
    done(unsafe { libc::setpriority(libc::PRIO_PROCESS, thread, nice) }.into())
}

/// `ioprio_set(2)` of a thread: a level of the best-effort class, 0 the first to be served and 7 the last; thread 0 is
/// the calling one.
pub fn set_io_priority(thread: i32, level: u8) -> io::Result<()> {
    const WHO_PROCESS: i32 = 1;
    const BEST_EFFORT: i32 = 2 << 13;
    let priority = BEST_EFFORT | i32::from(level);
    // SAFETY: the arguments are passed by value.
    done(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, thread, priority) })
}

/// `setdomainname(2)`.
pub fn setdomainname(name: &str) -> io::Result<()> {
    // SAFETY: the pointer and length describe `name`, which outlives the call.
    done(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }.into())
}

/// `SIOCSIFFLAGS` with `IFF_UP` on the loopback interface of the caller's network namespace; the kernel gives
/// it 127.0.0.1 and ::1 by itself.
pub fn loopback_up() -> io::Result<()> {
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: an all-zero ifreq is valid: a name of NULs and a zero union.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the ioctl reads one ifreq, which outlives the call.
    done(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) }.into())
}

/// `dup3(2)` of `from` onto `number`, close-on-exec; what lay there is closed.
pub fn duplicate_to(from: OwnedFd, number: RawFd) -> io::Result<OwnedFd> {
    if from.as_raw_fd() == number {
        return Ok(from);
    }
    // SAFETY: dup3 takes numbers; what `number` named belongs to no OwnedFd that is used later.
    done(unsafe { libc::dup3(from.as_raw_fd(), number, libc::O_CLOEXEC) }.into())?;
    // SAFETY: dup3 made `number` a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// `sigaction(2)` to `SIG_DFL`.
pub fn default_action(signal: i32) -> io::Result<()> {
    // SAFETY: SIG_DFL is no handler of ours, so nothing can run in a signal's context.
    let before = unsafe { libc::signal(signal, libc::SIG_DFL) };
    if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `sigaction(2)` to `SIG_IGN`.
pub fn ignore(signal: i32) -> io::Result<()> {
    // SAFETY: SIG_IGN is no handler of ours, so nothing can run in a signal's context.
    let before = unsafe { libc::signal(signal, libc::SIG_IGN) };
    if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Closes `fd` at the next exec.
pub fn close_at_exec(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: F_SETFD takes its argument by value.
    done(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) }.into())
}
