//! The defaults that docker gives every container: mounts, masked and read-only paths, environment, nodes.
//! Tables only; sources are docker's documentation and the OCI runtime specification.

use std::path::PathBuf;

use crate::spec::mount::{Mount, MountFlags, MountKind, Propagation};
use crate::units::Bytes;

/// `PATH` where neither the image nor the user sets one.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Host nodes bound into /dev (OCI runtime specification, "Default Devices").
pub const NODES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Links made in /dev (OCI runtime specification, "Dev symbolic links").
pub const DEV_LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];

/// Hidden from the container.
pub const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Readable, not writable.
pub const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Settings of the IPC namespace under kernel. (`ipc_namespaces(7)`).
pub const IPC_SYSCTLS: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shm_rmid_forced",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
];

/// Docker's `--shm-size` default.
const SHM: Bytes = Bytes(64 << 20);

/// The container's own control group, for programs that look for their limits there (the JVM, Go, Node).
pub fn add_cgroup(mounts: &mut Vec<Mount>) {
    let target = PathBuf::from("/sys/fs/cgroup");
    let asked = mounts.iter().any(|mount| mount.target == target);
    let sysfs = mounts.iter().position(|mount| mount.kind == MountKind::Sysfs);
    if let (false, Some(at)) = (asked, sysfs) {
        let flags =
            MountFlags { read_only: true, nosuid: true, nodev: true, noexec: true, ..MountFlags::default() };
        mounts.insert(at + 1, Mount { kind: MountKind::Cgroup, target, flags });
    }
}

/// The mounts that every container has, before the user's. With the host's IPC namespace, its /dev/shm and
/// /dev/mqueue are bound where they exist.
pub fn mounts(shm_size: Option<Bytes>, host_ipc: Option<&[PathBuf]>) -> Vec<Mount> {
    let flags = |read_only, nodev, noexec| MountFlags {
        read_only,
        nosuid: true,
        nodev,
        noexec,
        ..MountFlags::default()
    };
    let mount = |kind, target: &str, flags| Mount { kind, target: PathBuf::from(target), flags };
    let shm = MountKind::Tmpfs { size: Some(shm_size.unwrap_or(SHM)), mode: Some(0o1777) };
    let mut mounts = vec![
        mount(MountKind::Proc, "/proc", flags(false, true, true)),
        mount(MountKind::Dev, "/dev", flags(false, false, true)),
        mount(MountKind::Devpts, "/dev/pts", flags(false, false, true)),
        mount(shm, "/dev/shm", flags(false, true, true)),
        mount(MountKind::Mqueue, "/dev/mqueue", flags(false, true, true)),
        mount(MountKind::Sysfs, "/sys", flags(true, true, true)),
    ];
    if let Some(shared) = host_ipc {
        let of_ipc = |mount: &Mount| ["/dev/shm", "/dev/mqueue"].map(PathBuf::from).contains(&mount.target);
        mounts.retain(|mount| !of_ipc(mount) || shared.contains(&mount.target));
        for mount in mounts.iter_mut().filter(|mount| of_ipc(mount)) {
            let source = mount.target.clone();
            mount.kind = MountKind::Bind { source, recursive: true, propagation: Propagation::Private };
        }
    }
    mounts
}
