//! The ladder of root file systems: which rungs a root can take, best first, and the note of what a rung said
//! when it was refused on this boot. The launch tries them for real; `doctor` prints the notes.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::paths::{self, Paths};
use crate::record::{self, Durability};
use crate::spec::request::Driver;
use crate::spec::{Root, Writes};

/// One way to make a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rung {
    /// The directory itself: nothing is layered.
    Through,
    /// T0.
    KernelOverlay,
    /// T1: kernel overlay, whose one layer below is a mount of ours.
    OverlayOnFuse,
    /// T2.
    FuseOverlay,
    /// T3: a copy, with reflinks where the file system has them.
    Copy,
}

impl Rung {
    /// Whether a server of ours shows the layers.
    pub fn is_served(self) -> bool {
        matches!(self, Self::OverlayOnFuse | Self::FuseOverlay)
    }

    /// Whether the kernel's overlay writes what the container changes.
    pub fn is_kernels(self) -> bool {
        matches!(self, Self::KernelOverlay | Self::OverlayOnFuse)
    }
}

impl From<Driver> for Rung {
    fn from(driver: Driver) -> Self {
        match driver {
            Driver::Overlay => Self::KernelOverlay,
            Driver::OverlayOnFuse => Self::OverlayOnFuse,
            Driver::Fuse => Self::FuseOverlay,
            Driver::Copy => Self::Copy,
        }
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Through => "the directory itself",
            Self::KernelOverlay => "T0 kernel overlay",
            Self::OverlayOnFuse => "T1 kernel overlay on FUSE",
            Self::FuseOverlay => "T2 FUSE overlay",
            Self::Copy => "T3 copy",
        })
    }
}

/// As whose the container sees the files of its layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// As they carry them.
    Theirs,
    /// As an image's are under other id maps, which only a server of ours can show.
    Others,
}

/// The rungs for `root`, best first; with `only`, that one. The machine's own files belong to ids that the
/// container has not, so kernel overlay lets nobody change them: the user-space overlay comes first there.
pub fn ladder(root: &Root, owners: Owners, only: Option<Rung>) -> Vec<Rung> {
    let all = match root {
        Root::Directory { writes: Writes::Through, .. } => vec![Rung::Through],
        Root::Directory { .. } => vec![Rung::KernelOverlay, Rung::FuseOverlay, Rung::Copy],
        Root::Layers(_) if owners == Owners::Others => {
            vec![Rung::OverlayOnFuse, Rung::FuseOverlay, Rung::KernelOverlay]
        }
        Root::Layers(_) => vec![Rung::KernelOverlay, Rung::FuseOverlay],
        Root::Host => vec![Rung::FuseOverlay, Rung::KernelOverlay],
    };
    match only {
        // It is right everywhere, and best where it has to show other owners (docs/decisions/0108).
        Some(Rung::OverlayOnFuse) if all[0] != Rung::Through => vec![Rung::OverlayOnFuse],
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

impl Refusal {
    /// Whether what was refused for one root is refused for another: the layers of a store lie on one file system,
    /// and where some are too many for the kernel, more are as well.
    fn holds_for(&self, root: &Root) -> bool {
        match (&self.root, root) {
            (Root::Layers(here), Root::Layers(there)) => {
                store_of(here) == store_of(there) && here.len() <= there.len()
            }
            (here, there) => here == there,
        }
    }
}

/// `layers/` of `layers/DIFFID/tree`.
fn store_of(layers: &[PathBuf]) -> Option<&Path> {
    layers.first()?.parent()?.parent()
}

/// How many are kept.
const MOST: usize = 16;

fn note(paths: &Paths) -> PathBuf {
    paths.runtime.join("rootfs-refusals.json")
}

fn refusals(paths: &Paths) -> Vec<Refusal> {
    let mut all: Vec<Refusal> = record::read(&note(paths)).ok().flatten().unwrap_or_default();
    let boot = paths::boot_id();
    all.retain(|refusal| refusal.boot == boot);
    all
}

/// Keeps why `rung` was refused.
pub fn refuse(paths: &Paths, rung: Rung, root: &Root, reason: &str) -> Result<()> {
    let new = Refusal { rung, root: root.clone(), reason: reason.to_owned(), boot: paths::boot_id() };
    let mut all = refusals(paths);
    all.retain(|known| !new.holds_for(&known.root));
    all.insert(0, new);
    all.truncate(MOST);
    record::write(&note(paths), &all, Durability::Boot)
}

/// What was refused for `root` on this boot.
pub fn refused(paths: &Paths, root: &Root) -> Option<Refusal> {
    refusals(paths).into_iter().find(|refusal| refusal.holds_for(root))
}

/// Forgets the refusals, when the rung works again.
pub fn allow(paths: &Paths) {
    let _ = std::fs::remove_file(note(paths));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_holds_for_as_many_layers_of_the_same_store() {
        let layers = |store: &str, count: usize| {
            Root::Layers((0..count).map(|at| format!("/{store}/layers/{at}/tree").into()).collect())
        };
        let refused =
            |root| Refusal { rung: Rung::KernelOverlay, root, reason: String::new(), boot: String::new() };
        assert!(refused(layers("a", 2)).holds_for(&layers("a", 2)));
        assert!(refused(layers("a", 1)).holds_for(&layers("a", 3)));
        assert!(!refused(layers("a", 300)).holds_for(&layers("a", 2)));
        assert!(!refused(layers("a", 1)).holds_for(&layers("b", 1)));
        assert!(!refused(layers("a", 1)).holds_for(&Root::Host));
        assert!(refused(Root::Host).holds_for(&Root::Host));
    }
}
