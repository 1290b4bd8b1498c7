//! Reading a log: the files of a container from the oldest on, line by line, also while its monitor writes and
//! turns them over. A line that can't be understood is passed over.

use std::io;
use std::path::Path;

use serde::Deserialize;

use crate::container::lines::Lines;
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
pub struct Reader(Lines);

impl Reader {
    /// The log in `folder`, and what has been written so far.
    pub fn open(folder: &Path) -> io::Result<(Self, Vec<Entry>)> {
        let mut reader = Self(Lines::of(folder.join(NAME)));
        let entries = reader.more()?;
        Ok((reader, entries))
    }

    /// What has been written since.
    pub fn more(&mut self) -> io::Result<Vec<Entry>> {
        self.0.more(entry)
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
