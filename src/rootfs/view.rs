//! A root opened by a helper of the user's, beside or without its container: for `export`, `cp` and `image
//! mount`. The helper is root of a user and a mount namespace of its own; nothing of the mount is seen outside.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use fuse_overlay::config::{Config, Directory, Lower};
use fuse_overlay::overlay::Overlay;
use fuse_overlay::transport::session;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use crate::rootfs::overlay::{self, Persistence};
use crate::rootfs::rung::Rung;
use crate::rootfs::{fuse, stacked, target};
use crate::sys::mount::{Depth, MOUNT_ATTR_RDONLY, MountAttr, mount_setattr, open_tree};
use crate::userns::numbers::Numbers;

/// The layer of a container that lies over others.
#[derive(Clone, Copy, Debug)]
pub enum Own<'a> {
    None,
    /// This directory.
    Read(&'a Path),
    /// Changes go into `upper` of the folder, which has `work` beside it and which nobody else has mounted. Both are
    /// made if they are not there.
    Write(&'a Path),
}

/// An opened root. The mount ends with it, and what was written has reached the upper layer then.
#[derive(Debug)]
pub struct View {
    /// Detached: it can be moved somewhere.
    mount: Option<OwnedFd>,
    root: Option<OwnedFd>,
    server: Option<JoinHandle<()>>,
    rung: Rung,
}

impl View {
    /// Opens the root of `layers`, the lowest first, by the kernel's overlay, or by ours where that is refused.
    pub fn open(layers: &[PathBuf], own: Own<'_>) -> Result<Self> {
        let mut topmost_first: Vec<&Path> = layers.iter().rev().map(PathBuf::as_path).collect();
        let folder = match own {
            Own::None => None,
            Own::Read(upper) => {
                topmost_first.insert(0, upper);
                None
            }
            Own::Write(folder) => {
                prepare(folder, topmost_first.first().copied())?;
                Some(folder)
            }
        };
        let mounted = match (folder, topmost_first.as_slice()) {
            (None, [only]) => single(only),
            (None, several) => Ok(overlay::read_only(several)?),
            (Some(_), lowers) => {
                overlay::mount(lowers, "upper", "work", Persistence::Kept).map_err(Into::into)
            }
        };
        match mounted {
            Ok(mount) => Self::of(mount, None, Rung::KernelOverlay),
            Err(_refused) => {
                if folder.is_some() {
                    // The kernel made it with mode 000 before it refused.
                    let _ = fs::remove_dir("work/work");
                }
                let (mount, server) = served(&topmost_first, folder, &Numbers::default())?;
                Self::of(mount, Some(server), Rung::FuseOverlay)
            }
        }
    }

    /// Opens the root of a container whose own layer has real owners, and that sees `layers` with others than they
    /// carry.
    pub fn stacked(layers: &[PathBuf], numbers: &Numbers, own: Own<'_>) -> Result<Self> {
        let topmost_first: Vec<&Path> = layers.iter().rev().map(PathBuf::as_path).collect();
        let (below, server) = served(&topmost_first, None, numbers)?;
        let mount = match own {
            Own::None => below,
            Own::Read(upper) => stacked::read_only(&below, upper)?,
            Own::Write(folder) => {
                let root = target::path_of(below.as_fd());
                prepare(folder, Some(&root))?;
                let found = fs::metadata(&root)?;
                std::os::unix::fs::chown("upper", Some(found.uid()), Some(found.gid()))?;
                stacked::mount(&below, Persistence::Kept)?
            }
        };
        Self::of(mount, Some(server), Rung::OverlayOnFuse)
    }

    fn of(mount: OwnedFd, server: Option<JoinHandle<()>>, rung: Rung) -> Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = openat(&mount, ".", flags, Mode::empty()).context("cannot open the root")?;
        Ok(Self { mount: Some(mount), root: Some(root), server, rung })
    }

    pub fn root(&self) -> Result<&OwnedFd> {
        self.root.as_ref().context("the root is closed")
    }

    pub fn rung(&self) -> Rung {
        self.rung
    }

    /// The mount itself, for whoever keeps it; not of a root that this process serves.
    pub fn into_mount(mut self) -> Result<OwnedFd> {
        anyhow::ensure!(
            self.server.is_none(),
            "kernel overlay is refused here, and no process would serve it"
        );
        self.root = None;
        self.mount.take().context("the root is closed")
    }
}

impl Drop for View {
    fn drop(&mut self) {
        (self.root, self.mount) = (None, None);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

/// Goes to the folder and makes what is missing for a container's own layer.
fn prepare(folder: &Path, topmost: Option<&Path>) -> Result<()> {
    std::env::set_current_dir(folder).with_context(|| format!("cannot open {}", folder.display()))?;
    for name in ["upper", "work"] {
        match fs::create_dir(name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            made => made.with_context(|| format!("cannot make {name} in {}", folder.display()))?,
        }
        if let (Some(lower), "upper") = (topmost, name) {
            let mode = fs::metadata(lower)?.permissions().mode() & 0o7777;
            fs::set_permissions(name, fs::Permissions::from_mode(mode))?;
        }
    }
    Ok(())
}

/// Overlay wants two layers at least.
fn single(layer: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let layer = nix::fcntl::open(layer, flags, Mode::empty())?;
    let mount = open_tree(layer.as_fd(), Depth::This)?;
    mount_setattr(mount.as_fd(), Depth::This, MountAttr { set: MOUNT_ATTR_RDONLY, ..MountAttr::default() })?;
    Ok(mount)
}

/// A mount that a thread of ours serves; with a folder, changes go into its layer.
fn served(
    topmost_first: &[&Path],
    folder: Option<&Path>,
    numbers: &Numbers,
) -> Result<(OwnedFd, JoinHandle<()>)> {
    let lower = |path: &&Path| Lower {
        directory: Directory::Path(path.to_path_buf()),
        xdev: false,
        exclude: Vec::new(),
        raw: false,
    };
    let own = |name: &str| folder.map(|folder| Directory::Path(folder.join(name)));
    let (upper, work) = (own("upper"), own("work"));
    let lowers = topmost_first.iter().map(lower).collect();
    let (uid_map, gid_map) = (fuse::ranges(&numbers.uid), fuse::ranges(&numbers.gid));
    let config = Config { lowers, upper, work, uid_map, gid_map, ..Config::default() };
    let overlay = Arc::new(Overlay::new(config)?);
    let (device, mount) = fuse::mount(fuse::Access::Writes)?;
    let (ready, wait) = mpsc::channel();
    let server = std::thread::spawn(move || {
        let tell = || {
            let _ = ready.send(());
        };
        let _ = session::serve_counted(
            overlay,
            device,
            session::default_threads(),
            session::Placing::Spread,
            Arc::default(),
            tell,
        );
    });
    wait.recv().context("the root is not served")?;
    Ok((mount, server))
}
