//! Reading a tar stream of any dialect that registries serve: v7, ustar, pax, GNU long names and GNU sparse
//! files in all four encodings. Names are bytes. Everything that is read, except what goes into a file, is
//! told to a `Journal`, so that the very same stream can be written again (`skeleton`). Pure: it does not know
//! where entries go and trusts nothing that it reads.

use std::io::{BufRead, Read};

use anyhow::{Context, Result, bail};

use crate::image::sparse::{self, Chunk};

const BLOCK: usize = 512;
/// The longest extended header: room for every xattr that Linux can hold, not for a bomb.
const LONGEST_HEADER: u64 = 1 << 20;

/// What an entry makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    Fifo,
    Character,
    Block,
}

/// One entry, all its headers folded.
#[derive(Clone, Debug)]
pub struct Entry {
    pub path: Vec<u8>,
    pub kind: Kind,
    /// The permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    /// Seconds and nanoseconds since 1970.
    pub mtime: (i64, i64),
    /// How long the file is when it has been written, holes included.
    pub size: u64,
    pub link: Vec<u8>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Which parts of the file follow in the stream.
    pub chunks: Vec<Chunk>,
}

impl Entry {
    /// Root's, without content.
    pub fn new(path: Vec<u8>, kind: Kind) -> Self {
        let mode = if kind == Kind::Directory { 0o755 } else { 0o644 };
        let (link, xattrs, chunks) = (Vec::new(), Vec::new(), Vec::new());
        Self { path, kind, mode, uid: 0, gid: 0, mtime: (0, 0), size: 0, link, xattrs, chunks }
    }
}

/// Hears what the stream consists of.
pub trait Journal {
    /// Bytes that are in no file.
    fn literal(&mut self, bytes: &[u8]) -> std::io::Result<()>;

    /// So many bytes that are at `offset` of the file that the stream calls `path`.
    fn content(&mut self, path: &[u8], offset: u64, length: u64) -> std::io::Result<()>;
}

/// Nobody wants to write the stream again.
#[derive(Debug)]
pub struct Unheard;

impl Journal for Unheard {
    fn literal(&mut self, _: &[u8]) -> std::io::Result<()> {
        Ok(())
    }

    fn content(&mut self, _: &[u8], _: u64, _: u64) -> std::io::Result<()> {
        Ok(())
    }
}

/// The content of the current entry as a stream of its own.
#[derive(Debug)]
pub struct Content<'a, R, J>(&'a mut Reader<R, J>);

impl<R: BufRead, J> Read for Content<'_, R, J> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.0.content).unwrap_or(usize::MAX));
        let length = self.0.source.read(&mut buffer[..most])?;
        self.0.content -= length as u64;
        if length == 0 && most > 0 { Err(std::io::ErrorKind::UnexpectedEof.into()) } else { Ok(length) }
    }
}

/// A tar stream between two entries, or inside the content of one.
#[derive(Debug)]
pub struct Reader<R, J> {
    source: R,
    pub journal: J,
    /// How many bytes of the current entry's content are still to come, and the padding behind them.
    content: u64,
    padding: u64,
}

#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, i64)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: sparse::Pax,
}

impl<R: BufRead, J: Journal> Reader<R, J> {
    pub fn new(source: R, journal: J) -> Self {
        Self { source, journal, content: 0, padding: 0 }
    }

