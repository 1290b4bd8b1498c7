//! The store of images: files and folders, no database (docs/store.md). Each step of making an image refers
//! only to what earlier steps made, and removal goes the other way, so that a crash between any two leaves
//! garbage at worst, never a name of something that is not there.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::image::config::ImageConfig;
use crate::image::holding;
use crate::image::manifest::{Compression, Platform};
use crate::image::reference::{Digest, Reference};
use crate::image::unpack::{Owners, Unpacked};
use crate::image::workspace::{self, Workspace};
use crate::paths::{self, Paths};
use crate::record::{self, Durability, Lock};

const FORMAT: u32 = 1;
const PATIENCE: Duration = Duration::from_secs(60);

/// The user's store and the read-only ones of `$KELP_IMAGE_PATH`, which are looked into after it.
///
/// | place | what | made by |
/// |---|---|---|
/// | `format` | the number of this layout | the first kelp |
/// | `names/NAME` | which image a reference means | last step of a pull |
/// | `images/ID` | what an image consists of | the step before |
/// | `blobs/DIGEST` | manifests, configurations, kept layers | before that |
/// | `lists/NAME` | manifest lists that the user makes | `manifest create` |
/// | `layers/DIFFID/` | one unpacked layer | renamed in whole |
/// | `partial/DIGEST` | the part of a blob that has come so far | a pull |
/// | `tmp/`, `locks/` | what is being made, and by whom | everybody |
#[derive(Clone, Debug)]
pub struct Store {
    pub root: PathBuf,
    others: Vec<PathBuf>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Format {
    format: u32,
}

/// `images/ID`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ImageRecord {
    pub id: Digest,
    pub manifest: Digest,
    pub created: i64,
    /// The bytes of all files of all layers.
    pub size: u64,
    pub platform: Platform,
    pub layers: Vec<LayerReference>,
    /// `registry/repository@digest` of every place that it came from or went to.
    #[serde(default)]
    pub repo_digests: Vec<String>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// One layer as an image's manifest has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerReference {
    pub diff_id: Digest,
    pub digest: Digest,
    pub size: u64,
    pub media_type: String,
}

/// `names/NAME`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NameRecord {
    pub reference: Reference,
    pub image: Digest,
}

/// `layers/DIFFID/layer`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LayerRecord {
    pub diff_id: Digest,
    /// The length of the tar stream.
    pub tar_size: u64,
    pub owners: Owners,
    pub unpacked: Unpacked,
    pub compression: Compression,
    /// Read again after the boot that wrote it, and found right. A power cut may have emptied files of a layer
    /// that was not.
    pub settled: bool,
    pub boot: String,
}

/// An image that can be run.
#[derive(Clone, Debug)]
pub struct Image {
    pub id: Digest,
    pub record: ImageRecord,
    pub config: ImageConfig,
    /// Unpacked layers, lowest first, ready as lower directories of kernel overlay with `userxattr`.
    pub layers: Vec<PathBuf>,
    /// Layers that another boot wrote and nobody has read since: to be settled before they are run
    /// (`check::settle`), which `pull` does.
    pub unsettled: Vec<Digest>,
}

impl LayerRecord {
    /// Whether the layer can be relied on: what this boot wrote is at least in its page cache.
    pub fn is_settled(&self) -> bool {
        self.settled || self.boot == paths::boot_id()
    }
}

impl Store {
    /// Opens the user's store, making it if it is not there.
    ///
    /// # Errors
    /// A store that a newer kelp wrote, or a folder that can't be written.
    pub fn open(paths: &Paths) -> Result<Self> {
        let root = paths.store.clone();
        let others = std::env::var_os("KELP_IMAGE_PATH").unwrap_or_default();
        let others = std::env::split_paths(&others).filter(|path| path.is_absolute()).collect();
        let store = Self { root, others };
        let made = || -> Result<()> {
            let format: Option<Format> = record::read(&store.root.join("format"))?;
            match format {
                Some(Format { format: FORMAT }) => return Ok(()),
                Some(Format { format }) => {
                    let sentence = format!("it has format {format}, this kelp knows {FORMAT}");
                    return Err(Error::host(sentence)
                        .hint("use the kelp that made it, or a newer one")
                        .into());
                }
                None => {}
            }
            for folder in ["names", "images", "blobs", "layers", "partial", "tmp", "locks"] {
                paths::private_folder(&store.root.join(folder))?;
            }
            record::write(&store.root.join("format"), &Format { format: FORMAT }, Durability::Synced)
        };
        made().with_context(|| format!("cannot use the store {}", store.root.display()))?;
        Ok(store)
    }

