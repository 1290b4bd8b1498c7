//! The checks of this room: each rung of the root file system, tried by mounting it in a throw-away namespace
//! over a folder of the store, since what is allowed depends on the store's own file system.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{Context, Result};

use crate::check::{Check, State};
use crate::paths::Paths;
use crate::rootfs::overlay::{self, Persistence};
use crate::rootfs::view::{Own, View};
use crate::rootfs::{rung, tree};
use crate::sys::mount::{FsOption, fsmount};
use crate::userns::maps::IdMaps;
use crate::userns::numbers::Numbers;
use crate::userns::within;

const ROOT: &str = "root file system";
const STORE_MEND: &str = "Linux 5.11 with a store on ext4, xfs, btrfs or tmpfs is needed: set KELP_ROOT to a \
     folder on such a disk";

const MODULE_MEND: &str =
    "this kernel has no overlay, or its module is barred: an administrator can run: modprobe overlay";

const STACKED_MEND: &str = "this kernel takes no mount of FUSE as a layer; T2 does what T1 would";

/// All checks of this room, best rung first; T1 is behind T2, since it is for other owners and on request only.
pub fn checks(paths: &Paths, maps: &IdMaps) -> Vec<Check> {
    let folder = paths.store.join(format!(".trial-{}", std::process::id()));
    let kernel = check(maps, "T0 kernel overlay", || mount_overlay(&folder));
    let _ = tree::remove(&folder);
    let kernel = match kernel.state {
        State::Refused => kernel.mend(if knows_overlay() { STORE_MEND } else { MODULE_MEND }),
        _ => {
            rung::allow(paths);
            kernel
        }
    };
    let fuse = fuse(maps);
    let stacked = check(maps, "T1 kernel overlay on FUSE", || mount_stacked(&folder));
    let _ = tree::remove(&folder);
    let stacked = match stacked.state {
        State::Refused => {
            let below = kernel.mend.as_ref().or(fuse.mend.as_ref());
            let mend = below.map_or_else(|| STACKED_MEND.to_owned(), Clone::clone);
            stacked.mend(mend)
        }
        _ => stacked,
    };
    vec![
        kernel,
        fuse,
        stacked,
        Check::works(ROOT, "T3 copy", "the root is copied, with reflinks where there are any"),
    ]
}

/// Whether the kernel has it now: a trial loads the module where it may.
fn knows_overlay() -> bool {
    let list = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    list.split_whitespace().any(|name| name == "overlay")
}

fn check(maps: &IdMaps, rung: &'static str, trial: impl FnOnce() -> Result<String>) -> Check {
    match within::ask(maps, libc::CLONE_NEWNS as u64, trial) {
        Ok(Ok(reason)) => Check::works(ROOT, rung, reason),
        Ok(Err(reason)) => Check::refused(ROOT, rung, reason),
        Err(error) => Check::from_error(ROOT, rung, &error),
    }
}

fn mount_overlay(folder: &Path) -> Result<String> {
    fs::create_dir_all(folder.join("lower")).context("make a folder in the store")?;
    nix::unistd::chdir(folder)?;
    fs::create_dir("upper")?;
    fs::create_dir("work")?;
    overlay::mount(&[&folder.join("lower")], "upper", "work", Persistence::Volatile)
        .with_context(|| format!("mount kernel overlay over {}", folder.display()))?;
    Ok(format!("an overlay with userxattr was mounted over {}", folder.display()))
}

/// Kernel overlay over a mount of ours, which this process serves meanwhile.
fn mount_stacked(folder: &Path) -> Result<String> {
    let lower = folder.join("lower");
    fs::create_dir_all(&lower).context("make a folder in the store")?;
    View::stacked(&[lower], &Numbers::default(), Own::Write(folder))?;
    Ok(format!(
        "an overlay over a mount of FUSE was mounted over {}, for images under other id maps",
        folder.display()
    ))
}

/// The device of the full user-space overlay: opened, and mounted with nobody serving it.
fn fuse(maps: &IdMaps) -> Check {
    let rung = "T2 FUSE overlay";
    match fs::symlink_metadata("/dev/fuse") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Check::refused(ROOT, rung, "/dev/fuse does not exist")
                .mend("an administrator can run: modprobe fuse; a container needs --device /dev/fuse");
        }
        _ => {}
    }
    let check = check(maps, rung, || {
        let device =
            fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").context("open /dev/fuse")?;
        let text = |key: &std::ffi::CStr, value: String| -> Result<FsOption> {
            Ok(FsOption::Text(key.to_owned(), std::ffi::CString::new(value)?))
        };
        let options = [
            text(c"fd", device.as_raw_fd().to_string())?,
            text(c"rootmode", "40000".to_owned())?,
            text(c"user_id", "0".to_owned())?,
            text(c"group_id", "0".to_owned())?,
        ];
        fsmount(c"fuse", &options, 0).context("mount fuse")?;
        Ok("/dev/fuse was opened and mounted".to_owned())
    });
    match check.state {
        State::Refused if check.mend.is_none() => check.mend("an administrator can run: chmod 666 /dev/fuse"),
        _ => check,
    }
}
