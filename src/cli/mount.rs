//! `kelp image mount`, `kelp image unmount`: an image's root as a folder, read-only, for whoever is root of a mount
//! namespace of his own, as inside `kelp unshare`. The mount ends with that namespace at the latest.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use nix::mount::{MntFlags, umount2};

use crate::cli::report;
use crate::error::Error;
use crate::image::store::Store;
use crate::paths::Paths;
use crate::rootfs::view::{Own, View};
use crate::sys::mount::move_mount;

/// Mount the root file systems of images and print where; without IMAGE, list what is mounted
#[derive(Debug, Args)]
pub struct MountArgs {
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    /// Mount all images
    #[arg(short, long, conflicts_with = "images")]
    all: bool,
}

/// Unmount images
#[derive(Debug, Args)]
pub struct UnmountArgs {
    #[arg(value_name = "IMAGE", required_unless_present = "all")]
    images: Vec<String>,
    /// Unmount all images
    #[arg(short, long)]
    all: bool,
}

pub fn mount(arguments: &MountArgs) -> Result<i32> {
    let paths = Paths::find()?;
    let store = Store::open(&paths)?;
    if arguments.images.is_empty() && !arguments.all {
        for (id, place) in mounted(&paths)? {
            let names =
                store.find(&id)?.map(|image| store.names_of(&image.id)).transpose()?.unwrap_or_default();
            let name = names.first().map_or(id, ToString::to_string);
            println!("{name} {}", place.display());
        }
        return Ok(0);
    }
    inside_a_namespace("mount")?;
    let mut words = arguments.images.clone();
    if arguments.all {
        words.extend(store.images()?.iter().map(|image| image.id.hex().to_owned()));
    }
    for word in words {
        let image = store.expect(&word)?;
        let place = folder(&paths).join(image.id.hex());
        if !mounted(&paths)?.iter().any(|(id, _)| id == image.id.hex()) {
            mount_at(&image.layers, &place).with_context(|| format!("cannot mount image {word}"))?;
        }
        println!("{}", place.display());
    }
    Ok(0)
}

fn mount_at(layers: &[PathBuf], place: &Path) -> Result<()> {
    fs::create_dir_all(place).with_context(|| format!("cannot make {}", place.display()))?;
    let mount = View::open(layers, Own::None)?.into_mount()?;
    let target = fs::File::open(place)?;
    Ok(move_mount(mount.as_fd(), target.as_fd())?)
}

pub fn unmount(arguments: &UnmountArgs) -> Result<i32> {
    let paths = Paths::find()?;
    let store = Store::open(&paths)?;
    let mounted = mounted(&paths)?;
    let mut ids = Vec::new();
    for word in &arguments.images {
        ids.push(store.expect(word)?.id.hex().to_owned());
    }
    if arguments.all {
        ids.extend(mounted.iter().map(|(id, _)| id.clone()));
    } else {
        inside_a_namespace("unmount")?;
    }
    let mut status = 0;
    for id in ids {
        match unmount_one(&mounted, &id) {
            Ok(()) => println!("{id}"),
            Err(error) => {
                report(&error);
                status = 1;
            }
        }
    }
    Ok(status)
}

fn unmount_one(mounted: &[(String, PathBuf)], id: &str) -> Result<()> {
    let place = mounted.iter().find(|(known, _)| known == id).map(|(_, place)| place);
    let place = place.ok_or_else(|| Error::usage(format!("image {id} is not mounted here")))?;
    umount2(place, MntFlags::UMOUNT_NOFOLLOW)
        .with_context(|| format!("cannot unmount {}", place.display()))?;
    // Another namespace may have it mounted still.
    let _ = fs::remove_dir(place);
    Ok(())
}

fn folder(paths: &Paths) -> PathBuf {
    paths.store.join("mounts")
}

/// The ids and places of what is mounted in this namespace (`proc_pid_mountinfo(5)`).
fn mounted(paths: &Paths) -> Result<Vec<(String, PathBuf)>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    let folder = folder(paths).canonicalize().unwrap_or_else(|_| folder(paths));
    let place = |line: &str| Some(PathBuf::from(line.split(' ').nth(4)?.replace("\\040", " ")));
    let ours = text.lines().filter_map(place).filter(|place| place.parent() == Some(&folder));
    Ok(ours.filter_map(|place| Some((place.file_name()?.to_str()?.to_owned(), place))).collect())
}

fn inside_a_namespace(verb: &str) -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let sentence = format!("cannot {verb} images outside of a mount namespace of your own");
    Err(Error::usage(sentence).hint(format!("run it inside: kelp unshare kelp image {verb} ...")).into())
}
