//! Pull, as one story: from a user's word to an image in the store. Layers that are there are not asked for;
//! the others come several at a time, each downloaded, hashed, decompressed and unpacked as one stream. A
//! break at any moment leaves whole layers and partial blobs, which the next pull starts from.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::error::Error;
use crate::image::check;
use crate::image::config::{self, ImageConfig, now, unix_time};
use crate::image::holding;
use crate::image::install::Installer;
use crate::image::manifest::{self, Descriptor, Document, Manifest, Platform, check_layer};
use crate::image::policy;
use crate::image::reference::{Digest, Reference};
use crate::image::registries_conf::RegistriesConf;
use crate::image::registry::{Client, Fetched, Manner, blob};
use crate::image::store::{Image, ImageRecord, LayerReference, Store, whole_layer};
use crate::image::stream::{self, Hashing, PipeReader, PipeWriter};
use crate::image::tree;
use crate::image::unpack::{Limits, Owners};
use crate::record::Lock;

/// How long a pull waits for another process that does not get on.
const PATIENCE: Duration = Duration::from_secs(60);

/// When a registry is asked at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    Always,
    Missing,
    Never,
    /// Only what differs is fetched; a registry that can't be reached is no fault if the image is there.
    Newer,
}

#[derive(Clone, Debug)]
pub struct Options {
    pub platform: Option<Platform>,
    pub policy: Policy,
    pub keep_blobs: bool,
    pub owners: Owners,
    pub limits: Limits,
    pub manner: Manner,
    /// How many layers come at a time.
    pub parallel: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            platform: None,
            policy: Policy::Always,
            keep_blobs: false,
            owners: Owners::possible(),
            limits: Limits::default(),
            manner: Manner::default(),
            parallel: 3,
        }
    }
}

