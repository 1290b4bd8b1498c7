//! What a container's files consist of: the layers that it runs on and the directory that holds its changes.
//! For the verbs that look at them beside the container: diff, commit, export, cp.

use std::path::PathBuf;

use anyhow::Result;

use crate::container::folder::{Known, Process};
use crate::container::list;
use crate::error::Error;
use crate::image::store::{Image, Store};
use crate::paths::Paths;

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
        let Known { folder, made, status } = list::find(paths, word)?;
        let id = made.request.image.id;
        if id.is_empty() {
            let sentence = format!("container {word} runs on no image, so what it changed is not known");
            return Err(Error::usage(sentence).into());
        }
        let image = store.expect(&id)?;
        let lowers = image.layers.clone();
        let process = status.process.filter(Process::lives);
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
