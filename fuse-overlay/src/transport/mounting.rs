//! Opening the device and mounting it. The device must be opened by a process of the same user namespace as the mount
//! (`fuse_fill_super`), so it is opened after `unshare(2)`; root of that namespace may then say `allow_other`, which
//! reaches that namespace and those below it, never other users of the host.

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Result;
use rustix::mount::{MountFlags, UnmountFlags};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

pub const DEVICE: &str = "/dev/fuse";

pub fn open_device() -> Result<OwnedFd> {
    openat(CWD, DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
}

/// The options for `mount(2)`, or one by one for `fsconfig(2)`.
pub fn mount_options(device: &OwnedFd) -> String {
    let fd = device.as_raw_fd();
    // A user namespace need not have an id 0, and the kernel takes only ids that it has.
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    format!("fd={fd},rootmode=40000,user_id={uid},group_id={gid},allow_other,default_permissions")
}

/// Mounts the device on `target`.
pub fn mount(device: &OwnedFd, target: &Path, flags: MountFlags) -> Result<()> {
    let options = std::ffi::CString::new(mount_options(device)).map_err(|_| rustix::io::Errno::INVAL)?;
    rustix::mount::mount("fuse-overlay", target, "fuse.fuse-overlay", flags, options.as_c_str())
}

pub fn unmount(target: &Path) -> Result<()> {
    rustix::mount::unmount(target, UnmountFlags::DETACH)
}