/// What is told while it happens. Layers are named by the digest of their blob.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    Asking(&'a Reference),
    Known(&'a Digest),
    Waiting(&'a Digest),
    Received { layer: &'a Digest, bytes: u64, of: u64 },
    Broke { layer: &'a Digest, bytes: u64 },
    Unpacked(&'a Digest),
}

pub type Progress<'a> = dyn Fn(Event<'_>) + Sync + 'a;

/// A manifest that was found, and who has its blobs.
struct Found {
    reference: Reference,
    client: Client,
    fetched: Fetched,
    manifest: Manifest,
    /// An index named it for the platform; else only its configuration says for which it is.
    listed: bool,
}

/// Gets the image that `word` means.
pub fn pull(store: &Store, word: &str, options: &Options, progress: &Progress<'_>) -> Result<Image> {
    let conf = RegistriesConf::load()?;
    let candidates = conf.candidates(word)?;
    let local = local(store, &candidates)?;
    match (options.policy, local) {
        (Policy::Missing, Some(image)) if options.platform.is_none() => return Ok(image),
        (Policy::Never, Some(image)) => return Ok(image),
        (Policy::Never, None) => {
            let sentence = format!("image {word} is not here, and --pull=never forbids to fetch it");
            return Err(Error::usage(sentence).into());
        }
        (Policy::Newer, Some(image)) => {
            return remote(store, &conf, &candidates, options, progress).or(Ok(image));
        }
        _ => {}
    }
    remote(store, &conf, &candidates, options, progress).with_context(|| format!("cannot pull {word}"))
}

/// The platforms that a registry has the image for, this machine's last; none if it does not say.
pub fn platforms(word: &str, options: &Options) -> Result<Vec<Platform>> {
    let conf = RegistriesConf::load()?;
    let mut refusal = None;
    for reference in conf.candidates(word)? {
        policy::check(&reference)?;
        for endpoint in conf.endpoints(&reference)? {
            match Client::new(endpoint, options.manner.clone())?.manifest(&reference) {
                Ok(fetched) => return platforms_of(&fetched),
                Err(error) => refusal = refusal.or(Some(error)),
            }
        }
    }
    Err(refusal.context("registries.conf leaves no endpoint")?.context(format!("cannot pull {word}")))
}

fn platforms_of(fetched: &Fetched) -> Result<Vec<Platform>> {
    let Document::Index(index) = Document::parse(&fetched.bytes, fetched.media_type.as_deref())? else {
        return Ok(Vec::new());
    };
    let known = index.manifests.into_iter().filter_map(|entry| entry.platform);
    // Attestations have a platform of this name.
    let mut platforms: Vec<Platform> = known.filter(|platform| platform.os != "unknown").collect();
    platforms.sort_by_key(|platform| Platform::host().accepts(platform));
    Ok(platforms)
}

fn local(store: &Store, candidates: &[Reference]) -> Result<Option<Image>> {
    for reference in candidates {
        if let Some(image) = store.resolve(reference)? {
            let sound = image.unsettled.iter().map(|diff_id| check::settle(store, diff_id));
            if sound.collect::<Result<Vec<bool>>>()?.iter().all(|sound| *sound) {
                return Ok(Some(image));
            }
        }
    }
    Ok(None)
}

fn remote(
    store: &Store,
    conf: &RegistriesConf,
    candidates: &[Reference],
    options: &Options,
    progress: &Progress<'_>,
) -> Result<Image> {
    let found = find(conf, candidates, options, progress)?;
    let config = &found.manifest.config;
    let text = match store.blob(&config.digest) {
        Ok(text) => text,
        Err(_) => found.client.small_blob(&config.digest, config.size, config::LONGEST)?,
    };
    let image = describe(&found, &text)?;
    if !found.listed {
        is_for(&image.platform, options.platform.as_ref(), &found.reference.familiar())?;
    }
    let diff_ids: Vec<Digest> = image.layers.iter().map(|layer| layer.diff_id.clone()).collect();
    let workspace = store.workspace("pulling")?;
    {
        let lock = store.lock("starting a pull")?;
        workspace.lease(&lock, &diff_ids, &[found.fetched.digest.clone(), config.digest.clone()])?;
    }
    let installer =
        Installer { store, workspace: &workspace, owners: options.owners, limits: options.limits };
    layers(&found, &image, &installer, options, progress)?;
    store.put_blob(&found.fetched.bytes)?;
    store.put_blob(&text)?;
    let image = ImageRecord { size: unpacked_size(store, &diff_ids)?, ..image };
    store.put_image(&image)?;
    if found.reference.tag.is_some() {
        store.put_name(&found.reference, &image.id)?;
    }
    recorded(store, &image.id)?.context("the image is gone again: somebody removed it meanwhile")
}

/// An image that was just recorded. NFS and file systems in user space put a file that somebody reads aside before another
/// takes its name, so a record that a second pull writes anew can be away for a moment.
fn recorded(store: &Store, id: &Digest) -> Result<Option<Image>> {
    for _ in 0..50 {
        if let Some(image) = store.find(id.hex())? {
            return Ok(Some(image));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(None)
}

/// Asks each meaning of the word at each of its endpoints; the first that has the image counts.
fn find(
    conf: &RegistriesConf,
    candidates: &[Reference],
    options: &Options,
    progress: &Progress<'_>,
) -> Result<Found> {
    let mut refusals = Vec::new();
    for reference in candidates {
        policy::check(reference)?;
        for endpoint in conf.endpoints(reference)? {
            progress(Event::Asking(reference));
            let client = Client::new(endpoint, options.manner.clone())?;
            match manifest_for(&client, reference, options) {
                Ok((fetched, manifest, listed)) => {
                    return Ok(Found { reference: reference.clone(), client, fetched, manifest, listed });
                }
                Err(error) => refusals.push(error),
            }
        }
    }
    let first = refusals.remove(0);
    Err(refusals.into_iter().fold(first, |whole, next| whole.context(format!("{next:#}"))))
}

fn manifest_for(
    client: &Client,
    reference: &Reference,
    options: &Options,
) -> Result<(Fetched, Manifest, bool)> {
    let fetched = client.manifest(reference)?;
    let index = match Document::parse(&fetched.bytes, fetched.media_type.as_deref())? {
        Document::Manifest(manifest) => return Ok((fetched, manifest, false)),
        Document::Index(index) => index,
    };
    let wanted = options.platform.clone().unwrap_or_else(Platform::host);
    let entry = manifest::choose(&index, &wanted).with_context(|| format!("cannot use {reference}"))?;
    let fetched = client.manifest(&reference.with_digest(&entry.digest))?;
    match Document::parse(&fetched.bytes, fetched.media_type.as_deref())? {
        Document::Manifest(manifest) => Ok((fetched, manifest, true)),
        Document::Index(_) => bail!("the index of {reference} names another index"),
    }
}

/// Refuses an image that is for another platform than the one that was asked for, in docker's words.
pub fn is_for(actual: &Platform, wanted: Option<&Platform>, name: &str) -> Result<()> {
    let Some(wanted) = wanted.filter(|wanted| !wanted.accepts(actual)) else { return Ok(()) };
    Err(Error::usage(format!(
        "image with reference {name} was found but does not match the specified platform: wanted {wanted}, actual: {actual}"
    ))
    .into())
}

/// What the image will be, all that outsiders say about it checked.
fn describe(found: &Found, text: &[u8]) -> Result<ImageRecord> {
    let Found { reference, fetched, manifest, .. } = found;
    let config = ImageConfig::parse(text)?;
    if config.rootfs.diff_ids.len() != manifest.layers.len() {
        bail!(
            "the configuration of {reference} names {} layers, its manifest {}",
            config.rootfs.diff_ids.len(),
            manifest.layers.len()
        );
    }
    manifest.layers.iter().try_for_each(check_layer)?;
    let layer = |(diff_id, blob): (&Digest, &Descriptor)| LayerReference {
        diff_id: diff_id.clone(),
        digest: blob.digest.clone(),
        size: blob.size,
        media_type: blob.media_type.clone(),
    };
    let repo_digest = format!("{}@{}", reference.name(), fetched.digest);
    Ok(ImageRecord {
        id: manifest.config.digest.clone(),
        manifest: fetched.digest.clone(),
        created: config.created.as_deref().and_then(unix_time).unwrap_or_else(now),
        size: 0,
        platform: config.platform(),
        layers: config.rootfs.diff_ids.iter().zip(&manifest.layers).map(layer).collect(),
        repo_digests: vec![repo_digest],
        labels: config.config.labels,
    })
}

/// What has come of a layer's blob.
fn arrived_of(store: &Store, layer: &LayerReference) -> PathBuf {
    store.path("partial").join(layer.digest.hex())
}

/// The bytes of all files of the layers.
pub fn unpacked_size(store: &Store, diff_ids: &[Digest]) -> Result<u64> {
    let mut size = 0;
    for diff_id in diff_ids {
        let layer = whole_layer(&store.layer_path(diff_id))?;
        size += layer.map_or(0, |layer| layer.unpacked.size);
    }
    Ok(size)
}

/// Fetches what is missing, each layer once, a few at a time; the first failure ends the others.
fn layers(
    found: &Found,
    image: &ImageRecord,
    installer: &Installer<'_>,
    options: &Options,
    progress: &Progress<'_>,
) -> Result<()> {
    let mut missing: Vec<&LayerReference> = Vec::new();
    for layer in &image.layers {
        let folder = installer.store.layer_path(&layer.diff_id);
        if whole_layer(&folder)?.is_some_and(|known| !known.is_settled()) {
            check::settle(installer.store, &layer.diff_id)?;
        }
        if installer.store.layer(&layer.diff_id, options.owners)?.is_some() {
            progress(Event::Known(&layer.digest));
            let partial = arrived_of(installer.store, layer);
            if partial.exists() {
                // Whoever put the layer in its place was killed before its last step.
                let _lock = layer_lock(installer.store, layer, &partial, progress)?;
                let _ = fs::remove_file(&partial);
            }
        } else if !missing.iter().any(|known| known.diff_id == layer.diff_id) {
            missing.push(layer);
        }
    }
    // The largest first: the last layer to end should be a small one.
    missing.sort_by_key(|layer| layer.size);
    let workers = options.parallel.clamp(1, missing.len().max(1));
    let queue = Mutex::new(missing);
    let failure = Mutex::new(None);
    let next = || queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop();
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(layer) = next() {
                    if let Err(error) = layer_of(found, layer, installer, options, progress) {
                        queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
                        failure
                            .lock()
                            .unwrap_or_else(std::sync::PoisonError::into_inner)
                            .get_or_insert(error);
                    }
                }
            });
        }
    });
    failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
}

