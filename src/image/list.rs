//! Manifest lists that the user makes: an index under a name, and where each of its images is, here or in a
//! registry. They lie in `lists/` of the store; a list keeps its images from being collected.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::image::config::{self, ImageConfig};
use crate::image::manifest::{Descriptor, Document, Index, OCI_INDEX, OCI_MANIFEST, Platform, choose};
use crate::image::push;
use crate::image::reference::{Digest, Reference};
use crate::image::registries_conf::RegistriesConf;
use crate::image::registry::{Client, Manner};
use crate::image::store::{Store, entries, file_name};
use crate::paths;
use crate::record::{self, Durability};

/// `lists/NAME`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct List {
    pub reference: Reference,
    pub index: Index,
    /// By the digests of manifests.
    origins: BTreeMap<String, Origin>,
}

/// Where an image of a list is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Origin {
    /// In the store, under this id.
    Image(Digest),
    Registry(Reference),
}

/// Which images of an index are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    Host,
    All,
}

fn path(store: &Store, reference: &Reference) -> PathBuf {
    store.path("lists").join(file_name(reference))
}

/// The names of the lists that have an image.
pub fn holders(store: &Store, image: &Digest) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for path in entries(&store.path("lists"))? {
        let list: Option<List> = record::read(&path)?;
        let has = |list: &List| list.origins.values().any(|origin| *origin == Origin::Image(image.clone()));
        names.extend(list.filter(has).map(|list| format!("manifest list {}", list.reference.familiar())));
    }
    Ok(names)
}

impl List {
    pub fn new(reference: Reference) -> Self {
        let (manifests, annotations) = (Vec::new(), BTreeMap::new());
        let index = Index { schema_version: 2, media_type: OCI_INDEX.to_owned(), manifests, annotations };
        Self { reference, index, origins: BTreeMap::new() }
    }

    pub fn find(store: &Store, reference: &Reference) -> Result<Option<Self>> {
        record::read(&path(store, reference))
    }

    pub fn expect(store: &Store, reference: &Reference) -> Result<Self> {
        let missing = || Error::usage(format!("no such manifest list: {}", reference.familiar())).into();
        Self::find(store, reference)?.ok_or_else(missing)
    }

    pub fn keep(&self, store: &Store) -> Result<()> {
        paths::private_folder(&store.path("lists"))?;
        record::write(&path(store, &self.reference), self, Durability::Synced)
    }

    pub fn remove(&self, store: &Store) -> Result<()> {
        fs::remove_file(path(store, &self.reference))
            .with_context(|| format!("cannot remove manifest list {}", self.reference.familiar()))
    }

    /// Adds the image that `word` means: one of the store, else one or all of what a registry has.
    pub fn add(&mut self, store: &Store, word: &str, take: Take, manner: &Manner) -> Result<()> {
        if let Some(image) = store.find(word)? {
            let bytes = store.blob(&image.record.manifest)?;
            let mut entry = Descriptor::new(OCI_MANIFEST, image.record.manifest.clone(), bytes.len() as u64);
            if let Document::Manifest(manifest) = Document::parse(&bytes, None)?
                && !manifest.media_type.is_empty()
            {
                entry.media_type = manifest.media_type;
            }
            entry.platform = Some(image.record.platform.clone());
            self.put(entry, Origin::Image(image.id));
            return Ok(());
        }
        let reference: Reference = word.parse()?;
        let client = client(&reference, manner)?;
        let fetched = client.manifest(&reference)?;
        let from = |digest: &Digest| Origin::Registry(reference.with_digest(digest));
        match Document::parse(&fetched.bytes, fetched.media_type.as_deref())? {
            Document::Manifest(manifest) => {
                let config = &manifest.config;
                let text = client.small_blob(&config.digest, config.size, config::LONGEST)?;
                let kind = fetched.media_type.unwrap_or_else(|| OCI_MANIFEST.to_owned());
                let mut entry = Descriptor::new(kind, fetched.digest.clone(), fetched.bytes.len() as u64);
                entry.platform = Some(ImageConfig::parse(&text)?.platform());
                self.put(entry, from(&fetched.digest));
            }
            Document::Index(index) if take == Take::All => {
                for entry in index.manifests {
                    let origin = from(&entry.digest);
                    self.put(entry, origin);
                }
            }
            Document::Index(index) => {
                let entry = choose(&index, &Platform::host())?.clone();
                let origin = from(&entry.digest);
                self.put(entry, origin);
            }
        }
        Ok(())
    }

