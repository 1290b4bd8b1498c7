//! `kelp system df`: how much space images, containers and volumes take, and how much of it nothing needs. Layers
//! are counted once, whoever shares them; of containers and volumes, files are counted by their length.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use crate::cli::inside;
use crate::cli::ps;
use crate::cli::table::{self, Column};
use crate::container::folder::Known;
use crate::container::list::{self, made_from};
use crate::container::volume;
use crate::image::config::now;
use crate::image::reference::Digest;
use crate::image::store::{ImageRecord, Store, digests, whole_layer};
use crate::paths::Paths;

/// Show how much space images, containers and volumes take
#[derive(Debug, Args)]
pub struct DfArgs {
    /// Show each of them
    #[arg(short, long)]
    verbose: bool,
    /// A Go template or `json`
    #[arg(long, value_name = "FORMAT", conflicts_with = "verbose")]
    format: Option<String>,
}

/// One image, container or volume.
struct Item {
    row: Value,
    size: u64,
    used: bool,
}

/// What is needed to know whose layers are whose.
struct Layers {
    sizes: BTreeMap<Digest, u64>,
    images: Vec<ImageRecord>,
}

pub fn run(arguments: DfArgs) -> Result<i32> {
    let paths = Paths::find()?;
    // Folders that containers have closed are counted too.
    inside::as_root(0, move || {
        let store = Store::open(&paths)?;
        let layers = Layers { sizes: sizes(&store)?, images: store.images()? };
        let images = images(&store, &paths, &layers)?;
        let (containers, volumes) = (containers(&paths), volumes(&paths)?);
        if arguments.verbose {
            return verbose(&images, &containers, &volumes);
        }
        let rows = [
            summary("Images", &images, layers.sizes.values().sum(), unneeded(&layers, &images)),
            sum("Containers", &containers),
            sum("Local Volumes", &volumes),
        ];
        let columns = [
            Column::new("TYPE", "Type"),
            Column::new("TOTAL", "TotalCount"),
            Column::new("ACTIVE", "Active"),
            Column::new("SIZE", "Size"),
            Column::new("RECLAIMABLE", "Reclaimable"),
        ];
        table::print(&rows, &columns, arguments.format.as_deref(), true)?;
        Ok(0)
    })
}

fn sizes(store: &Store) -> Result<BTreeMap<Digest, u64>> {
    let mut sizes = BTreeMap::new();
    for diff_id in digests(&store.path("layers"))? {
        let size = whole_layer(&store.layer_path(&diff_id))?.map_or(0, |layer| layer.unpacked.size);
        sizes.insert(diff_id, size);
    }
    Ok(sizes)
}

/// The layers that no image of a container has.
fn unneeded(layers: &Layers, images: &[Item]) -> u64 {
    let used = layers.images.iter().zip(images).filter(|(_, item)| item.used);
    let needed: HashSet<&Digest> =
        used.flat_map(|(image, _)| &image.layers).map(|layer| &layer.diff_id).collect();
    layers.sizes.iter().filter(|(diff_id, _)| !needed.contains(diff_id)).map(|(_, size)| size).sum()
}

fn summary(kind: &str, items: &[Item], size: u64, reclaimable: u64) -> Value {
    let percent = (reclaimable * 100).checked_div(size).unwrap_or(0);
    json!({
        "Type": kind,
        "TotalCount": items.len().to_string(),
        "Total": items.len(),
        "Active": items.iter().filter(|item| item.used).count().to_string(),
        "Size": table::size(size),
        "Reclaimable": format!("{} ({percent}%)", table::size(reclaimable)),
    })
}

fn sum(kind: &str, items: &[Item]) -> Value {
    let unused = items.iter().filter(|item| !item.used).map(|item| item.size).sum();
    summary(kind, items, items.iter().map(|item| item.size).sum(), unused)
}

