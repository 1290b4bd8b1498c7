//! The spare folder: what a container that has ended leaves for the next one. Making and removing the inodes of a
//! folder, its layer and kernel overlay's work folders is a sixth of the time of `kelp run --rm true`, so one
//! folder of each store is kept, and is cleaned for its next owner while the id maps are written, when the
//! monitor has nothing else to do (docs/decisions/0005). Whoever holds the lock inside may touch it, wherever it
//! lies: as containers/ID, as .gone-ID, as spare, as containers/NEXT. Nothing of a program's work waits there: a
//! folder whose layer holds more than a few empty files is removed.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::paths::Paths;
use crate::record::Lock;
use crate::rootfs::tree;
use crate::sys::xattr;

/// More than the mount targets that kelp makes in a layer.
const MOST_ENTRIES: usize = 16;

/// What kernel overlay notes on the root of its upper layer, whatever the program does.
const NOTED: [&CStr; 3] = [c"user.overlay.impure", c"user.overlay.uuid", c"user.overlay.origin"];

fn place(paths: &Paths) -> PathBuf {
    paths.store.join("spare")
}

/// Moves the spare folder to `folder`, if there is one that nobody else takes; gives its lock, which says
/// nothing any more.
pub fn take(paths: &Paths, folder: &Path) -> Option<Lock> {
    let spare = place(paths);
    let lock = Lock::now(&spare.join("lock")).ok()??;
    lock.void().ok()?;
    fs::rename(spare, folder).ok()?;
    Some(lock)
}

/// Keeps `gone` as the spare folder, if there is none and its layer is as good as empty; else it is left.
pub fn give(paths: &Paths, gone: &Path) -> bool {
    let upper = gone.join("upper");
    holds_only(gone, &["lock", "upper", "work"])
        && is_unmarked(&upper)
        && hollow(&upper, &mut MOST_ENTRIES.clone()).unwrap_or(false)
        && fs::rename(gone, place(paths)).is_ok()
}

/// Empties the layer and the work folder that a spare folder brought along.
pub fn clean(folder: &Path) -> io::Result<()> {
    for name in ["upper", "work"] {
        for entry in fs::read_dir(folder.join(name))? {
            tree::remove(&entry?.path())?;
        }
    }
    Ok(())
}

fn holds_only(folder: &Path, names: &[&str]) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return false };
    let mut found = 0;
    for entry in entries {
        match entry {
            Ok(entry) if names.iter().any(|name| entry.file_name() == *name) => found += 1,
            _ => return false,
        }
    }
    found == names.len()
}

fn is_unmarked(upper: &Path) -> bool {
    let names = fs::File::open(upper).and_then(|upper| xattr::flistxattr(upper.as_fd()));
    names.is_ok_and(|names| names.iter().all(|name| NOTED.contains(&name.as_c_str())))
}

/// Whether there is nothing below but folders and empty files of the user's own, `left` of them at the most.
fn hollow(folder: &Path, left: &mut usize) -> io::Result<bool> {
    let own = nix::unistd::geteuid().as_raw();
    if folder.symlink_metadata()?.uid() != own {
        return Ok(false);
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let found = entry.metadata()?;
        let is_empty_file = found.is_file() && found.len() == 0 && found.uid() == own;
        if *left == 0 || !(is_empty_file || found.is_dir() && hollow(&entry.path(), left)?) {
            return Ok(false);
        }
        *left -= 1;
    }
    Ok(true)
}
