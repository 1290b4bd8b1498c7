//! `kelp manifest ...`: one name for the images of several platforms. What a list is made of, and how it is sent, is
//! the business of `image/list`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

use crate::cli::inside;
use crate::cli::pull::RegistryArgs;
use crate::error::Error;
use crate::image::list::{List, Take};
use crate::image::manifest::Platform;
use crate::image::push::{self, Options};
use crate::image::reference::{Digest, Reference};
use crate::image::registries_conf::RegistriesConf;
use crate::image::registry::Client;
use crate::image::store::Store;
use crate::paths::Paths;

/// Make and send manifest lists
#[derive(Debug, Args)]
pub struct ManifestArgs {
    #[command(subcommand)]
    verb: ManifestVerb,
}

#[derive(Debug, Subcommand)]
enum ManifestVerb {
    Create(CreateArgs),
    Add(AddArgs),
    Annotate(AnnotateArgs),
    Inspect(InspectArgs),
    Push(PushArgs),
    Remove(RemoveArgs),
    Rm(RmArgs),
    Exists(ExistsArgs),
}

/// Make a list of images
#[derive(Debug, Args)]
struct CreateArgs {
    list: Reference,
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    /// Take all images of an index, not only the one for this machine
    #[arg(long)]
    all: bool,
    /// Go on with a list that is there
    #[arg(short, long)]
    amend: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Add images to a list
#[derive(Debug, Args)]
struct AddArgs {
    list: Reference,
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Take all images of an index, not only the one for this machine
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    about: AboutArgs,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Say what platform an image of a list is for
#[derive(Debug, Args)]
struct AnnotateArgs {
    list: Reference,
    /// An image that was added, or the digest of its manifest
    image: String,
    #[command(flatten)]
    about: AboutArgs,
}

#[derive(Debug, Args)]
struct AboutArgs {
    #[arg(long)]
    arch: Option<String>,
    #[arg(long)]
    os: Option<String>,
    #[arg(long)]
    variant: Option<String>,
    #[arg(long, value_name = "KEY=VALUE")]
    annotation: Vec<String>,
}

/// Show a list, or what a registry has under a name
#[derive(Debug, Args)]
struct InspectArgs {
    name: String,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Send the images of a list and the list to a registry
#[derive(Debug, Args)]
struct PushArgs {
    list: Reference,
    destination: Option<String>,
    /// Send the images too, as always
    #[arg(long)]
    all: bool,
    /// Remove the list afterwards
    #[arg(short, long, visible_alias = "rm")]
    purge: bool,
    /// Write the list's digest into this file
    #[arg(long, value_name = "FILE")]
    digestfile: Option<PathBuf>,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Take images out of a list
#[derive(Debug, Args)]
struct RemoveArgs {
    list: Reference,
    #[arg(required = true, value_name = "DIGEST")]
    images: Vec<String>,
}

/// Remove lists; the images stay
#[derive(Debug, Args)]
struct RmArgs {
    #[arg(required = true, value_name = "LIST")]
    lists: Vec<Reference>,
}

/// Say by the exit status whether a list is here
#[derive(Debug, Args)]
struct ExistsArgs {
    list: Reference,
}

pub fn run(arguments: ManifestArgs) -> Result<i32> {
    let paths = Paths::find()?;
    match arguments.verb {
        ManifestVerb::Create(arguments) => create(&Store::open(&paths)?, &arguments),
        ManifestVerb::Add(arguments) => add(&Store::open(&paths)?, &arguments),
        ManifestVerb::Annotate(arguments) => {
            let store = Store::open(&paths)?;
            let mut list = List::expect(&store, &arguments.list)?;
            annotate(&store, &mut list, &arguments.image, &arguments.about)?;
            said(&store, &list)
        }
        ManifestVerb::Inspect(arguments) => inspect(&Store::open(&paths)?, &arguments),
        ManifestVerb::Push(arguments) => inside::run(move || push(&Store::open(&paths)?, &arguments)),
        ManifestVerb::Remove(arguments) => {
            let store = Store::open(&paths)?;
            let mut list = List::expect(&store, &arguments.list)?;
            for word in &arguments.images {
                let digest = list.entry(&store, word)?.digest.clone();
                list.take_out(&digest);
            }
            said(&store, &list)
        }
        ManifestVerb::Rm(arguments) => {
            let store = Store::open(&paths)?;
            for name in &arguments.lists {
                let list = List::expect(&store, name)?;
                list.remove(&store)?;
                println!("{}", digest(&list)?);
            }
            Ok(0)
        }
        ManifestVerb::Exists(arguments) => {
            Ok(i32::from(List::find(&Store::open(&paths)?, &arguments.list)?.is_none()))
        }
    }
}

fn digest(list: &List) -> Result<Digest> {
    Ok(Digest::of(&serde_json::to_vec(&list.index)?))
}

/// Keeps the list and prints its digest, as podman does.
fn said(store: &Store, list: &List) -> Result<i32> {
    list.keep(store)?;
    println!("{}", digest(list)?);
    Ok(0)
}

fn create(store: &Store, arguments: &CreateArgs) -> Result<i32> {
    let mut list = match List::find(store, &arguments.list)? {
        Some(_) if !arguments.amend => {
            let sentence = format!("manifest list {} is there already", arguments.list.familiar());
            return Err(Error::usage(sentence).hint("use --amend, or remove it first").into());
        }
        Some(list) => list,
        None => List::new(arguments.list.clone()),
    };
    let take = if arguments.all { Take::All } else { Take::Host };
    for word in &arguments.images {
        list.add(store, word, take, &arguments.registry.manner())
            .with_context(|| format!("cannot add {word} to the list"))?;
    }
    said(store, &list)
}

fn add(store: &Store, arguments: &AddArgs) -> Result<i32> {
    let mut list = List::expect(store, &arguments.list)?;
    let take = if arguments.all { Take::All } else { Take::Host };
    for word in &arguments.images {
        list.add(store, word, take, &arguments.registry.manner())
            .with_context(|| format!("cannot add {word} to the list"))?;
        annotate(store, &mut list, word, &arguments.about)?;
    }
    said(store, &list)
}

fn annotate(store: &Store, list: &mut List, word: &str, about: &AboutArgs) -> Result<()> {
    let unchanged = about.arch.is_none() && about.os.is_none() && about.variant.is_none();
    if unchanged && about.annotation.is_empty() {
        return Ok(());
    }
    let entry = list.entry(store, word)?;
    if !unchanged {
        let platform = entry.platform.get_or_insert_with(Platform::host);
        platform.architecture = about.arch.clone().unwrap_or_else(|| platform.architecture.clone());
        platform.os = about.os.clone().unwrap_or_else(|| platform.os.clone());
        platform.variant = about.variant.clone().or_else(|| platform.variant.take());
    }
    for text in &about.annotation {
        let pair = text.split_once('=');
        let (key, value) =
            pair.ok_or_else(|| Error::usage(format!("--annotation {text:?}: KEY=VALUE is expected")))?;
        entry.annotations.insert(key.to_owned(), value.to_owned());
    }
    Ok(())
}

fn inspect(store: &Store, arguments: &InspectArgs) -> Result<i32> {
    let reference: Reference = arguments.name.parse()?;
    if let Some(list) = List::find(store, &reference)? {
        println!("{}", serde_json::to_string_pretty(&list.index)?);
        return Ok(0);
    }
    let conf = RegistriesConf::load()?;
    let reference = conf.candidates(&arguments.name)?.into_iter().next().unwrap_or(reference);
    let endpoint = conf.endpoints(&reference)?.pop().context("registries.conf leaves no endpoint")?;
    let fetched = Client::new(endpoint, arguments.registry.manner())?.manifest(&reference)?;
    let value: serde_json::Value = serde_json::from_slice(&fetched.bytes)?;
    println!("{}", serde_json::to_string_pretty(&value)?);
    Ok(0)
}

fn push(store: &Store, arguments: &PushArgs) -> Result<i32> {
    let list = List::expect(store, &arguments.list)?;
    let target = match &arguments.destination {
        Some(word) => word.strip_prefix("docker://").unwrap_or(word).parse()?,
        None => arguments.list.clone(),
    };
    let compression = push::compression("gzip")?;
    let options = Options { manner: arguments.registry.manner(), compression, level: None, parallel: 3 };
    let digest =
        list.push(store, &target, &options).with_context(|| format!("cannot push the list to {target}"))?;
    if let Some(path) = &arguments.digestfile {
        std::fs::write(path, digest.to_string())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if arguments.purge {
        list.remove(store)?;
    }
    println!("{digest}");
    Ok(0)
}
