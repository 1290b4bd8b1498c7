//! Rung T1: kernel overlay over one read-only mount of ours, which shows the layers with the owners that the container
//! is to see. What the container changes is written by the kernel, under real ids. Overlay keeps a mount of its own of
//! what lies below it, so ours is put somewhere for that moment only and is seen by nobody (docs/decisions/0108).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::mount::{MntFlags, umount2};

use crate::rootfs::overlay::{self, Persistence};
use crate::rootfs::target;
use crate::sys::mount::cover_root;

/// A detached overlay mount over `below`, which somebody serves, with `upper` and `work` in the caller's folder.
pub fn mount(below: &OwnedFd, persistence: Persistence) -> io::Result<OwnedFd> {
    attached(below, |below| overlay::mount(&[below], "upper", "work", persistence))
}

/// The same with nothing to write; `upper` is a layer like others then.
pub fn read_only(below: &OwnedFd, upper: &Path) -> io::Result<OwnedFd> {
    attached(below, |below| overlay::read_only(&[upper, below]))
}

/// Older kernels take no detached mount as a layer (`clone_private_mount()` before Linux 6.15).
fn attached(below: &OwnedFd, work: impl FnOnce(&Path) -> io::Result<OwnedFd>) -> io::Result<OwnedFd> {
    cover_root(below.as_fd())?;
    let below = target::path_of(below.as_fd());
    let made = work(&below);
    umount2(&below, MntFlags::MNT_DETACH)?;
    made
}
