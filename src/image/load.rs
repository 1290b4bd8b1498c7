//! Load: images from docker-archive, oci-archive and OCI folders, and a root file system from a plain tar.
//! An archive is read once, front to back, so that it may come from a pipe: JSON is kept, everything else is
//! unpacked as a layer at once, and the configurations that come with it say which layers make an image.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::error::Error;
use crate::image::compose::{self, Parts};
use crate::image::config::{ImageConfig, RootFs, now, rfc3339};
use crate::image::install::Installer;
use crate::image::manifest::{self, Compression, Descriptor, Document, Index, Platform};
use crate::image::reference::{Digest, Reference};
use crate::image::store::LayerRecord;
use crate::image::stream::{self, Hashing, PIECE};
use crate::image::tar::{Kind, Reader, Unheard};

/// The longest JSON document of an archive, and the most of them.
const LONGEST: u64 = 8 << 20;
const MOST_DOCUMENTS: usize = 10_000;

/// An image that came out of an archive.
#[derive(Debug)]
pub struct Loaded {
    pub id: Digest,
    pub names: Vec<Reference>,
}

/// docker's `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
}

/// What an archive has, by the names in it.
#[derive(Default)]
struct Contents {
    documents: HashMap<String, Vec<u8>>,
    /// Why something that is neither JSON nor a layer could not be unpacked.
    refused: HashMap<String, anyhow::Error>,
}

/// Loads all images of an archive.
pub fn archive(installer: &Installer<'_>, source: impl Read + Send) -> Result<Vec<Loaded>> {
    let (_, unpacked) = stream::unpacked(source).context("cannot read the archive")?;
    let mut outer = Reader::new(BufReader::with_capacity(PIECE, unpacked), Unheard);
    let mut contents = Contents::default();
    while let Some(entry) = outer.next_entry().context("cannot read the archive")? {
        let name = String::from_utf8_lossy(&entry.path).trim_start_matches("./").to_owned();
        if entry.kind == Kind::File {
            member(installer, &name, &mut outer.stream().take(entry.size), &mut contents)?;
        }
    }
    finish(installer, &contents)
}

/// Loads an OCI layout that lies in a folder.
pub fn folder(installer: &Installer<'_>, folder: &Path) -> Result<Vec<Loaded>> {
    let mut contents = Contents::default();
    let mut files = vec![folder.join("index.json")];
    let blobs = folder.join("blobs/sha256");
    let listing = std::fs::read_dir(&blobs).with_context(|| format!("cannot read {}", blobs.display()))?;
    files.extend(listing.filter_map(|entry| Some(entry.ok()?.path())));
    for path in files {
        let name = path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned();
        let mut file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        member(installer, &name, &mut file, &mut contents)?;
    }
    finish(installer, &contents)
}

/// One file: a document or a layer, which its first byte tells.
fn member(
    installer: &Installer<'_>,
    name: &str,
    content: &mut (impl Read + Send),
    contents: &mut Contents,
) -> Result<()> {
    if let Some(diff_id) = named_layer(name) {
        let lock = installer.store.lock("loading a layer")?;
        installer.workspace.lease(&lock, std::slice::from_ref(&diff_id), &[])?;
        if installer.store.layer(&diff_id, installer.owners)?.is_some() {
            return Ok(());
        }
    }
    let mut first = Vec::new();
    content.by_ref().take(1).read_to_end(&mut first)?;
    match first.first() {
        None => return Ok(()),
        Some(b'{' | b'[') => {
            let mut text = first;
            content.by_ref().take(LONGEST).read_to_end(&mut text)?;
            if text.len() as u64 > LONGEST || contents.documents.len() >= MOST_DOCUMENTS {
                bail!("the archive's document {name} is too long");
            }
            contents.documents.insert(name.to_owned(), text);
            return Ok(());
        }
        Some(_) => {}
    }
    let whole = std::io::Cursor::new(first).chain(content);
    match installer.layer(whole, None) {
        Ok(LayerRecord { .. }) => Ok(()),
        Err(error) if crate::image::tree::is_full(&error) => {
            Err(error.context(format!("cannot load {name}")))
        }
        Err(error) => {
            contents.refused.insert(name.to_owned(), error);
            Ok(())
        }
    }
}

/// `DIGEST.tar` and `blobs/sha256/DIGEST` may be a layer that is here; if it is compressed it is not.
fn named_layer(name: &str) -> Option<Digest> {
    let last = name.rsplit('/').next()?;
    Digest::from_hex(last.strip_suffix(".tar").unwrap_or(last))
}

