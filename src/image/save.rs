//! Save: images as docker-archive, oci-archive or an OCI folder, to a file or a pipe. Layers are made again
//! from their skeletons, and their digests compared while they go, so a damaged store can't write a wrong
//! archive without saying so.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use crate::error::Error;
use crate::image::compose::plain_layers;
use crate::image::gzip::{self, Effort};
use crate::image::manifest::{
    Compression, Descriptor, Index, Manifest, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, oci_layer,
};
use crate::image::pack;
use crate::image::reference::{Digest, Reference};
use crate::image::skeleton;
use crate::image::store::{Image, Store};
use crate::image::stream::{self, Hashing, PIECE, PipeWriter};
use crate::image::tar::{Entry, Kind};
use crate::image::workspace::Workspace;
use crate::record;

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Docker,
    Oci,
}

/// An image and the names that it is saved under.
#[derive(Debug)]
pub struct Chosen {
    pub image: Image,
    pub names: Vec<Reference>,
}

/// Where the files of an archive go.
trait Target {
    fn folder(&mut self, name: &str) -> Result<()>;
    fn file(&mut self, name: &str, size: u64, content: &mut dyn Read) -> Result<()>;
}

/// Writes an archive to `out`.
pub fn archive(
    store: &Store,
    workspace: &Workspace,
    images: &[Chosen],
    format: Format,
    compression: Compression,
    out: impl Write,
) -> Result<()> {
    let mut target = Tar(pack::Writer::new(out));
    match format {
        Format::Docker => docker(store, images, &mut target)?,
        Format::Oci => oci(store, workspace, images, compression, &mut target)?,
    }
    target.0.finish()?;
    Ok(())
}

/// Writes an OCI layout into a folder, which is made; one that was made in vain goes again.
pub fn folder(
    store: &Store,
    workspace: &Workspace,
    images: &[Chosen],
    compression: Compression,
    folder: &Path,
) -> Result<()> {
    let was_there = folder.exists();
    let written = fs::create_dir_all(folder.join("blobs/sha256"))
        .with_context(|| format!("cannot make {}", folder.display()))
        .and_then(|()| oci(store, workspace, images, compression, &mut Folder(folder.to_owned())));
    if written.is_err() && !was_there {
        let _ = fs::remove_dir_all(folder);
    }
    written
}

struct Tar<W>(pack::Writer<W>);

impl<W: Write> Target for Tar<W> {
    fn folder(&mut self, name: &str) -> Result<()> {
        Ok(self.0.header(&Entry::new(name.as_bytes().to_vec(), Kind::Directory))?)
    }

    fn file(&mut self, name: &str, size: u64, content: &mut dyn Read) -> Result<()> {
        self.0.header(&Entry { size, ..Entry::new(name.as_bytes().to_vec(), Kind::File) })?;
        self.0.content(size, content)
    }
}

struct Folder(PathBuf);

impl Target for Folder {
    fn folder(&mut self, name: &str) -> Result<()> {
        let path = self.0.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))
    }

    fn file(&mut self, name: &str, size: u64, content: &mut dyn Read) -> Result<()> {
        let path = self.0.join(name);
        let beside = record::beside(&path);
        let mut file = File::create(&beside).with_context(|| format!("cannot make {}", path.display()))?;
        let written = pack::exactly(content, size, &mut file).and_then(|()| {
            fs::rename(&beside, &path).with_context(|| format!("cannot make {}", path.display()))
        });
        if written.is_err() {
            let _ = fs::remove_file(&beside);
        }
        written
    }
}

/// A layer's tar stream that ends in an error if it is not the layer's.
pub struct Layer {
    stream: Hashing<skeleton::Reader>,
    diff_id: Digest,
}

impl Layer {
    pub fn open(store: &Store, diff_id: &Digest) -> Result<Self> {
        let stream = skeleton::Reader::open(&store.layer_path(diff_id))
            .with_context(|| format!("cannot read layer {}", diff_id.short()))?;
        Ok(Self { stream: Hashing::new(stream), diff_id: diff_id.clone() })
    }

