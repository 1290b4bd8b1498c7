//! The checks of this room: a fresh /proc, device nodes, seccomp, and the calls that the steps are made of.
//! Each is tried in a throw-away namespace.

use std::fs;
use std::os::fd::AsFd;

use anyhow::{Context, Result};

use crate::check::Check;
use crate::launch::device;
use crate::rootfs::target;
use crate::spec::defaults;
use crate::sys::mount::{Depth, fsmount, mount_setattr, open_tree};
use crate::userns::maps::IdMaps;
use crate::userns::within;

/// All checks of this room.
pub fn checks(maps: &IdMaps) -> Vec<Check> {
    let namespaces = libc::CLONE_NEWNS | libc::CLONE_NEWPID;
    let fresh = trial(maps, namespaces, "private /proc", "fresh procfs", || {
        fsmount(c"proc", &[], 0).context("mount proc")?;
        Ok("a fresh procfs was mounted".to_owned())
    });
    let bound = Check::works("private /proc", "the existing one", "masked; it shows the processes outside");
    let sandbox = trial(
        maps,
        libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS,
        "sandbox",
        "namespaces",
        || Ok("network, IPC and UTS namespaces were made".to_owned()),
    );
    let calls = trial(maps, libc::CLONE_NEWNS, "sandbox", "mounts by descriptor", || {
        let root = fs::File::open("/")?;
        target::open(root.as_fd(), std::path::Path::new("/")).context("openat2 (Linux 5.6)")?;
        let dev =
            open_tree(device::host_node("null")?.as_fd(), Depth::This).context("open_tree (Linux 5.2)")?;
        mount_setattr(dev.as_fd(), Depth::This, crate::sys::mount::MountAttr::default())
            .context("mount_setattr (Linux 5.12)")?;
        Ok("openat2, open_tree and mount_setattr work".to_owned())
    });
    vec![fresh, bound, sandbox, calls, nodes(), seccomp()]
}

fn trial(
    maps: &IdMaps,
    namespaces: i32,
    facility: &'static str,
    rung: &'static str,
    work: impl FnOnce() -> Result<String>,
) -> Check {
    match within::ask(maps, namespaces as u64, work) {
        Ok(Ok(reason)) => Check::works(facility, rung, reason),
        Ok(Err(reason)) => Check::refused(facility, rung, reason),
        Err(error) => Check::from_error(facility, rung, &error),
    }
}

fn nodes() -> Check {
    let missing: Vec<&str> =
        defaults::NODES.into_iter().filter(|node| device::host_node(node).is_err()).collect();
    if missing.is_empty() {
        return Check::works("device nodes", "bound from the host", "all are what their names say");
    }
    Check::refused(
        "device nodes",
        "bound from the host",
        format!("missing or odd in /dev: {}", missing.join(" ")),
    )
}

fn seccomp() -> Check {
    match fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail") {
        Ok(actions) => Check::works("seccomp", "filter", format!("the kernel offers {}", actions.trim())),
        Err(_) => Check::refused("seccomp", "filter", "the kernel is built without filters").mend(
            "a kernel with CONFIG_SECCOMP_FILTER=y is needed; --security-opt seccomp=unconfined goes without",
        ),
    }
}
