//! Recording an image from its parts, however they came: what load, import and commit have in common. Its
//! layers are in the store before it, its names come last.

use anyhow::{Result, bail};

use crate::image::config::{ImageConfig, now, unix_time};
use crate::image::install::Installer;
use crate::image::manifest::{Compression, Descriptor, Manifest, OCI_CONFIG};
use crate::image::pull::unpacked_size;
use crate::image::reference::{Digest, Reference};
use crate::image::store::{ImageRecord, LayerReference, Store};

/// A configuration, and the manifest that it came with, if any.
#[derive(Debug)]
pub struct Parts<'a> {
    pub config: &'a [u8],
    /// Its bytes, and its layers in the order of the configuration's.
    pub manifest: Option<(&'a [u8], &'a Manifest)>,
}

/// Puts blobs, record and names into the store; the layers are there already.
pub fn record(installer: &Installer<'_>, parts: &Parts<'_>, names: &[Reference]) -> Result<Digest> {
    let store = installer.store;
    let config = ImageConfig::parse(parts.config)?;
    let diff_ids = &config.rootfs.diff_ids;
    {
        let lock = store.lock("recording an image")?;
        let mut blobs = vec![Digest::of(parts.config)];
        blobs.extend(parts.manifest.map(|(bytes, _)| Digest::of(bytes)));
        installer.workspace.lease(&lock, diff_ids, &blobs)?;
    }
    for diff_id in diff_ids {
        if store.layer(diff_id, installer.owners)?.is_none() {
            bail!("the archive has no layer {diff_id}, which its configuration names");
        }
    }
    let id = store.put_blob(parts.config)?;
    let (manifest, layers) = match parts.manifest {
        Some((bytes, manifest)) if manifest.layers.len() == diff_ids.len() => {
            (store.put_blob(bytes)?, manifest.layers.clone())
        }
        _ => {
            let layers = plain_layers(store, diff_ids)?;
            let config = Descriptor::new(OCI_CONFIG, id.clone(), parts.config.len() as u64);
            let bytes = serde_json::to_vec(&Manifest::new(config, layers.clone()))?;
            (store.put_blob(&bytes)?, layers)
        }
    };
    let layer = |(diff_id, blob): (&Digest, &Descriptor)| LayerReference {
        diff_id: diff_id.clone(),
        digest: blob.digest.clone(),
        size: blob.size,
        media_type: blob.media_type.clone(),
    };
    let image = ImageRecord {
        id: id.clone(),
        manifest,
        created: config.created.as_deref().and_then(unix_time).unwrap_or_else(now),
        size: unpacked_size(store, diff_ids)?,
        platform: config.platform(),
        layers: diff_ids.iter().zip(&layers).map(layer).collect(),
        repo_digests: Vec::new(),
        labels: config.config.labels.clone(),
    };
    store.put_image(&image)?;
    for name in names {
        store.put_name(name, &id)?;
    }
    Ok(id)
}

/// Uncompressed layers, as the store can make them at any time.
pub fn plain_layers(store: &Store, diff_ids: &[Digest]) -> Result<Vec<Descriptor>> {
    let mut layers = Vec::new();
    for diff_id in diff_ids {
        let size =
            crate::image::store::whole_layer(&store.layer_path(diff_id))?.map_or(0, |layer| layer.tar_size);
        layers.push(Descriptor::new(Compression::None.media_type(), diff_id.clone(), size));
    }
    Ok(layers)
}
