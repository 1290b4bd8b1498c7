//! Files of a tree as entries of a tar stream: owners, modes, times, attributes, hard links. Each file is
//! reached from the descriptor of its folder and never through a link.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, PROC_SUPER_MAGIC, SYSFS_MAGIC, fstatfs};

use crate::image::changes::{Change, Kind as ChangeKind};
use crate::image::pack::Writer;
use crate::image::tar::{Entry, Kind};
use crate::image::tree::{self, kind_of};
use crate::image::unpack::OVERRIDE;
use crate::sys::xattr;
use crate::userns::maps::Shift;

/// Whose the entries are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// As the files say.
    Kept,
    /// As the files say to a process of another user namespace.
    Shifted(Shift),
    /// All of one owner.
    Given { uid: u32, gid: u32 },
}

/// Writes everything below `folder`, and the folder itself as `./`. The folder may be in use meanwhile.
pub fn pack(folder: &Path, out: impl Write) -> Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = nix::fcntl::open(folder, flags, Mode::empty())
        .with_context(|| format!("cannot open {}", folder.display()))?;
    let mut snapshot = Snapshot::new(out, Ownership::Kept);
    snapshot.tree(root.as_fd(), b".", b".")?;
    snapshot.finish()?;
    Ok(())
}

impl From<Option<Shift>> for Ownership {
    fn from(shift: Option<Shift>) -> Self {
        shift.map_or(Self::Kept, Self::Shifted)
    }
}

/// A tar stream that files are added to.
#[derive(Debug)]
pub struct Snapshot<W> {
    writer: Writer<W>,
    ownership: Ownership,
    /// The name under which a file with several was written first.
    links: HashMap<(u64, u64), Vec<u8>>,
}

impl<W: Write> Snapshot<W> {
    pub fn new(out: W, ownership: Ownership) -> Self {
        Self { writer: Writer::new(out), ownership, links: HashMap::new() }
    }

    pub fn finish(self) -> Result<W> {
        Ok(self.writer.finish()?)
    }

    /// A change as a layer has it: what is deleted is a whiteout.
    pub fn change(&mut self, change: &Change<'_>) -> Result<()> {
        match (change.kind, &change.stat) {
            (ChangeKind::Deleted, _) | (_, None) => {
                let above = &change.path[..change.path.len() - change.name.len()];
                let path = [above, b".wh.", change.name].concat();
                Ok(self.writer.header(&Entry::new(path, Kind::File))?)
            }
            (_, Some(stat)) => self.add(change.folder, change.name, change.path, stat),
        }
    }

