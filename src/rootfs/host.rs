//! `@host`: the machine's own userland as the container's lower layers. Kernel overlay refuses a lower with
//! locked mounts below it ("failed to clone lowerpath"), which `/` always has in a user namespace, so the
//! root is a fresh directory and each top-level folder is covered by an overlay of its own; a folder with
//! mounts below is taken apart the same way. Pure once the facts are read.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::unistd::AccessFlags;
use serde::{Deserialize, Serialize};

/// One thing to make in the fresh root, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Piece {
    /// An empty directory.
    Directory {
        #[serde(with = "crate::raw::path")]
        path: PathBuf,
        mode: u32,
    },
    /// A directory with an overlay of the host's on it.
    Overlay(#[serde(with = "crate::raw::path")] PathBuf),
    Link {
        #[serde(with = "crate::raw::path")]
        path: PathBuf,
        #[serde(with = "crate::raw::path")]
        to: PathBuf,
    },
}

impl Piece {
    /// Where it belongs, as the container sees it.
    pub fn path(&self) -> &Path {
        match self {
            Self::Directory { path, .. } | Self::Overlay(path) | Self::Link { path, .. } => path,
        }
    }
}

/// Replaced by the container's own, with their modes.
const OWN: [(&str, u32); 5] =
    [("proc", 0o555), ("sys", 0o555), ("dev", 0o755), ("run", 0o755), ("tmp", 0o1777)];

fn own() -> Vec<Piece> {
    OWN.iter().map(|(name, mode)| Piece::Directory { path: Path::new("/").join(name), mode: *mode }).collect()
}

/// What the user-space overlay replaces: the same, and top-level folders that the caller can't enter.
pub fn replaced() -> Result<Vec<Piece>> {
    let mut pieces = own();
    for entry in fs::read_dir("/").context("cannot list /")?.filter_map(Result::ok) {
        let closed = nix::unistd::access(&entry.path(), AccessFlags::R_OK | AccessFlags::X_OK).is_err();
        if closed && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            pieces.push(Piece::Directory { path: entry.path(), mode: 0o700 });
        }
    }
    Ok(pieces)
}

/// Files that only the machine's root may read and that programs which add users need: made anew, with every
/// password locked, from the files beside them (`shadow(5)`, `gshadow(5)`).
pub fn locked_passwords() -> Vec<(&'static str, String)> {
    let made = |from: &str, rest: &str| -> String {
        let text = fs::read_to_string(from).unwrap_or_default();
        let names = text.lines().filter_map(|line| line.split(':').next()).filter(|name| !name.is_empty());
        names.map(|name| format!("{name}:*{rest}\n")).collect()
    };
    [("etc/shadow", "/etc/passwd", ":::::::"), ("etc/gshadow", "/etc/group", "::")]
        .into_iter()
        .filter(|(secret, ..)| nix::unistd::access(&Path::new("/").join(secret), AccessFlags::R_OK).is_err())
        .map(|(secret, from, rest)| (secret, made(from, rest)))
        .collect()
}

/// What the fresh root is made of on this machine.
pub fn pieces() -> Result<Vec<Piece>> {
    let mounts = mount_points()?;
    let mut pieces = own();
    cover_children(Path::new("/"), &mounts, &mut pieces)?;
    Ok(pieces)
}

fn cover_children(folder: &Path, mounts: &[PathBuf], pieces: &mut Vec<Piece>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut entries: Vec<_> = entries.filter_map(Result::ok).collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let own = folder == Path::new("/") && OWN.iter().any(|(name, _)| entry.file_name() == *name);
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && !own {
            cover(&entry.path(), mounts, pieces)?;
        } else if kind.is_symlink() && !own {
            let to = fs::read_link(entry.path()).unwrap_or_default();
            pieces.push(Piece::Link { path: entry.path(), to });
        }
    }
    Ok(())
}

/// A folder that the caller can't enter, or that is empty, becomes an empty one of the container's own.
fn cover(folder: &Path, mounts: &[PathBuf], pieces: &mut Vec<Piece>) -> Result<()> {
    let usable = nix::unistd::access(folder, AccessFlags::R_OK | AccessFlags::X_OK).is_ok();
    let empty = usable && fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
    if !usable || empty {
        pieces.push(Piece::Directory { path: folder.to_owned(), mode: 0o755 });
        return Ok(());
    }
    let mounted_below = mounts.iter().any(|point| point != folder && point.starts_with(folder));
    if !mounted_below {
        pieces.push(Piece::Overlay(folder.to_owned()));
        return Ok(());
    }
    pieces.push(Piece::Directory { path: folder.to_owned(), mode: 0o755 });
    cover_children(folder, mounts, pieces)
}

/// File systems that hold no files of anybody's, or that mount others when they are looked at.
const OF_THE_KERNEL: [&str; 17] = [
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "securityfs",
    "sysfs",
    "tracefs",
];

/// Where such file systems are mounted outside the folders that are replaced, as in the root of a chroot.
pub fn kernel_mounts() -> Vec<PathBuf> {
    let Ok(mounts) = mounts() else { return Vec::new() };
    let own = |point: &Path| OWN.iter().any(|(name, _)| point.starts_with(Path::new("/").join(name)));
    let foreign =
        mounts.into_iter().filter(|(_, kind)| OF_THE_KERNEL.iter().any(|known| known.as_bytes() == kind));
    foreign.map(|(point, _)| point).filter(|point| !own(point)).collect()
}

fn mount_points() -> Result<Vec<PathBuf>> {
    Ok(mounts()?.into_iter().map(|(point, _)| point).collect())
}

/// Mount points and their kinds of /proc/self/mountinfo (`proc_pid_mountinfo(5)`), with its octal escapes undone.
fn mounts() -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let text = fs::read("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    let mount = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ');
        let point = fields.nth(4)?;
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        Some((unescape(point), kind.to_vec()))
    };
    Ok(text.split(|byte| *byte == b'\n').filter_map(mount).collect())
}

fn unescape(field: &[u8]) -> PathBuf {
    let (mut out, mut at) = (Vec::with_capacity(field.len()), 0);
    while let Some(byte) = field.get(at) {
        let octal = field.get(at + 1..at + 4).and_then(|digits| std::str::from_utf8(digits).ok());
        match (byte, octal.and_then(|digits| u8::from_str_radix(digits, 8).ok())) {
            (b'\\', Some(decoded)) => {
                out.push(decoded);
                at += 4;
            }
            _ => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_lose_their_escapes() {
        assert_eq!(unescape(br"/a\040b\134c"), Path::new(r"/a b\c"));
        assert_eq!(unescape(br"/a\04"), Path::new(r"/a\04"));
    }
}
