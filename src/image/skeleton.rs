//! The skeleton of a layer: what its tar stream has besides the content of files, so that the very same bytes,
//! and so the same diff id, can be made again from the unpacked folder. One zstd stream of records:
//!
//! | tag | record |
//! |---|---|
//! | 0 | literal: length, bytes |
//! | 1 | content: path length, path, offset, length |
//! | 2 | moved: path length, path, number: what the last content of `path` made is now `shadow/NUMBER` |
//!
//! Numbers are LEB128. The result is trusted by nobody: who reads it compares the digest.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::image::tar::Journal;
use crate::image::tree::{self, Tree};

const LITERAL: u8 = 0;
const CONTENT: u8 = 1;
const MOVED: u8 = 2;
/// No path in an archive is longer (the limit of its extended headers).
const LONGEST: u64 = 1 << 21;

/// Writes a skeleton while a layer is unpacked.
pub struct Writer {
    out: zstd::Encoder<'static, BufWriter<File>>,
    pending: Vec<u8>,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("pending", &self.pending.len()).finish_non_exhaustive()
    }
}

impl Writer {
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { out: zstd::Encoder::new(BufWriter::new(file), 1)?, pending: Vec::new() })
    }

    fn flush_literal(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let mut head = vec![LITERAL];
        push_number(&mut head, self.pending.len() as u64);
        self.out.write_all(&head)?;
        self.out.write_all(&self.pending)?;
        self.pending.clear();
        Ok(())
    }

    pub fn moved(&mut self, path: &[u8], number: u64) -> io::Result<()> {
        self.flush_literal()?;
        let mut record = vec![MOVED];
        push_bytes(&mut record, path);
        push_number(&mut record, number);
        self.out.write_all(&record)
    }

    pub fn finish(mut self) -> Result<()> {
        self.flush_literal()?;
        self.out.finish()?.flush().context("cannot write the layer's skeleton")
    }
}

impl Journal for Writer {
    fn literal(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() < 64 * 1024 { Ok(()) } else { self.flush_literal() }
    }

    fn content(&mut self, path: &[u8], offset: u64, length: u64) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        self.flush_literal()?;
        let mut record = vec![CONTENT];
        push_bytes(&mut record, path);
        push_number(&mut record, offset);
        push_number(&mut record, length);
        self.out.write_all(&record)
    }
}

fn push_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn push_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    push_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

type Source = BufReader<zstd::Decoder<'static, BufReader<File>>>;

/// The tar stream of an unpacked layer, byte for byte as it was.
pub struct Reader {
    records: Source,
    tree: Tree,
    shadow: PathBuf,
    /// For each path whose content was replaced later: where its contents went, first to last.
    moved: HashMap<Vec<u8>, VecDeque<Option<u64>>>,
    literal: u64,
    open: Option<(File, u64, u64)>,
    last: Vec<u8>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("shadow", &self.shadow).finish_non_exhaustive()
    }
}

impl Reader {
    /// `folder` is the layer's: it has `tree`, `skeleton` and, if something was replaced, `shadow`.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("skeleton");
        let records = || -> Result<Source> {
            let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
            Ok(BufReader::with_capacity(1 << 16, zstd::Decoder::new(file)?))
        };
        let shadow = folder.join("shadow");
        let moved = if shadow.exists() { moved(&mut records()?)? } else { HashMap::new() };
        let tree = Tree::open(&folder.join("tree"))?;
        Ok(Self { records: records()?, tree, shadow, moved, literal: 0, open: None, last: Vec::new() })
    }

    fn next_record(&mut self) -> Result<bool> {
        let Some(record) = read_record(&mut self.records)? else { return Ok(false) };
        match record {
            Record::Literal(length) => self.literal = length,
            Record::Moved(..) => {}
            Record::Content(path, offset, length) => self.open_content(path, offset, length)?,
        }
        Ok(true)
    }

    fn open_content(&mut self, path: Vec<u8>, offset: u64, length: u64) -> Result<()> {
        // The chunks of one sparse file follow each other and count as one content.
        let first = offset == 0 || self.last != path;
        let moved = self.moved.get_mut(&path).and_then(|list| match first {
            true => list.pop_front().flatten(),
            false => None,
        });
        let file = match moved {
            Some(number) => File::open(self.shadow.join(number.to_string()))?,
            None => self
                .tree
                .read(&tree::components(&path)?)
                .with_context(|| format!("cannot open {}", String::from_utf8_lossy(&path)))?,
        };
        self.last = path;
        self.open = Some((file, offset, length));
        Ok(())
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.literal > 0 {
                let most = buffer.len().min(usize::try_from(self.literal).unwrap_or(usize::MAX));
                let length = self.records.read(&mut buffer[..most])?;
                self.literal -= length as u64;
                return if length == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(length) };
            }
            if let Some((file, offset, left)) = &mut self.open {
                if *left > 0 {
                    let most = buffer.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    let length = file.read_at(&mut buffer[..most], *offset)?;
                    *offset += length as u64;
                    *left -= length as u64;
                    return if length == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(length) };
                }
                self.open = None;
            }
            if !self.next_record().map_err(|error| io::Error::other(format!("{error:#}")))? {
                return Ok(0);
            }
        }
    }
}

enum Record {
    Literal(u64),
    Content(Vec<u8>, u64, u64),
    Moved(Vec<u8>, u64),
}

fn read_record(source: &mut Source) -> Result<Option<Record>> {
    if source.fill_buf()?.is_empty() {
        return Ok(None);
    }
    let mut tag = [0];
    source.read_exact(&mut tag)?;
    Ok(Some(match tag[0] {
        LITERAL => Record::Literal(read_number(source)?),
        CONTENT => Record::Content(read_bytes(source)?, read_number(source)?, read_number(source)?),
        MOVED => Record::Moved(read_bytes(source)?, read_number(source)?),
        other => bail!("the layer's skeleton has an unknown record {other}"),
    }))
}

fn moved(source: &mut Source) -> Result<HashMap<Vec<u8>, VecDeque<Option<u64>>>> {
    let mut contents: HashMap<Vec<u8>, VecDeque<Option<u64>>> = HashMap::new();
    let mut last = Vec::new();
    while let Some(record) = read_record(source)? {
        match record {
            Record::Literal(length) => {
                io::copy(&mut source.take(length), &mut io::sink())?;
            }
            Record::Content(path, offset, _) => {
                if offset == 0 || last != path {
                    contents.entry(path.clone()).or_default().push_back(None);
                }
                last = path;
            }
            Record::Moved(path, number) => {
                if let Some(place) = contents.get_mut(&path).and_then(VecDeque::back_mut) {
                    *place = Some(number);
                }
            }
        }
    }
    contents.retain(|_, list| list.iter().any(Option::is_some));
    Ok(contents)
}

fn read_number(source: &mut impl Read) -> Result<u64> {
    let (mut number, mut shift) = (0u64, 0);
    loop {
        let mut byte = [0];
        source.read_exact(&mut byte)?;
        if shift > 63 {
            bail!("the layer's skeleton has a malformed number");
        }
        number |= u64::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            return Ok(number);
        }
        shift += 7;
    }
}

fn read_bytes(source: &mut impl Read) -> Result<Vec<u8>> {
    let length = read_number(source)?;
    if length > LONGEST {
        bail!("the layer's skeleton has a path of {length} bytes");
    }
    let mut bytes = Vec::new();
    source.take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == length { Ok(bytes) } else { bail!("the layer's skeleton is cut short") }
}
