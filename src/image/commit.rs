//! Commit: what a container changed as one more layer on its image. The layer is packed as a tar stream and
//! comes into the store as a pulled one does, so everything that holds for those holds for it.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

use crate::image::changes::{self, Stack};
use crate::image::compose::{self, Parts};
use crate::image::config::{History, ImageConfig, RootFs};
use crate::image::install::Installer;
use crate::image::manifest::{Compression, Descriptor, Dialect, Manifest};
use crate::image::reference::{Digest, Reference};
use crate::image::snapshot::{Ownership, Snapshot};
use crate::image::store::{Image, LayerRecord};
use crate::image::stream::{self, PipeWriter};
use crate::userns::maps::Shift;

/// What is made into an image.
#[derive(Debug)]
pub struct Container<'a> {
    /// The image that it runs on.
    pub image: &'a Image,
    /// What it has changed, if it has.
    pub upper: Option<&'a Path>,
    pub ownership: Ownership,
    /// As `changes::Stack` has it.
    pub shift: Option<Shift>,
    /// In whose words its manifest is to be.
    pub dialect: Dialect,
}

/// Makes the image of `container`, with `config` as the configuration besides layers and history.
pub fn commit(
    installer: &Installer<'_>,
    container: &Container<'_>,
    mut config: ImageConfig,
    step: History,
    names: &[Reference],
) -> Result<Digest> {
    let image = container.image;
    let layer = layer(installer, container)?;
    let mut diff_ids = image.config.rootfs.diff_ids.clone();
    diff_ids.extend(layer.iter().map(|layer| layer.diff_id.clone()));
    config.created = step.created.clone();
    config.rootfs = RootFs { kind: "layers".to_owned(), diff_ids };
    config.history.push(History { empty_layer: layer.is_none(), ..step });
    let text = serde_json::to_vec(&config)?;
    // Layers below keep the blobs that registries know them by.
    let mut blobs: Vec<Descriptor> = Vec::new();
    for known in &image.record.layers {
        blobs.push(Descriptor::new(known.media_type.as_str(), known.digest.clone(), known.size));
    }
    let plain = |layer: &LayerRecord| {
        Descriptor::new(Compression::None.media_type(), layer.diff_id.clone(), layer.tar_size)
    };
    blobs.extend(layer.iter().map(plain));
    let manifest = Manifest::in_words_of(container.dialect, &Digest::of(&text), text.len() as u64, blobs);
    let bytes = serde_json::to_vec(&manifest)?;
    compose::record(installer, &Parts { config: &text, manifest: Some((&bytes, &manifest)) }, names)
}

/// The changes as a layer of the store; `None` if there are none.
fn layer(installer: &Installer<'_>, container: &Container<'_>) -> Result<Option<LayerRecord>> {
    let Some(upper) = container.upper else { return Ok(None) };
    let stack = Stack { upper, lowers: &container.image.layers, shift: container.shift.as_ref() };
    let mut changed = false;
    changes::walk(stack, &mut |_| {
        changed = true;
        Ok(())
    })?;
    if !changed {
        return Ok(None);
    }
    let pack = |writer: PipeWriter| {
        let mut snapshot = Snapshot::new(writer, container.ownership.clone());
        changes::walk(stack, &mut |change| snapshot.change(change))?;
        let mut writer = snapshot.finish()?;
        writer.flush()?;
        Ok(writer.finish()?)
    };
    let (packed, installed) = stream::between(pack, |reader| installer.layer(reader, None));
    let layer = stream::first_cause(packed, installed).map(|((), layer)| Some(layer));
    layer.context("cannot make a layer of the changes")
}
