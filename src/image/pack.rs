//! A folder to a tar stream: ustar, with pax headers where that has no room. The folder may be in use by
//! somebody hostile, so every name is opened below an open folder and no link is followed. Sockets have no place
//! in an archive and are left out, as by `tar(1)`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, major, minor};

use crate::image::tree;

const BLOCK: usize = 512;

/// Writes everything below `folder`, and the folder itself as `./`.
pub fn pack(folder: &Path, out: impl Write) -> Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = nix::fcntl::open(folder, flags, Mode::empty())
        .with_context(|| format!("cannot open {}", folder.display()))?;
    let mut packer = Packer { out, known: HashMap::new() };
    packer.header(b"./", &fstat(&root)?, b'5', b"")?;
    packer.folder(&root, b"./")?;
    packer.out.write_all(&[0; 2 * BLOCK])?;
    Ok(packer.out.flush()?)
}

struct Packer<W> {
    out: W,
    /// Files with several names, by device and inode: the first name is the file, the others link to it.
    known: HashMap<(u64, u64), Vec<u8>>,
}

impl<W: Write> Packer<W> {
    fn folder(&mut self, folder: &OwnedFd, path: &[u8]) -> Result<()> {
        for name in tree::names(folder.as_fd())? {
            let path = [path, &name[..]].concat();
            self.entry(folder.as_fd(), &name, path.clone())
                .with_context(|| format!("cannot pack {:?}", String::from_utf8_lossy(&path)))?;
        }
        Ok(())
    }

    fn entry(&mut self, folder: BorrowedFd<'_>, name: &[u8], path: Vec<u8>) -> Result<()> {
        // It may be removed between the listing and now.
        let Some(found) = tree::stat_in(folder, name)? else { return Ok(()) };
        let kind = tree::kind_of(&found);
        if kind != SFlag::S_IFDIR && found.st_nlink > 1 {
            if let Some(first) = self.known.get(&(found.st_dev, found.st_ino)).cloned() {
                return self.header(&path, &found, b'1', &first);
            }
            self.known.insert((found.st_dev, found.st_ino), path.clone());
        }
        let read = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        match kind {
            SFlag::S_IFDIR => {
                let below = openat(folder, name, read | OFlag::O_DIRECTORY, Mode::empty())?;
                let path = [&path[..], b"/"].concat();
                self.header(&path, &fstat(&below)?, b'5', b"")?;
                self.folder(&below, &path)
            }
            SFlag::S_IFREG => {
                let file = File::from(openat(folder, name, read, Mode::empty())?);
                let found = fstat(&file)?;
                if tree::kind_of(&found) != SFlag::S_IFREG {
                    bail!("it became something else");
                }
                self.header(&path, &found, b'0', b"")?;
                self.content(file, found.st_size.cast_unsigned())
            }
            SFlag::S_IFLNK => {
                let to = readlinkat(folder, name)?;
                self.header(&path, &found, b'2', to.as_encoded_bytes())
            }
            SFlag::S_IFIFO => self.header(&path, &found, b'6', b""),
            SFlag::S_IFCHR => self.header(&path, &found, b'3', b""),
            SFlag::S_IFBLK => self.header(&path, &found, b'4', b""),
            _ => Ok(()),
        }
    }

    /// As many bytes as the header said: a file that grows is cut, one that shrinks is filled up with zeros, as
    /// by `tar(1)`.
    fn content(&mut self, file: File, size: u64) -> Result<()> {
        let copied = std::io::copy(&mut file.take(size), &mut self.out)?;
        let missing = size - copied + size.wrapping_neg() % BLOCK as u64;
        std::io::copy(&mut std::io::repeat(0).take(missing), &mut self.out)?;
        Ok(())
    }

    fn header(&mut self, path: &[u8], found: &FileStat, kind: u8, link: &[u8]) -> Result<()> {
        let size = if kind == b'0' { found.st_size.cast_unsigned() } else { 0 };
        let mut pax = Vec::new();
        let mut large = |key: &str, value: u64, digits: u32| {
            if value < 1 << (3 * digits) {
                return value;
            }
            record(&mut pax, key, value.to_string().as_bytes());
            0
        };
        let uid = large("uid", found.st_uid.into(), 7);
        let gid = large("gid", found.st_gid.into(), 7);
        let length = large("size", size, 11);
        for (key, text) in [("path", path), ("linkpath", link)] {
            if text.len() > 100 {
                record(&mut pax, key, text);
            }
        }
        if found.st_mtime_nsec != 0 && found.st_mtime >= 0 {
            record(&mut pax, "mtime", format!("{}.{:09}", found.st_mtime, found.st_mtime_nsec).as_bytes());
        }
        if !pax.is_empty() {
            let fields =
                Fields { path: b"pax", mode: 0o644, size: pax.len() as u64, kind: b'x', ..Fields::default() };
            self.out.write_all(&fields.block())?;
            let padding = pax.len().wrapping_neg() % BLOCK;
            pax.resize(pax.len() + padding, 0);
            self.out.write_all(&pax)?;
        }
        let device = if matches!(kind, b'3' | b'4') { found.st_rdev } else { 0 };
        let fields = Fields {
            path,
            link,
            mode: u64::from(found.st_mode & 0o7777),
            uid,
            gid,
            size: length,
            mtime: found.st_mtime.max(0).cast_unsigned(),
            kind,
            device: (major(device), minor(device)),
        };
        Ok(self.out.write_all(&fields.block())?)
    }
}

/// One pax record: its own length, a blank, `KEY=VALUE`, a line feed (`pax(1)`).
fn record(pax: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    pax.extend_from_slice(format!("{length} {key}=").as_bytes());
    pax.extend_from_slice(value);
    pax.push(b'\n');
}

#[derive(Default)]
struct Fields<'a> {
    path: &'a [u8],
    link: &'a [u8],
    mode: u64,
    uid: u64,
    gid: u64,
    size: u64,
    mtime: u64,
    kind: u8,
    device: (u64, u64),
}

impl Fields<'_> {
    /// The ustar header; what is too long for it is cut, and stands whole in the pax header before it.
    fn block(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut put = |at: usize, most: usize, text: &[u8]| {
            let length = text.len().min(most);
            block[at..at + length].copy_from_slice(&text[..length]);
        };
        put(0, 100, self.path);
        put(157, 100, self.link);
        let octal = |value: u64, digits: usize| format!("{value:0digits$o}\0").into_bytes();
        put(100, 8, &octal(self.mode, 7));
        put(108, 8, &octal(self.uid, 7));
        put(116, 8, &octal(self.gid, 7));
        put(124, 12, &octal(self.size, 11));
        put(136, 12, &octal(self.mtime, 11));
        put(148, 8, b"        ");
        put(156, 1, &[self.kind]);
        put(257, 8, b"ustar\x0000");
        put(329, 8, &octal(self.device.0, 7));
        put(337, 8, &octal(self.device.1, 7));
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pax_record_counts_its_own_length() {
        for length in [1, 89, 90, 91, 92, 988, 989, 990, 5000] {
            let mut pax = Vec::new();
            record(&mut pax, "path", "a".repeat(length).as_bytes());
            let text = String::from_utf8(pax.clone()).unwrap();
            let said: usize = text.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(said, pax.len(), "{length}");
        }
    }
}
