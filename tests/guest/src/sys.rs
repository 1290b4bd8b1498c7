//! The guest's system calls, and all of its unsafe. A wrapper is one call with the man page's name, without
//! judgement: an errno is an answer here. Raw descriptors come in only because attacks are made of them.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

pub(crate) struct Capabilities {
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
    pub(crate) bounding: u64,
    pub(crate) ambient: u64,
}

pub(crate) const LIMITS: &[(&str, libc::__rlimit_resource_t)] = &[
    ("CPU", libc::RLIMIT_CPU),
    ("FSIZE", libc::RLIMIT_FSIZE),
    ("DATA", libc::RLIMIT_DATA),
    ("STACK", libc::RLIMIT_STACK),
    ("CORE", libc::RLIMIT_CORE),
    ("RSS", libc::RLIMIT_RSS),
    ("NPROC", libc::RLIMIT_NPROC),
    ("NOFILE", libc::RLIMIT_NOFILE),
    ("MEMLOCK", libc::RLIMIT_MEMLOCK),
    ("AS", libc::RLIMIT_AS),
    ("LOCKS", libc::RLIMIT_LOCKS),
    ("SIGPENDING", libc::RLIMIT_SIGPENDING),
    ("MSGQUEUE", libc::RLIMIT_MSGQUEUE),
    ("NICE", libc::RLIMIT_NICE),
    ("RTPRIO", libc::RLIMIT_RTPRIO),
    ("RTTIME", libc::RLIMIT_RTTIME),
];

