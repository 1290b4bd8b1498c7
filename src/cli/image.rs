//! `kelp image ...`: the verbs on images under their long names, and those that have no short one: inspect,
//! prune, tree, exists.

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::cli::filter::{self, Filter};
use crate::cli::{archive, events, history, images, inside, mount, pull, push, rmi, table, tag};
use crate::container::journal::Kind;
use crate::container::list::made_from;
use crate::image::collect;
use crate::image::config::rfc3339;
use crate::image::manifest::{Document, OCI_MANIFEST};
use crate::image::store::{Image, ImageRecord, Store};
use crate::paths::Paths;

/// Work with images
#[derive(Debug, Args)]
pub struct ImageArgs {
    #[command(subcommand)]
    verb: ImageVerb,
}

#[derive(Debug, Subcommand)]
enum ImageVerb {
    #[command(visible_alias = "list")]
    Ls(images::ImagesArgs),
    Inspect(InspectArgs),
    #[command(visible_alias = "remove")]
    Rm(rmi::RmiArgs),
    Prune(PruneArgs),
    Tree(history::TreeArgs),
    History(history::HistoryArgs),
    Pull(pull::PullArgs),
    Push(push::PushArgs),
    Tag(tag::TagArgs),
    Untag(tag::UntagArgs),
    Save(archive::SaveArgs),
    Load(archive::LoadArgs),
    Import(archive::ImportArgs),
    Mount(mount::MountArgs),
    #[command(visible_alias = "umount")]
    Unmount(mount::UnmountArgs),
    Exists(ExistsArgs),
}

/// Show what an image is made of
#[derive(Debug, Args)]
pub struct InspectArgs {
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// A Go template or `json`
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
}

/// Remove images without a name
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Remove all images that no container uses
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// label=KEY[=VALUE], label!=KEY[=VALUE], until=SECONDS
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
}

/// Say by the exit status whether an image is here
#[derive(Debug, Args)]
pub struct ExistsArgs {
    image: String,
}

pub fn run(arguments: ImageArgs) -> Result<i32> {
    match arguments.verb {
        ImageVerb::Ls(arguments) => images::run(&arguments),
        ImageVerb::Inspect(arguments) => inspect(&arguments),
        ImageVerb::Rm(arguments) => rmi::run(arguments),
        ImageVerb::Prune(arguments) => prune(arguments),
        ImageVerb::Tree(arguments) => history::tree(&arguments),
        ImageVerb::History(arguments) => history::run(&arguments),
        ImageVerb::Pull(arguments) => pull::run(arguments),
        ImageVerb::Push(arguments) => push::run(arguments),
        ImageVerb::Tag(arguments) => tag::run(&arguments),
        ImageVerb::Untag(arguments) => tag::untag(&arguments),
        ImageVerb::Save(arguments) => archive::save(arguments),
        ImageVerb::Load(arguments) => archive::load(arguments),
        ImageVerb::Import(arguments) => archive::import(arguments),
        ImageVerb::Mount(arguments) => mount::mount(&arguments),
        ImageVerb::Unmount(arguments) => mount::unmount(&arguments),
        ImageVerb::Exists(arguments) => {
            Ok(i32::from(Store::open(&Paths::find()?)?.find(&arguments.image)?.is_none()))
        }
    }
}

fn inspect(arguments: &InspectArgs) -> Result<i32> {
    let store = Store::open(&Paths::find()?)?;
    table::inspect_each(&arguments.images, arguments.format.as_deref(), |word| {
        store.expect(word).and_then(|image| describe(&store, &image))
    })
}

/// An image as docker's API describes it.
pub fn describe(store: &Store, image: &Image) -> Result<Value> {
    let names = store.names_of(&image.id)?;
    let config = &image.config;
    let manifest = match Document::parse(&store.blob(&image.record.manifest)?, None)? {
        Document::Manifest(manifest) => manifest.media_type,
        Document::Index(index) => index.media_type,
    };
    let layers: Vec<String> = config.rootfs.diff_ids.iter().map(ToString::to_string).collect();
    let trees: Vec<String> = image.layers.iter().rev().map(|path| path.display().to_string()).collect();
    let (upper, lower) = trees
        .split_first()
        .map_or((Value::Null, Vec::new()), |(top, rest)| (top.clone().into(), rest.to_vec()));
    Ok(json!({
        "Id": image.id.to_string(),
        "Digest": image.record.manifest.to_string(),
        "ManifestType": if manifest.is_empty() { OCI_MANIFEST } else { &manifest },
        "RepoTags": names.iter().map(crate::image::reference::Reference::familiar).collect::<Vec<_>>(),
        "RepoDigests": image.record.repo_digests,
        "Parent": "",
        "Comment": config.history.last().and_then(|last| last.comment.clone()).unwrap_or_default(),
        "Created": config.created.clone().unwrap_or_else(|| rfc3339(image.record.created)),
        "Author": config.author.clone().unwrap_or_default(),
        "Config": serde_json::to_value(&config.config)?,
        "Architecture": config.architecture,
        "Variant": config.variant.clone().unwrap_or_default(),
        "Os": config.os,
        "Size": image.record.size,
        "VirtualSize": image.record.size,
        "GraphDriver": { "Name": "overlay", "Data": { "UpperDir": upper, "LowerDir": lower.join(":") } },
        "RootFS": { "Type": "layers", "Layers": layers },
        "History": config.history.iter().map(serde_json::to_value).collect::<Result<Vec<_>, _>>()?,
        "Labels": config.config.labels,
    }))
}

fn prune(arguments: PruneArgs) -> Result<i32> {
    let paths = Paths::find()?;
    inside::run(move || {
        let freed = remove_unused(&paths, arguments.all, &arguments.filter)?;
        println!("Total reclaimed space: {}", table::size(freed));
        Ok(0)
    })
}

/// Removes the images that nobody needs and that the filters choose, and says so; gives the bytes that they had.
pub fn remove_unused(paths: &Paths, all: bool, filters: &[String]) -> Result<u64> {
    let store = Store::open(paths)?;
    let wanted = |image: &ImageRecord| filters.iter().all(|filter| fits(filter, image));
    let removed = collect::prune(&store, all, &wanted, &|id| made_from(paths, id.hex()))?;
    rmi::print(&removed);
    rmi::tell(paths, &removed, None);
    events::pruned(paths, Kind::Image, removed.freed);
    Ok(removed.freed)
}

/// Whether a filter of a removal chooses the image.
fn fits(filter: &str, image: &ImageRecord) -> bool {
    match filter::parse(filter) {
        Some(Filter { key: "label", value, is_not }) => filter::has_label(&image.labels, value) != is_not,
        Some(Filter { key: "until", value, is_not: false }) => filter::until(value, image.created),
        _ => false,
    }
}
