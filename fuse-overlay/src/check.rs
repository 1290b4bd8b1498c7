//! Is an upper layer whole, and can the kernel mount it? Reads only. Each finding is a sentence.

use crate::attr::{WANTED, is_whiteout, kind_of};
use crate::config::Directory;
use crate::sweep::{each, open_dir};
use anyhow::{Context, Result};
use rustix::fs::{AtFlags, FileType, statx};
use std::os::fd::OwnedFd;
use std::path::Path;

/// Walks the upper layer and returns what is wrong with it.
pub fn upper(path: &Path) -> Result<Vec<String>> {
    let fd = crate::place::open_given(Directory::Path(path.into()))
        .and_then(|fd| open_dir(&fd, b"."))
        .with_context(|| format!("cannot open {}", path.display()))?;
    let mut findings = Vec::new();
    walk(&fd, &mut path.as_os_str().as_encoded_bytes().to_vec(), false, &mut findings)
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(findings)
}

fn walk(
    fd: &OwnedFd,
    path: &mut Vec<u8>,
    opaque: bool,
    findings: &mut Vec<String>,
) -> rustix::io::Result<()> {
    let mut directories = Vec::new();
    each(fd, |name, _, _| {
        let stat = statx(fd, name, AtFlags::SYMLINK_NOFOLLOW, WANTED)?;
        let shown = String::from_utf8_lossy(&[path.as_slice(), name].join(&b'/')).into_owned();
        if is_whiteout(&stat) && opaque {
            findings.push(format!("{shown} is a whiteout in an opaque directory: it hides nothing"));
        }
        if kind_of(&stat) == FileType::Directory {
            directories.push(name.to_vec());
            if crate::xattr::has(fd, name, "user.overlay.redirect") {
                findings.push(format!(
                    "{shown} was renamed by a redirect: the kernel cannot mount it without root"
                ));
            }
        }
        if crate::xattr::has(fd, name, "user.overlay.metacopy") {
            findings.push(format!("{shown} has no data of its own: the kernel cannot read it without root"));
        }
        Ok(())
    })?;
    for name in directories {
        let length = path.len();
        path.push(b'/');
        path.extend_from_slice(&name);
        let opaque = crate::xattr::opaque_mark(fd, &name) == Some(b'y');
        walk(&open_dir(fd, &name)?, path, opaque, findings)?;
        path.truncate(length);
    }
    Ok(())
}