const SIGNALS: &[(&str, i32)] = &[
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ABRT", libc::SIGABRT),
    ("KILL", libc::SIGKILL),
    ("SEGV", libc::SIGSEGV),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("USR1", libc::SIGUSR1),
    ("USR2", libc::SIGUSR2),
    ("CHLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("WINCH", libc::SIGWINCH),
];

/// The calls that docker's default profile refuses, or that kelp must keep out of reach, by number.
const CALLS: &[(&str, libc::c_long)] = &[
    ("acct", libc::SYS_acct),
    ("add_key", libc::SYS_add_key),
    ("bpf", libc::SYS_bpf),
    ("clock_settime", libc::SYS_clock_settime),
    ("create_module", 174),
    ("delete_module", libc::SYS_delete_module),
    ("fanotify_init", libc::SYS_fanotify_init),
    ("finit_module", libc::SYS_finit_module),
    ("fsconfig", libc::SYS_fsconfig),
    ("fsmount", libc::SYS_fsmount),
    ("fsopen", libc::SYS_fsopen),
    ("init_module", libc::SYS_init_module),
    ("io_uring_setup", libc::SYS_io_uring_setup),
    ("ioperm", libc::SYS_ioperm),
    ("iopl", libc::SYS_iopl),
    ("kcmp", libc::SYS_kcmp),
    ("kexec_load", libc::SYS_kexec_load),
    ("keyctl", libc::SYS_keyctl),
    ("lookup_dcookie", libc::SYS_lookup_dcookie),
    ("mbind", libc::SYS_mbind),
    ("mount", libc::SYS_mount),
    ("move_mount", libc::SYS_move_mount),
    ("move_pages", libc::SYS_move_pages),
    ("open_by_handle_at", libc::SYS_open_by_handle_at),
    ("open_tree", libc::SYS_open_tree),
    ("perf_event_open", libc::SYS_perf_event_open),
    ("pivot_root", libc::SYS_pivot_root),
    ("process_vm_readv", libc::SYS_process_vm_readv),
    ("quotactl", libc::SYS_quotactl),
    ("reboot", libc::SYS_reboot),
    ("request_key", libc::SYS_request_key),
    ("setns", libc::SYS_setns),
    ("settimeofday", libc::SYS_settimeofday),
    ("swapon", libc::SYS_swapon),
    ("sysfs", libc::SYS_sysfs),
    ("umount2", libc::SYS_umount2),
    ("unshare-user", libc::SYS_unshare),
    ("clone-user", libc::SYS_clone),
    ("clone3", libc::SYS_clone3),
    ("userfaultfd", libc::SYS_userfaultfd),
    ("ustat", libc::SYS_ustat),
    ("vhangup", libc::SYS_vhangup),
    ("getpid", libc::SYS_getpid),
];

/// One call with arguments that can do no harm: null pointers, bad descriptors, new-namespace flags alone.
pub(crate) fn call(name: &str) -> String {
    let Some((_, number)) = CALLS.iter().find(|(known, _)| *known == name) else { return "unknown".into() };
    let arguments: [libc::c_long; 5] = match name {
        "unshare-user" => [libc::CLONE_NEWUSER.into(), 0, 0, 0, 0],
        "clone-user" => [(libc::CLONE_NEWUSER | libc::SIGCHLD).into(), 0, 0, 0, 0],
        "open_tree" | "setns" | "fsconfig" | "fsmount" | "finit_module" => [-1, 0, 0, 0, 0],
        "keyctl" => [0, -3, 0, 0, 0],
        "sysfs" => [3, 0, 0, 0, 0],
        "fsopen" => [c"tmpfs".as_ptr() as libc::c_long, 0, 0, 0, 0],
        "kcmp" => [libc::c_long::from(std::process::id()), libc::c_long::from(std::process::id()), 0, 0, 0],
        "add_key" => [
            c"user".as_ptr() as libc::c_long,
            c"kelp".as_ptr() as libc::c_long,
            c"x".as_ptr() as libc::c_long,
            1,
            -3,
        ],
        "request_key" => [c"user".as_ptr() as libc::c_long, c"kelp".as_ptr() as libc::c_long, 0, -3, 0],
        _ => [0; 5],
    };
    let [a, b, c, d, e] = arguments;
    // SAFETY: the pointers among the arguments are null or static C strings, and no call here writes through them.
    let result = unsafe { libc::syscall(*number, a, b, c, d, e) };
    if name == "clone-user" && result == 0 {
        // SAFETY: this is the child of the clone above, which must end without running the parent's destructors.
        unsafe { libc::_exit(0) };
    }
    if result < 0 { errno_name(&io::Error::last_os_error()) } else { "ok".into() }
}

pub(crate) fn errno_name(error: &io::Error) -> String {
    let known = [
        (libc::EPERM, "EPERM"),
        (libc::ENOENT, "ENOENT"),
        (libc::EIO, "EIO"),
        (libc::ENXIO, "ENXIO"),
        (libc::EBADF, "EBADF"),
        (libc::EACCES, "EACCES"),
        (libc::EFAULT, "EFAULT"),
        (libc::EBUSY, "EBUSY"),
        (libc::EEXIST, "EEXIST"),
        (libc::ENODEV, "ENODEV"),
        (libc::ENOTDIR, "ENOTDIR"),
        (libc::EISDIR, "EISDIR"),
        (libc::EINVAL, "EINVAL"),
        (libc::ENOTTY, "ENOTTY"),
        (libc::ETXTBSY, "ETXTBSY"),
        (libc::EROFS, "EROFS"),
        (libc::ELOOP, "ELOOP"),
        (libc::ENOSYS, "ENOSYS"),
        (libc::ENOTEMPTY, "ENOTEMPTY"),
        (libc::ENOKEY, "ENOKEY"),
        (libc::ECONNREFUSED, "ECONNREFUSED"),
        (libc::ENETUNREACH, "ENETUNREACH"),
        (libc::EADDRINUSE, "EADDRINUSE"),
    ];
    let number = error.raw_os_error().unwrap_or(0);
    known
        .iter()
        .find(|(errno, _)| *errno == number)
        .map_or_else(|| format!("errno {number}"), |(_, name)| name.to_string())
}

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn c_string(text: &str) -> CString {
    CString::new(text.replace('\0', "")).unwrap_or_default()
}

pub(crate) fn uids() -> (u32, u32, u32) {
    let (mut real, mut effective, mut saved) = (0, 0, 0);
    // SAFETY: three valid places for three ids.
    unsafe { libc::getresuid(&mut real, &mut effective, &mut saved) };
    (real, effective, saved)
}

pub(crate) fn gids() -> (u32, u32, u32) {
    let (mut real, mut effective, mut saved) = (0, 0, 0);
    // SAFETY: three valid places for three ids.
    unsafe { libc::getresgid(&mut real, &mut effective, &mut saved) };
    (real, effective, saved)
}

pub(crate) fn groups() -> Vec<u32> {
    let mut list = vec![0; 65536];
    // SAFETY: the kernel writes at most as many groups as the given length.
    let count = unsafe { libc::getgroups(list.len() as libc::c_int, list.as_mut_ptr()) };
    list.truncate(usize::try_from(count).unwrap_or(0));
    list
}

pub(crate) fn capabilities() -> Capabilities {
    let header: [u32; 2] = [0x2008_0522, 0];
    let mut sets = [0u32; 6];
    // SAFETY: version 3 of capget(2) writes two triples of 32-bit sets, which `sets` holds.
    unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) };
    let both = |low: usize| u64::from(sets[low]) | (u64::from(sets[low + 3]) << 32);
    let bits = |ask: &dyn Fn(libc::c_ulong) -> libc::c_int| {
        (0..64).filter(|bit| ask(*bit) == 1).fold(0, |set, bit| set | (1 << bit))
    };
    Capabilities {
        effective: both(0),
        permitted: both(1),
        inheritable: both(2),
        // SAFETY: these two forms of prctl(2) take numbers only.
        bounding: bits(&|bit| unsafe { libc::prctl(libc::PR_CAPBSET_READ, bit, 0, 0, 0) }),
        // SAFETY: as above.
        ambient: bits(&|bit| unsafe {
            libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_IS_SET as libc::c_ulong, bit, 0, 0)
        }),
    }
}

