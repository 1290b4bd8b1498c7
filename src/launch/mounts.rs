//! The mount steps: each makes a detached mount and moves it onto a descriptor inside the root, so that a
//! name that changes meanwhile can't lead it elsewhere.

use std::ffi::CString;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, SFlag, mkdirat};
use nix::unistd::{Gid, Uid, fchownat};

use crate::container::volume;
use crate::error::{Error, Kind};
use crate::ids::ContainerId;
use crate::image::tree;
use crate::launch::plan::SecretFile;
use crate::launch::step::Site;
use crate::launch::{credentials, device};
use crate::rootfs::target::{self, Want};
use crate::spec::defaults;
use crate::spec::mount::{Mount, MountFlags, MountKind, Propagation};
use crate::sys::mount::{
    Depth, FsOption, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY, MountAttr,
    fsmount, mount_setattr, move_mount, open_tree,
};
use crate::userns::maps::maps_to;

/// devpts gives its nodes to the group tty where the container has one (`pts(4)`).
const TTY_GROUP: u32 = 5;

/// Makes one mount.
pub fn make(site: &Site<'_>, mount: &Mount) -> Result<()> {
    match &mount.kind {
        MountKind::Bind { source, recursive, propagation } => {
            bind(site, mount, source, *recursive, *propagation)
        }
        MountKind::Volume(_) | MountKind::Anonymous => {
            Err(Error::new(Kind::Bug, "the volume has no folder").into())
        }
        MountKind::Tmpfs { size, mode } => {
            let mut options = Vec::new();
            options.extend(size.map(|size| text("size", &size.to_string())));
            options.extend(mode.map(|mode| text("mode", &format!("{mode:o}"))));
            let made = fsmount(c"tmpfs", &options, attributes(mount.flags))?;
            Ok(move_mount(made.as_fd(), place(site, &mount.target, Want::Directory)?.as_fd())?)
        }
        MountKind::Proc => proc(site, mount),
        MountKind::Sysfs => sysfs(site, mount),
        MountKind::Cgroup => cgroup(site, mount),
        MountKind::Mqueue => {
            let made = fsmount(c"mqueue", &[], attributes(mount.flags))?;
            Ok(move_mount(made.as_fd(), kernel_place(site, &mount.target)?.as_fd())?)
        }
        MountKind::Devpts => devpts(site, mount),
        MountKind::Dev => dev(site, mount),
    }
}

fn text(key: &str, value: &str) -> FsOption {
    let word = |word: &str| CString::new(word).unwrap_or_default();
    FsOption::Text(word(key), word(value))
}

fn attributes(flags: MountFlags) -> u64 {
    let wanted = [
        (flags.read_only, MOUNT_ATTR_RDONLY),
        (flags.nosuid, MOUNT_ATTR_NOSUID),
        (flags.nodev, MOUNT_ATTR_NODEV),
        (flags.noexec, MOUNT_ATTR_NOEXEC),
    ];
    wanted.iter().filter(|(on, _)| *on).fold(0, |bits, (_, bit)| bits | bit)
}

/// A place for a file system of the kernel's: made if missing, and never reached through a link
/// (CVE-2019-19921, CVE-2023-27561).
fn kernel_place(site: &Site<'_>, path: &Path) -> Result<OwnedFd> {
    let root = site.root()?;
    match target::open_unlinked(root, path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            target::ensure(root, path, Want::Directory)?;
            Ok(target::open_unlinked(root, path)?)
        }
        Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENOTDIR)) => {
            Err(Error::container(format!("{} in the root is a link or no folder", path.display()))
                .hint("the root file system must have an ordinary folder there")
                .into())
        }
        other => Ok(other?),
    }
}

/// A fresh procfs; where an outer container's masks forbid one (EPERM), the existing one is bound.
fn proc(site: &Site<'_>, mount: &Mount) -> Result<()> {
    let place = kernel_place(site, &mount.target)?;
    let made = match fsmount(c"proc", &[], attributes(mount.flags)) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            site.warn("a fresh /proc is refused here, so /proc shows the processes outside".to_owned());
            open_tree(open_path(Path::new("/proc"))?.as_fd(), Depth::Recursive)?
        }
        other => other?,
    };
    Ok(move_mount(made.as_fd(), place.as_fd())?)
}

/// sysfs shows the network namespace it is mounted in, so it can be mounted only by its owner; with the
/// host's network the host's /sys is bound instead.
fn sysfs(site: &Site<'_>, mount: &Mount) -> Result<()> {
    let place = kernel_place(site, &mount.target)?;
    let made = match fsmount(c"sysfs", &[], attributes(mount.flags)) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            let tree = open_tree(open_path(Path::new("/sys"))?.as_fd(), Depth::Recursive)?;
            let attr = MountAttr { set: attributes(mount.flags), ..MountAttr::default() };
            mount_setattr(tree.as_fd(), Depth::Recursive, attr)?;
            tree
        }
        other => other?,
    };
    Ok(move_mount(made.as_fd(), place.as_fd())?)
}

