//! Opening what the user named, with a sentence for everything that can be wrong. Nothing is written before all of it
//! was found, and the upper is taken with a lease that a second mount cannot get.

use crate::config::{Directory, Lower};
use crate::number::Device;
use crate::place::{Layer, open_given};
use crate::upper::{INCOMPATIBLE, REDIRECT, UpperLayer, WORK};
use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock, mkdirat, openat, statx};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

pub(crate) fn open(lowers: Vec<Lower>) -> Result<Vec<Layer>> {
    if lowers.is_empty() {
        bail!("no lower layer is named: lowerdir= needs at least one directory");
    }
    lowers.into_iter().map(open_lower).collect()
}

fn open_lower(mut lower: Lower) -> Result<Layer> {
    let name = describe(&lower.directory);
    let directory = std::mem::replace(&mut lower.directory, Directory::Path("".into()));
    let fd = open_given(directory).with_context(|| format!("cannot open the lower layer {name}"))?;
    Layer::new(fd, lower).with_context(|| format!("cannot read the lower layer {name}"))
}

pub(crate) fn open_upper(
    upper: Option<Directory>,
    work: Option<Directory>,
    volatile: bool,
) -> Result<Option<UpperLayer>> {
    let (upper, work) = match (upper, work) {
        (None, _) => return Ok(None),
        (Some(_), None) => {
            bail!("an upper layer needs a work directory on the same file system: workdir= is missing")
        }
        (Some(upper), Some(work)) => (upper, work),
    };
    let (upper_name, work_name) = (describe(&upper), describe(&work));
    let root = writable(upper).with_context(|| format!("cannot open the upper layer {upper_name}"))?;
    let work = writable(work).with_context(|| format!("cannot open the work directory {work_name}"))?;
    let (a, b) = (stat(&root)?, stat(&work)?);
    if Device::of(&a) != Device::of(&b) {
        bail!("the work directory {work_name} is on another file system than the upper layer {upper_name}");
    }
    if a.stx_ino == b.stx_ino {
        bail!("{upper_name} cannot be both the upper layer and the work directory");
    }
    lease(&root, &upper_name)?;
    lease(&work, &work_name)?;
    refuse_volatile(&work, &work_name, volatile)?;
    let layer = UpperLayer::new(root, work)
        .with_context(|| format!("cannot prepare the work directory {work_name}"))?;
    let mark = format!("{INCOMPATIBLE}/{REDIRECT}");
    let redirected = statx(&layer.temporary, &mark, AtFlags::SYMLINK_NOFOLLOW, crate::attr::WANTED).is_ok();
    layer.redirected.store(redirected, Ordering::Release);
    if volatile {
        mark_incompatible(&layer.temporary, "volatile").context("cannot mark the upper layer as volatile")?;
    }
    Ok(Some(layer))
}

fn stat(fd: &OwnedFd) -> Result<rustix::fs::Statx> {
    Ok(statx(fd, c"", AtFlags::EMPTY_PATH, crate::attr::WANTED)?)
}

/// A descriptor that can be locked and listed, whatever we were given.
fn writable(directory: Directory) -> Result<OwnedFd> {
    let fd = open_given(directory)?;
    Ok(crate::sweep::open_dir(&fd, b".")?)
}

fn lease(fd: &OwnedFd, name: &str) -> Result<()> {
    match flock(fd, FlockOperation::NonBlockingLockExclusive) {
        // A network file system without locks: the caller has to know that nobody else mounts it.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOLCK) => Ok(()),
        Err(Errno::AGAIN) => Err(anyhow!("{name} is in use by another mount")),
        Err(error) => Err(error).with_context(|| format!("cannot lock {name}")),
    }
}

/// The kernel's mark of an upper that was mounted without syncing (overlayfs.rst, "Volatile mount").
fn refuse_volatile(work: &OwnedFd, name: &str, volatile: bool) -> Result<()> {
    let mark = format!("{WORK}/{INCOMPATIBLE}/volatile");
    let left = statx(work, &mark, AtFlags::SYMLINK_NOFOLLOW, crate::attr::WANTED).is_ok();
    if left && !volatile {
        bail!(
            "the upper layer was mounted volatile and may be torn: remove {name}/{mark} if the machine did not crash since"
        );
    }
    Ok(())
}

/// Leaves a directory for which the kernel refuses to mount the upper.
pub(crate) fn mark_incompatible(temporary: &OwnedFd, feature: &str) -> rustix::io::Result<()> {
    let existing = |outcome| if outcome == Err(Errno::EXIST) { Ok(()) } else { outcome };
    existing(mkdirat(temporary, INCOMPATIBLE, Mode::from_raw_mode(0o700)))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = openat(temporary, INCOMPATIBLE, flags, Mode::empty())?;
    existing(mkdirat(&directory, feature, Mode::from_raw_mode(0o700)))
}

fn describe(directory: &Directory) -> String {
    match directory {
        Directory::Path(path) => path.display().to_string(),
        Directory::Fd(fd) => format!("{fd:?}"),
    }
}
