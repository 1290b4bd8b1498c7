//! Writing tar streams: plain ustar headers, and a pax header before them where ustar can't say it (long names,
//! large numbers, extended attributes). The same entries make the same bytes. It knows nothing of where
//! entries come from.

use std::io::{self, Read, Write};

use anyhow::{Result, bail};

use crate::image::stream::PIECE;
use crate::image::tar::{Entry, Kind};

const LONGEST_NAME: usize = 100;
/// The first numbers that the octal fields of seven and of eleven digits can't hold.
const ID_END: u64 = 0o10_000_000;
const SIZE_END: u64 = 0o100_000_000_000;

/// A tar stream that grows entry by entry.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
}

impl<W: Write> Writer<W> {
    pub fn new(out: W) -> Self {
        Self { out }
    }

    /// The headers of an entry. A file's content has to follow: `content`.
    pub fn header(&mut self, entry: &Entry) -> io::Result<()> {
        let extended = extended(entry);
        if !extended.is_empty() {
            let name = [b"PaxHeaders.0/", last_name(&entry.path)].concat();
            let mut about = Entry::new(name, Kind::File);
            about.size = extended.len() as u64;
            self.out.write_all(&block(&about, b'x'))?;
            self.out.write_all(&extended)?;
            self.pad(about.size)?;
        }
        self.out.write_all(&block(entry, flag(entry.kind)))
    }

    /// The content of the file whose header was written last, which must be as long as the header says.
    pub fn content(&mut self, size: u64, content: &mut dyn Read) -> Result<()> {
        exactly(content, size, &mut self.out)?;
        Ok(self.pad(size)?)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let padding = size.wrapping_neg() % 512;
        self.out.write_all(&[0; 512][..padding as usize])
    }

    /// Ends the archive.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 1024])?;
        self.out.flush()?;
        Ok(self.out)
    }
}

/// Copies `size` bytes.
///
/// # Errors
/// There are more or less.
pub fn exactly(content: &mut dyn Read, size: u64, out: &mut dyn Write) -> Result<()> {
    let (mut buffer, mut left) = (vec![0; PIECE.min(usize::try_from(size).unwrap_or(PIECE).max(1))], size);
    loop {
        let length = content.read(&mut buffer)?;
        let Some(rest) = left.checked_sub(length as u64) else { bail!("it is longer than it was") };
        if length == 0 {
            return if left == 0 { Ok(()) } else { bail!("it is shorter than it was") };
        }
        out.write_all(&buffer[..length])?;
        left = rest;
    }
}

fn flag(kind: Kind) -> u8 {
    match kind {
        Kind::File => b'0',
        Kind::HardLink => b'1',
        Kind::Symlink => b'2',
        Kind::Character => b'3',
        Kind::Block => b'4',
        Kind::Directory => b'5',
        Kind::Fifo => b'6',
    }
}

fn last_name(path: &[u8]) -> &[u8] {
    let name = path.rsplit(|byte| *byte == b'/').find(|part| !part.is_empty()).unwrap_or(b"-");
    &name[..name.len().min(LONGEST_NAME - 20)]
}

fn extended(entry: &Entry) -> Vec<u8> {
    let mut text = Vec::new();
    let mut put = |key: &[u8], value: &[u8]| text.extend_from_slice(&record(key, value));
    if entry.path.len() > LONGEST_NAME {
        put(b"path", &entry.path);
    }
    if entry.link.len() > LONGEST_NAME {
        put(b"linkpath", &entry.link);
    }
    for (key, id) in [(b"uid", entry.uid), (b"gid", entry.gid)] {
        if id >= ID_END {
            put(key, id.to_string().as_bytes());
        }
    }
    if entry.size >= SIZE_END {
        put(b"size", entry.size.to_string().as_bytes());
    }
    if entry.mtime.1 != 0 || !(0..SIZE_END.cast_signed()).contains(&entry.mtime.0) {
        put(b"mtime", time(entry.mtime).as_bytes());
    }
    for (name, value) in &entry.xattrs {
        put(&[b"SCHILY.xattr.", &name[..]].concat(), value);
    }
    text
}

/// Seconds with a fraction, which counts downwards before 1970.
fn time((seconds, nanoseconds): (i64, i64)) -> String {
    match (seconds, nanoseconds) {
        (seconds, 0) => seconds.to_string(),
        (..0, _) => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds),
        _ => format!("{seconds}.{nanoseconds:09}"),
    }
}

/// `LENGTH KEY=VALUE\n`, where the length counts its own digits.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// A ustar header; what does not fit is cut, since a pax header has said it.
fn block(entry: &Entry, flag: u8) -> [u8; 512] {
    let mut block = [0; 512];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    let cut = |text: &[u8]| text[..text.len().min(LONGEST_NAME)].to_vec();
    let below = |number: u64, end: u64| if number < end { number } else { 0 };
    put(0, &cut(&entry.path));
    put(100, format!("{:07o}\0", entry.mode & 0o7777).as_bytes());
    put(108, format!("{:07o}\0", below(entry.uid, ID_END)).as_bytes());
    put(116, format!("{:07o}\0", below(entry.gid, ID_END)).as_bytes());
    put(124, format!("{:011o}\0", below(entry.size, SIZE_END)).as_bytes());
    let seconds = u64::try_from(entry.mtime.0).unwrap_or(0);
    put(136, format!("{:011o}\0", below(seconds, SIZE_END)).as_bytes());
    put(148, b"        ");
    put(156, &[flag]);
    put(157, &cut(&entry.link));
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::tar::{Reader, Unheard};

    #[test]
    fn what_is_written_is_read_again() {
        let mut long = Entry::new([b"d/".repeat(60), vec![0xff; 90]].concat(), Kind::File);
        (long.mode, long.uid, long.gid, long.size, long.mtime) = (0o4755, 3_000_000, 7, 5, (-3, 250_000_000));
        long.xattrs.push((b"user.x".to_vec(), vec![0, b'\n', 255]));
        let mut link = Entry::new(b"l".to_vec(), Kind::Symlink);
        link.link = vec![b'y'; 300];
        let mut writer = Writer::new(Vec::new());
        writer.header(&long).unwrap();
        writer.content(5, &mut &b"hello"[..]).unwrap();
        writer.header(&link).unwrap();
        let bytes = writer.finish().unwrap();
        assert_eq!(bytes.len() % 512, 0);
        let mut reader = Reader::new(&bytes[..], Unheard);
        let found = reader.next_entry().unwrap().unwrap();
        assert_eq!((found.path, found.mode, found.uid, found.gid), (long.path, 0o4755, 3_000_000, 7));
        assert_eq!((found.size, found.mtime, found.xattrs), (5, (-3, 250_000_000), long.xattrs));
        let found = reader.next_entry().unwrap().unwrap();
        assert_eq!((found.kind, found.link), (Kind::Symlink, link.link));
        assert!(reader.next_entry().unwrap().is_none());
    }

    #[test]
    fn a_record_counts_its_own_digits() {
        assert_eq!(record(b"a", b"b"), b"6 a=b\n");
        assert_eq!(record(b"path", &[b'x'; 90]).len(), 99);
        assert_eq!(record(b"path", &[b'x'; 92]), [b"102 path=", &[b'x'; 92][..], b"\n"].concat()[..]);
    }
}
