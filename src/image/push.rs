//! Push, as one story: the layers and the configuration that the registry does not have go there, then the
//! manifest. A layer is sent as it came if its blob was kept or the registry has it or can mount it, or not at
//! all if it was sent there before; else its tar stream is made again and packed on the way. If every layer is as it came, so is the manifest, and the
//! image keeps its digest.

use std::fs::File;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result, bail};

use crate::error::Error;
use crate::image::gzip::Effort;
use crate::image::manifest::{Compression, Descriptor, Dialect, Document, Manifest, OCI_MANIFEST};
use crate::image::pack;
use crate::image::reference::{Digest, Reference};
use crate::image::registries_conf::RegistriesConf;
use crate::image::registry::upload::Found;
use crate::image::registry::{Client, Manner};
use crate::image::save::{self, Layer, Packing};
use crate::image::sent;
use crate::image::store::{Image, LayerReference, Store};

/// The level of gzip for a registry that is not near, podman's default. Two processors fill 600 Mbit/s with it.
const FAR: i32 = 5;

#[derive(Clone, Debug)]
pub struct Options {
    pub manner: Manner,
    pub compression: Compression,
    /// `--compression-level`; else what suits the way there.
    pub level: Option<i32>,
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
    let journey = Journey::begin(store, image, target, options)?;
    let known = journey.known(progress)?;
    journey.end(known, progress)
}

/// A push, from the store to a registry.
#[derive(Debug)]
pub struct Journey<'a> {
    store: &'a Store,
    image: &'a Image,
    target: &'a Reference,
    options: &'a Options,
    client: Client,
}

impl<'a> Journey<'a> {
    pub fn begin(
        store: &'a Store,
        image: &'a Image,
        target: &'a Reference,
        options: &'a Options,
    ) -> Result<Self> {
        let endpoint = RegistriesConf::load()?.endpoints(target)?.pop();
        let endpoint = endpoint.context("registries.conf leaves no place to push to")?;
        let client = Client::new(endpoint, options.manner.clone())?;
        Ok(Self { store, image, target, options, client })
    }

    /// What the registry has of the layers, or can mount; the configuration is put there. No layer is read, so
    /// this needs nobody's rights. The caller has one thread again afterwards.
    pub fn known(&self, progress: &Progress<'_>) -> Result<Vec<Option<Descriptor>>> {
        let find = || {
            let config = self.store.blob(&self.image.id)?;
            let neighbours: Vec<String> = self.neighbours(&self.image.record.repo_digests).collect();
            // Both ask the registry and wait for it.
            std::thread::scope(|scope| {
                let put = scope.spawn(|| self.client.put_blob(&config, &neighbours));
                let found = self.each_layer(|layer, _| self.find(layer, &neighbours, progress));
                put.join().unwrap_or_else(|_| bail!("a thread of the push panicked"))?;
                found
            })
        };
        find().with_context(|| format!("cannot push {}", self.target))
    }

    /// Sends the layers that are not known, then the manifest.
    pub fn end(&self, known: Vec<Option<Descriptor>>, progress: &Progress<'_>) -> Result<Descriptor> {
        let Self { store, image, target, .. } = self;
        let sent = self.each_layer(|layer, at| match known.get(at).cloned().flatten() {
            Some(blob) => Ok(blob),
            None => self.send_layer(layer, progress),
        });
        let sent = sent.with_context(|| format!("cannot push {target}"))?;
        let config = store.blob(&image.id)?;
        let (bytes, media_type) = manifest(store, image, &config, &sent)?;
        let digest = Digest::of(&bytes);
        let selector = target.tag.clone().unwrap_or_else(|| digest.to_string());
        self.client.put_manifest(&selector, &media_type, &bytes)?;
        let mut record = image.record.clone();
        record.repo_digests = vec![format!("{}@{digest}", target.name())];
        if record.manifest == digest {
            store.put_image(&record)?;
        }
        Ok(Descriptor::new(media_type, digest, bytes.len() as u64))
    }

