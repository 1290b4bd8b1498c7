//! Reading a log: the files of a container from the oldest on, line by line, also while its monitor writes and
//! turns them over. A line that is not whole yet is left for later; one that can't be understood is passed over.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::container::log::NAME;
use crate::spec::life::Stream;

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub stream: Stream,
    /// RFC 3339 with nine digits, as it was written: these compare as text.
    pub time: String,
    pub text: Vec<u8>,
}

#[derive(Deserialize)]
struct Json {
    log: String,
    stream: String,
    time: String,
}

/// The log of one container.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    file: Option<File>,
    rest: Vec<u8>,
}

impl Reader {
    /// The log in `folder`, and what has been written so far.
    pub fn open(folder: &Path) -> io::Result<(Self, Vec<Entry>)> {
        let path = folder.join(NAME);
        let mut older = Vec::new();
        while let Ok(file) = File::open(path.with_extension((older.len() + 1).to_string())) {
            older.push(file);
        }
        let mut reader = Self { path, file: None, rest: Vec::new() };
        let mut entries = Vec::new();
        for mut file in older.into_iter().rev() {
            reader.read(&mut file, &mut entries)?;
        }
        entries.extend(reader.more()?);
        Ok((reader, entries))
    }

    /// What has been written since.
    pub fn more(&mut self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        if let Some(mut file) = self.file.take() {
            self.read(&mut file, &mut entries)?;
            let same = |found: std::fs::Metadata| {
                file.metadata().is_ok_and(|own| (own.dev(), own.ino()) == (found.dev(), found.ino()))
            };
            if std::fs::metadata(&self.path).is_ok_and(same) {
                self.file = Some(file);
                return Ok(entries);
            }
        }
        match File::open(&self.path) {
            Ok(mut file) => {
                self.read(&mut file, &mut entries)?;
                self.file = Some(file);
                Ok(entries)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(entries),
            Err(error) => Err(error),
        }
    }

    fn read(&mut self, file: &mut File, entries: &mut Vec<Entry>) -> io::Result<()> {
        let mut bytes = std::mem::take(&mut self.rest);
        file.read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.rest = bytes.split_off(whole);
        entries.extend(bytes.split(|byte| *byte == b'\n').filter_map(entry));
        Ok(())
    }
}

/// A line of docker's json-file or of the kubelet's format.
fn entry(line: &[u8]) -> Option<Entry> {
    let stream = |word: &str| if word == "stderr" { Stream::Stderr } else { Stream::Stdout };
    if line.starts_with(b"{") {
        let json: Json = serde_json::from_slice(line).ok()?;
        return Some(Entry { stream: stream(&json.stream), time: json.time, text: json.log.into_bytes() });
    }
    let mut words = line.splitn(4, |byte| *byte == b' ');
    let time = String::from_utf8(words.next()?.to_vec()).ok()?;
    let from = stream(std::str::from_utf8(words.next()?).ok()?);
    let whole = words.next()? == b"F";
    let mut text = words.next()?.to_vec();
    if whole {
        text.push(b'\n');
    }
    Some(Entry { stream: from, time, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_are_read() {
        let json =
            entry(br#"{"log":"a\n","stream":"stderr","time":"2024-01-01T00:00:00.000000001Z"}"#).unwrap();
        assert_eq!((json.stream, json.text.as_slice()), (Stream::Stderr, &b"a\n"[..]));
        let kubelet = entry(b"2024-01-01T00:00:00.000000001Z stdout P a b").unwrap();
        assert_eq!((kubelet.stream, kubelet.text.as_slice()), (Stream::Stdout, &b"a b"[..]));
        assert_eq!(entry(b"nonsense"), None);
    }
}
