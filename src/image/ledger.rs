//! What is kept of a tar stream while it is unpacked, besides the tree: of a layer, all that it takes to make the same
//! stream again; of any other stream, nothing.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use anyhow::Result;
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::image::skeleton;
use crate::image::tar::{Journal, Unheard};

/// What becomes of the stream besides the tree, and what its names mean.
pub trait Ledger: Journal {
    /// `.wh.` names are whiteouts, and what stands in the way of an entry gives way, whatever it is.
    const LAYER: bool;

    /// Takes a regular file away that an entry replaces.
    fn replaced(&mut self, from: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<()>;
}

/// A layer's: the skeleton, and the shadow where contents go that it still needs.
#[derive(Debug)]
pub struct Kept {
    pub skeleton: skeleton::Writer,
    pub shadow: PathBuf,
    /// How many contents the shadow has.
    pub replaced: u64,
}

impl Journal for Kept {
    fn literal(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.skeleton.literal(bytes)
    }

    fn content(&mut self, path: &[u8], offset: u64, length: u64) -> io::Result<()> {
        self.skeleton.content(path, offset, length)
    }
}

impl Ledger for Kept {
    const LAYER: bool = true;

    fn replaced(&mut self, from: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<()> {
        if self.replaced == 0 {
            std::fs::create_dir(&self.shadow)?;
        }
        let to = self.shadow.join(self.replaced.to_string());
        nix::fcntl::renameat(from, name, nix::fcntl::AT_FDCWD, &to)?;
        self.skeleton.moved(path, self.replaced)?;
        self.replaced += 1;
        Ok(())
    }
}

impl Ledger for Unheard {
    const LAYER: bool = false;

    fn replaced(&mut self, from: BorrowedFd<'_>, name: &[u8], _: &[u8]) -> Result<()> {
        Ok(unlinkat(from, name, UnlinkatFlags::NoRemoveDir)?)
    }
}