/// Only the owner of its cgroup namespace may mount it; with the host's, or an old kernel, there is none.
fn cgroup(site: &Site<'_>, mount: &Mount) -> Result<()> {
    match fsmount(c"cgroup2", &[], attributes(mount.flags)) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(()),
        made => Ok(move_mount(made?.as_fd(), kernel_place(site, &mount.target)?.as_fd())?),
    }
}

fn devpts(site: &Site<'_>, mount: &Mount) -> Result<()> {
    let mut options =
        vec![FsOption::Flag(CString::from(c"newinstance")), text("ptmxmode", "0666"), text("mode", "0620")];
    if maps_to(&site.plan.maps.gid, ContainerId(TTY_GROUP)).is_some() {
        options.push(text("gid", &TTY_GROUP.to_string()));
    }
    let made = fsmount(c"devpts", &options, attributes(mount.flags))?;
    Ok(move_mount(made.as_fd(), kernel_place(site, &mount.target)?.as_fd())?)
}

/// A small tmpfs with docker's nodes bound from the host, links and the folders of later mounts.
fn dev(site: &Site<'_>, mount: &Mount) -> Result<()> {
    let made = fsmount(c"tmpfs", &[text("size", "64k"), text("mode", "755")], attributes(mount.flags))?;
    move_mount(made.as_fd(), kernel_place(site, &mount.target)?.as_fd())?;
    for folder in ["pts", "shm", "mqueue"] {
        mkdirat(&made, folder, Mode::from_bits_truncate(0o755))?;
    }
    for node in defaults::NODES {
        device::node(made.as_fd(), node).with_context(|| format!("bind /dev/{node}"))?;
    }
    for (name, to) in defaults::DEV_LINKS {
        nix::unistd::symlinkat(to, &made, name)?;
    }
    Ok(())
}

fn open_path(path: &Path) -> io::Result<OwnedFd> {
    Ok(nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// `-v`: the source is the caller's to name; the target is made as the same kind.
fn bind(
    site: &Site<'_>,
    mount: &Mount,
    source: &Path,
    recursive: bool,
    propagation: Propagation,
) -> Result<()> {
    if mount.flags.fill {
        let image = target::open(site.root()?, &mount.target).ok();
        let image = image.filter(|image| target::is_directory(image.as_fd()).unwrap_or(false));
        // With the dot it is the folder, not the link of procfs, whose mode and owner are read.
        let from = image.as_ref().map(|image| target::path_of(image.as_fd()).join("."));
        volume::fill(source, from.as_deref()).context("copy the image's files into the volume")?;
    }
    let from = open_path(source).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => anyhow::Error::from(
            Error::usage(format!("the source {} does not exist", source.display()))
                .hint("create it, or check the spelling"),
        ),
        _ => anyhow::Error::from(error).context(format!("open the source {}", source.display())),
    })?;
    if mount.flags.own {
        let identity = credentials::look_up(&site.plan.process, &site.plan.maps, Some(site.root()?))?;
        own(&target::path_of(from.as_fd()), (identity.uid, identity.gid))
            .with_context(|| format!("give {} to the container's user", source.display()))?;
    }
    let want = if target::is_directory(from.as_fd())? { Want::Directory } else { Want::File };
    let depth = if recursive { Depth::Recursive } else { Depth::This };
    let tree = open_tree(from.as_fd(), depth).map_err(|error| locked(error, source, depth))?;
    let propagation = match propagation {
        Propagation::Private => nix::libc::MS_PRIVATE,
        Propagation::Slave => nix::libc::MS_SLAVE,
        Propagation::Shared => nix::libc::MS_SHARED,
    };
    let attr = MountAttr { set: attributes(mount.flags), propagation, ..MountAttr::default() };
    mount_setattr(tree.as_fd(), depth, attr).context("set the mount's flags")?;
    let place = place(site, &mount.target, want)?;
    if target::is_directory(place.as_fd())? != (want == Want::Directory) {
        return Err(Error::usage(format!(
            "{} and {} are not of one kind: a folder can't be mounted on a file, nor a file on a folder",
            source.display(),
            mount.target.display()
        ))
        .into());
    }
    Ok(move_mount(tree.as_fd(), place.as_fd())?)
}

/// `U`: the file or folder and all below it. Another container may be changing it, so no link is followed.
fn own(path: &Path, (uid, gid): (u32, u32)) -> Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let opened = nix::fcntl::open(path, flags, Mode::empty())?;
    std::os::unix::fs::fchown(&opened, Some(uid), Some(gid))?;
    if target::is_directory(opened.as_fd())? {
        own_below(opened.as_fd(), (Uid::from_raw(uid), Gid::from_raw(gid)))?;
    }
    Ok(())
}

