//! Rung T0: kernel overlay with `userxattr`, mounted by a root of a user namespace (Linux 5.11). The caller
//! stands in the folder that holds the upper and work directories, so that their names stay short whatever
//! the store is called: an option of `fsconfig(2)` has at most 255 bytes.

use serde::{Deserialize, Serialize};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::rootfs::target;
use crate::sys::mount::{FsOption, MOUNT_ATTR_RDONLY, fsmount};

/// Whether the upper layer must be on disk when the mount ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Persistence {
    Kept,
    /// `volatile`: no sync at all (Linux 5.10); the layer is thrown away.
    Volatile,
}

const LONGEST_OPTION: usize = 255;

/// A detached overlay mount over `lowers`, the topmost first, with `upper` and `work` relative to the
/// caller's folder.
pub fn mount(lowers: &[&Path], upper: &str, work: &str, persistence: Persistence) -> io::Result<OwnedFd> {
    let mut held = Vec::new();
    let mut options = options(lowers, &mut held)?;
    if persistence == Persistence::Volatile {
        options.push(FsOption::Flag(CString::from(c"volatile")));
    }
    options.push(text("upperdir", upper.as_bytes())?);
    options.push(text("workdir", work.as_bytes())?);
    fsmount(c"overlay", &options, 0)
}

/// A detached overlay mount over at least two `lowers`, the topmost first, that nobody can write.
pub fn read_only(lowers: &[&Path]) -> io::Result<OwnedFd> {
    let mut held = Vec::new();
    fsmount(c"overlay", &options(lowers, &mut held)?, MOUNT_ATTR_RDONLY)
}

fn text(key: &str, value: &[u8]) -> io::Result<FsOption> {
    let invalid = |_| io::Error::from_raw_os_error(libc::EINVAL);
    Ok(FsOption::Text(CString::new(key).map_err(invalid)?, CString::new(value).map_err(invalid)?))
}

fn options(lowers: &[&Path], held: &mut Vec<OwnedFd>) -> io::Result<Vec<FsOption>> {
    let mut options = vec![FsOption::Flag(CString::from(c"userxattr"))];
    for lower in lowers {
        let name = lower_name(lower, held)?;
        let (key, value) = match lowers.len() {
            1 => ("lowerdir", escaped(&name)),
            _ => ("lowerdir+", name),
        };
        options.push(text(key, &value)?);
    }
    Ok(options)
}

fn lower_name(lower: &Path, held: &mut Vec<OwnedFd>) -> io::Result<Vec<u8>> {
    let name = lower.as_os_str().as_bytes();
    if escaped(name).len() <= LONGEST_OPTION {
        return Ok(name.to_vec());
    }
    let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC;
    let open = nix::fcntl::open(lower, flags, nix::sys::stat::Mode::empty())?;
    let name = target::path_of(open.as_fd());
    held.push(open);
    Ok(name.into_os_string().into_encoded_bytes())
}

/// `:` separates lowers in the option, `\` escapes it (kernel documentation, overlayfs.rst).
fn escaped(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    for byte in name {
        if matches!(byte, b':' | b'\\') {
            out.push(b'\\');
        }
        out.push(*byte);
    }
    out
}
