//! Rung T0: kernel overlay with `userxattr`, mounted by a root of a user namespace (Linux 5.11). The options of the
//! mount are read by everybody inside, so they name no path of the host: the caller stands in the folder that holds
//! the upper and work directories, and the lowers are named by descriptors. That also keeps each option below the
//! 255 bytes of `fsconfig(2)`, and needs no escapes.

use serde::{Deserialize, Serialize};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::rootfs::target;
use crate::sys::mount::{FsOption, MOUNT_ATTR_RDONLY, fsmount};

/// Whether the upper layer must be on disk when the mount ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Persistence {
    Kept,
    /// `volatile`: no sync at all (Linux 5.10); the layer is thrown away.
    Volatile,
}

/// A detached overlay mount over `lowers`, the topmost first, with `upper` and `work` relative to the
/// caller's folder.
pub fn mount(lowers: &[&Path], upper: &str, work: &str, persistence: Persistence) -> io::Result<OwnedFd> {
    let held = open(lowers)?;
    let mut options = options(&held)?;
    if persistence == Persistence::Volatile {
        options.push(FsOption::Flag(CString::from(c"volatile")));
    }
    options.push(text("upperdir", upper.as_bytes())?);
    options.push(text("workdir", work.as_bytes())?);
    fsmount(c"overlay", &options, 0)
}

/// A detached overlay mount over at least two `lowers`, the topmost first, that nobody can write.
pub fn read_only(lowers: &[&Path]) -> io::Result<OwnedFd> {
    let held = open(lowers)?;
    fsmount(c"overlay", &options(&held)?, MOUNT_ATTR_RDONLY)
}

fn text(key: &str, value: &[u8]) -> io::Result<FsOption> {
    let invalid = |_| io::Error::from_raw_os_error(libc::EINVAL);
    Ok(FsOption::Text(CString::new(key).map_err(invalid)?, CString::new(value).map_err(invalid)?))
}

fn open(lowers: &[&Path]) -> io::Result<Vec<OwnedFd>> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let open = |lower: &&Path| Ok(nix::fcntl::open(*lower, flags, Mode::empty())?);
    lowers.iter().map(open).collect()
}

fn options(lowers: &[OwnedFd]) -> io::Result<Vec<FsOption>> {
    let mut options = vec![FsOption::Flag(CString::from(c"userxattr"))];
    let key = if lowers.len() == 1 { "lowerdir" } else { "lowerdir+" };
    for lower in lowers {
        options.push(text(key, target::path_of(lower.as_fd()).as_os_str().as_bytes())?);
    }
    Ok(options)
}
