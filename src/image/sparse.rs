//! Sparse files in tar archives: the map that says which parts of a file follow, in GNU's old headers and in
//! the three pax encodings (`GNU tar` manual, "Storing Sparse Files"). Pure text to numbers; a map from
//! outside is checked before it is used.

use anyhow::{Context, Result, bail};

/// More parts than this in one file are a bomb, not a file.
const MOST_CHUNKS: usize = 1 << 20;

/// A part of a file that has content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub offset: u64,
    pub length: u64,
}

/// The `GNU.sparse.*` keywords of one pax header.
#[derive(Debug, Default)]
pub struct Pax {
    major: Option<u64>,
    name: Option<Vec<u8>>,
    size: Option<u64>,
    numbers: Vec<u64>,
    seen: bool,
}

/// What the keywords say. Without chunks, the map is the first part of the content (version 1.0).
#[derive(Debug)]
pub struct Map {
    pub name: Option<Vec<u8>>,
    pub size: u64,
    pub chunks: Option<Vec<Chunk>>,
}

impl Pax {
    pub fn keyword(&mut self, name: &[u8], value: &[u8]) -> Result<()> {
        let malformed = || "a pax header has a malformed sparse map";
        let text = || std::str::from_utf8(value).with_context(malformed);
        let number = || text()?.parse::<u64>().with_context(malformed);
        self.seen = true;
        match name {
            b"major" => self.major = Some(number()?),
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(number()?),
            b"offset" | b"numbytes" => self.numbers.push(number()?),
            b"map" => {
                for number in text()?.split(',').filter(|text| !text.is_empty()) {
                    self.numbers.push(number.parse().with_context(malformed)?);
                }
            }
            _ => {}
        }
        check_count(self.numbers.len())
    }

    pub fn map(self) -> Result<Option<Map>> {
        if !self.seen {
            return Ok(None);
        }
        let size = self.size.context("a sparse file has no size")?;
        let chunks = if self.major == Some(1) { None } else { Some(pairs(&self.numbers)?) };
        Ok(Some(Map { name: self.name, size, chunks }))
    }
}

fn pairs(numbers: &[u64]) -> Result<Vec<Chunk>> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() {
        bail!("the map of a sparse file has half a pair");
    }
    Ok(pairs.iter().map(|[offset, length]| Chunk { offset: *offset, length: *length }).collect())
}

/// The map of version 1.0: decimal lines, first the count, padded to whole blocks.
#[derive(Debug, Default)]
pub struct Text {
    bytes: Vec<u8>,
    lines: usize,
}

impl Text {
    pub fn push(&mut self, block: &[u8]) {
        self.bytes.extend_from_slice(block);
        self.lines += block.iter().filter(|byte| **byte == b'\n').count();
    }

    fn numbers(&self) -> impl Iterator<Item = Option<u64>> {
        let lines = self.bytes.split(|byte| *byte == b'\n').take(self.lines);
        lines.map(|line| std::str::from_utf8(line).ok()?.parse().ok())
    }

    pub fn is_whole(&self) -> Result<bool> {
        let Some(Some(count)) = self.numbers().next() else {
            return if self.bytes.is_empty() {
                Ok(false)
            } else {
                bail!("the map of a sparse file is malformed")
            };
        };
        let count = usize::try_from(count).context("the map of a sparse file is too long")?;
        check_count(count)?;
        Ok(self.lines > count * 2)
    }

    pub fn chunks(&self) -> Result<Vec<Chunk>> {
        let mut numbers = self.numbers();
        let count = numbers.next().flatten().context("the map of a sparse file is malformed")?;
        let wanted =
            usize::try_from(count).context("the map of a sparse file is too long")?.saturating_mul(2);
        let numbers: Option<Vec<u64>> = numbers.take(wanted).collect();
        pairs(&numbers.context("the map of a sparse file is malformed")?)
    }
}

/// Reads pairs of 12-byte numbers until an empty one; says whether the field was full.
pub fn old_chunks(field: &[u8], chunks: &mut Vec<Chunk>) -> bool {
    let number = |text: &[u8]| {
        let text = text.split(|byte| *byte == 0).next().unwrap_or(text);
        u64::from_str_radix(std::str::from_utf8(text).ok()?.trim(), 8).ok()
    };
    for pair in field.as_chunks::<24>().0 {
        let (Some(offset), Some(length)) = (number(&pair[..12]), number(&pair[12..])) else { return false };
        chunks.push(Chunk { offset, length });
    }
    true
}

pub fn check_count(count: usize) -> Result<()> {
    if count > MOST_CHUNKS {
        bail!("a sparse file has more than {MOST_CHUNKS} parts");
    }
    Ok(())
}

/// The chunks must be in order, apart, inside the file, and together as long as the content.
pub fn check(chunks: &[Chunk], size: u64, content: u64) -> Result<()> {
    let (mut end, mut total) = (0u64, 0u64);
    for chunk in chunks {
        let next = chunk.offset.checked_add(chunk.length);
        let Some(next) = next.filter(|next| chunk.offset >= end && *next <= size) else {
            bail!("the map of a sparse file overlaps or leaves the file");
        };
        (end, total) = (next, total + chunk.length);
    }
    if total != content {
        bail!("the map of a sparse file does not fit its content");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_that_lie_are_refused() {
        let chunk = |offset, length| Chunk { offset, length };
        assert!(check(&[chunk(0, 5), chunk(10, 5)], 20, 10).is_ok());
        assert!(check(&[chunk(5, 5), chunk(0, 5)], 20, 10).is_err());
        assert!(check(&[chunk(0, 5), chunk(4, 5)], 20, 10).is_err());
        assert!(check(&[chunk(16, 5)], 20, 5).is_err());
        assert!(check(&[chunk(u64::MAX, 5)], 20, 5).is_err());
        assert!(check(&[chunk(0, 5)], 20, 6).is_err());
    }

    #[test]
    fn version_one_has_its_map_in_the_content() {
        let mut text = Text::default();
        assert!(!text.is_whole().unwrap());
        let mut block = b"2\n0\n512\n1048576\n512\n".to_vec();
        block.resize(512, 0);
        text.push(&block);
        assert!(text.is_whole().unwrap());
        let chunks = text.chunks().unwrap();
        assert_eq!(chunks[1], Chunk { offset: 1_048_576, length: 512 });
        let mut bad = Text::default();
        bad.push(&[b'x'; 512]);
        assert!(bad.is_whole().is_err());
    }
}