    /// The next entry; what is left of the last one's content is passed over. At the end of the archive, the
    /// rest of the stream is read to its end.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        self.pass_over()?;
        let mut extended = Extended::default();
        loop {
            let Some(header) = self.header()? else {
                self.rest()?;
                return Ok(None);
            };
            let size = number(&header[124..136]).context("a header has a malformed size")?;
            match header[156] {
                b'x' => extended.read_pax(&self.long_text(size)?)?,
                b'g' => drop(self.long_text(size)?),
                b'L' => extended.path = Some(terminated(&self.long_text(size)?).to_vec()),
                b'K' => extended.link = Some(terminated(&self.long_text(size)?).to_vec()),
                b'V' => drop(self.long_text(size)?),
                _ => return self.entry(&header, size, extended).map(Some),
            }
        }
    }

    /// What is left of the current entry's content.
    pub fn stream(&mut self) -> Content<'_, R, J> {
        Content(self)
    }

    /// Reads `length` bytes of the current entry's content.
    pub fn content(&mut self, length: u64, mut take: impl FnMut(&[u8]) -> std::io::Result<()>) -> Result<()> {
        if length > self.content {
            bail!("the archive's map of a sparse file is longer than its content");
        }
        self.content -= length;
        let mut left = length;
        while left > 0 {
            let buffer = self.source.fill_buf()?;
            if buffer.is_empty() {
                bail!("the archive ends in the middle of a file");
            }
            let part = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            take(&buffer[..part])?;
            self.source.consume(part);
            left -= part as u64;
        }
        Ok(())
    }

    /// Tells what is left of the current entry to the journal: content that no file holds, and padding.
    fn pass_over(&mut self) -> Result<()> {
        let mut left = std::mem::take(&mut self.content) + std::mem::take(&mut self.padding);
        while left > 0 {
            let buffer = self.source.fill_buf()?;
            if buffer.is_empty() {
                bail!("the archive ends in the middle of an entry");
            }
            let part = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            self.journal.literal(&buffer[..part])?;
            self.source.consume(part);
            left -= part as u64;
        }
        Ok(())
    }

    fn rest(&mut self) -> Result<()> {
        loop {
            let buffer = self.source.fill_buf()?;
            if buffer.is_empty() {
                return Ok(());
            }
            let length = buffer.len();
            self.journal.literal(buffer)?;
            self.source.consume(length);
        }
    }

    /// The next block; `None` at the end of the stream.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let (mut block, mut filled) = ([0; BLOCK], 0);
        while filled < BLOCK {
            let buffer = self.source.fill_buf()?;
            if buffer.is_empty() && filled == 0 {
                return Ok(None);
            }
            if buffer.is_empty() {
                bail!("the archive ends in the middle of a header");
            }
            let part = buffer.len().min(BLOCK - filled);
            block[filled..filled + part].copy_from_slice(&buffer[..part]);
            self.source.consume(part);
            filled += part;
        }
        self.journal.literal(&block)?;
        Ok(Some(block))
    }

    /// The next header, its checksum checked; `None` at two blocks of zeros or where the stream ends.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let Some(block) = self.block()? else { return Ok(None) };
        if block.iter().all(|byte| *byte == 0) {
            match self.block()? {
                Some(second) if second.iter().any(|byte| *byte != 0) => {
                    bail!("a block of zeros stands in the middle of the archive")
                }
                _ => return Ok(None),
            }
        }
        let stored = number(&block[148..156]).context("a header has a malformed checksum")?;
        let byte = |index: usize| if (148..156).contains(&index) { b' ' } else { block[index] };
        let unsigned: u64 = (0..BLOCK).map(|index| u64::from(byte(index))).sum();
        let signed: i64 = (0..BLOCK).map(|index| i64::from(byte(index).cast_signed())).sum();
        if stored != unsigned && i64::try_from(stored) != Ok(signed) {
            bail!("a header has a wrong checksum: this is not a tar archive, or it is damaged");
        }
        Ok(Some(block))
    }

    /// The content of a header that describes the next one.
    fn long_text(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > LONGEST_HEADER {
            bail!("an extended header is {size} bytes long, {LONGEST_HEADER} is the limit");
        }
        let mut text = Vec::new();
        self.content = size;
        self.content(size, |bytes| {
            text.extend_from_slice(bytes);
            Ok(())
        })?;
        self.journal.literal(&text)?;
        self.padding = padding(size);
        self.pass_over()?;
        Ok(text)
    }

    fn entry(&mut self, header: &[u8; BLOCK], size: u64, extended: Extended) -> Result<Entry> {
        let path = extended.path.unwrap_or_else(|| ustar_path(header));
        let shown = String::from_utf8_lossy(&path).into_owned();
        let kind = kind(header[156], &path)
            .with_context(|| format!("{shown} has the unknown type {:?}", char::from(header[156])))?;
        let has_content = kind == Kind::File;
        let mut entry = Entry {
            kind,
            mode: (number(&header[100..108]).unwrap_or(0) & 0o7777) as u32,
            uid: extended.uid.or_else(|| number(&header[108..116])).unwrap_or(0),
            gid: extended.gid.or_else(|| number(&header[116..124])).unwrap_or(0),
            mtime: extended.mtime.unwrap_or_else(|| (signed_number(&header[136..148]), 0)),
            size: if has_content { extended.size.unwrap_or(size) } else { 0 },
            link: extended.link.unwrap_or_else(|| terminated(&header[157..257]).to_vec()),
            xattrs: extended.xattrs,
            chunks: Vec::new(),
            path,
        };
        self.content = entry.size;
        self.padding = padding(entry.size);
        if header[156] == b'S' {
            self.old_sparse_map(header, &mut entry)?;
        } else if let (true, Some(map)) = (has_content, extended.sparse.map()?) {
            self.pax_sparse_map(map, &mut entry)?;
        } else {
            entry.chunks.push(Chunk { offset: 0, length: entry.size });
        }
        sparse::check(&entry.chunks, entry.size, self.content).with_context(|| format!("reading {shown}"))?;
        Ok(entry)
    }

    fn old_sparse_map(&mut self, header: &[u8; BLOCK], entry: &mut Entry) -> Result<()> {
        entry.size = number(&header[483..495]).context("a sparse file has a malformed size")?;
        let mut more = sparse::old_chunks(&header[386..482], &mut entry.chunks) && header[482] != 0;
        while more {
            let block = self.block()?.context("the archive ends in the map of a sparse file")?;
            more = sparse::old_chunks(&block[..504], &mut entry.chunks) && block[504] != 0;
            sparse::check_count(entry.chunks.len())?;
        }
        Ok(())
    }

    fn pax_sparse_map(&mut self, map: sparse::Map, entry: &mut Entry) -> Result<()> {
        if let Some(name) = map.name {
            entry.path = name;
        }
        entry.size = map.size;
        entry.chunks = match map.chunks {
            Some(chunks) => chunks,
            None => {
                let mut text = sparse::Text::default();
                while !text.is_whole()? {
                    let mut block = Vec::with_capacity(BLOCK);
                    self.content(BLOCK as u64, |bytes| {
                        block.extend_from_slice(bytes);
                        Ok(())
                    })?;
                    self.journal.literal(&block)?;
                    text.push(&block);
                }
                text.chunks()?
            }
        };
        Ok(())
    }
}

