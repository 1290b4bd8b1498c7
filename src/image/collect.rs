//! Taking things out of the store: names, images, and what nothing refers to any more. Names go first, then
//! records, then layers and blobs, all under the store's lock; the slow part, deleting unpacked layers, comes
//! after it, from the workspace that they were renamed into.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::error::Error;
use crate::image::list;
use crate::image::reference::{Digest, Reference};
use crate::image::store::{ImageRecord, Store, digests, entries, whole_layer};
use crate::image::workspace::{self, Workspace};
use crate::record::{self, Lock};

/// What a removal took away.
#[derive(Debug, Default)]
pub struct Removed {
    pub untagged: Vec<Reference>,
    pub images: Vec<Digest>,
    pub layers: Vec<Digest>,
    /// The bytes of files that are gone.
    pub freed: u64,
}

/// Who still needs an image: the names of containers by image.
pub type InUse<'a> = dyn Fn(&Digest) -> Vec<String> + 'a;

struct Used {
    layers: HashSet<Digest>,
    blobs: HashSet<Digest>,
}

fn used(store: &Store) -> Result<Used> {
    let (mut layers, mut blobs) = workspace::leased(&store.path("tmp"))?;
    for id in digests(&store.path("images"))? {
        let image: Option<ImageRecord> = record::read(&store.path("images").join(id.hex()))?;
        let Some(image) = image else { continue };
        blobs.extend([image.id, image.manifest]);
        for layer in image.layers {
            layers.insert(layer.diff_id);
            blobs.insert(layer.digest);
        }
    }
    Ok(Used { layers, blobs })
}

/// Removes what `word` means: a name, and with its last name the image; or an image by its id.
pub fn remove(store: &Store, word: &str, force: bool, in_use: &InUse<'_>) -> Result<Removed> {
    let workspace = store.workspace("removing")?;
    let mut removed = Removed::default();
    let _lock = store.lock("removing an image")?;
    let image = store.find(word)?.map(|image| image.record);
    let image = image.map_or_else(|| broken(store, word), |image| Ok(Some(image)))?;
    let image = image.ok_or_else(|| Error::usage(format!("no such image: {word}")))?;
    let names = store.names_of(&image.id)?;
    let named = word.parse::<Reference>().ok().filter(|name| name.digest.is_none() && names.contains(name));
    let last = named.is_none() || names.len() == 1;
    if last {
        let mut holders = in_use(&image.id);
        holders.extend(list::holders(store, &image.id)?);
        if !holders.is_empty() && !force {
            let sentence = format!("image {word} is used by {}", holders.join(", "));
            return Err(Error::usage(sentence).hint("remove the containers first, or use --force").into());
        }
        if named.is_none() && names.len() > 1 && !force {
            let sentence = format!("image {word} has several names, which would all be removed");
            return Err(Error::usage(sentence).hint("remove them one by one, or use --force").into());
        }
    }
    for name in named.map_or(names, |name| vec![name]) {
        store.remove_name(&name)?;
        removed.untagged.push(name);
    }
    if last {
        forget(store, &workspace, image, &mut removed)?;
    }
    Ok(removed)
}

/// The record of an image that can't be run because a part is missing.
fn broken(store: &Store, word: &str) -> Result<Option<ImageRecord>> {
    let named = word.parse::<Reference>().ok();
    let names = store.names()?;
    let id = names.into_iter().find(|name| Some(&name.reference) == named.as_ref()).map(|name| name.image);
    let starts = |image: &ImageRecord| image.id.hex().starts_with(word) && word.len() >= 3;
    Ok(store.images()?.into_iter().find(|image| id.as_ref() == Some(&image.id) || starts(image)))
}

fn forget(store: &Store, workspace: &Workspace, image: ImageRecord, removed: &mut Removed) -> Result<()> {
    let path = store.path("images").join(image.id.hex());
    fs::remove_file(&path).with_context(|| format!("cannot remove image {}", image.id.short()))?;
    let used = used(store)?;
    for layer in &image.layers {
        take_layer(store, workspace, &layer.diff_id, &used, removed)?;
    }
    let layers = image.layers.iter().map(|layer| &layer.digest);
    for digest in layers.chain([&image.id, &image.manifest]) {
        take_blob(store, digest, &used, removed)?;
    }
    removed.images.push(image.id);
    Ok(())
}

fn take_layer(
    store: &Store,
    workspace: &Workspace,
    diff_id: &Digest,
    used: &Used,
    removed: &mut Removed,
) -> Result<()> {
    let folder = store.layer_path(diff_id);
    if used.layers.contains(diff_id) || !folder.exists() {
        return Ok(());
    }
    removed.freed += whole_layer(&folder).ok().flatten().map_or(0, |layer| layer.unpacked.size);
    fs::rename(&folder, workspace.fresh())
        .with_context(|| format!("cannot remove layer {}", diff_id.short()))?;
    removed.layers.push(diff_id.clone());
    Ok(())
}

fn take_blob(store: &Store, digest: &Digest, used: &Used, removed: &mut Removed) -> Result<()> {
    let path = store.blob_path(digest);
    let Ok(found) = fs::metadata(&path) else { return Ok(()) };
    if !used.blobs.contains(digest) {
        fs::remove_file(&path).with_context(|| format!("cannot remove blob {}", digest.short()))?;
        removed.freed += found.len();
    }
    Ok(())
}

/// Removes images that nobody names (or, with `all`, that nobody uses), then everything that nothing refers
/// to: layers, blobs, parts of downloads.
pub fn prune(
    store: &Store,
    all: bool,
    wanted: &dyn Fn(&ImageRecord) -> bool,
    in_use: &InUse<'_>,
) -> Result<Removed> {
    let workspace = store.workspace("pruning")?;
    let mut removed = Removed::default();
    let _lock = store.lock("pruning")?;
    let names = store.names()?;
    for id in digests(&store.path("images"))? {
        let image: Option<ImageRecord> = record::read(&store.path("images").join(id.hex()))?;
        let Some(image) = image.filter(wanted) else { continue };
        let own: Vec<Reference> =
            names.iter().filter(|name| name.image == id).map(|name| name.reference.clone()).collect();
        let listed = !list::holders(store, &id)?.is_empty();
        if (!all && !own.is_empty()) || listed || !in_use(&id).is_empty() {
            continue;
        }
        for name in own {
            store.remove_name(&name)?;
            removed.untagged.push(name);
        }
        forget(store, &workspace, image, &mut removed)?;
    }
    let used = used(store)?;
    for diff_id in digests(&store.path("layers"))? {
        take_layer(store, &workspace, &diff_id, &used, &mut removed)?;
    }
    for digest in digests(&store.path("blobs"))? {
        take_blob(store, &digest, &used, &mut removed)?;
    }
    for path in entries(&store.path("partial"))? {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let shard = store.path("locks").join(name.get(..3).unwrap_or("records"));
        // Whoever fetches it now keeps it.
        if let (Some(_idle), Ok(found)) = (Lock::now(&shard)?, fs::metadata(&path)) {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            removed.freed += found.len();
        }
    }
    for part in ["images", "names", "blobs"] {
        remove_unfinished(&store.path(part))?;
    }
    Ok(removed)
}

/// What a killed kelp had written beside a record or a blob (`record::beside`): its name ends with the writer.
fn remove_unfinished(folder: &Path) -> Result<()> {
    for path in record::unfinished(folder)? {
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}
