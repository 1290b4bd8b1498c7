//! The container's own numbers: a file system of kelp's is mounted for a moment, served by the parent, and its files are
//! bound over those of /proc and /sys. Where there is no /dev/fuse, the container sees the machine's.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use anyhow::{Context, Result};
use nix::dir::Dir;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::Mode;
use nix::sys::statfs::{FsType, PROC_SUPER_MAGIC, SYSFS_MAGIC};

use crate::launch::message::{self, ToParent};
use crate::launch::step::Site;
use crate::rootfs::fuse::{self, Access};
use crate::rootfs::target;
use crate::sys::mount::{Depth, move_mount, open_tree};
use crate::sys::path::{RESOLVE_NO_SYMLINKS, openat2};
use crate::view::render::FILES;

/// Where the file system stands while its files are taken: a mount that is in no tree can't be copied from.
const PLACE: &str = "/dev/pts";

pub fn bind(site: &Site<'_>) -> Result<()> {
    let (device, mount) = match fuse::mount(Access::Reads) {
        Ok(made) => made,
        Err(error) => {
            site.warn(format!("the container sees the machine's memory and processors: {error:#}"));
            return Ok(());
        }
    };
    message::send(site.socket, &ToParent::View, Some(device.as_fd()))?;
    drop(device);
    learn_names(mount.as_fd())?;
    let place = target::open_unlinked(site.root()?, Path::new(PLACE))?;
    move_mount(mount.as_fd(), place.as_fd())?;
    let bound = FILES.iter().try_for_each(|file| {
        one(site, mount.as_fd(), file.name, file.target).with_context(|| format!("cover {}", file.target))
    });
    umount2(&target::path_of(mount.as_fd()), MntFlags::MNT_DETACH)?;
    bound
}

/// The kernel asks for all files at once when the folder is listed, and for none of them again.
fn learn_names(mount: BorrowedFd<'_>) -> Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut folder = Dir::openat(mount, ".", flags, Mode::empty()).context("open the view")?;
    folder.iter().next().transpose().context("list the view")?;
    Ok(())
}

/// A file that the kernel lacks needs no cover.
fn one(site: &Site<'_>, mount: BorrowedFd<'_>, name: &str, at: &str) -> Result<()> {
    let magic: FsType = if at.starts_with("/proc") { PROC_SUPER_MAGIC } else { SYSFS_MAGIC };
    let place = match target::open_file_of(site.root()?, Path::new(at), magic) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let file = openat2(mount, &CString::new(name)?, libc::O_PATH, 0, RESOLVE_NO_SYMLINKS)?;
    Ok(move_mount(open_tree(file.as_fd(), Depth::This)?.as_fd(), place.as_fd())?)
}