fn finish(installer: &Installer<'_>, contents: &Contents) -> Result<Vec<Loaded>> {
    let loaded = match contents.documents.get("index.json") {
        // Docker writes both; only its own file has all names.
        Some(text) if !contents.documents.contains_key("manifest.json") => oci(installer, contents, text),
        _ => docker(installer, contents),
    };
    loaded.map_err(|error| match contents.refused.iter().next() {
        Some((name, why)) => error.context(format!("{name} in the archive can't be unpacked: {why:#}")),
        None => error,
    })
}

fn docker(installer: &Installer<'_>, contents: &Contents) -> Result<Vec<Loaded>> {
    let Some(text) = contents.documents.get("manifest.json") else {
        return Err(Error::usage(
            "this is not an image archive: it has neither manifest.json nor index.json",
        )
        .hint("a tar of a root file system is taken by: kelp import")
        .into());
    };
    let images: Vec<DockerImage> =
        serde_json::from_slice(text).context("the archive's manifest.json is malformed")?;
    let mut loaded = Vec::new();
    for image in images {
        let config = contents.documents.get(&image.config);
        let config = config.with_context(|| format!("the archive has no {}", image.config))?;
        let names: Result<Vec<Reference>> =
            image.repo_tags.unwrap_or_default().iter().map(|name| name.parse()).collect();
        let names = names?;
        let id = compose::record(installer, &Parts { config, manifest: None }, &names)?;
        loaded.push(Loaded { id, names });
    }
    Ok(loaded)
}

fn oci(installer: &Installer<'_>, contents: &Contents, index: &[u8]) -> Result<Vec<Loaded>> {
    let index: Index = serde_json::from_slice(index).context("the archive's index.json is malformed")?;
    let mut loaded = Vec::new();
    for entry in &index.manifests {
        let bytes = blob(contents, &entry.digest)?;
        let (bytes, manifest) = match Document::parse(bytes, Some(&entry.media_type))? {
            Document::Manifest(manifest) => (bytes, manifest),
            Document::Index(inner) => {
                let chosen = manifest::choose(&inner, &Platform::host())?;
                let bytes = blob(contents, &chosen.digest)?;
                match Document::parse(bytes, None)? {
                    Document::Manifest(manifest) => (bytes, manifest),
                    Document::Index(_) => bail!("the archive's index names an index that names an index"),
                }
            }
        };
        let names = names(entry);
        let config = blob(contents, &manifest.config.digest)?;
        let id = compose::record(installer, &Parts { config, manifest: Some((bytes, &manifest)) }, &names)?;
        loaded.push(Loaded { id, names });
    }
    Ok(loaded)
}

fn blob<'a>(contents: &'a Contents, digest: &Digest) -> Result<&'a [u8]> {
    let found = contents.documents.get(&format!("blobs/sha256/{}", digest.hex()));
    let bytes = found.with_context(|| format!("the archive has no document {digest}"))?;
    if Digest::of(bytes) == *digest { Ok(bytes) } else { bail!("the archive's document {digest} is damaged") }
}

/// The whole name if somebody wrote it down, else the tag alone names nothing that we could keep.
fn names(entry: &Descriptor) -> Vec<Reference> {
    let keys = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
    let named = keys.iter().filter_map(|key| entry.annotations.get(*key));
    named.filter(|name| name.contains(['/', ':'])).filter_map(|name| name.parse().ok()).take(1).collect()
}

/// Makes an image of one layer from a tar of a root file system.
pub fn import(
    installer: &Installer<'_>,
    source: impl Read + Send,
    mut config: ImageConfig,
    name: Option<&Reference>,
) -> Result<Digest> {
    let layer = installer.layer(Hashing::new(source), None).context("cannot unpack the root file system")?;
    let platform = Platform::host();
    config.created = Some(rfc3339(now()));
    config.os = platform.os;
    config.architecture = platform.architecture;
    config.rootfs = RootFs { kind: "layers".to_owned(), diff_ids: vec![layer.diff_id] };
    let text = serde_json::to_vec(&config)?;
    let names: Vec<Reference> = name.cloned().into_iter().collect();
    compose::record(installer, &Parts { config: &text, manifest: None }, &names)
}

impl Compression {
    /// The word that users write.
    pub fn from_word(word: &str) -> Option<Self> {
        match word {
            "none" => Some(Self::None),
            "gzip" => Some(Self::Gzip),
            "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }
}