fn layer_of(
    found: &Found,
    layer: &LayerReference,
    installer: &Installer<'_>,
    options: &Options,
    progress: &Progress<'_>,
) -> Result<()> {
    let store = installer.store;
    let partial = arrived_of(store, layer);
    let _lock = layer_lock(store, layer, &partial, progress)?;
    if store.layer(&layer.diff_id, options.owners)?.is_some() {
        progress(Event::Known(&layer.digest));
        return Ok(());
    }
    let resumed = fs::metadata(&partial).is_ok_and(|found| found.len() > 0);
    let mut fetched = stream_layer(found, layer, installer, &partial, progress);
    if resumed && fetched.as_ref().is_err_and(|error| !is_network(error)) {
        // What an earlier run left may be what is wrong.
        let _ = fs::remove_file(&partial);
        fetched = stream_layer(found, layer, installer, &partial, progress);
    }
    if let Err(error) = fetched {
        if !is_network(&error) {
            let _ = fs::remove_file(&partial);
        }
        return Err(error.context(format!("cannot get layer {}", layer.digest.short())));
    }
    if options.keep_blobs {
        fs::rename(&partial, store.blob_path(&layer.digest)).context("cannot keep the layer's blob")?;
    } else {
        let _ = fs::remove_file(&partial);
    }
    progress(Event::Unpacked(&layer.digest));
    Ok(())
}

