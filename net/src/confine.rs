//! What a process of the engine gives up once its descriptors are open: the file system, every capability that it does
//! not need, new privileges, being dumped or traced, and every system call that is not on its list.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use crate::sys::process;

/// Which process is confined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Engine,
    Broker,
}

/// Gives everything up that `role` does not need. The caller must have one thread. Where the host does not allow an empty root, the rest still holds: no system call that takes a path is
/// left but `openat`, which the engine needs for resolv.conf.
/// What is weaker than it should be is the answer: nothing, or one sentence.
pub fn confine(role: Role) -> Result<Option<String>> {
    process::forbid_core_files().context("cannot forbid core files")?;
    let weaker = empty_root(role).err().map(|error| format!("the file system is not hidden: {error:#}"));
    process::forbid_new_privileges().context("cannot forbid new privileges")?;
    let capabilities = match role {
        Role::Engine => 0,
        Role::Broker => process::CAP_NET_ADMIN | process::CAP_NET_RAW,
    };
    process::keep_capabilities(capabilities).context("cannot drop capabilities")?;
    process::forbid_dumping().context("cannot forbid dumping")?;
    let filter = filter(role).context("cannot compile the system call filter")?;
    seccompiler::apply_filter(&filter).context("cannot set the system call filter")?;
    Ok(weaker)
}

/// An empty, read-only root. The engine takes a user namespace of its own for it; the broker must stay in the container's,
/// whose capabilities it needs.
fn empty_root(role: Role) -> Result<()> {
    let spaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    match role {
        Role::Engine => unshare(spaces | CloneFlags::CLONE_NEWUSER).or_else(|_| unshare(spaces))?,
        Role::Broker => unshare(spaces)?,
    }
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
    mount(Some("tmpfs"), "/proc", Some("tmpfs"), flags, Some("size=4k,nr_inodes=2,mode=555"))?;
    nix::unistd::chdir("/proc")?;
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    nix::unistd::chdir("/")?;
    Ok(())
}

/// What both roles call: memory, time, ending, and messages on descriptors that are open.
const BOTH: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_close,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_setsockopt,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_restart_syscall,
];

const ENGINE: &[libc::c_long] = &[
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_clock_gettime,
    libc::SYS_connect,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_getrandom,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_lseek,
    libc::SYS_openat,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_sched_yield,
    libc::SYS_splice,
    libc::SYS_writev,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
];

/// The allow-list as a program. `socket` is allowed for internet families only; memory may not become executable.
fn filter(role: Role) -> Result<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in BOTH.iter().chain(if role == Role::Engine { ENGINE } else { &[] }) {
        rules.insert(*call, Vec::new());
    }
    let executable = i32::from_ne_bytes(libc::PROT_EXEC.to_ne_bytes()) as u64;
    let not_executable =
        SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(executable), 0)?;
    rules.insert(libc::SYS_mmap, vec![SeccompRule::new(vec![not_executable.clone()])?]);
    rules.insert(libc::SYS_mprotect, vec![SeccompRule::new(vec![not_executable])?]);
    let family = |family: i32| -> Result<SeccompRule> {
        let is = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, family as u64)?;
        Ok(SeccompRule::new(vec![is])?)
    };
    rules.insert(libc::SYS_socket, vec![family(libc::AF_INET)?, family(libc::AF_INET6)?]);
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    let filter =
        SeccompFilter::new(rules, refused, SeccompAction::Allow, std::env::consts::ARCH.try_into()?)?;
    Ok(filter.try_into()?)
}
