//! `kelp diff`, `kelp commit`, `kelp export`: what a container changed, as a list, as an image, and with
//! everything else as a tar.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;

use crate::cli::archive::{UnpackArgs, apply, to_output};
use crate::cli::{inside, warn};
use crate::error::Error;
use crate::image::changes::{self, Kind};
use crate::image::commit::{self, Container};
use crate::image::config::{History, ImageConfig, now, rfc3339};
use crate::image::manifest::Platform;
use crate::image::reference::Reference;
use crate::image::snapshot::{Ownership, Snapshot};
use crate::image::store::Store;
use crate::paths::Paths;
use crate::rootfs::view::{Access, View};
use crate::verbs::contents::Contents;

/// Show what a container changed in its root file system
#[derive(Debug, Args)]
pub struct DiffArgs {
    container: String,
    /// `json`
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

/// Make an image of what a container changed
#[derive(Debug, Args)]
pub struct CommitArgs {
    container: String,
    image: Option<Reference>,
    /// Set CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR, as a Dockerfile does
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// A comment for the history
    #[arg(short, long)]
    message: Option<String>,
    /// Who made it
    #[arg(short, long)]
    author: Option<String>,
    /// Pause a running container meanwhile: not possible yet, which is said
    #[arg(short, long)]
    pause: bool,
    /// Write the image's id into this file
    #[arg(long, value_name = "FILE")]
    iidfile: Option<PathBuf>,
    /// Print only the id, as always
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    unpack: UnpackArgs,
}

/// Write a container's root file system into a tar
#[derive(Debug, Args)]
pub struct ExportArgs {
    container: String,
    /// File; standard output otherwise
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub fn diff(arguments: DiffArgs) -> Result<i32> {
    let paths = Paths::find()?;
    inside::as_root(0, move || {
        let contents = Contents::find(&paths, &Store::open(&paths)?, &arguments.container)?;
        let (mut lines, mut lists) = (Vec::new(), [Vec::new(), Vec::new(), Vec::new()]);
        changes::walk(&contents.upper(), &contents.lowers, &mut |change| {
            let path = format!("/{}", String::from_utf8_lossy(change.path));
            let (letter, list) = match change.kind {
                Kind::Changed => ('C', 0),
                Kind::Added => ('A', 1),
                Kind::Deleted => ('D', 2),
            };
            lines.push(format!("{letter} {path}"));
            lists[list].push(path);
            Ok(())
        })
        .with_context(|| format!("cannot look at container {}", contents.name))?;
        match arguments.format.as_deref() {
            None => lines.iter().for_each(|line| println!("{line}")),
            Some("json") => {
                let [changed, added, deleted] = lists;
                println!("{}", json!({ "changed": changed, "added": added, "deleted": deleted }));
            }
            Some(other) => {
                let sentence = format!("{other:?} is no format of a list of changes: json is expected");
                return Err(Error::usage(sentence).into());
            }
        }
        Ok(0)
    })
}

pub fn commit(arguments: CommitArgs) -> Result<i32> {
    let paths = Paths::find()?;
    inside::as_root(0, move || {
        let store = Store::open(&paths)?;
        let contents = Contents::find(&paths, &store, &arguments.container)?;
        if arguments.pause && contents.process.is_some() {
            warn("the container is not paused: its files may change while they are read");
        }
        let image = contents.image.as_ref();
        let mut config = image.map_or_else(blank, |image| image.config.clone());
        for change in &arguments.change {
            apply(&mut config.config, change)?;
        }
        config.author = arguments.author.clone().or(config.author);
        let step = History {
            created: Some(rfc3339(now())),
            created_by: Some(format!("kelp commit {}", contents.name)),
            author: arguments.author.clone(),
            comment: arguments.message.clone(),
            empty_layer: false,
        };
        let names: Vec<Reference> = arguments.image.iter().cloned().collect();
        let upper = contents.upper();
        let id = arguments
            .unpack
            .install(&store, |installer| {
                commit::commit(installer, &Container { image, upper: &upper }, config, step, &names)
            })
            .with_context(|| format!("cannot commit container {}", contents.name))?;
        if let Some(path) = &arguments.iidfile {
            std::fs::write(path, id.to_string())
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        println!("{id}");
        Ok(0)
    })
}

fn blank() -> ImageConfig {
    let platform = Platform::host();
    ImageConfig { os: platform.os, architecture: platform.architecture, ..ImageConfig::default() }
}

pub fn export(arguments: ExportArgs) -> Result<i32> {
    let paths = Paths::find()?;
    inside::as_root(libc::CLONE_NEWNS as u64, move || {
        let contents = Contents::find(&paths, &Store::open(&paths)?, &arguments.container)?;
        let view = View::open(&contents.layers(), Access::Read)
            .with_context(|| format!("cannot open the root of container {}", contents.name))?;
        to_output(arguments.output.as_deref(), |out| {
            use std::os::fd::AsFd;
            let mut snapshot = Snapshot::new(out, Ownership::Kept);
            snapshot.inside(view.root()?.as_fd(), b"")?;
            snapshot.finish()?;
            Ok(())
        })?;
        Ok(0)
    })
}