/// The network broke: what came is right so far and worth keeping.
fn is_network(error: &anyhow::Error) -> bool {
    error.downcast_ref::<NetworkFailure>().is_some() && !tree::is_full(error)
}

/// Marks a failure that says nothing about what has come so far.
#[derive(Debug)]
struct NetworkFailure;

impl std::fmt::Display for NetworkFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the download broke off")
    }
}

impl std::error::Error for NetworkFailure {}

/// One process fetches a layer; others wait as long as it gets on.
fn layer_lock(
    store: &Store,
    layer: &LayerReference,
    partial: &Path,
    progress: &Progress<'_>,
) -> Result<Lock> {
    let shard = layer.digest.hex().get(..3).unwrap_or_default();
    let path = store.path("locks").join(shard);
    let purpose = format!("fetching layer {}", layer.digest.short());
    let length = || fs::metadata(partial).map_or(0, |found| found.len());
    let (mut known, mut since) = (length(), Instant::now());
    loop {
        match holding::wait(&path, &purpose, Duration::from_secs(1)) {
            Ok(lock) => return Ok(lock),
            Err(error) if since.elapsed() > PATIENCE => return Err(error),
            Err(_) => progress(Event::Waiting(&layer.digest)),
        }
        if length() != known {
            (known, since) = (length(), Instant::now());
        }
    }
}

fn stream_layer(
    found: &Found,
    layer: &LayerReference,
    installer: &Installer<'_>,
    partial: &Path,
    progress: &Progress<'_>,
) -> Result<()> {
    let blob = Descriptor::new(layer.media_type.clone(), layer.digest.clone(), layer.size);
    let download = |writer: PipeWriter| {
        let mut out = Hashing::new(writer);
        let fetched = blob::fetch(&found.client, &blob, partial, &mut out, &mut |step| match step {
            blob::Step::Received(bytes) => {
                progress(Event::Received { layer: &blob.digest, bytes, of: blob.size });
            }
            blob::Step::Broke(bytes) => progress(Event::Broke { layer: &blob.digest, bytes }),
        });
        fetched.map_err(|error| if stream::is_echo(&error) { error } else { network_or_lasting(error) })?;
        let (mut writer, digest, _) = out.finish();
        if digest != blob.digest {
            bail!("its content has the digest {digest}, not {}: it was damaged or exchanged", blob.digest);
        }
        writer.flush()?;
        Ok(writer.finish()?)
    };
    let install = |reader: &mut PipeReader| installer.layer(reader, Some(&layer.diff_id)).map(drop);
    let (downloaded, installed) = stream::between(download, install);
    stream::first_cause(downloaded, installed).map(|_| ())
}

/// A registry's refusal and a broken connection leave what came; a wrong length does not.
fn network_or_lasting(error: anyhow::Error) -> anyhow::Error {
    if crate::error::find(&error).is_some() { error.context(NetworkFailure) } else { error }
}