    /// Does something with every layer, a few at a time; the first failure ends it.
    fn each_layer<T: Send>(
        &self,
        work: impl Fn(&LayerReference, usize) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let layers = &self.image.record.layers;
        let next = AtomicUsize::new(0);
        let done: Mutex<Vec<Option<T>>> = Mutex::new(layers.iter().map(|_| None).collect());
        let failure: OnceLock<anyhow::Error> = OnceLock::new();
        let run = || {
            while failure.get().is_none() {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(layer) = layers.get(at) else { return };
                match work(layer, at) {
                    Ok(value) => done.lock().unwrap_or_else(PoisonError::into_inner)[at] = Some(value),
                    Err(error) => {
                        let _first = failure.set(error.context(format!("layer {}", layer.diff_id.short())));
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            let others = 1..self.options.parallel.clamp(1, layers.len().max(1));
            let others: Vec<_> = others.map(|_| scope.spawn(run)).collect();
            run();
            // A join waits for the end of the thread, the scope only for that of its work.
            others.into_iter().for_each(|other| drop(other.join()));
        });
        if let Some(error) = failure.into_inner() {
            return Err(error);
        }
        let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.into_iter().collect::<Option<Vec<_>>>().context("a thread of the push panicked")
    }

    /// A layer that need not be sent: by the digest that it came with, or by one under which it was sent before.
    fn find(
        &self,
        layer: &LayerReference,
        neighbours: &[String],
        progress: &Progress<'_>,
    ) -> Result<Option<Descriptor>> {
        let as_it_came = Descriptor::new(layer.media_type.clone(), layer.digest.clone(), layer.size);
        let mut candidates: Vec<(Descriptor, Vec<String>)> = Vec::new();
        if layer.digest != layer.diff_id || self.store.blob_path(&layer.digest).exists() {
            candidates.push((as_it_came, neighbours.to_vec()));
        }
        for sent in sent::read(self.store, &layer.diff_id) {
            let places: Vec<String> = self.neighbours(&sent.places).collect();
            let is_wanted = sent.blob.media_type == self.options.compression.media_type();
            if is_wanted && (!places.is_empty() || sent.places.contains(&self.target.name())) {
                candidates.push((sent.blob, places));
            }
        }
        for (blob, places) in candidates {
            match self.client.find(&blob.digest, &places)? {
                Found::Existed => progress(Event::Existed(&blob.digest)),
                Found::Mounted => progress(Event::Mounted(&blob.digest)),
                Found::Missing => continue,
            }
            return Ok(Some(blob));
        }
        Ok(None)
    }

    /// Sends a layer as it came, if its blob was kept, or packs it.
    fn send_layer(&self, layer: &LayerReference, progress: &Progress<'_>) -> Result<Descriptor> {
        let kept = self.store.blob_path(&layer.digest);
        let mut upload = self.client.open()?;
        let packing = self.packing();
        let blob = if kept.exists() {
            upload.send(&|out| {
                let file = File::open(&kept).with_context(|| format!("cannot open {}", kept.display()))?;
                pack::exactly(&mut &file, layer.size, out)?;
                Ok(Descriptor::new(layer.media_type.clone(), layer.digest.clone(), layer.size))
            })?
        } else {
            upload.send(&|out| {
                let mut content = Layer::open(self.store, &layer.diff_id)?;
                save::compress(&mut content, packing, out)
            })?
        };
        upload.finish(&blob.digest)?;
        if blob.digest != layer.digest {
            sent::write(self.store, &layer.diff_id, &blob, self.target)?;
        }
        progress(Event::Done(&blob.digest));
        Ok(blob)
    }

    /// Beside a registry on this machine or the next one, packing is what takes the time; on the way to others bytes do.
    fn packing(&self) -> Packing {
        let mut packing = Packing::with(self.options.compression);
        match self.options.level {
            Some(level) => (packing.gzip, packing.zstd) = (Effort::Level(level), level),
            None if self.client.is_near() => packing.gzip = Effort::Least,
            None => packing.gzip = Effort::Level(FAR),
        }
        packing
    }

    /// Other repositories of the registry among `places`, which may be followed by a digest.
    fn neighbours<'b>(&'b self, places: &'b [String]) -> impl Iterator<Item = String> + 'b {
        let known = places.iter().filter_map(|text| text.parse::<Reference>().ok());
        let target = self.target;
        let same = move |known: &Reference| {
            known.registry == target.registry && known.repository != target.repository
        };
        known.filter(same).map(|known| known.repository)
    }
}

fn manifest(store: &Store, image: &Image, config: &[u8], sent: &[Descriptor]) -> Result<(Vec<u8>, String)> {
    let original = store.blob(&image.record.manifest)?;
    let mut dialect = Dialect::default();
    if let Document::Manifest(known) = Document::parse(&original, None)? {
        let same = known.layers.iter().map(|layer| &layer.digest).eq(sent.iter().map(|layer| &layer.digest));
        if same && known.config.digest == image.id {
            let media_type =
                if known.media_type.is_empty() { OCI_MANIFEST.to_owned() } else { known.media_type };
            return Ok((original, media_type));
        }
        dialect = known.dialect();
    }
    let manifest = Manifest::in_words_of(dialect, &image.id, config.len() as u64, sent.to_vec());
    Ok((serde_json::to_vec(&manifest)?, manifest.media_type))
}

/// `--compression-level` of a format.
pub fn level(compression: Compression, level: Option<i32>) -> Result<Option<i32>> {
    let most = match compression {
        Compression::None => 0,
        Compression::Gzip => 9,
        Compression::Zstd => 20,
    };
    match level {
        Some(_) if most == 0 => Err(Error::usage("what is not packed has no --compression-level").into()),
        Some(level) if !(1..=most).contains(&level) => {
            Err(Error::usage(format!("{level} is not a level of this compression: 1 to {most} is expected"))
                .into())
        }
        level => Ok(level),
    }
}

/// `--compression-format`
pub fn compression(word: &str) -> Result<Compression> {
    Compression::from_word(word).ok_or_else(|| {
        Error::usage(format!("{word:?} is not a compression: none, gzip or zstd is expected")).into()
    })
}
