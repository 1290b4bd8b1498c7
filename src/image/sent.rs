//! What a layer was called where it was sent: a layer that was made here has no digest of a registry until it is
//! packed, and to pack it again only to learn that the registry has it would be a waste. The record is a hint that
//! lies with the layer; who uses it asks the registry.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::image::manifest::Descriptor;
use crate::image::reference::{Digest, Reference};
use crate::image::store::Store;
use crate::record::{self, Durability};

/// How many ways of packing, and places of each, are remembered: the latest.
const MOST: usize = 8;

/// A way in which a layer was packed, and the repositories that it went to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sent {
    pub blob: Descriptor,
    pub places: Vec<String>,
}

/// All that is remembered; nothing of a layer that was never sent, or whose record is damaged.
pub fn read(store: &Store, layer: &Digest) -> Vec<Sent> {
    record::read(&store.layer_path(layer).join("sent")).ok().flatten().unwrap_or_default()
}

pub fn write(store: &Store, layer: &Digest, blob: &Descriptor, target: &Reference) -> Result<()> {
    let _lock = store.lock("remembering a push")?;
    let mut all = read(store, layer);
    let known = all.iter().position(|known| known.blob.digest == blob.digest);
    let mut latest = match known {
        Some(at) => all.remove(at),
        None => Sent { blob: blob.clone(), places: Vec::new() },
    };
    latest.places.retain(|place| *place != target.name());
    latest.places.insert(0, target.name());
    latest.places.truncate(MOST);
    all.insert(0, latest);
    all.truncate(MOST);
    record::write(&store.layer_path(layer).join("sent"), &all, Durability::Boot)
}