    /// Makes the stream in a thread of its own, while `take` reads it.
    fn meanwhile(mut self, take: impl FnOnce(&mut dyn Read) -> Result<()>) -> Result<()> {
        let make = |mut writer: PipeWriter| {
            pump(&mut self, &mut writer)?;
            Ok(writer.finish()?)
        };
        let (made, taken) = stream::between(make, |reader| take(reader));
        stream::first_cause(made, taken).map(|_| ())
    }
}

impl Read for Layer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.stream.read(buffer)?;
        if length == 0 && self.stream.so_far() != self.diff_id {
            let sentence =
                format!("layer {} in the store is damaged (see kelp system fsck)", self.diff_id.short());
            return Err(io::Error::other(sentence));
        }
        Ok(length)
    }
}

fn docker(store: &Store, images: &[Chosen], target: &mut dyn Target) -> Result<()> {
    let (mut written, mut list) = (HashSet::new(), Vec::new());
    let mut repositories: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for Chosen { image, names } in images {
        let layers = plain_layers(store, &image.config.rootfs.diff_ids)?;
        for layer in &layers {
            if written.insert(layer.digest.clone()) {
                let name = format!("{}.tar", layer.digest.hex());
                Layer::open(store, &layer.digest)?
                    .meanwhile(|stream| target.file(&name, layer.size, stream))?;
            }
        }
        let config = format!("{}.json", image.id.hex());
        let text = store.blob(&image.id)?;
        if written.insert(image.id.clone()) {
            target.file(&config, text.len() as u64, &mut &text[..])?;
        }
        let tags: Vec<String> = names.iter().map(Reference::familiar).collect();
        let layers: Vec<String> = layers.iter().map(|layer| format!("{}.tar", layer.digest.hex())).collect();
        for name in names {
            if let (Some(tag), Some(top)) = (&name.tag, layers.last()) {
                let top = top.trim_end_matches(".tar").to_owned();
                repositories.entry(name.familiar_name()).or_default().insert(tag.clone(), top);
            }
        }
        list.push(json!({ "Config": config, "RepoTags": tags, "Layers": layers }));
    }
    for (name, text) in
        [("repositories", serde_json::to_vec(&repositories)?), ("manifest.json", serde_json::to_vec(&list)?)]
    {
        target.file(name, text.len() as u64, &mut &text[..])?;
    }
    Ok(())
}

fn oci(
    store: &Store,
    workspace: &Workspace,
    images: &[Chosen],
    compression: Compression,
    target: &mut dyn Target,
) -> Result<()> {
    let text = br#"{"imageLayoutVersion":"1.0.0"}"#;
    target.folder("blobs/")?;
    target.folder("blobs/sha256/")?;
    target.file("oci-layout", text.len() as u64, &mut &text[..])?;
    let (mut written, mut manifests) = (HashSet::new(), Vec::new());
    for Chosen { image, names } in images {
        let layers = layers(store, workspace, image, compression, &mut written, target)?;
        let text = store.blob(&image.id)?;
        let config = Descriptor::new(OCI_CONFIG, image.id.clone(), text.len() as u64);
        let manifest = serde_json::to_vec(&Manifest::new(config, layers))?;
        let mut entry = Descriptor::new(OCI_MANIFEST, Digest::of(&manifest), manifest.len() as u64);
        entry.platform = Some(image.record.platform.clone());
        for (digest, text) in [(&image.id, &text), (&entry.digest, &manifest)] {
            if written.insert(digest.clone()) {
                target.file(&format!("blobs/sha256/{}", digest.hex()), text.len() as u64, &mut &text[..])?;
            }
        }
        for name in names {
            let mut named = entry.clone();
            named.annotations.insert("io.containerd.image.name".to_owned(), name.to_string());
            named.annotations.insert("org.opencontainers.image.ref.name".to_owned(), name.to_string());
            manifests.push(named);
        }
        if names.is_empty() {
            manifests.push(entry);
        }
    }
    let index = Index {
        schema_version: 2,
        media_type: OCI_INDEX.to_owned(),
        manifests,
        annotations: BTreeMap::new(),
    };
    let text = serde_json::to_vec(&index)?;
    target.file("index.json", text.len() as u64, &mut &text[..])
}

