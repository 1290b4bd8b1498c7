//! The root step: makes the root on the rung that the plan names and attaches it, so that later steps can
//! mount inside it. A rung that the kernel refuses is told apart from other failures: the parent then tries
//! the next one.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::error::Error;
use crate::launch::message::{self, ToChild, ToParent};
use crate::launch::plan::{RootSource, RootStep, Upper};
use crate::rootfs::host::Piece;
use crate::rootfs::rung::Rung;
use crate::rootfs::{fuse, host, overlay, stacked, target, tree};
use crate::sys::mount::{
    Depth, MOUNT_ATTR_RDONLY, MountAttr, cover_root, fsmount, mount_setattr, move_mount, open_tree,
};

/// Marks an error of a rung that was refused.
#[derive(Debug)]
pub struct Refused;

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the rung is refused")
    }
}

impl std::error::Error for Refused {}

/// Makes and attaches the root; gives its descriptor. The device of a user-space overlay goes over `socket`.
pub fn make(step: &RootStep, socket: BorrowedFd<'_>) -> Result<OwnedFd> {
    stand_in(step)?;
    match (&step.source, step.rung) {
        (_, Rung::FuseOverlay) => served(step, socket),
        (_, Rung::OverlayOnFuse) => stacked(step, socket),
        (RootSource::Directory(path), Rung::Through) => {
            attach(open_tree(folder(path)?.as_fd(), Depth::Recursive)?)
        }
        (RootSource::Directory(path), Rung::KernelOverlay) => {
            folder(path)?;
            attach(layered(&[path], "upper", "work", step)?)
        }
        (RootSource::Layers(layers), _) => {
            let topmost_first: Vec<&Path> = layers.iter().rev().map(PathBuf::as_path).collect();
            attach(layered(&topmost_first, "upper", "work", step)?)
        }
        (RootSource::Directory(path), Rung::Copy) => {
            if step.upper == Upper::Fresh {
                fs::create_dir("copy").context("make the folder of the copy")?;
                tree::copy(path, Path::new("copy")).with_context(|| format!("copy {}", path.display()))?;
            }
            attach(open_tree(folder(Path::new("copy"))?.as_fd(), Depth::This)?)
        }
        (RootSource::Host(pieces), _) => host_overlays(step, pieces),
    }
}

fn served(step: &RootStep, socket: BorrowedFd<'_>) -> Result<OwnedFd> {
    for name in ["upper", "work"] {
        make_folder(name)?;
    }
    let below = match &step.source {
        RootSource::Directory(path) => {
            folder(path)?;
            path.as_path()
        }
        RootSource::Layers(layers) => layers.last().map_or(Path::new("/"), PathBuf::as_path),
        RootSource::Host(_) => Path::new("/"),
    };
    if step.upper == Upper::Fresh {
        begin_upper(step, below)?;
    }
    attach(mounted(fuse::Access::Writes, socket)?)
}

/// Kernel overlay over what a server of ours shows of the layers.
fn stacked(step: &RootStep, socket: BorrowedFd<'_>) -> Result<OwnedFd> {
    if let RootSource::Directory(path) = &step.source {
        folder(path)?;
    }
    for name in ["upper", "work"] {
        make_folder(name)?;
    }
    let below = mounted(fuse::Access::Reads, socket)?;
    match step.upper {
        Upper::Fresh => begin_upper(step, &target::path_of(below.as_fd()))?,
        Upper::Used => forget_volatile("work"),
    }
    let made = stacked::mount(&below, step.persistence);
    attach(made.context("mount kernel overlay over a FUSE mount of the layers").context(Refused)?)
}

/// A mount that the parent has somebody serve.
fn mounted(access: fuse::Access, socket: BorrowedFd<'_>) -> Result<OwnedFd> {
    let (device, mount) = fuse::mount(access).context(Refused)?;
    // In the pid namespace whose numbers the kernel will put into requests.
    if let Ok(processes) = fsmount(c"proc", &[], 0) {
        message::send(socket, &ToParent::Processes, Some(processes.as_fd()))?;
    }
    message::send(socket, &ToParent::Device, Some(device.as_fd()))?;
    drop(device);
    match message::receive::<ToChild>(socket)? {
        Some(_) => Ok(mount),
        None => crate::sys::clone::exit(125),
    }
}

