//! Push, as one story: the layers that the registry does not have go there, then the configuration, then the
//! manifest. A layer is sent as it came if its blob was kept or the registry has it or can mount it; else its
//! tar stream is made again and packed on the way. If every layer is as it came, so is the manifest, and the
//! image keeps its digest.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};

use crate::error::Error;
use crate::image::manifest::{
    Compression, Descriptor, Document, Manifest, OCI_CONFIG, OCI_MANIFEST, oci_layer,
};
use crate::image::reference::{Digest, Reference};
use crate::image::registries_conf::RegistriesConf;
use crate::image::registry::{Client, Manner};
use crate::image::save::{self, Layer};
use crate::image::store::{Image, LayerReference, Store};
use crate::image::stream;

#[derive(Clone, Debug)]
pub struct Options {
    pub manner: Manner,
    pub compression: Compression,
    pub parallel: usize,
}

/// What is told while it happens.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// The registry has the layer.
    Existed(&'a Digest),
    Mounted(&'a Digest),
    Done(&'a Digest),
}

pub type Progress<'a> = dyn Fn(Event<'_>) + Sync + 'a;

/// Sends an image; returns what its manifest is in the registry.
pub fn send(
    store: &Store,
    image: &Image,
    target: &Reference,
    options: &Options,
    progress: &Progress<'_>,
) -> Result<Descriptor> {
    let endpoint = RegistriesConf::load()?.endpoints(target)?.pop();
    let endpoint = endpoint.context("registries.conf leaves no place to push to")?;
    let client = Client::new(endpoint, options.manner.clone())?;
    let sent = layers(store, &client, image, target, options, progress)
        .with_context(|| format!("cannot push {target}"))?;
    let config = store.blob(&image.id)?;
    client.put_blob(&config)?;
    let (bytes, media_type) = manifest(store, image, &config, &sent)?;
    let digest = Digest::of(&bytes);
    let selector = target.tag.clone().unwrap_or_else(|| digest.to_string());
    client.put_manifest(&selector, &media_type, &bytes)?;
    let mut record = image.record.clone();
    record.repo_digests = vec![format!("{}@{digest}", target.name())];
    if record.manifest == digest {
        store.put_image(&record)?;
    }
    Ok(Descriptor::new(media_type, digest, bytes.len() as u64))
}

fn manifest(store: &Store, image: &Image, config: &[u8], sent: &[Descriptor]) -> Result<(Vec<u8>, String)> {
    let original = store.blob(&image.record.manifest)?;
    if let Document::Manifest(known) = Document::parse(&original, None)? {
        let same = known.layers.iter().map(|layer| &layer.digest).eq(sent.iter().map(|layer| &layer.digest));
        if same && known.config.digest == image.id {
            let media_type =
                if known.media_type.is_empty() { OCI_MANIFEST.to_owned() } else { known.media_type };
            return Ok((original, media_type));
        }
    }
    let config = Descriptor::new(OCI_CONFIG, image.id.clone(), config.len() as u64);
    let as_oci =
        |layer: &Descriptor| Descriptor { media_type: oci_layer(&layer.media_type), ..layer.clone() };
    let layers = sent.iter().map(as_oci).collect();
    Ok((serde_json::to_vec(&Manifest::new(config, layers))?, OCI_MANIFEST.to_owned()))
}

fn layers(
    store: &Store,
    client: &Client,
    image: &Image,
    target: &Reference,
    options: &Options,
    progress: &Progress<'_>,
) -> Result<Vec<Descriptor>> {
    let jobs: Vec<(usize, &LayerReference)> = image.record.layers.iter().enumerate().collect();
    let sent: Mutex<Vec<Option<Descriptor>>> = Mutex::new(vec![None; jobs.len()]);
    let failure = Mutex::new(None);
    let workers = options.parallel.clamp(1, jobs.len().max(1));
    let queue = Mutex::new(jobs.into_iter());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let failed = || failure.lock().unwrap_or_else(PoisonError::into_inner).is_some();
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let (false, Some((at, layer))) = (failed(), next()) {
                    match layer_of(store, client, image, layer, target, options, progress) {
                        Ok(blob) => sent.lock().unwrap_or_else(PoisonError::into_inner)[at] = Some(blob),
                        Err(error) => {
                            let error = error.context(format!("layer {}", layer.diff_id.short()));
                            failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                        }
                    }
                }
            });
        }
    });
    if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let sent = sent.into_inner().unwrap_or_else(PoisonError::into_inner);
    sent.into_iter().collect::<Option<Vec<_>>>().context("a layer was not sent")
}

