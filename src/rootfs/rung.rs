//! The ladder of root file systems: which rungs a root can take, best first, and the note of what a rung said
//! when it was refused on this boot. The launch tries them for real; `doctor` prints the notes.

use std::fmt;
use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::paths::{self, Paths};
use crate::record::{self, Durability};
use crate::spec::{Root, Writes};

/// One way to make a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rung {
    /// The directory itself: nothing is layered.
    Through,
    /// T0.
    KernelOverlay,
    /// T2.
    FuseOverlay,
    /// T3: a copy, with reflinks where the file system has them.
    Copy,
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Through => "the directory itself",
            Self::KernelOverlay => "T0 kernel overlay",
            Self::FuseOverlay => "T2 FUSE overlay",
            Self::Copy => "T3 copy",
        })
    }
}

/// The rungs for `root`, best first; with `only`, that one. The machine's own files belong to ids that the
/// container has not, so kernel overlay lets nobody change them: the user-space overlay comes first there.
pub fn ladder(root: &Root, only: Option<Rung>) -> Vec<Rung> {
    let all = match root {
        Root::Directory { writes: Writes::Through, .. } => vec![Rung::Through],
        Root::Directory { .. } => vec![Rung::KernelOverlay, Rung::FuseOverlay, Rung::Copy],
        Root::Layers(_) => vec![Rung::KernelOverlay, Rung::FuseOverlay],
        Root::Host => vec![Rung::FuseOverlay, Rung::KernelOverlay],
    };
    match only {
        Some(only) => all.into_iter().filter(|rung| *rung == only).collect(),
        None => all,
    }
}

/// A refusal, kept until the next boot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Refusal {
    pub rung: Rung,
    /// What lies below: another root may well be layered on the same rung.
    pub root: Root,
    pub reason: String,
    pub boot: String,
}

fn note(paths: &Paths) -> PathBuf {
    paths.runtime.join("rootfs-refusal.json")
}

/// Keeps why `rung` was refused.
pub fn refuse(paths: &Paths, rung: Rung, root: &Root, reason: &str) -> Result<()> {
    let root = root.clone();
    let refusal = Refusal { rung, root, reason: reason.to_owned(), boot: paths::boot_id() };
    record::write(&note(paths), &refusal, Durability::Boot)
}

/// What was refused for `root` on this boot.
pub fn refused(paths: &Paths, root: &Root) -> Option<Refusal> {
    let refusal: Option<Refusal> = record::read(&note(paths)).ok().flatten();
    refusal.filter(|refusal| refusal.root == *root && refusal.boot == paths::boot_id())
}

/// Forgets the refusal, when the rung works again.
pub fn allow(paths: &Paths) {
    let _ = std::fs::remove_file(note(paths));
}