pub(crate) fn no_new_privs() -> bool {
    // SAFETY: this form of prctl(2) takes numbers only.
    unsafe { libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1 }
}

pub(crate) fn dumpable() -> i32 {
    // SAFETY: this form of prctl(2) takes numbers only.
    unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) }
}

pub(crate) fn umask() -> u32 {
    // SAFETY: umask(2) can't fail; the old value is put back at once, and the guest has one thread.
    unsafe {
        let old = libc::umask(0);
        libc::umask(old);
        old
    }
}

pub(crate) fn uname() -> (String, String) {
    // SAFETY: utsname is plain bytes, for which zero is a valid value.
    let mut names: libc::utsname = unsafe { std::mem::zeroed() };
    // SAFETY: a valid place for the structure.
    unsafe { libc::uname(&mut names) };
    // SAFETY: the kernel ends each name with a zero byte within its array.
    let text =
        |name: &[libc::c_char]| unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
    (text(&names.nodename), text(&names.domainname))
}

pub(crate) fn process() -> (i32, i32, i32, i32) {
    // SAFETY: these calls take no pointers and can't fail for the calling process.
    unsafe { (libc::getpid(), libc::getppid(), libc::getsid(0), libc::getpgid(0)) }
}

pub(crate) fn limit(kind: libc::__rlimit_resource_t) -> (u64, u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a valid place for the structure.
    unsafe { libc::getrlimit(kind, &mut limit) };
    (limit.rlim_cur, limit.rlim_max)
}

/// Each network interface and whether it is up.
pub(crate) fn links() -> Vec<(String, bool)> {
    // SAFETY: the array ends with an entry of index 0, is read up to it, and is freed once.
    unsafe {
        let all = libc::if_nameindex();
        if all.is_null() {
            return Vec::new();
        }
        let mut links = Vec::new();
        let mut at = all;
        while (*at).if_index != 0 {
            links.push(CStr::from_ptr((*at).if_name).to_string_lossy().into_owned());
            at = at.add(1);
        }
        libc::if_freenameindex(all);
        links.into_iter().map(|name| (name.clone(), link_is_up(&name))).collect()
    }
}