fn layers(
    store: &Store,
    workspace: &Workspace,
    image: &Image,
    compression: Compression,
    written: &mut HashSet<Digest>,
    target: &mut dyn Target,
) -> Result<Vec<Descriptor>> {
    let mut layers = Vec::new();
    for (plain, known) in
        plain_layers(store, &image.config.rootfs.diff_ids)?.into_iter().zip(&image.record.layers)
    {
        let kept = store.blob_path(&known.digest);
        let (layer, mut content): (Descriptor, Box<dyn Read>) = if let Ok(file) = File::open(&kept) {
            let kind = oci_layer(&known.media_type);
            (Descriptor::new(kind, known.digest.clone(), known.size), Box::new(file))
        } else if compression == Compression::None {
            let content = Layer::open(store, &plain.digest)?;
            (plain, Box::new(content))
        } else {
            let path = workspace.fresh();
            let packing = Packing::with(compression);
            let layer = compress(&mut Layer::open(store, &plain.digest)?, packing, File::create(&path)?)?;
            (layer, Box::new(File::open(&path)?))
        };
        if written.insert(layer.digest.clone()) {
            target.file(&format!("blobs/sha256/{}", layer.digest.hex()), layer.size, &mut content)?;
        }
        layers.push(layer);
    }
    Ok(layers)
}

/// How a layer is packed.
#[derive(Clone, Copy, Debug)]
pub struct Packing {
    pub compression: Compression,
    pub gzip: Effort,
    pub zstd: i32,
}

impl Packing {
    pub const fn with(compression: Compression) -> Self {
        Self { compression, gzip: Effort::Level(1), zstd: 3 }
    }
}

/// Packs a tar stream; returns what it became.
pub fn compress(content: &mut dyn Read, packing: Packing, out: impl Write) -> Result<Descriptor> {
    let hashing = Hashing::new(out);
    let (_, digest, size) = match packing.compression {
        Compression::None => {
            let mut hashing = hashing;
            io::copy(content, &mut hashing)?;
            hashing.finish()
        }
        Compression::Gzip => {
            let mut hashing = hashing;
            gzip::pack(content, packing.gzip, &mut hashing)?;
            hashing.finish()
        }
        Compression::Zstd => {
            let mut packer = zstd::Encoder::new(hashing, packing.zstd)?;
            pump(content, &mut packer)?;
            packer.finish()?.finish()
        }
    };
    Ok(Descriptor::new(packing.compression.media_type(), digest, size))
}

fn pump(content: &mut dyn Read, out: &mut dyn Write) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        match content.read(&mut buffer)? {
            0 => return Ok(()),
            length => out.write_all(&buffer[..length])?,
        }
    }
}

/// The images that the user's words mean, each once, with the names that were said.
pub fn choose(store: &Store, words: &[String]) -> Result<Vec<Chosen>> {
    let mut chosen: Vec<Chosen> = Vec::new();
    for word in words {
        let image = store.find(word)?.ok_or_else(|| Error::usage(format!("no such image: {word}")))?;
        let name = word.parse::<Reference>().ok();
        let names = store.names_of(&image.id)?;
        let name: Vec<Reference> = name.filter(|name| names.contains(name)).into_iter().collect();
        match chosen.iter_mut().find(|known| known.image.id == image.id) {
            Some(known) => known.names.extend(name),
            None => chosen.push(Chosen { image, names: name }),
        }
    }
    Ok(chosen)
}
