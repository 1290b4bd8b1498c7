//! What a container's files consist of: the layers that it runs on and the directory that holds its changes.
//! For the verbs that look at them beside the container: diff, commit, export, cp.

use std::path::PathBuf;

use anyhow::Result;
use nix::sys::statfs::{FUSE_SUPER_MAGIC, fstatfs};

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
        if let Some(process) = &process {
            write_back(process);
        }
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

/// What programs wrote to a user-space overlay may still be in the kernel's memory, which the upper directory does not
/// show. Kernel overlay writes through the same memory.
fn write_back(process: &Process) {
    let root = std::fs::File::open(format!("/proc/{}/root", process.pid));
    let served =
        |root: &std::fs::File| fstatfs(root).is_ok_and(|found| found.filesystem_type() == FUSE_SUPER_MAGIC);
    if let Some(root) = root.ok().filter(served) {
        let _ = nix::unistd::syncfs(&root);
    }
}