    /// `name` of `folder` and all that is in it, as `path`.
    pub fn tree(&mut self, folder: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<()> {
        let Some(stat) = tree::stat_in(folder, name)? else { return Err(Errno::ENOENT.into()) };
        self.add(folder, name, path, &stat)?;
        if kind_of(&stat) == SFlag::S_IFDIR {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let open = openat(folder, name, flags, Mode::empty())?;
            if !is_kernels(open.as_fd())? {
                self.inside(open.as_fd(), path)?;
            }
        }
        Ok(())
    }

    /// What is in the open `folder`, below `path`.
    pub fn inside(&mut self, folder: BorrowedFd<'_>, path: &[u8]) -> Result<()> {
        for name in tree::names(folder)? {
            let path = if path.is_empty() { name.clone() } else { [path, b"/", &name].concat() };
            match self.tree(folder, &name, &path) {
                // Somebody removed it between the listing and now.
                Err(error) if error.downcast_ref::<Errno>() == Some(&Errno::ENOENT) => {}
                other => {
                    other.with_context(|| format!("cannot read {}", String::from_utf8_lossy(&path)))?;
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, folder: BorrowedFd<'_>, name: &[u8], path: &[u8], stat: &FileStat) -> Result<()> {
        let kind = match kind_of(stat) {
            SFlag::S_IFREG => Kind::File,
            SFlag::S_IFDIR => Kind::Directory,
            SFlag::S_IFLNK => Kind::Symlink,
            SFlag::S_IFIFO => Kind::Fifo,
            // No archive has sockets, and no user namespace can make devices.
            _ => return Ok(()),
        };
        let mut entry = Entry::new(path.to_vec(), kind);
        self.describe(&mut entry, stat);
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        match kind {
            Kind::Directory => {
                entry.path.push(b'/');
                let open = openat(folder, name, flags | OFlag::O_DIRECTORY, Mode::empty())?;
                self.attributes(&mut entry, open.as_fd())?;
                Ok(self.writer.header(&entry)?)
            }
            Kind::File => self.file(entry, File::from(openat(folder, name, flags, Mode::empty())?)),
            _ => {
                if kind == Kind::Symlink {
                    entry.link = readlinkat(folder, name)?.into_encoded_bytes();
                }
                Ok(self.writer.header(&entry)?)
            }
        }
    }

    fn file(&mut self, mut entry: Entry, file: File) -> Result<()> {
        let stat = fstat(&file)?;
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                (entry.kind, entry.link) = (Kind::HardLink, first.clone());
                return Ok(self.writer.header(&entry)?);
            }
            self.links.insert((stat.st_dev, stat.st_ino), entry.path.clone());
        }
        self.attributes(&mut entry, file.as_fd())?;
        entry.size = u64::try_from(stat.st_size).unwrap_or(0);
        self.writer.header(&entry)?;
        // A file that is cut while it is read leaves the rest empty; one that grows keeps its end to itself.
        let mut content = (&file).take(entry.size).chain(io::repeat(0)).take(entry.size);
        self.writer.content(entry.size, &mut content)
    }

    fn describe(&self, entry: &mut Entry, stat: &FileStat) {
        entry.mode = stat.st_mode & 0o7777;
        entry.mtime = (stat.st_mtime, stat.st_mtime_nsec);
        let (uid, gid) = match &self.ownership {
            Ownership::Kept => (stat.st_uid, stat.st_gid),
            Ownership::Shifted(shift) => (shift.uid(stat.st_uid), shift.gid(stat.st_gid)),
            Ownership::Given { uid, gid } => (*uid, *gid),
        };
        (entry.uid, entry.gid) = (u64::from(uid), u64::from(gid));
    }

    fn attributes(&self, entry: &mut Entry, file: BorrowedFd<'_>) -> Result<()> {
        for name in xattr::flistxattr(file)? {
            let bytes = name.as_bytes();
            let taken = bytes == b"security.capability"
                || bytes.starts_with(b"system.posix_acl_")
                || bytes.starts_with(b"user.")
                    && !bytes.starts_with(b"user.overlay.")
                    && !bytes.starts_with(b"user.fuseoverlayfs.")
                    && !bytes.starts_with(b"user.containers.");
            if let (true, Some(value)) = (taken, xattr::fgetxattr(file, &name)?) {
                entry.xattrs.push((bytes.to_vec(), value));
            }
        }
        entry.xattrs.sort();
        if !matches!(self.ownership, Ownership::Given { .. })
            && let Some(text) = xattr::fgetxattr(file, OVERRIDE)?
        {
            apply_recorded(entry, &text);
        }
        Ok(())
    }
}

/// Whether a folder shows the kernel's state and no files, as /proc of a running container does.
fn is_kernels(folder: BorrowedFd<'_>) -> Result<bool> {
    let kind = fstatfs(folder)?.filesystem_type();
    Ok([PROC_SUPER_MAGIC, SYSFS_MAGIC, CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC].contains(&kind))
}

/// `UID:GID:MODE[:TYPE]` of a file that can't have its owner. Its mode counts as long as nobody has changed the
/// file's, which has besides it only what the owner needs.
fn apply_recorded(entry: &mut Entry, text: &[u8]) {
    let mut parts = std::str::from_utf8(text).unwrap_or_default().split(':');
    let (uid, gid) =
        (parts.next().and_then(|uid| uid.parse().ok()), parts.next().and_then(|gid| gid.parse().ok()));
    let mode = parts.next().and_then(|mode| u32::from_str_radix(mode, 8).ok()).map(|mode| mode & 0o7777);
    if let (Some(uid), Some(gid)) = (uid, gid) {
        (entry.uid, entry.gid) = (uid, gid);
    }
    if let Some(mode) = mode.filter(|mode| mode | entry.mode & 0o700 == entry.mode) {
        entry.mode = mode;
    }
}