fn images(store: &Store, paths: &Paths, layers: &Layers) -> Result<Vec<Item>> {
    let names = store.names()?;
    let mut items = Vec::new();
    for image in &layers.images {
        let shares = |diff_id: &Digest| {
            let has = |other: &&ImageRecord| other.layers.iter().any(|layer| layer.diff_id == *diff_id);
            layers.images.iter().filter(|other| other.id != image.id).any(|other| has(&other))
        };
        let own: HashSet<&Digest> = image.layers.iter().map(|layer| &layer.diff_id).collect();
        let shared = own.iter().filter(|diff_id| shares(diff_id)).filter_map(|id| layers.sizes.get(id)).sum();
        let name = names.iter().find(|name| name.image == image.id).map(|name| &name.reference);
        let holders = made_from(paths, image.id.hex()).len();
        let row = json!({
            "Repository": name.map_or_else(|| "<none>".to_owned(), |name| name.familiar_name()),
            "Tag": name.and_then(|name| name.tag.clone()).unwrap_or_else(|| "<none>".to_owned()),
            "ID": image.id.short(),
            "Created": format!("{} ago", table::duration(now() - image.created)),
            "Size": table::size(image.size),
            "Shared": table::size(shared),
            "Unique": table::size(image.size.saturating_sub(shared)),
            "Containers": holders,
        });
        items.push(Item { row, size: image.size, used: holders > 0 });
    }
    Ok(items)
}

fn containers(paths: &Paths) -> Vec<Item> {
    let item = |known: Known| {
        let size = length(&known.folder.join("upper"));
        let row = json!({
            "ID": known.made.id.short(),
            "Image": known.made.request.image.id.get(..12).unwrap_or("<none>"),
            "Size": table::size(size),
            "Created": format!("{} ago", table::duration(now() - known.made.created / 1_000_000_000)),
            "Status": ps::status(&known),
            "Names": known.name().to_string(),
        });
        Item { row, size, used: known.status.state.is_live() }
    };
    list::all(paths).into_iter().map(item).collect()
}

fn volumes(paths: &Paths) -> Result<Vec<Item>> {
    let item = |volume: volume::Volume| {
        let (size, links) =
            (length(&volume::folder(paths, &volume.name)), volume::users(paths, &volume.name).len());
        let row = json!({ "Name": volume.name.to_string(), "Links": links, "Size": table::size(size) });
        Item { row, size, used: links > 0 }
    };
    Ok(volume::list(paths)?.into_iter().map(item).collect())
}

/// The bytes of all files below a folder, each file once.
fn length(folder: &Path) -> u64 {
    let (mut folders, mut seen, mut sum) = (vec![folder.to_owned()], HashSet::new(), 0);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
            let Ok(found) = entry.metadata() else { continue };
            if found.is_dir() {
                folders.push(entry.path());
            } else if found.nlink() == 1 || seen.insert((found.dev(), found.ino())) {
                sum += found.len();
            }
        }
    }
    sum
}

fn verbose(images: &[Item], containers: &[Item], volumes: &[Item]) -> Result<i32> {
    let rows = |items: &[Item]| items.iter().map(|item| item.row.clone()).collect::<Vec<Value>>();
    println!("Images space usage:\n");
    let columns = [
        Column::new("REPOSITORY", "Repository"),
        Column::new("TAG", "Tag"),
        Column::new("IMAGE ID", "ID"),
        Column::new("CREATED", "Created"),
        Column::new("SIZE", "Size"),
        Column::new("SHARED SIZE", "Shared"),
        Column::new("UNIQUE SIZE", "Unique"),
        Column::new("CONTAINERS", "Containers"),
    ];
    table::print(&rows(images), &columns, None, true)?;
    println!("\nContainers space usage:\n");
    let columns = [
        Column::new("CONTAINER ID", "ID"),
        Column::new("IMAGE", "Image"),
        Column::new("SIZE", "Size"),
        Column::new("CREATED", "Created"),
        Column::new("STATUS", "Status"),
        Column::new("NAMES", "Names"),
    ];
    table::print(&rows(containers), &columns, None, true)?;
    println!("\nLocal Volumes space usage:\n");
    let columns =
        [Column::new("VOLUME NAME", "Name"), Column::new("LINKS", "Links"), Column::new("SIZE", "Size")];
    table::print(&rows(volumes), &columns, None, true)?;
    Ok(0)
}