fn link_is_up(name: &str) -> bool {
    // SAFETY: ifreq is plain bytes, for which zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: a plain datagram socket, closed below; SIOCGIFFLAGS reads and writes the ifreq that it is given.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        let answered = libc::ioctl(socket, libc::SIOCGIFFLAGS, &mut request);
        libc::close(socket);
        answered == 0 && libc::c_int::from(request.ifr_ifru.ifru_flags) & libc::IFF_UP != 0
    }
}

pub(crate) fn isatty(fd: i32) -> bool {
    // SAFETY: a number that need not be an open descriptor.
    unsafe { libc::isatty(fd) == 1 }
}

pub(crate) fn window(fd: i32) -> Option<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes the structure that it is given.
    let answered = unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &mut size) };
    (answered == 0).then_some((size.ws_row, size.ws_col))
}

pub(crate) fn tiocsti(fd: i32) -> io::Result<()> {
    let byte = b'\n';
    // SAFETY: TIOCSTI reads one byte.
    checked(unsafe { libc::ioctl(fd, libc::TIOCSTI, &byte) }).map(drop)
}

pub(crate) fn fchdir(fd: i32) -> io::Result<()> {
    // SAFETY: takes a number only.
    checked(unsafe { libc::fchdir(fd) }).map(drop)
}

/// `umount2(2)` with `MNT_DETACH`.
pub(crate) fn detach(path: &str) -> io::Result<()> {
    // SAFETY: a C string that outlives the call.
    checked(unsafe { libc::umount2(c_string(path).as_ptr(), libc::MNT_DETACH) }).map(drop)
}

/// `setns(2)` into a mount namespace: the caller's root becomes the top of that namespace.
pub(crate) fn enter_mounts(namespace: i32) -> io::Result<()> {
    // SAFETY: takes numbers only.
    checked(unsafe { libc::setns(namespace, libc::CLONE_NEWNS) }).map(drop)
}

pub(crate) fn mknod_block(path: &str, major: u32, minor: u32) -> io::Result<()> {
    // SAFETY: a C string that outlives the call.
    checked(unsafe {
        libc::mknod(c_string(path).as_ptr(), libc::S_IFBLK | 0o666, libc::makedev(major, minor))
    })
    .map(drop)
}

pub(crate) fn major(device: u64) -> u32 {
    libc::major(device)
}

pub(crate) fn minor(device: u64) -> u32 {
    libc::minor(device)
}

/// `statvfs(3)`: whether the mount that `path` lies on is read-only.
pub(crate) fn is_on_read_only_mount(path: &str) -> io::Result<bool> {
    let path = c_string(path);
    // SAFETY: an all-zero statvfs is valid: it holds numbers only.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the call fills one statvfs, which outlives it, and reads a NUL-terminated string.
    checked(unsafe { libc::statvfs(path.as_ptr(), &raw mut found) })?;
    Ok(found.f_flag & libc::ST_RDONLY != 0)
}

pub(crate) fn mount(source: &str, target: &str, kind: &str, options: &str) -> io::Result<()> {
    let flag = |word: &str| match word {
        "bind" => libc::MS_BIND,
        "remount" => libc::MS_REMOUNT,
        "ro" => libc::MS_RDONLY,
        _ => 0,
    };
    let flags = options.split(',').fold(0, |all, word| all | flag(word));
    let (source, target, kind) = (c_string(source), c_string(target), c_string(kind));
    // SAFETY: three C strings that outlive the call, and no data.
    checked(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) })
        .map(drop)
}

pub(crate) fn shm(key: i32, make: bool) -> io::Result<i32> {
    let flags = if make { libc::IPC_CREAT | 0o666 } else { 0 };
    // SAFETY: takes numbers only.
    checked(unsafe { libc::shmget(key, 4096, flags) })
}

