//! `kelp save`, `kelp load`, `kelp import`: images to and from files and pipes. What an archive looks like is
//! the image room's business.

use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::cli::pull::OwnersWord;
use crate::cli::{inside, tag};
use crate::error::Error;
use crate::image::config::{ImageConfig, RunConfig};
use crate::image::install::Installer;
use crate::image::load;
use crate::image::push;
use crate::image::reference::Reference;
use crate::image::save::{self, Format};
use crate::image::store::Store;
use crate::image::unpack::{Limits, Owners};
use crate::paths::Paths;
use crate::record;
use crate::units::Bytes;

/// Write images into an archive
#[derive(Debug, Args)]
pub struct SaveArgs {
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// File, or a folder for oci-dir; standard output otherwise
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "docker-archive")]
    format: FormatWord,
    /// How the layers of OCI formats are packed: none, gzip or zstd
    #[arg(long, value_name = "FORMAT", default_value = "none")]
    compression_format: String,
    /// For docker's and podman's command lines: nothing else is printed anyway
    #[arg(short, long)]
    quiet: bool,
    /// For podman's command line: several images are always possible
    #[arg(short, long)]
    multi_image_archive: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FormatWord {
    DockerArchive,
    OciArchive,
    OciDir,
}

/// Load images from an archive or an OCI folder
#[derive(Debug, Args)]
pub struct LoadArgs {
    /// File or folder; standard input otherwise
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Print nothing but the names
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    unpack: UnpackArgs,
}

/// Make an image from a tar of a root file system
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// File, or - for standard input
    file: PathBuf,
    name: Option<Reference>,
    /// Set CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR, as a Dockerfile does
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// A comment for the history
    #[arg(short, long)]
    message: Option<String>,
    /// For podman's command line
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    unpack: UnpackArgs,
}

#[derive(Debug, Args)]
pub struct UnpackArgs {
    /// Whose files the store has: real (if there are ids for it) or recorded
    #[arg(long, value_name = "OWNERS", value_enum, default_value = "auto")]
    store_owners: OwnersWord,
    /// The most that one layer may become
    #[arg(long, value_name = "BYTES", default_value = "128g")]
    max_layer_size: Bytes,
}

