//! `kelp diff`, `kelp commit`, `kelp export`: what a container changed, as a list, as an image, and with
//! everything else as a tar.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{ArgAction, Args, ValueEnum};
use serde_json::json;

use crate::cli::archive::{UnpackArgs, apply, to_output};
use crate::cli::inside;
use crate::container::journal::Journal;
use crate::container::list;
use crate::error::Error;
use crate::image::changes::{self, Change, Kind, Stack};
use crate::image::commit::{self, Container};
use crate::image::config::{History, now, rfc3339};
use crate::image::manifest::Dialect;
use crate::image::reference::Reference;
use crate::image::snapshot::Snapshot;
use crate::image::store::Store;
use crate::paths::Paths;
use crate::verbs::commit::{Still, run_config};
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
    /// A running container stands still meanwhile
    #[arg(short, long, value_name = "BOOL", default_value = "true", num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    pause: bool,
    /// Write the image's id into this file
    #[arg(long, value_name = "FILE")]
    iidfile: Option<PathBuf>,
    /// Print only the id, as always
    #[arg(short, long)]
    quiet: bool,
    /// Whose manifest it gets, for registries that know only one
    #[arg(short, long, value_enum, default_value = "oci")]
    format: DialectWord,
    #[command(flatten)]
    unpack: UnpackArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DialectWord {
    Oci,
    Docker,
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
    let contents = Contents::find(&paths, &Store::open(&paths)?, &arguments.container)?;
    let maps = contents.maps()?;
    contents.settle()?;
    inside::as_root(0, move || {
        let (mut lines, mut lists) = (Vec::new(), [Vec::new(), Vec::new(), Vec::new()]);
        let mut note = |change: &Change<'_>| {
            let path = format!("/{}", String::from_utf8_lossy(change.path));
            let (letter, list) = match change.kind {
                Kind::Changed => ('C', 0),
                Kind::Added => ('A', 1),
                Kind::Deleted => ('D', 2),
            };
            lines.push(format!("{letter} {path}"));
            lists[list].push(path);
            Ok(())
        };
        if let Some(upper) = contents.upper() {
            let shift = contents.shift_below(&maps)?;
            let stack = Stack { upper: &upper, lowers: &contents.lowers, shift: shift.as_ref() };
            changes::walk(stack, &mut note)
                .with_context(|| format!("cannot look at container {}", contents.name))?;
        }
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
    let contents = Contents::find(&paths, &Store::open(&paths)?, &arguments.container)?;
    let maps = contents.maps()?;
    let _still = if arguments.pause { Some(Still::new(&paths, &contents)?) } else { None };
    contents.settle()?;
    inside::as_root(0, || {
        let store = Store::open(&paths)?;
        let image = &contents.image;
        let mut config = image.config.clone();
        config.config = run_config(&config.config, &contents.request);
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
                let dialect = match arguments.format {
                    DialectWord::Oci => Dialect::Oci,
                    DialectWord::Docker => Dialect::Docker,
                };
                let (upper, ownership) = (upper.as_deref(), Contents::shift(&maps)?.into());
                let shift = contents.shift_below(&maps)?;
                let container = Container { image, upper, ownership, shift, dialect };
                commit::commit(installer, &container, config, step, &names)
            })
            .with_context(|| format!("cannot commit container {}", contents.name))?;
        if let Some(path) = &arguments.iidfile {
            std::fs::write(path, id.to_string())
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        if let Ok(known) = list::find(&paths, &contents.name) {
            let comment = arguments.message.clone().unwrap_or_default();
            known.tell(&mut Journal::of(&paths.store), "commit", &[("comment", comment)]);
        }
        println!("{id}");
        Ok(0)
    })
}

pub fn export(arguments: ExportArgs) -> Result<i32> {
    let paths = Paths::find()?;
    let contents = Contents::find(&paths, &Store::open(&paths)?, &arguments.container)?;
    let maps = contents.maps()?;
    contents.settle()?;
    inside::as_root_of(&contents.root_maps()?, libc::CLONE_NEWNS as u64, move || {
        let view = contents
            .open_to_read()
            .with_context(|| format!("cannot open the root of container {}", contents.name))?;
        to_output(arguments.output.as_deref(), |out| {
            use std::os::fd::AsFd;
            let mut snapshot = Snapshot::new(out, Contents::shift(&maps)?.into());
            snapshot.inside(view.root()?.as_fd(), b"")?;
            snapshot.finish()?;
            Ok(())
        })?;
        Ok(0)
    })
}
