//! What a container's files consist of: the layers that it runs on and the directory that holds its changes.
//! For the verbs that look at them beside the container: diff, commit, export, cp.

use std::path::PathBuf;

use anyhow::Result;

use crate::container::folder::{self, Process, Record, Watched};
use crate::error::Error;
use crate::image::store::{Image, Store};
use crate::paths::Paths;
use crate::record;

/// A container's layers.
#[derive(Debug)]
pub struct Contents {
    /// How users call it.
    pub name: String,
    pub folder: PathBuf,
    pub image: Option<Image>,
    /// The lowest first.
    pub lowers: Vec<PathBuf>,
    /// The first process of a container that runs.
    pub process: Option<Process>,
}

impl Contents {
    /// The container that a user's word means: its name, its id, or the start of that.
    pub fn find(paths: &Paths, store: &Store, word: &str) -> Result<Self> {
        let folder = folder_of(paths, word)?;
        let record: Option<Record> = record::read(&folder.join("record.json"))?;
        let (image, process) = match record {
            Some(record) => (record.image, None),
            None => {
                let watched: Option<Watched> = record::read(&folder.join("lock"))?;
                watched.map_or((None, None), |watched| (watched.image, watched.process))
            }
        };
        let Some(id) = image else {
            let sentence = format!("container {word} runs on no image, so what it changed is not known");
            return Err(Error::usage(sentence).into());
        };
        let image = store.expect(&id)?;
        let lowers = image.layers.clone();
        let process = process.filter(Process::lives);
        Ok(Self { name: word.to_owned(), folder, image: Some(image), lowers, process })
    }

    pub fn upper(&self) -> PathBuf {
        self.folder.join("upper")
    }

    /// All layers, the container's own last.
    pub fn layers(&self) -> Vec<PathBuf> {
        let mut layers = self.lowers.clone();
        layers.push(self.upper());
        layers
    }
}

fn folder_of(paths: &Paths, word: &str) -> Result<PathBuf> {
    let missing = || Error::usage(format!("no such container: {word}"));
    let parent = paths.containers();
    if let Ok(id) = std::fs::read_link(paths.store.join("names").join(word)) {
        return Ok(parent.join(id));
    }
    let hex = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let listing = std::fs::read_dir(&parent).map_err(|_| missing())?;
    let starts = |name: &str| hex && !name.starts_with(folder::GONE) && name.starts_with(word);
    let mut found: Vec<PathBuf> = listing
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(starts))
        .collect();
    match (found.pop(), found.is_empty()) {
        (Some(folder), true) => Ok(folder),
        (Some(_), false) => Err(Error::usage(format!("{word} is the start of several ids")).into()),
        (None, _) => Err(missing().into()),
    }
}