    fn put(&mut self, entry: Descriptor, origin: Origin) {
        self.origins.insert(entry.digest.to_string(), origin);
        self.index.manifests.retain(|known| known.digest != entry.digest);
        self.index.manifests.push(entry);
    }

    /// The entry of the image that `word` means: a digest, or what was added.
    pub fn entry(&mut self, store: &Store, word: &str) -> Result<&mut Descriptor> {
        let digest = match (store.find(word)?, word.parse::<Digest>()) {
            (Some(image), _) => Some(image.record.manifest),
            (None, Ok(digest)) => Some(digest),
            (None, Err(_)) => {
                let wanted = word.parse::<Reference>().ok().map(|reference| reference.name());
                let same = |origin: &Origin| match origin {
                    Origin::Registry(reference) => Some(reference.name()) == wanted,
                    Origin::Image(_) => false,
                };
                let found = self.origins.iter().find(|(_, origin)| same(origin));
                found.and_then(|(digest, _)| digest.parse().ok())
            }
        };
        let name = self.reference.familiar();
        let found = self.index.manifests.iter_mut().find(|entry| Some(&entry.digest) == digest.as_ref());
        found.ok_or_else(|| Error::usage(format!("manifest list {name} has no image {word}")).into())
    }

    /// Takes an image out.
    pub fn take_out(&mut self, digest: &Digest) {
        self.index.manifests.retain(|known| known.digest != *digest);
        self.origins.remove(&digest.to_string());
    }

    /// Sends the images, then the index; returns its digest.
    pub fn push(&self, store: &Store, target: &Reference, options: &push::Options) -> Result<Digest> {
        let client = client(target, &options.manner)?;
        let mut index = self.index.clone();
        for entry in &mut index.manifests {
            match self.origins.get(&entry.digest.to_string()) {
                Some(Origin::Image(id)) => {
                    let image = store.expect(id.hex())?;
                    let bare = Reference { tag: None, digest: None, ..target.clone() };
                    let sent = push::send(store, &image, &bare, options, &|_| {})?;
                    // Layers that were packed anew make another manifest.
                    (entry.media_type, entry.digest, entry.size) = (sent.media_type, sent.digest, sent.size);
                }
                Some(Origin::Registry(source)) => mount(&client, source, target, &options.manner)?,
                None => bail!("it is not known where image {} of the list is", entry.digest.short()),
            }
        }
        let bytes = serde_json::to_vec(&index)?;
        let digest = Digest::of(&bytes);
        let selector = target.tag.clone().unwrap_or_else(|| digest.to_string());
        client.put_manifest(&selector, OCI_INDEX, &bytes)?;
        Ok(digest)
    }
}

fn client(reference: &Reference, manner: &Manner) -> Result<Client> {
    let endpoint = RegistriesConf::load()?.endpoints(reference)?.pop();
    Client::new(endpoint.context("registries.conf leaves no endpoint")?, manner.clone())
}

/// Makes an image of another repository of the same registry one of the target's.
fn mount(client: &Client, source: &Reference, target: &Reference, manner: &Manner) -> Result<()> {
    if source.name() == target.name() {
        return Ok(());
    }
    let refused = || {
        Error::host(format!("cannot push {source} to {}: it is in another place", target.name()))
            .hint(format!("pull it first, and add it to the list again: kelp pull {source}"))
    };
    if source.registry != target.registry {
        return Err(refused().into());
    }
    let fetched = self::client(source, manner)?.manifest(source)?;
    let Document::Manifest(manifest) = Document::parse(&fetched.bytes, fetched.media_type.as_deref())? else {
        bail!("{source} is an index in an index");
    };
    for blob in manifest.layers.iter().chain([&manifest.config]) {
        let mounted = client.has_blob(&blob.digest)?
            || client.start_upload(Some(&blob.digest), Some(&source.repository))?.is_none();
        if !mounted {
            return Err(refused().into());
        }
    }
    let kind = fetched.media_type.as_deref().unwrap_or(OCI_MANIFEST);
    client.put_manifest(&fetched.digest.to_string(), kind, &fetched.bytes)
}