fn own_below(folder: BorrowedFd<'_>, owner: (Uid, Gid)) -> Result<()> {
    for name in tree::names(folder)? {
        let name = &name[..];
        fchownat(folder, name, Some(owner.0), Some(owner.1), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if tree::stat_in(folder, name)?.is_some_and(|found| tree::kind_of(&found) == SFlag::S_IFDIR) {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let below = nix::fcntl::openat(folder, name, flags, Mode::empty())?;
            own_below(below.as_fd(), owner)?;
        }
    }
    Ok(())
}

/// Where a mount of the user's goes: anywhere in the root but in procfs, whose masks it could cover or whose
/// files it could forge, whatever link leads there (CVE-2019-16884).
fn place(site: &Site<'_>, path: &Path, want: Want) -> Result<OwnedFd> {
    let place = target::ensure(site.root()?, path, want)
        .with_context(|| format!("open {} in the root", path.display()))?;
    let kind = nix::sys::statfs::fstatfs(&place)?.filesystem_type();
    let through_link = kind == nix::sys::statfs::SYSFS_MAGIC && !path.starts_with("/sys");
    if kind == nix::sys::statfs::PROC_SUPER_MAGIC && !FORGEABLE.iter().any(|file| path == Path::new(file)) {
        return Err(
            Error::usage(format!("{} cannot be mounted because it is inside /proc", path.display())).into()
        );
    }
    if through_link {
        return Err(Error::usage(format!("{} leads into /sys by a link", path.display())).into());
    }
    Ok(place)
}

/// Files of /proc that say how large the machine is, which users of lxcfs cover (runc's list).
const FORGEABLE: [&str; 8] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
];

fn locked(error: io::Error, source: &Path, depth: Depth) -> anyhow::Error {
    if error.raw_os_error() == Some(libc::EINVAL) && depth == Depth::This {
        return Error::usage(format!("{} has mounts below it, which can't be left out", source.display()))
            .hint("use rbind, which is the default")
            .into();
    }
    error.into()
}

/// A symbolic link in the root; a name that is there already stays as it is.
pub fn link(site: &Site<'_>, to: &Path, at: &Path) -> Result<()> {
    let (Some(parent), Some(name)) = (at.parent(), at.file_name()) else {
        return Err(Error::usage(format!("{} can't be a link", at.display())).into());
    };
    let folder = place(site, parent, Want::Directory)?;
    match nix::unistd::symlinkat(to, &folder, name) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// One of kelp's own files over the container's. A root that can't hold the file goes without, and says so.
pub fn file(site: &mut Site<'_>, at: &Path, content: &str) -> Result<()> {
    let place = match target::ensure(site.root()?, at, Want::File) {
        Ok(place) => place,
        Err(error) => {
            site.warn(format!("cannot put {} into the root: {error}", at.display()));
            return Ok(());
        }
    };
    if target::is_directory(place.as_fd())? {
        site.warn(format!("{} in the root is a folder and stays as it is", at.display()));
        return Ok(());
    }
    let name = at.file_name().unwrap_or_default();
    let files = files(site)?;
    let mode = Mode::from_bits_truncate(0o644);
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let file = nix::fcntl::openat(files, name, flags, mode)?;
    std::fs::File::from(file).write_all(content.as_bytes())?;
    let made = nix::fcntl::openat(files, name, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    let tree = open_tree(made.as_fd(), Depth::This)?;
    Ok(move_mount(tree.as_fd(), place.as_fd())?)
}

/// A secret on a file system of its own, of which the container gets the one file, read-only.
pub fn secret(site: &Site<'_>, secret: &SecretFile) -> Result<()> {
    let place = place(site, &secret.target, Want::File)?;
    let size = secret.content.0.len().next_multiple_of(4096) + 4096;
    let made = fsmount(c"tmpfs", &[text("size", &size.to_string()), text("mode", "700")], 0)?;
    // A mount that is nowhere can't be bound from.
    move_mount(made.as_fd(), open_path(Path::new("."))?.as_fd())?;
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let mut file = std::fs::File::from(nix::fcntl::openat(&made, "secret", flags, Mode::empty())?);
    file.write_all(&secret.content.0)?;
    std::os::unix::fs::fchown(&file, secret.uid, secret.gid).context("give it to the user asked for")?;
    file.set_permissions(std::fs::Permissions::from_mode(secret.mode))?;
    let file = nix::fcntl::openat(&made, "secret", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    let tree = open_tree(file.as_fd(), Depth::This)?;
    let set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
    mount_setattr(tree.as_fd(), Depth::This, MountAttr { set, ..MountAttr::default() })?;
    Ok(move_mount(tree.as_fd(), place.as_fd())?)
}

/// The file system of kelp's own files: attached on the container's folder, where
/// the child stands, on the side of the old root that the pivot detaches.
fn files<'a>(site: &'a mut Site<'_>) -> Result<BorrowedFd<'a>> {
    if site.files.is_none() {
        let made = fsmount(c"tmpfs", &[text("size", "1m"), text("mode", "755")], 0)?;
        move_mount(made.as_fd(), open_path(Path::new("."))?.as_fd())?;
        site.files = Some(made);
    }
    site.files.as_ref().map(AsFd::as_fd).ok_or_else(|| io::Error::other("no file system").into())
}