pub(crate) fn clock(clock: libc::clockid_t) -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid place for the structure.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

static IGNORED: AtomicU64 = AtomicU64::new(0);

/// What was ignored when the program began: Rust's runtime ignores SIGPIPE before `main`.
extern "C" fn note_ignored() {
    for number in 1..=64 {
        // SAFETY: sigaction is plain numbers, for which zero is a valid value; the kernel writes the place given.
        let ignored = unsafe {
            let mut old: libc::sigaction = std::mem::zeroed();
            libc::sigaction(number, std::ptr::null(), &mut old) == 0 && old.sa_sigaction == libc::SIG_IGN
        };
        if ignored {
            IGNORED.fetch_or(1 << (number - 1), Ordering::Relaxed);
        }
    }
}

// SAFETY: the loader calls each function of this section once, before main, in the only thread.
#[used]
#[unsafe(link_section = ".init_array")]
static NOTE_IGNORED: extern "C" fn() = note_ignored;

/// The signals that this program inherited as ignored.
pub(crate) fn ignored_at_start() -> u64 {
    IGNORED.load(Ordering::Relaxed)
}

pub(crate) fn signal_number(word: &str) -> i32 {
    let name = word.trim_start_matches("SIG");
    word.parse()
        .unwrap_or_else(|_| SIGNALS.iter().find(|(known, _)| *known == name).map_or(0, |(_, number)| *number))
}

pub(crate) fn signal_name(number: i32) -> String {
    SIGNALS
        .iter()
        .find(|(_, known)| *known == number)
        .map_or_else(|| number.to_string(), |(name, _)| name.to_string())
}

pub(crate) fn raise(number: i32) {
    // SAFETY: both calls take numbers only; SIG_DFL is a valid disposition.
    unsafe {
        libc::signal(number, libc::SIG_DFL);
        libc::raise(number);
    }
}

static SEEN: AtomicI32 = AtomicI32::new(0);

extern "C" fn note(number: libc::c_int) {
    SEEN.store(number, Ordering::SeqCst);
}

/// Blocks the signals and gives them a handler; `next_signal` lets them through, so that none is lost between.
pub(crate) fn catch_signals(numbers: &[i32]) {
    // SAFETY: the handler only stores to an atomic; the set is initialised before it is read.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for number in numbers {
            libc::sigaddset(&mut set, *number);
            libc::signal(*number, note as *const () as libc::sighandler_t);
        }
        libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
    }
}

pub(crate) fn next_signal() -> i32 {
    SEEN.store(0, Ordering::SeqCst);
    while SEEN.load(Ordering::SeqCst) == 0 {
        // SAFETY: the set is initialised before the kernel reads it.
        unsafe {
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigsuspend(&none);
        }
    }
    SEEN.load(Ordering::SeqCst)
}

/// A grandchild whose parent has ended: it exits with the status, or sleeps for ever. Its pid.
pub(crate) fn spawn_orphan(exit: Option<i32>) -> i32 {
    let mut ends = [0; 2];
    // SAFETY: the guest has one thread; the children make plain system calls only and leave by _exit(2).
    unsafe {
        libc::pipe(ends.as_mut_ptr());
        let child = libc::fork();
        if child == 0 {
            let grandchild = libc::fork();
            if grandchild == 0 {
                libc::setsid();
                match exit {
                    Some(status) => libc::_exit(status),
                    None => loop {
                        libc::pause();
                    },
                }
            }
            libc::write(ends[1], (&raw const grandchild).cast(), size_of::<i32>());
            libc::_exit(0);
        }
        let mut pid: i32 = 0;
        libc::waitpid(child, std::ptr::null_mut(), 0);
        libc::read(ends[0], (&raw mut pid).cast(), size_of::<i32>());
        libc::close(ends[0]);
        libc::close(ends[1]);
        pid
    }
}

/// `posix_fadvise(2)`: nothing is read ahead.
pub(crate) fn expect_no_order(file: &std::fs::File) {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open, the rest are numbers.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM) };
}