/// The root folder of a layer that nobody has written to, and what of the machine's own is replaced there.
fn begin_upper(step: &RootStep, below: &Path) -> Result<()> {
    let found = below.metadata();
    if let (Ok(found), RootSource::Layers(_)) = (&found, &step.source) {
        // The image's root folder is its root's, whoever that is here.
        let _ = std::os::unix::fs::chown("upper", Some(found.uid()), Some(found.gid()));
    }
    let mode = found.map_or(0o755, |found| found.permissions().mode() & 0o7777);
    fs::set_permissions("upper", fs::Permissions::from_mode(mode))?;
    if let RootSource::Host(pieces) = &step.source {
        replace(pieces).context("make the container's own folders")?;
    }
    Ok(())
}

/// What an unmounted volatile overlay leaves, so that nobody takes it for whole after a power cut.
fn forget_volatile(work: &str) {
    let _ = fs::remove_dir_all(Path::new(work).join("work/incompat"));
}

/// In the upper layer, before anybody sees it.
fn replace(pieces: &[Piece]) -> Result<()> {
    let upper = |path: &Path| Path::new("upper").join(path.strip_prefix("/").unwrap_or(path));
    for piece in pieces {
        if let Piece::Directory { path, mode } = piece {
            fs::create_dir(upper(path))?;
            fs::set_permissions(upper(path), fs::Permissions::from_mode(*mode))?;
        }
    }
    for (path, text) in host::locked_passwords() {
        let file = upper(Path::new(path));
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&file, text)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640))?;
    }
    Ok(())
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

/// A layer that was used before is there already, and so are the folders of one that comes from the spare folder.
fn make_folder(name: &str) -> Result<()> {
    match fs::create_dir(name) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && Path::new(name).is_dir() => Ok(()),
        other => other.with_context(|| format!("make {name} in the container's folder")),
    }
}

fn layered(lowers: &[&Path], upper: &str, work: &str, step: &RootStep) -> Result<OwnedFd> {
    for name in [upper, work] {
        make_folder(name)?;
    }
    if step.upper == Upper::Used {
        forget_volatile(work);
    } else if let Some(Ok(found)) = lowers.first().map(|lower| lower.metadata()) {
        let _ = fs::set_permissions(upper, fs::Permissions::from_mode(found.permissions().mode() & 0o7777));
    }
    overlay::mount(lowers, upper, work, step.persistence)
        .with_context(|| format!("mount kernel overlay over {}", shown(lowers)))
        .context(Refused)
}

fn shown(lowers: &[&Path]) -> String {
    match lowers {
        [only] => only.display().to_string(),
        several => format!("{} layers", several.len()),
    }
}

/// Nobody sees it there before the pivot.
fn attach(root: OwnedFd) -> Result<OwnedFd> {
    cover_root(root.as_fd()).context("attach the root")?;
    Ok(root)
}

fn host_overlays(step: &RootStep, pieces: &[Piece]) -> Result<OwnedFd> {
    for name in ["root", "upper", "work"] {
        make_folder(name)?;
    }
    fs::set_permissions("root", fs::Permissions::from_mode(0o755))?;
    let root = attach(open_tree(folder(Path::new("root"))?.as_fd(), Depth::This)?)?;
    for (number, piece) in pieces.iter().enumerate() {
        make_piece(step, root.as_fd(), number, piece)
            .with_context(|| format!("make {}", piece.path().display()))?;
    }
    Ok(root)
}

/// The folder `root` is ours alone until the pivot, so paths in it are safe to walk.
fn make_piece(step: &RootStep, root: BorrowedFd<'_>, number: usize, piece: &Piece) -> Result<()> {
    let inside = |path: &Path| PathBuf::from("root").join(path.strip_prefix("/").unwrap_or(path));
    match piece {
        Piece::Directory { path, .. } | Piece::Link { path, .. }
            if step.upper == Upper::Used && inside(path).symlink_metadata().is_ok() => {}
        Piece::Directory { path, mode } => {
            fs::create_dir(inside(path))?;
            fs::set_permissions(inside(path), fs::Permissions::from_mode(*mode))?;
        }
        Piece::Link { path, to } => std::os::unix::fs::symlink(to, inside(path))?,
        Piece::Overlay(path) => {
            if step.upper == Upper::Fresh || !inside(path).exists() {
                fs::create_dir(inside(path))?;
            }
            let (upper, work) = (format!("upper/{number}"), format!("work/{number}"));
            let mount = layered(&[path], &upper, &work, step)?;
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
