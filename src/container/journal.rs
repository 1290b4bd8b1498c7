//! The journal of a store: one line for each thing that happened, appended by whoever made it happen. Lines are whole
//! because each is one `write(2)` with O_APPEND; a line that a crash has cut short is passed over by readers. At a
//! size the file is put aside and the one before it forgotten, so that it stays small without anybody looking after
//! it. Nobody waits for the disk, and an event that can't be written is lost: no verb fails by it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::container::lines::Lines;
use crate::record::is_at;
use crate::units;

/// The file in the store; the one before it has `.1` behind.
pub const NAME: &str = "events";

/// A file that has grown to this is put aside.
const LARGEST: u64 = 1 << 20;

/// What something happened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Container,
    Volume,
    Image,
}

impl Kind {
    pub fn word(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Volume => "volume",
            Self::Image => "image",
        }
    }
}

/// One thing that happened, in docker's words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Nanoseconds since 1970.
    pub time: i64,
    pub kind: Kind,
    pub action: String,
    pub id: String,
    pub attributes: BTreeMap<String, String>,
}

/// Who appends to the journal of a store; the file stays open for the next event.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: Option<File>,
}

impl Journal {
    pub fn of(store: &Path) -> Self {
        Self { path: store.join(NAME), file: None }
    }

    /// Its file, if it has been opened.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// Appends an event of now.
    pub fn tell(&mut self, kind: Kind, action: &str, id: &str, attributes: BTreeMap<String, String>) {
        let (action, id) = (action.to_owned(), id.to_owned());
        let _ = self.append(&Event { time: units::now(), kind, action, id, attributes });
    }

    fn append(&mut self, event: &Event) -> io::Result<()> {
        let mut text = serde_json::to_vec(event)?;
        text.push(b'\n');
        let kept = match self.file.take() {
            Some(file) if is_at(&file, &self.path) => Some(file),
            _ => None,
        };
        let open = || OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path);
        let mut file = kept.map_or_else(open, Ok)?;
        file.write_all(&text)?;
        if file.metadata()?.len() > LARGEST {
            turn_over(&self.path, &file)?
        } else {
            self.file = Some(file)
        }
        Ok(())
    }
}

/// One of those who see that it is full puts it aside; a file that was put aside meanwhile stays where it is.
fn turn_over(path: &Path, full: &File) -> io::Result<()> {
    if full.try_lock().is_ok() && is_at(full, path) {
        fs::rename(path, path.with_extension("1"))?;
    }
    Ok(())
}

/// What is read of a journal, from the oldest event on, also while others append and put it aside.
#[derive(Debug)]
pub struct Reader(Lines);

impl Reader {
    /// The journal of `store`, and what has happened so far.
    pub fn open(store: &Path) -> io::Result<(Self, Vec<Event>)> {
        let mut reader = Self(Lines::of(store.join(NAME)));
        let events = reader.more()?;
        Ok((reader, events))
    }

    /// What has happened since.
    pub fn more(&mut self) -> io::Result<Vec<Event>> {
        self.0.more(parse)
    }
}

/// A line; of one that continues what a crash has cut short, the whole end.
fn parse(line: &[u8]) -> Option<Event> {
    const HEAD: &[u8] = b"{\"time\":";
    serde_json::from_slice(line).ok().or_else(|| {
        let at = line.windows(HEAD.len()).rposition(|bytes| bytes == HEAD).filter(|at| *at > 0)?;
        serde_json::from_slice(line.get(at..)?).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_cut_short_costs_only_itself() {
        let attributes = BTreeMap::new();
        let whole =
            Event { time: 1, kind: Kind::Volume, action: "create".into(), id: "reef".into(), attributes };
        let text = serde_json::to_string(&whole).unwrap();
        assert_eq!(parse(text.as_bytes()), Some(whole.clone()));
        assert_eq!(parse(format!("{}{text}", &text[..20]).as_bytes()), Some(whole));
        assert_eq!(parse(&text.as_bytes()[..20]), None);
    }
}
