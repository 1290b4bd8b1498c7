//! The root step: makes the root on the rung that the plan names and attaches it, so that later steps can
//! mount inside it. A rung that the kernel refuses is told apart from other failures: the parent then tries
//! the next one.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::error::Error;
use crate::launch::plan::{RootSource, RootStep};
use crate::rootfs::host::Piece;
use crate::rootfs::rung::Rung;
use crate::rootfs::{overlay, target, tree};
use crate::sys::mount::{Depth, MOUNT_ATTR_RDONLY, MountAttr, mount_setattr, move_mount, open_tree};

/// Marks an error of a rung that was refused.
#[derive(Debug)]
pub struct Refused;

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the rung is refused")
    }
}

impl std::error::Error for Refused {}

/// Makes and attaches the root; gives its descriptor.
pub fn make(step: &RootStep) -> Result<OwnedFd> {
    stand_in(step)?;
    match (&step.source, step.rung) {
        (RootSource::Directory(path), Rung::Through) => {
            attach(open_tree(folder(path)?.as_fd(), Depth::Recursive)?)
        }
        (RootSource::Directory(path), Rung::KernelOverlay) => {
            folder(path)?;
            attach(layered(path, "upper", "work", step)?)
        }
        (RootSource::Directory(path), Rung::Copy) => {
            fs::create_dir("copy").context("make the folder of the copy")?;
            tree::copy(path, Path::new("copy")).with_context(|| format!("copy {}", path.display()))?;
            attach(open_tree(folder(Path::new("copy"))?.as_fd(), Depth::This)?)
        }
        (RootSource::Host(pieces), _) => host(step, pieces),
    }
}

fn stand_in(step: &RootStep) -> Result<()> {
    nix::unistd::chdir(&step.folder)
        .with_context(|| format!("enter the container's folder {}", step.folder.display()))
}

fn folder(path: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::open(path, flags, Mode::empty()).map_err(|errno| {
        let sentence = match errno {
            nix::errno::Errno::ENOENT => format!("there is no folder {}", path.display()),
            nix::errno::Errno::ENOTDIR => format!("{} is not a folder", path.display()),
            other => format!("cannot open {}: {}", path.display(), other.desc()),
        };
        Error::usage(sentence).into()
    })
}

fn layered(lower: &Path, upper: &str, work: &str, step: &RootStep) -> Result<OwnedFd> {
    for name in [upper, work] {
        fs::create_dir(name).with_context(|| format!("make {name} in the container's folder"))?;
    }
    if let Ok(found) = lower.metadata() {
        let _ = fs::set_permissions(upper, fs::Permissions::from_mode(found.permissions().mode() & 0o7777));
    }
    overlay::mount(&[lower], upper, work, step.persistence)
        .with_context(|| format!("mount kernel overlay over {}", lower.display()))
        .context(Refused)
}

/// The root is put on top of `/`: a place that always exists and that nobody sees before the pivot.
fn attach(root: OwnedFd) -> Result<OwnedFd> {
    let place = nix::fcntl::open("/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    move_mount(root.as_fd(), place.as_fd()).context("attach the root")?;
    Ok(root)
}

fn host(step: &RootStep, pieces: &[Piece]) -> Result<OwnedFd> {
    for name in ["root", "upper", "work"] {
        fs::create_dir(name).with_context(|| format!("make {name} in the container's folder"))?;
    }
    fs::set_permissions("root", fs::Permissions::from_mode(0o755))?;
    let root = attach(open_tree(folder(Path::new("root"))?.as_fd(), Depth::This)?)?;
    for (number, piece) in pieces.iter().enumerate() {
        make_piece(step, root.as_fd(), number, piece).with_context(|| format!("make {}", shown(piece)))?;
    }
    Ok(root)
}

fn shown(piece: &Piece) -> String {
    match piece {
        Piece::Directory { path, .. } | Piece::Overlay(path) | Piece::Link { path, .. } => {
            path.display().to_string()
        }
    }
}

/// The folder `root` is ours alone until the pivot, so paths in it are safe to walk.
fn make_piece(step: &RootStep, root: BorrowedFd<'_>, number: usize, piece: &Piece) -> Result<()> {
    let inside = |path: &Path| PathBuf::from("root").join(path.strip_prefix("/").unwrap_or(path));
    match piece {
        Piece::Directory { path, mode } => {
            fs::create_dir(inside(path))?;
            fs::set_permissions(inside(path), fs::Permissions::from_mode(*mode))?;
        }
        Piece::Link { path, to } => std::os::unix::fs::symlink(to, inside(path))?,
        Piece::Overlay(path) => {
            fs::create_dir(inside(path))?;
            let (upper, work) = (format!("upper/{number}"), format!("work/{number}"));
            let mount = layered(path, &upper, &work, step)?;
            move_mount(mount.as_fd(), target::open_unlinked(root, path)?.as_fd())?;
        }
    }
    Ok(())
}

/// `--read-only`: the root's own mounts, not those that lie on it, once every mount point is made.
pub fn read_only(root: BorrowedFd<'_>, overlays: &[PathBuf]) -> io::Result<()> {
    let attr = MountAttr { set: MOUNT_ATTR_RDONLY, ..MountAttr::default() };
    for overlay in overlays {
        mount_setattr(target::open_unlinked(root, overlay)?.as_fd(), Depth::This, attr)?;
    }
    mount_setattr(root, Depth::This, attr)
}
