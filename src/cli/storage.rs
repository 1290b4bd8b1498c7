//! The flags of `run` and `create` that put files into a container: binds, volumes, file systems in memory, and the
//! volumes of an image or of another container.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{ArgMatches, Args, ValueEnum};

use crate::error::Error;
use crate::paths::Paths;
use crate::spec::mount::{self, Mount};
use crate::spec::request::Request;
use crate::verbs;

#[derive(Clone, Debug, Args)]
pub struct StorageArgs {
    /// Bind a file or folder of the host, or a volume; without SRC, a volume of the container's own:
    /// [SRC:]DST[:ro,rw,rslave,rshared,rprivate,nosuid,noexec,nodev,U,nocopy]
    #[arg(short = 'v', long = "volume", value_name = "SRC:DST")]
    volume: Vec<String>,
    /// Mount: type=bind|tmpfs|volume,source=,target=,readonly,...
    #[arg(long, value_name = "FIELDS")]
    mount: Vec<String>,
    /// Mount a tmpfs: DST[:size=64m,mode=1777,...]
    #[arg(long, value_name = "DST")]
    tmpfs: Vec<String>,
    /// Mount what another container has from outside: CONTAINER[:ro|rw]
    #[arg(long, value_name = "CONTAINER")]
    volumes_from: Vec<String>,
    /// What becomes of the volumes that the image names
    #[arg(long, value_enum, value_name = "WHAT", default_value = "anonymous")]
    image_volume: ImageVolume,
}

/// `--image-volume`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ImageVolume {
    #[value(alias = "bind")]
    Anonymous,
    Tmpfs,
    Ignore,
}

/// Where on the command line the words of the mount flags stand, so that mounts are made in the user's order.
#[derive(Debug, Default)]
pub struct Places {
    tmpfs: Vec<usize>,
    volume: Vec<usize>,
    mount: Vec<usize>,
}

impl Places {
    pub fn new(matches: &ArgMatches) -> Self {
        let places = |id: &str| matches.indices_of(id).map(Iterator::collect).unwrap_or_default();
        Self { tmpfs: places("tmpfs"), volume: places("volume"), mount: places("mount") }
    }

    /// The same for a verb, or one below it, of the whole command line.
    pub fn of_verb(matches: &ArgMatches) -> Self {
        matches.subcommand().map_or_else(|| Self::new(matches), |(_, matches)| Self::of_verb(matches))
    }
}

impl StorageArgs {
    /// In the order in which the user gave them, whatever the flag.
    pub fn mounts(&self, places: &Places) -> Result<Vec<Mount>> {
        let mut placed: Vec<(usize, Mount)> = Vec::new();
        let mut place = |places: &[usize], mounts: Vec<Mount>| {
            placed.extend(places.iter().copied().zip(mounts));
        };
        place(&places.tmpfs, each(&self.tmpfs, mount::parse_tmpfs)?);
        place(&places.volume, each(&self.volume, mount::parse_volume)?);
        place(&places.mount, each(&self.mount, mount::parse_mount)?);
        placed.sort_by_key(|(place, _)| *place);
        let mounts: Vec<Mount> = placed.into_iter().map(|(_, mount)| mount).collect();
        for (at, one) in mounts.iter().enumerate() {
            if mounts.iter().skip(at + 1).any(|other| other.target == one.target) {
                return Err(Error::usage(format!("duplicate mount point: {}", one.target.display())).into());
            }
        }
        Ok(mounts)
    }

    /// Adds what other containers and the image bring along; what the user said for a place wins.
    pub fn add(&self, request: &mut Request) -> Result<()> {
        let mut found = Vec::new();
        for word in self.volumes_from.iter().rev() {
            found.extend(from(word)?);
        }
        for target in &request.image.volumes {
            let target = PathBuf::from("/").join(target);
            let text = target.to_string_lossy();
            match self.image_volume {
                ImageVolume::Anonymous => found.push(Mount::anonymous("VOLUME", &text, &text)?),
                ImageVolume::Tmpfs => found.push(mount::parse_tmpfs(&format!("{text}:exec"))?),
                ImageVolume::Ignore => {}
            }
        }
        found.into_iter().for_each(|mount| insert(&mut request.mounts, mount));
        request.volumes_from.clone_from(&self.volumes_from);
        Ok(())
    }
}

fn each<T>(list: &[String], parse: impl Fn(&str) -> Result<T>) -> Result<Vec<T>> {
    list.iter().map(|word| parse(word)).collect()
}

/// `--volumes-from CONTAINER[:OPTIONS]`.
fn from(word: &str) -> Result<Vec<Mount>> {
    let (container, options) = word.split_once(':').unwrap_or((word, ""));
    let mut read_only = false;
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => read_only = true,
            "rw" | "z" | "Z" => {}
            _ => {
                let sentence = format!("--volumes-from {word}: {option:?} is not ro or rw");
                return Err(Error::usage(sentence).into());
            }
        }
    }
    let mounts = verbs::volume::of_container(&Paths::find()?, container);
    let mut mounts = mounts.map_err(|error| Error::usage(format!("{error:#}"))).context("--volumes-from")?;
    mounts.iter_mut().for_each(|mount| mount.flags.read_only |= read_only);
    Ok(mounts)
}

/// Before what lies below it, unless the place is taken.
fn insert(mounts: &mut Vec<Mount>, mount: Mount) {
    if mounts.iter().any(|other| other.target == mount.target) {
        return;
    }
    let below = mounts.iter().position(|other| other.target.starts_with(&mount.target));
    mounts.insert(below.unwrap_or(mounts.len()), mount);
}