    pub fn path(&self, folder: &str) -> PathBuf {
        self.root.join(folder)
    }

    /// The lock under which names, images and layers are removed and image records changed: held briefly.
    pub fn lock(&self, purpose: &str) -> Result<Lock> {
        holding::wait(&self.root.join("locks/records"), purpose, PATIENCE)
    }

    pub fn workspace(&self, purpose: &str) -> Result<Workspace> {
        let tmp = self.path("tmp");
        workspace::sweep(&tmp)?;
        Workspace::create(&tmp, purpose)
    }

    fn roots(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.root).chain(&self.others)
    }

    /// The image that a reference means, if some store has it whole.
    pub fn resolve(&self, reference: &Reference) -> Result<Option<Image>> {
        for root in self.roots() {
            let named: Option<NameRecord> = match &reference.digest {
                None => record::read(&name_path(root, reference))?,
                Some(digest) => by_digest(root, reference, digest)?,
            };
            if let Some(image) = named.map(|named| image_in(root, &named.image)).transpose()?.flatten() {
                return Ok(Some(image));
            }
        }
        Ok(None)
    }

    /// The image that a user's word means: a reference, an id, or the start of an id.
    pub fn find(&self, word: &str) -> Result<Option<Image>> {
        if let Ok(reference) = word.parse::<Reference>()
            && let Some(image) = self.resolve(&reference)?
        {
            return Ok(Some(image));
        }
        let hex = word.strip_prefix("sha256:").unwrap_or(word);
        if hex.len() < 3 || !hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)) {
            return Ok(None);
        }
        let mut found: Option<(PathBuf, Digest)> = None;
        for root in self.roots() {
            for id in digests(&root.join("images"))?.into_iter().filter(|id| id.hex().starts_with(hex)) {
                if found.as_ref().is_some_and(|(_, known)| *known != id) {
                    return Err(Error::usage(format!("{word} is the start of several ids")).into());
                }
                found = found.or_else(|| Some((root.clone(), id)));
            }
        }
        found.map(|(root, id)| image_in(&root, &id)).transpose().map(Option::flatten)
    }

    /// As `find`, and a sentence if there is none.
    pub fn expect(&self, word: &str) -> Result<Image> {
        self.find(word)?.ok_or_else(|| Error::usage(format!("no such image: {word}")).into())
    }

    pub fn names(&self) -> Result<Vec<NameRecord>> {
        let mut names = Vec::new();
        for root in self.roots() {
            for path in entries(&root.join("names"))? {
                names.extend(record::read::<NameRecord>(&path)?);
            }
        }
        Ok(names)
    }

    pub fn images(&self) -> Result<Vec<ImageRecord>> {
        let (mut images, mut seen) = (Vec::new(), HashSet::new());
        for root in self.roots() {
            for id in digests(&root.join("images"))? {
                if seen.insert(id.clone()) {
                    images.extend(record::read::<ImageRecord>(&root.join("images").join(id.hex()))?);
                }
            }
        }
        Ok(images)
    }

    pub fn names_of(&self, id: &Digest) -> Result<Vec<Reference>> {
        Ok(self.names()?.into_iter().filter(|name| name.image == *id).map(|name| name.reference).collect())
    }

    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.hex())
    }

    pub fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(diff_id.hex())
    }

    /// The bytes of a manifest or configuration, checked against their digest.
    pub fn blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for root in self.roots() {
            match fs::read(root.join("blobs").join(digest.hex())) {
                Ok(bytes) if Digest::of(&bytes) == *digest => return Ok(bytes),
                Ok(_) => last = io::Error::other("its content does not have that digest"),
                Err(error) => last = error,
            }
        }
        Err(last).with_context(|| format!("cannot read blob {digest}"))
    }

    pub fn put_blob(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        let path = self.blob_path(&digest);
        if fs::metadata(&path).is_ok_and(|found| found.len() == bytes.len() as u64) {
            return Ok(digest);
        }
        let beside = record::beside(&path);
        let written = || -> io::Result<()> {
            let mut file = fs::File::create(&beside)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&beside, &path)
        };
        written()
            .inspect_err(|_| drop(fs::remove_file(&beside)))
            .with_context(|| format!("cannot write blob {digest}"))?;
        Ok(digest)
    }

    /// A layer that is there, whole, and with the owners that are wanted.
    pub fn layer(&self, diff_id: &Digest, owners: Owners) -> Result<Option<LayerRecord>> {
        for root in self.roots() {
            let folder = root.join("layers").join(diff_id.hex());
            let Some(found) = whole_layer(&folder)?.filter(LayerRecord::is_settled) else { continue };
            if found.owners == owners || *root != self.root {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    pub fn put_image(&self, image: &ImageRecord) -> Result<()> {
        let _lock = self.lock("recording an image")?;
        let path = self.root.join("images").join(image.id.hex());
        let mut image = image.clone();
        if let Some(known) = record::read::<ImageRecord>(&path)? {
            let new = std::mem::take(&mut image.repo_digests);
            image.repo_digests = known.repo_digests;
            image.repo_digests.extend(new);
            image.repo_digests.sort();
            image.repo_digests.dedup();
        }
        record::write(&path, &image, Durability::Synced)
    }

    pub fn put_name(&self, reference: &Reference, image: &Digest) -> Result<()> {
        let reference = Reference { digest: None, ..reference.clone() };
        let path = name_path(&self.root, &reference);
        record::write(&path, &NameRecord { reference, image: image.clone() }, Durability::Synced)
    }

    /// Returns whether there was such a name.
    pub fn remove_name(&self, reference: &Reference) -> Result<bool> {
        match fs::remove_file(name_path(&self.root, reference)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).with_context(|| format!("cannot remove the name {reference}")),
        }
    }
}

/// A layer's record, if there is the layer. The record is not synced: one that a power cut has emptied makes
/// the layer absent, so that the next pull replaces it.
pub fn whole_layer(folder: &Path) -> Result<Option<LayerRecord>> {
    Ok(record::read(&folder.join("layer")).unwrap_or(None))
}

fn image_in(root: &Path, id: &Digest) -> Result<Option<Image>> {
    let Some(image): Option<ImageRecord> = record::read(&root.join("images").join(id.hex()))? else {
        return Ok(None);
    };
    let text = match fs::read(root.join("blobs").join(id.hex())) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.with_context(|| format!("cannot read the configuration of image {id}"))?,
    };
    let config = ImageConfig::parse(&text)?;
    let (mut layers, mut unsettled) = (Vec::new(), Vec::new());
    for layer in &image.layers {
        let folder = root.join("layers").join(layer.diff_id.hex());
        let mut found = whole_layer(&folder)?;
        if found.is_none() {
            // A kelp that was killed while it replaced the layer may have it still.
            let _ = workspace::sweep(&root.join("tmp"));
            found = whole_layer(&folder)?;
        }
        let Some(found) = found else { return Ok(None) };
        if !found.is_settled() {
            unsettled.push(layer.diff_id.clone());
        }
        layers.push(folder.join("tree"));
    }
    Ok(Some(Image { id: id.clone(), record: image, config, layers, unsettled }))
}

