//! A packed layer from any source into the store: decompressed and hashed in one thread, unpacked in another,
//! put in its place only when both digests are right. Used by pull, load and import.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};

use crate::error::Error;
use crate::image::manifest::Compression;
use crate::image::reference::Digest;
use crate::image::store::{LayerRecord, Store, whole_layer};
use crate::image::stream::{self, Hashing, PIECE, PipeWriter};
use crate::image::unpack::{self, Limits, Owners};
use crate::image::workspace::Workspace;
use crate::paths;
use crate::record::{self, Durability};

/// From this size on, a layer that grew more than a thousandfold is a bomb: deflate itself ends at 1032.
const BOMB_SIZE: u64 = 1 << 30;
const BOMB_RATIO: u64 = 1000;

/// Where layers go and under which rules.
#[derive(Debug)]
pub struct Installer<'a> {
    pub store: &'a Store,
    pub workspace: &'a Workspace,
    pub owners: Owners,
    pub limits: Limits,
}

/// What the decompressing side saw.
struct Stream {
    diff_id: Digest,
    tar_size: u64,
    compression: Compression,
}

impl Installer<'_> {
    /// Unpacks `packed` and puts the layer into the store, under `wanted` if the digest is known before.
    pub fn layer(&self, packed: impl Read + Send, wanted: Option<&Digest>) -> Result<LayerRecord> {
        let folder = self.workspace.fresh();
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let made = self.unpack(packed, wanted, &folder);
        let made = made.and_then(|record| self.place(&folder, &record).map(|()| record));
        if made.is_err() {
            // What was unpacked so far may fill the disk.
            let _ = crate::image::workspace::remove(&folder);
        }
        made
    }

    fn unpack(
        &self,
        packed: impl Read + Send,
        wanted: Option<&Digest>,
        folder: &Path,
    ) -> Result<LayerRecord> {
        let (decoded, unpacked) = stream::between(
            |writer| decode(packed, writer, wanted),
            |reader| unpack::unpack(reader, folder, self.owners, self.limits),
        );
        let (stream, unpacked) = stream::first_cause(decoded, unpacked)?;
        Ok(LayerRecord {
            diff_id: stream.diff_id,
            tar_size: stream.tar_size,
            owners: self.owners,
            unpacked,
            compression: stream.compression,
            settled: false,
            boot: paths::boot_id(),
        })
    }

    fn place(&self, folder: &Path, layer: &LayerRecord) -> Result<()> {
        record::write(&folder.join("layer"), layer, Durability::Boot)?;
        let lock = self.store.lock("placing a layer")?;
        self.workspace.lease(&lock, std::slice::from_ref(&layer.diff_id), &[])?;
        let place = self.store.layer_path(&layer.diff_id);
        let known = whole_layer(&place)?;
        if known.is_some_and(|known| known.is_settled() && known.owners == layer.owners) {
            // Containers may stand on it: what is right stays where it is.
            return crate::image::workspace::remove(folder);
        }
        self.workspace
            .replace(folder, &place)
            .with_context(|| format!("cannot put layer {} in its place", layer.diff_id))
    }
}

fn decode(packed: impl Read + Send, mut to: PipeWriter, wanted: Option<&Digest>) -> Result<Stream> {
    let arrived = AtomicU64::new(0);
    let mut counted = Counted { reader: packed, arrived: &arrived };
    let (compression, reader) = stream::unpacked(&mut counted).context("cannot decompress the layer")?;
    let mut hashing = Hashing::new(reader);
    let mut buffer = vec![0; PIECE];
    loop {
        let length = hashing.read(&mut buffer).context("cannot decompress the layer")?;
        if length == 0 {
            break;
        }
        if hashing.count > BOMB_SIZE && hashing.count / BOMB_RATIO > arrived.load(Ordering::Relaxed) {
            let sentence =
                format!("the layer grew from {} to {} bytes", arrived.load(Ordering::Relaxed), hashing.count);
            return Err(Error::host(sentence).hint("this is what a decompression bomb does").into());
        }
        to.write_all(&buffer[..length])?;
    }
    let (reader, diff_id, tar_size) = hashing.finish();
    drop(reader);
    // What stands behind the end of the compressed stream still belongs to the blob.
    std::io::copy(&mut counted, &mut std::io::sink())?;
    if let Some(wanted) = wanted.filter(|wanted| **wanted != diff_id) {
        bail!("the layer has the content {diff_id}, its image says {wanted}");
    }
    to.finish()?;
    Ok(Stream { diff_id, tar_size, compression })
}

/// Counts what has been read, for the other side of the decompressor to see.
struct Counted<'a, R> {
    reader: R,
    arrived: &'a AtomicU64,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.reader.read(buffer)?;
        self.arrived.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }
}
