//! Masked and read-only paths. A folder is covered by an empty read-only tmpfs, a file by the host's checked
//! /dev/null; what does not exist needs no cover.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::Result;

use crate::launch::device;
use crate::launch::step::Site;
use crate::rootfs::target;
use crate::sys::mount::{
    Depth, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY, MountAttr, fsmount,
    mount_setattr, move_mount, open_tree,
};

const SEALED: u64 = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;

/// The covers, made once and copied.
#[derive(Debug, Default)]
pub struct Masks {
    null: Option<OwnedFd>,
    /// An empty folder that is mounted already: one that is not could be copied from Linux 6.15 on only.
    empty: Option<OwnedFd>,
}

/// Hides one path; a link is followed inside the root, so that what it leads to is hidden.
pub fn mask(site: &mut Site<'_>, path: &Path) -> Result<()> {
    let Some(place) = existing(site.root()?, path)? else { return Ok(()) };
    if target::is_directory(place.as_fd())? {
        let cover = match &site.masks.empty {
            Some(empty) => open_tree(empty.as_fd(), Depth::This)?,
            None => fsmount(c"tmpfs", &[], SEALED)?,
        };
        move_mount(cover.as_fd(), place.as_fd())?;
        site.masks.empty = Some(cover);
        return Ok(());
    }
    if site.masks.null.is_none() {
        site.masks.null = Some(device::host_node("null")?);
    }
    if let Some(null) = &site.masks.null {
        let cover = open_tree(null.as_fd(), Depth::This)?;
        move_mount(cover.as_fd(), place.as_fd())?;
    }
    Ok(())
}

/// Makes one path read-only by a bind of itself on itself. A set flag of an outer container stays: only
/// read-only is added, since clearing a locked flag is refused (`mount_namespaces(7)`).
pub fn read_only(site: &Site<'_>, path: &Path) -> Result<()> {
    let Some(place) = existing(site.root()?, path)? else { return Ok(()) };
    let tree = open_tree(place.as_fd(), Depth::Recursive)?;
    let attr = MountAttr { set: MOUNT_ATTR_RDONLY, ..MountAttr::default() };
    mount_setattr(tree.as_fd(), Depth::Recursive, attr)?;
    Ok(move_mount(tree.as_fd(), place.as_fd())?)
}

fn existing(root: BorrowedFd<'_>, path: &Path) -> io::Result<Option<OwnedFd>> {
    match target::open(root, path) {
        Ok(place) => Ok(Some(place)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::EACCES)) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
