//! Volumes and containers: what one container takes over from another. And `kelp volume import`: an archive into a
//! volume that may be in use. It is unpacked beside the volume, then moved into it name by name, so that a broken
//! archive or a full disk leaves the volume as it was.

use std::fs;
use std::io::{BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat};

use crate::container::list;
use crate::container::volume::{self, Volume};
use crate::image::unpack::{self, Limits, Owners};
use crate::image::{stream, tree};
use crate::paths::Paths;
use crate::spec::mount::{Mount, MountKind};

const FOLDER: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// What the container that `word` means has from outside, with volumes by name.
pub fn of_container(paths: &Paths, word: &str) -> Result<Vec<Mount>> {
    let made = list::find(paths, word)?.made;
    let mut mounts = made.request.mounts.clone();
    mounts.retain(|mount| mount.kind.is_volume() || matches!(mount.kind, MountKind::Bind { .. }));
    for mount in &mut mounts {
        if let Some(volume) = volume::of(mount, &made.id) {
            mount.kind = MountKind::Volume(volume.name);
        }
    }
    Ok(mounts)
}

/// Adds the files of the tar stream `source`, packed or not, to the volume; files of the same name are replaced.
pub fn import(paths: &Paths, volume: &Volume, source: impl Read + Send) -> Result<()> {
    let beside = volume::home(paths, &volume.name).join(format!(".import.{}", std::process::id()));
    let outcome = fill(paths, volume, source, &beside);
    let _ = fs::remove_dir_all(&beside);
    outcome.with_context(|| format!("cannot import into volume {}", volume.name))
}

fn fill(paths: &Paths, volume: &Volume, source: impl Read + Send, beside: &std::path::Path) -> Result<()> {
    fs::create_dir(beside).with_context(|| format!("cannot make {}", beside.display()))?;
    let (_, unpacked) = stream::unpacked(source)?;
    unpack::unpack(
        BufReader::with_capacity(stream::PIECE, unpacked),
        beside,
        Owners::possible(),
        Limits::default(),
    )?;
    let open = |path: &std::path::Path| nix::fcntl::open(path, FOLDER, Mode::empty());
    merge(&open(&beside.join("tree"))?, &open(&volume::folder(paths, &volume.name))?)?;
    volume::no_longer_fresh(paths, &volume.name)
}

/// Moves everything in `from` into `to`; a container may be changing `to` meanwhile, so no link is followed.
fn merge(from: &OwnedFd, to: &OwnedFd) -> Result<()> {
    for name in tree::names(from.as_fd())? {
        let name = &name[..];
        let is_folder = |found: Option<FileStat>| found.map(|found| tree::kind_of(&found) == SFlag::S_IFDIR);
        let ours = is_folder(tree::stat_in(from.as_fd(), name)?);
        match (ours, is_folder(tree::stat_in(to.as_fd(), name)?)) {
            (Some(true), Some(true)) => {
                merge(
                    &openat(from, name, FOLDER, Mode::empty())?,
                    &openat(to, name, FOLDER, Mode::empty())?,
                )?;
                continue;
            }
            (Some(true), Some(false)) | (Some(false), Some(true)) => clear(to.as_fd(), name)?,
            _ => {}
        }
        renameat(from, name, to, name)?;
    }
    let found = fstat(from)?;
    let _ = fchown(to, Some(Uid::from_raw(found.st_uid)), Some(Gid::from_raw(found.st_gid)));
    Ok(fchmod(to, Mode::from_bits_truncate(found.st_mode))?)
}

fn clear(folder: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    tree::remove(folder, name, name, &mut |folder, name, _| {
        Ok(unlinkat(folder, name, UnlinkatFlags::NoRemoveDir)?)
    })
}
