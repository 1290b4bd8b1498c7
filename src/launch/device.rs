//! Device nodes and the terminal. Nodes are bound from the host after it is checked that they are what their
//! name says: a root that ships other things in /dev can't have them opened (CVE-2025-31133).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag, fstat, major, minor};

use crate::error::Error;
use crate::launch::message::{self, ToParent};
use crate::launch::step::Site;
use crate::rootfs::target::{self, Want};
use crate::spec::Device;
use crate::sys::mount::{Depth, MOUNT_ATTR_RDONLY, MountAttr, mount_setattr, move_mount, open_tree};
use crate::sys::path::{RESOLVE_NO_SYMLINKS, openat2};
use crate::sys::terminal;

/// Numbers of the nodes that every container has (`Documentation/admin-guide/devices.txt`).
const NUMBERS: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Opens a node of the host's /dev and checks its numbers.
pub fn host_node(name: &str) -> io::Result<OwnedFd> {
    let path = Path::new("/dev").join(name);
    let node = nix::fcntl::open(&path, OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, Mode::empty())?;
    let found = fstat(&node)?;
    let is_node = SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFCHR;
    let wanted = NUMBERS.iter().find(|(known, ..)| *known == name);
    match wanted {
        Some((_, high, low)) if is_node && (major(found.st_rdev), minor(found.st_rdev)) == (*high, *low) => {
            Ok(node)
        }
        _ => Err(io::Error::other(format!("{} of the host is not that device", path.display()))),
    }
}

/// Binds one of the default nodes into the open folder `dev`, which is a tmpfs of ours.
pub fn node(dev: BorrowedFd<'_>, name: &str) -> Result<()> {
    let tree = open_tree(host_node(name)?.as_fd(), Depth::This)?;
    Ok(move_mount(tree.as_fd(), empty_file(dev, name)?.as_fd())?)
}

fn empty_file(folder: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    let name = CString::new(name)?;
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDONLY | libc::O_NOFOLLOW;
    openat2(folder, &name, flags, 0o666, RESOLVE_NO_SYMLINKS)
}

/// `--device`: a node of the host that the caller may use.
pub fn bind(root: BorrowedFd<'_>, device: &Device) -> Result<()> {
    let shown = device.host.display();
    let node = nix::fcntl::open(&device.host, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|errno| Error::usage(format!("cannot open device {shown}: {}", errno.desc())))?;
    let kind = SFlag::from_bits_truncate(fstat(&node)?.st_mode & SFlag::S_IFMT.bits());
    if kind != SFlag::S_IFCHR && kind != SFlag::S_IFBLK {
        return Err(Error::usage(format!("{shown} is not a device node")).hint("use -v for files").into());
    }
    let tree = open_tree(node.as_fd(), Depth::This)?;
    if device.read_only {
        let attr = MountAttr { set: MOUNT_ATTR_RDONLY, ..MountAttr::default() };
        mount_setattr(tree.as_fd(), Depth::This, attr)?;
    }
    let place = target::ensure(root, &device.container, Want::File)?;
    Ok(move_mount(tree.as_fd(), place.as_fd())?)
}

/// Opens a terminal of the container's own devpts, sends its master to the parent, and binds its slave on
/// /dev/console. The slave is opened through the master, not by a path (CVE-2025-52565).
pub fn console(site: &mut Site<'_>) -> Result<()> {
    let ptmx = target::open_unlinked_file(site.root()?, Path::new("/dev/pts/ptmx"))?;
    let master = nix::fcntl::open(
        &target::path_of(ptmx.as_fd()),
        OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .context("open /dev/pts/ptmx")?;
    let slave = terminal::peer(master.as_fd())?;
    let place = {
        let dev = target::open_unlinked(site.root()?, Path::new("/dev"))?;
        empty_file(dev.as_fd(), "console")?
    };
    let tree = open_tree(slave.as_fd(), Depth::This)?;
    move_mount(tree.as_fd(), place.as_fd())?;
    message::send(site.socket, &ToParent::Console, Some(master.as_fd()))?;
    site.console = Some(slave);
    Ok(())
}