fn layer_of(
    store: &Store,
    client: &Client,
    image: &Image,
    layer: &LayerReference,
    target: &Reference,
    options: &Options,
    progress: &Progress<'_>,
) -> Result<Descriptor> {
    let as_it_came = Descriptor::new(layer.media_type.clone(), layer.digest.clone(), layer.size);
    let packed = layer.digest != layer.diff_id;
    if packed && client.has_blob(&layer.digest)? {
        progress(Event::Existed(&layer.digest));
        return Ok(as_it_came);
    }
    if let Ok(mut file) = File::open(store.blob_path(&layer.digest)) {
        if let Some(mut upload) = client.start_upload(None, None)? {
            upload.send(&mut file)?;
            upload.finish(&layer.digest)?;
        }
        progress(Event::Done(&layer.digest));
        return Ok(as_it_came);
    }
    for repository in neighbours(image, target).filter(|_| packed) {
        match client.start_upload(Some(&layer.digest), Some(&repository))? {
            None => {
                progress(Event::Mounted(&layer.digest));
                return Ok(as_it_came);
            }
            // The registry opened an upload instead, which expires by itself.
            Some(_unused) => {}
        }
    }
    let sent = pack(store, client, layer, options)?;
    progress(Event::Done(&layer.digest));
    Ok(sent)
}

/// Other repositories of the same registry that the image is known to be in.
fn neighbours<'a>(image: &'a Image, target: &'a Reference) -> impl Iterator<Item = String> + 'a {
    let known = image.record.repo_digests.iter().filter_map(|text| text.parse::<Reference>().ok());
    let same =
        move |known: &Reference| known.registry == target.registry && known.repository != target.repository;
    known.filter(same).map(|known| known.repository)
}

/// Makes the tar stream again, packs it in one thread and sends it from another.
fn pack(store: &Store, client: &Client, layer: &LayerReference, options: &Options) -> Result<Descriptor> {
    let mut content = Layer::open(store, &layer.diff_id)?;
    let Some(mut upload) = client.start_upload(None, None)? else { bail!("the registry opens no upload") };
    let (mut writer, mut reader) = stream::pipe();
    let (packed, sent) = std::thread::scope(|scope| {
        let packing = scope.spawn(move || -> Result<Descriptor> {
            let packed = save::compress(&mut content as &mut dyn Read, options.compression, &mut writer)?;
            writer.flush()?;
            writer.finish()?;
            Ok(packed)
        });
        let sent = upload.send(&mut reader);
        drop(reader);
        (packing.join(), sent)
    });
    let packed = packed.unwrap_or_else(|_| bail!("the packing thread panicked"));
    let packed = match (packed, sent) {
        (Ok(packed), Ok(())) => packed,
        (Err(error), Ok(())) | (Ok(_), Err(error)) => return Err(error),
        (Err(packing), Err(sending)) => {
            return Err(if stream::is_echo(&sending) { packing } else { sending });
        }
    };
    upload.finish(&packed.digest)?;
    Ok(packed)
}

/// `--compression-format`
pub fn compression(word: &str) -> Result<Compression> {
    Compression::from_word(word).ok_or_else(|| {
        Error::usage(format!("{word:?} is not a compression: none, gzip or zstd is expected")).into()
    })
}