fn kind(flag: u8, path: &[u8]) -> Option<Kind> {
    Some(match flag {
        b'0' | 0 | b'7' | b'S' if path.ends_with(b"/") => Kind::Directory,
        b'0' | 0 | b'7' | b'S' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::Character,
        b'4' => Kind::Block,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        _ => return None,
    })
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn terminated(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or(field)
}

/// The name of a plain header; POSIX archives may put its first part into a field of its own.
fn ustar_path(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = terminated(&header[..100]);
    let prefix = terminated(&header[345..500]);
    if &header[257..263] != b"ustar\0" || prefix.is_empty() {
        return name.to_vec();
    }
    [prefix, b"/", name].concat()
}

/// An octal number with spaces or NULs around it, or GNU's big-endian number with the top bit set.
fn number(field: &[u8]) -> Option<u64> {
    if field.first().is_some_and(|byte| byte & 0x80 != 0) {
        let value = signed_number(field);
        return u64::try_from(value).ok();
    }
    let digits = field.iter().skip_while(|byte| **byte == b' ');
    let mut value = 0u64;
    for byte in digits.take_while(|byte| !matches!(**byte, 0 | b' ')) {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 8)?;
        value = value.checked_mul(8)?.checked_add(u64::from(digit))?;
    }
    Some(value)
}

fn signed_number(field: &[u8]) -> i64 {
    match field.first() {
        Some(first) if first & 0x80 != 0 => {
            let start = if first & 0x40 != 0 { -1i64 } else { 0 };
            let bytes = field.iter().enumerate().map(|(at, byte)| if at == 0 { byte & 0x7f } else { *byte });
            bytes.enumerate().fold(start, |value, (at, byte)| {
                let byte = if at == 0 && start < 0 { byte | 0x80 } else { byte };
                value << 8 | i64::from(byte)
            })
        }
        _ => number(field).and_then(|value| i64::try_from(value).ok()).unwrap_or(0),
    }
}

impl Extended {
    /// `LENGTH KEY=VALUE\n`, again and again (`pax(1)`).
    fn read_pax(&mut self, mut text: &[u8]) -> Result<()> {
        while !text.is_empty() && text[0] != 0 {
            let malformed = || anyhow::anyhow!("a pax header is malformed");
            let space = text.iter().position(|byte| *byte == b' ').ok_or_else(malformed)?;
            let length: usize = std::str::from_utf8(&text[..space])
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or_else(malformed)?;
            let record = text.get(space + 1..length).ok_or_else(malformed)?;
            text = &text[length..];
            let record = record.strip_suffix(b"\n").ok_or_else(malformed)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(malformed)?;
            self.keyword(&record[..equals], &record[equals + 1..])?;
        }
        Ok(())
    }

    fn keyword(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let text = || std::str::from_utf8(value).context("a pax header is malformed");
        let number = || text()?.parse::<u64>().context("a pax header has a malformed number");
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number()?),
            b"uid" => self.uid = Some(number()?),
            b"gid" => self.gid = Some(number()?),
            b"mtime" => self.mtime = Some(pax_time(text()?).context("a pax header has a malformed time")?),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                } else if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.keyword(name, value)?;
                }
            }
        }
        Ok(())
    }
}

/// `-1.25`: seconds with a fraction of any length.
fn pax_time(text: &str) -> Option<(i64, i64)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: i64 = digits.parse().ok()?;
    if text.starts_with('-') && nanoseconds > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds));
    }
    Some((seconds, nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_big_endian() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"0000648\0"), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 1, 0, 0]), Some(65_536));
        assert_eq!(signed_number(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]), -2);
        assert_eq!(number(&[0xff; 8]), None);
    }

    #[test]
    fn pax_times_may_be_negative_and_long() {
        assert_eq!(pax_time("1.5"), Some((1, 500_000_000)));
        assert_eq!(pax_time("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(pax_time("7"), Some((7, 0)));
        assert_eq!(pax_time("1.1234567891234"), Some((1, 123_456_789)));
        assert_eq!(pax_time("x"), None);
    }

    #[test]
    fn a_malformed_pax_header_is_refused() {
        for text in [&b"x"[..], b"99 path=a\n", b"3 a", b"6 path\n", b"10 uid=-1\n\n", b"0 path=a\n", b"1 \n"]
        {
            assert!(Extended::default().read_pax(text).is_err(), "{text:?}");
        }
        let mut extended = Extended::default();
        extended.read_pax(b"9 path=a\n12 uid=1000\n").unwrap();
        assert_eq!((extended.path, extended.uid), (Some(b"a".to_vec()), Some(1000)));
    }
}
