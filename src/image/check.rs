//! `system fsck`: is everything in the store what its name says, and does every reference have its object?
//! What crashes leave (workspaces without a process, half-written records, layers that no image has) is no
//! damage: it is swept or collected. With repair, what is damaged is taken out, so that the next pull brings
//! it again.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::image::config::ImageConfig;
use crate::image::reference::Digest;
use crate::image::skeleton;
use crate::image::store::{ImageRecord, LayerRecord, NameRecord, Store, digests, entries};
use crate::image::stream::Hashing;
use crate::image::workspace;
use crate::record::{self, Durability};

/// How deep to look, and what to do about it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Depth {
    /// Make each layer's tar stream again and compare its digest.
    pub layers: bool,
    pub repair: bool,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    pub images: usize,
    pub layers: usize,
    pub blobs: usize,
    /// Folders of processes that are gone, and records that they were writing.
    pub swept: usize,
    /// One sentence each.
    pub damage: Vec<String>,
    pub repaired: usize,
}

/// Reads a layer that another boot wrote; from then on it counts as whole. Says whether it is.
pub fn settle(store: &Store, diff_id: &Digest) -> Result<bool> {
    let folder = store.layer_path(diff_id);
    if sound_layer(&folder, diff_id, true).is_err() {
        return Ok(false);
    }
    let path = folder.join("layer");
    let Some(mut layer) = record::read::<LayerRecord>(&path)? else { return Ok(false) };
    layer.settled = true;
    record::write(&path, &layer, Durability::Synced)?;
    Ok(true)
}

struct Checker<'a> {
    store: &'a Store,
    depth: Depth,
    report: Report,
}

pub fn check(store: &Store, depth: Depth) -> Result<Report> {
    let mut report = Report { swept: workspace::sweep(&store.path("tmp"))?, ..Report::default() };
    let workspace = store.workspace("checking")?;
    let _lock = store.lock("checking the store")?;
    for folder in ["names", "images", "blobs", "."] {
        report.swept += half_written(&store.root.join(folder))?;
    }
    let mut checker = Checker { store, depth, report };
    checker.blobs()?;
    checker.layers(&workspace)?;
    checker.images()?;
    checker.names()?;
    Ok(checker.report)
}

/// Removes `.NAME.PID` of processes that are gone.
fn half_written(folder: &Path) -> Result<usize> {
    let mut swept = 0;
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let pid = name.strip_prefix('.').and_then(|rest| rest.rsplit_once('.')).map(|(_, pid)| pid);
        let gone = pid.is_some_and(|pid| {
            pid.bytes().all(|byte| byte.is_ascii_digit()) && !Path::new("/proc").join(pid).exists()
        });
        if gone && path.is_file() {
            swept += usize::from(fs::remove_file(&path).is_ok());
        }
    }
    Ok(swept)
}

impl Checker<'_> {
    fn damaged(&mut self, sentence: String, mend: impl FnOnce() -> io::Result<()>) {
        if self.depth.repair {
            match mend() {
                Ok(()) => self.report.repaired += 1,
                Err(error) => self.report.damage.push(format!("{sentence} (cannot repair it: {error})")),
            }
        } else {
            self.report.damage.push(sentence);
        }
    }

    fn blobs(&mut self) -> Result<()> {
        for digest in digests(&self.store.path("blobs"))? {
            self.report.blobs += 1;
            let path = self.store.blob_path(&digest);
            let found = digest_of(&path);
            if found.as_ref().is_ok_and(|found| *found == digest) {
                continue;
            }
            let why = found.map_or_else(|error| error.to_string(), |found| format!("its content is {found}"));
            self.damaged(format!("blob {digest} is damaged: {why}"), || fs::remove_file(&path));
        }
        Ok(())
    }

    fn layers(&mut self, workspace: &workspace::Workspace) -> Result<()> {
        for diff_id in digests(&self.store.path("layers"))? {
            self.report.layers += 1;
            let folder = self.store.layer_path(&diff_id);
            let sound = sound_layer(&folder, &diff_id, self.depth.layers);
            if let Err(error) = sound {
                let place = workspace.fresh();
                self.damaged(format!("layer {diff_id} is damaged: {error:#}"), || fs::rename(&folder, place));
            }
        }
        Ok(())
    }

    fn images(&mut self) -> Result<()> {
        for id in digests(&self.store.path("images"))? {
            self.report.images += 1;
            let path = self.store.path("images").join(id.hex());
            if let Err(error) = self.sound_image(&id, &path) {
                self.damaged(format!("image {} is not whole: {error:#}", id.short()), || {
                    fs::remove_file(&path)
                });
            }
        }
        Ok(())
    }

    fn sound_image(&self, id: &Digest, path: &Path) -> Result<()> {
        let image: ImageRecord = record::read(path)?.context("its record is gone")?;
        let config = ImageConfig::parse(&self.store.blob(id)?)?;
        self.store.blob(&image.manifest)?;
        let named: Vec<&Digest> = image.layers.iter().map(|layer| &layer.diff_id).collect();
        if named != config.rootfs.diff_ids.iter().collect::<Vec<_>>() {
            anyhow::bail!("its record and its configuration name different layers");
        }
        for diff_id in named {
            let found: Option<LayerRecord> = record::read(&self.store.layer_path(diff_id).join("layer"))?;
            found.with_context(|| format!("layer {} is missing", diff_id.short()))?;
        }
        Ok(())
    }

    fn names(&mut self) -> Result<()> {
        for path in entries(&self.store.path("names"))? {
            let shown = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let image = match record::read::<NameRecord>(&path) {
                Ok(Some(name)) => name.image,
                Ok(None) => continue,
                Err(error) => {
                    self.damaged(format!("name {shown} is damaged: {error:#}"), || fs::remove_file(&path));
                    continue;
                }
            };
            if !self.store.path("images").join(image.hex()).exists() {
                let sentence = format!("name {shown} means an image that is not there");
                self.damaged(sentence, || fs::remove_file(&path));
            }
        }
        Ok(())
    }
}

fn digest_of(path: &PathBuf) -> io::Result<Digest> {
    let mut hashing = Hashing::new(fs::File::open(path)?);
    drain(&mut hashing)?;
    Ok(hashing.finish().1)
}

fn drain(reader: &mut impl Read) -> io::Result<()> {
    let mut buffer = vec![0; crate::image::stream::PIECE];
    while reader.read(&mut buffer)? > 0 {}
    Ok(())
}

fn sound_layer(folder: &Path, diff_id: &Digest, deep: bool) -> Result<()> {
    let layer: LayerRecord = record::read(&folder.join("layer"))?.context("its record is missing")?;
    if layer.diff_id != *diff_id {
        anyhow::bail!("its record is another layer's");
    }
    if !folder.join("tree").is_dir() || !folder.join("skeleton").is_file() {
        anyhow::bail!("a part of it is missing");
    }
    if deep {
        let mut hashing = Hashing::new(skeleton::Reader::open(folder)?);
        drain(&mut hashing).context("its files can't be read")?;
        let (_, found, _) = hashing.finish();
        if found != *diff_id {
            anyhow::bail!("its files are not what was unpacked");
        }
    }
    Ok(())
}