impl UnpackArgs {
    /// Runs `work` with a place for new layers.
    pub fn install<T>(&self, store: &Store, work: impl FnOnce(&Installer<'_>) -> Result<T>) -> Result<T> {
        let workspace = store.workspace("loading")?;
        let owners = match self.store_owners {
            OwnersWord::Auto => Owners::possible(),
            OwnersWord::Recorded => Owners::Recorded,
        };
        let limits = Limits { layer: self.max_layer_size, ..Limits::default() };
        work(&Installer { store, workspace: &workspace, owners, limits })
    }
}

pub fn save(arguments: SaveArgs) -> Result<i32> {
    let paths = Paths::find()?;
    inside::run(move || {
        let store = Store::open(&paths)?;
        let workspace = store.workspace("saving")?;
        let images = save::choose(&store, &arguments.images)?;
        let compression = push::compression(&arguments.compression_format)?;
        let (format, output) = (arguments.format, arguments.output.as_deref());
        match (format, output) {
            (FormatWord::OciDir, None) => {
                let error = Error::usage("a folder can't be written to standard output");
                return Err(error.hint("name it with --output").into());
            }
            (FormatWord::OciDir, Some(folder)) => {
                save::folder(&store, &workspace, &images, compression, folder)?;
            }
            (_, output) => {
                let format = if format == FormatWord::OciArchive { Format::Oci } else { Format::Docker };
                let write = |out: &mut dyn Write| {
                    save::archive(&store, &workspace, &images, format, compression, out)
                };
                to_output(output, write)?;
            }
        }
        for word in &arguments.images {
            let id = store.find(word)?.map_or_else(String::new, |image| image.id.hex().to_owned());
            tag::tell(&paths, "save", &id, word);
        }
        Ok(0)
    })
}

/// A file appears only when it is whole.
pub fn to_output(output: Option<&Path>, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let Some(path) = output else {
        if std::io::stdout().is_terminal() {
            let error = Error::usage("an archive is nothing for a terminal");
            return Err(error.hint("name a file with --output, or use a pipe").into());
        }
        return write(&mut std::io::stdout().lock());
    };
    if path.exists() && !path.is_file() {
        let mut file = File::create(path).with_context(|| format!("cannot open {}", path.display()))?;
        return write(&mut file);
    }
    let beside = record::beside(path);
    let mut file = File::create(&beside).with_context(|| format!("cannot make {}", beside.display()))?;
    let written = write(&mut file).and_then(|()| Ok(std::fs::rename(&beside, path)?));
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    written.with_context(|| format!("cannot write {}", path.display()))
}

pub fn load(arguments: LoadArgs) -> Result<i32> {
    let paths = Paths::find()?;
    inside::run(move || {
        let store = Store::open(&paths)?;
        let loaded = arguments.unpack.install(&store, |installer| match &arguments.input {
            Some(path) if path.is_dir() => load::folder(installer, path),
            Some(path) => {
                let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
                load::archive(installer, file)
            }
            None => load::archive(installer, std::io::stdin()),
        });
        let told = |image: &load::Loaded| {
            let name = image.names.first().map_or_else(|| image.id.to_string(), Reference::familiar);
            tag::tell(&paths, "load", image.id.hex(), &name);
        };
        let from =
            arguments.input.as_ref().map_or("standard input".into(), |path| path.display().to_string());
        for image in loaded.with_context(|| format!("cannot load images from {from}"))? {
            told(&image);
            if image.names.is_empty() {
                println!("Loaded image: {}", image.id);
            }
            for name in image.names {
                println!("Loaded image: {}", name.familiar());
            }
        }
        Ok(0)
    })
}

pub fn import(arguments: ImportArgs) -> Result<i32> {
    let paths = Paths::find()?;
    inside::run(move || {
        let store = Store::open(&paths)?;
        let mut config = ImageConfig::default();
        for change in &arguments.change {
            apply(&mut config.config, change)?;
        }
        let by = Some("/bin/sh -c #(nop) ADD file in /".to_owned());
        config.history.push(crate::image::config::History {
            created: Some(crate::image::config::rfc3339(crate::image::config::now())),
            created_by: by,
            comment: arguments.message.clone(),
            ..Default::default()
        });
        let source: Box<dyn Read + Send> = if arguments.file.as_os_str() == "-" {
            Box::new(std::io::stdin())
        } else {
            let open = File::open(&arguments.file);
            Box::new(open.with_context(|| format!("cannot open {}", arguments.file.display()))?)
        };
        let name = arguments.name.as_ref();
        let id = arguments
            .unpack
            .install(&store, |installer| load::import(installer, source, config, name))
            .with_context(|| format!("cannot import {}", arguments.file.display()))?;
        tag::tell(&paths, "import", id.hex(), &name.map_or_else(|| id.to_string(), Reference::familiar));
        println!("{id}");
        Ok(0)
    })
}

/// One instruction of a Dockerfile that changes the configuration only.
pub fn apply(config: &mut RunConfig, change: &str) -> Result<()> {
    let refused = |why: &str| Error::usage(format!("cannot apply the change {change:?}: {why}"));
    let split =
        |text: &str, by: &[char]| text.split_once(by).map(|(a, b)| (a.to_owned(), b.trim().to_owned()));
    let (word, rest) =
        split(change.trim(), &[' ', '=']).ok_or_else(|| refused("INSTRUCTION VALUE is expected"))?;
    let command = || match serde_json::from_str::<Vec<String>>(&rest) {
        Ok(list) => list,
        Err(_) => vec!["/bin/sh".to_owned(), "-c".to_owned(), rest.clone()],
    };
    match word.to_ascii_uppercase().as_str() {
        "CMD" => config.cmd = Some(command()),
        "ENTRYPOINT" => config.entrypoint = Some(command()),
        "ENV" => {
            let (name, value) = split(&rest, &['=', ' ']).ok_or_else(|| refused("NAME=VALUE is expected"))?;
            config.env.retain(|known| !known.starts_with(&format!("{name}=")));
            config.env.push(format!("{name}={}", value.trim_matches('"')));
        }
        "EXPOSE" => {
            for port in rest.split_whitespace() {
                let port = if port.contains('/') { port.to_owned() } else { format!("{port}/tcp") };
                config.exposed_ports.insert(port, serde_json::json!({}));
            }
        }
        "LABEL" => {
            let (name, value) = split(&rest, &['=', ' ']).ok_or_else(|| refused("NAME=VALUE is expected"))?;
            config.labels.insert(name, value.trim_matches('"').to_owned());
        }
        "STOPSIGNAL" => config.stop_signal = rest,
        "USER" => config.user = rest,
        "VOLUME" => {
            let list = serde_json::from_str::<Vec<String>>(&rest);
            let list = list.unwrap_or_else(|_| rest.split_whitespace().map(str::to_owned).collect());
            config.volumes.extend(list.into_iter().map(|path| (path, serde_json::json!({}))));
        }
        "WORKDIR" => config.working_dir = rest,
        _ => return Err(refused("it changes more than the configuration").into()),
    }
    Ok(())
}