fn by_digest(root: &Path, reference: &Reference, digest: &Digest) -> Result<Option<NameRecord>> {
    let wanted = format!("{}@{digest}", reference.name());
    for id in digests(&root.join("images"))? {
        let image: Option<ImageRecord> = record::read(&root.join("images").join(id.hex()))?;
        if image.is_some_and(|image| image.repo_digests.contains(&wanted)) {
            return Ok(Some(NameRecord { reference: reference.clone(), image: id }));
        }
    }
    Ok(None)
}

fn name_path(root: &Path, reference: &Reference) -> PathBuf {
    root.join("names").join(file_name(reference))
}

/// `/` can't stand in a file's name and `+` not in a reference. A very long name is known by its digest.
pub fn file_name(reference: &Reference) -> String {
    let reference = Reference { digest: None, ..reference.clone() };
    let text = reference.to_string().replace('/', "+");
    if text.len() > 200 { Digest::of(text.as_bytes()).hex().to_owned() } else { text }
}

/// The files of a folder that are not being written; an absent folder has none.
pub fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let listing = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listing => listing.with_context(|| format!("cannot read {}", folder.display()))?,
    };
    let mut names = Vec::new();
    for entry in listing {
        let name = entry.with_context(|| format!("cannot read {}", folder.display()))?.file_name();
        if !name.as_encoded_bytes().starts_with(b".") {
            names.push(name);
        }
    }
    // Names are compared as bytes; paths would be taken apart at each comparison.
    names.sort();
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

/// The digests that name the entries of a folder.
pub fn digests(folder: &Path) -> Result<Vec<Digest>> {
    let names = entries(folder)?;
    Ok(names.iter().filter_map(|path| Digest::from_hex(path.file_name()?.to_str()?)).collect())
}
