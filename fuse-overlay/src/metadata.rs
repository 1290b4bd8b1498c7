//! Attributes: reading them, changing them, and the questions about the whole mount.

use crate::attr::{Attr, Changes, Stamp, Time};
use crate::config::{Limits, Owner, Owners};
use crate::limits::Usage;
use crate::node::Node;
use crate::overlay::{At, Overlay};
use crate::records::{Key, Kind};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, StatVfs, Statx, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid,
    chmodat, chownat, readlinkat, utimensat,
};
use rustix::io::{Errno, Result};
use std::os::fd::OwnedFd;
use std::sync::Arc;

const SET_UID: u32 = 0o4000;
const SET_GID: u32 = 0o2000;
const GROUP_EXECUTES: u32 = 0o0010;

impl Overlay {
    pub fn get_attr(&self, ino: u64) -> Result<Attr> {
        self.attr(&self.node(ino)?)
    }

    /// Applies `changes` and returns what the file looks like then.
    pub fn set_attr(&self, ino: u64, changes: &Changes) -> Result<Attr> {
        let node = self.node(ino)?;
        if *changes == Changes::default() {
            return self.attr(&node);
        }
        self.copy_up_until(&node, changes.size.unwrap_or(crate::copyup::ALL))?;
        if let Some(size) = changes.size {
            self.truncate(&node, size)?;
        }
        let plain_file = node.kind == FileType::RegularFile;
        let privileged =
            plain_file && (changes.size.is_some() || changes.uid.is_some() || changes.gid.is_some());
        self.on_upper(&node, |at| self.change(&node, at, changes))?;
        let attr = self.attr(&node)?;
        if privileged && changes.mode.is_none() && drops_privilege(attr.mode) {
            return self
                .set_attr(ino, &Changes { mode: Some(without_privilege(attr.mode)), ..Changes::default() });
        }
        Ok(attr)
    }

    fn change(&self, node: &Arc<Node>, at: &At, changes: &Changes) -> Result<()> {
        if changes.uid.is_some() || changes.gid.is_some() || changes.mode.is_some() {
            self.own(node, at, changes)?;
        }
        if changes.atime.is_none() && changes.mtime.is_none() {
            return Ok(());
        }
        let times = Timestamps { last_access: stamp(changes.atime), last_modification: stamp(changes.mtime) };
        at.utimes(&times)
    }

    fn own(&self, node: &Arc<Node>, at: &At, changes: &Changes) -> Result<()> {
        if self.options.owners == Owners::Recorded {
            return self.record_owner(node, at, changes);
        }
        let uid = changes.uid.map(|uid| self.ids.stored_uid(uid)).transpose()?.flatten();
        let gid = changes.gid.map(|gid| self.ids.stored_gid(gid)).transpose()?.flatten();
        if uid.is_some() || gid.is_some() {
            at.chown(uid, gid)?;
        }
        match changes.mode {
            Some(_) if node.kind == FileType::Symlink => Err(Errno::OPNOTSUPP),
            Some(mode) => at.set_mode(mode),
            None => Ok(()),
        }
    }

    /// Runs `act` on the upper's file or directory, which must be there.
    pub(crate) fn on_upper<T>(&self, node: &Arc<Node>, act: impl Fn(&At) -> Result<T>) -> Result<T> {
        if node.is_dir() {
            let fd = self.upper_dir(node)?.ok_or(Errno::STALE)?;
            return act(&At::Held(fd));
        }
        self.at_upper(node, |at, _| act(at))?.ok_or(Errno::STALE)
    }

    /// Gives a new file of ours the owner that `attr` shows. `inherited` says that the directory gave it its group.
    pub(crate) fn give_owner(&self, at: &At, attr: &Attr, inherited: Option<u32>) -> Result<()> {
        if self.options.owners == Owners::Recorded {
            return self.record_new(at, attr);
        }
        let uid = self.ids.stored_uid(attr.uid)?.filter(|uid| *uid != self.own.0);
        let gid = self.ids.stored_gid(attr.gid)?.filter(|gid| *gid != inherited.unwrap_or(self.own.1));
        if uid.is_none() && gid.is_none() {
            return Ok(());
        }
        // An id that our user namespace cannot name: the kernel's overlay says the same.
        at.chown(uid, gid).map_err(|error| if error == Errno::INVAL { Errno::OVERFLOW } else { error })
    }

    fn record_new(&self, at: &At, attr: &Attr) -> Result<()> {
        let key = Key::of(&at.stat()?);
        self.records.write(Kind::Owner, key, join(Owner { uid: attr.uid, gid: attr.gid }));
        self.write_override(at, attr)
    }

    /// Mode B: owner and mode are written down; the file stays ours and readable to us.
    fn record_owner(&self, node: &Arc<Node>, at: &At, changes: &Changes) -> Result<()> {
        let stat = at.stat()?;
        let mut attr = Attr::new(node.ino, &stat);
        let mut owner = Owner { uid: attr.uid, gid: attr.gid };
        self.recorded_at(at, &stat, &mut attr, &mut owner);
        attr.uid = changes.uid.unwrap_or(owner.uid);
        attr.gid = changes.gid.unwrap_or(owner.gid);
        if let Some(mode) = changes.mode {
            attr.mode = (attr.mode & !0o7777) | (mode & 0o7777);
        } else if node.kind == FileType::RegularFile && drops_privilege(attr.mode) {
            attr.mode = without_privilege(attr.mode);
        }
        let key = Key::of(&stat);
        self.records.write(Kind::Owner, key, join(Owner { uid: attr.uid, gid: attr.gid }));
        self.records.write(Kind::Mode, key, u64::from(attr.mode & 0o7777) | 1 << 32);
        if node.kind != FileType::Symlink {
            let readable = if node.is_dir() { 0o700 } else { 0o600 };
            at.set_mode(attr.mode | readable)?;
        }
        self.write_override(at, &attr)
    }

    /// The format of container-libs: `uid:gid:mode:type`. Files that cannot carry it have their row in the records.
    fn write_override(&self, at: &At, attr: &Attr) -> Result<()> {
        let value = crate::stored_owner::format(attr);
        let (path, follow) = at.path();
        let flags = rustix::fs::XattrFlags::empty();
        let name = crate::xattr::OVERRIDE;
        let written = if follow {
            rustix::fs::setxattr(&path, name, value.as_bytes(), flags)
        } else {
            rustix::fs::lsetxattr(&path, name, value.as_bytes(), flags)
        };
        match written {
            Err(Errno::PERM | Errno::OPNOTSUPP) => Ok(()),
            other => other,
        }
    }

    fn recorded_at(&self, at: &At, stat: &Statx, attr: &mut Attr, owner: &mut Owner) {
        let (path, follow) = at.path();
        let mut value = [0; 128];
        let name = crate::xattr::OVERRIDE;
        let read = if follow {
            rustix::fs::getxattr(&path, name, &mut value)
        } else {
            rustix::fs::lgetxattr(&path, name, &mut value)
        };
        if let Ok(length) = read {
            crate::stored_owner::apply(value.get(..length).unwrap_or_default(), attr, owner);
        } else {
            self.from_records(stat, attr, owner);
        }
    }

    fn from_records(&self, stat: &Statx, attr: &mut Attr, owner: &mut Owner) {
        let key = Key::of(stat);
        if let Some(value) = self.records.find(Kind::Owner, key) {
            *owner = Owner { uid: (value >> 32) as u32, gid: value as u32 };
        }
        if let Some(mode) = self.records.find(Kind::Mode, key) {
            attr.mode = (attr.mode & !0o7777) | (mode as u32 & 0o7777);
        }
    }

    /// What is recorded of a file, on top of what the file itself says.
    pub(crate) fn recorded(
        &self,
        node: &Arc<Node>,
        stat: &Statx,
        up: bool,
        attr: &mut Attr,
        owner: &mut Owner,
    ) {
        match self.own_xattr(node, crate::xattr::OVERRIDE) {
            Some(value) => crate::stored_owner::apply(&value, attr, owner),
            None if up => self.from_records(stat, attr, owner),
            None => {}
        }
    }

    /// Mode C: a supervisor that caught a `chown` which the kernel would refuse records it here. The mount shows it
    /// only where owners are recorded.
    pub fn record(&self, ino: u64, owner: Owner) -> Result<()> {
        let node = self.node(ino)?;
        self.copy_up(&node)?;
        self.on_upper(&node, |at| {
            self.records.write(Kind::Owner, Key::of(&at.stat()?), join(owner));
            Ok(())
        })
    }

    pub fn read_link(&self, ino: u64) -> Result<Vec<u8>> {
        let node = self.node(ino)?;
        let target = |fd: &OwnedFd, name: &[u8]| readlinkat(fd, name, Vec::with_capacity(256));
        let upper = self.at_upper(&node, |at, _| match at {
            At::Name(fd, name) => target(fd, name),
            At::Held(fd) => target(fd, b""),
        })?;
        if let Some(text) = upper {
            return Ok(text.into_bytes());
        }
        let (place, name) = node.state.lock().lower.clone().ok_or(Errno::INVAL)?;
        Ok(target(&*place.fd(&self.descriptors)?, &name)?.into_bytes())
    }

    /// The file system behind the upper, within the quota.
    pub fn stat_fs(&self) -> Result<StatVfs> {
        let mut stat = match &self.upper {
            Some(upper) => rustix::fs::fstatvfs(&upper.root)?,
            None => {
                let place = self.node(crate::number::ROOT)?.places().first().cloned().ok_or(Errno::STALE)?;
                rustix::fs::fstatvfs(&place.layer.root)?
            }
        };
        let (limits, usage) = (self.quota.limits(), self.quota.usage());
        let block = stat.f_frsize.max(1);
        if limits.bytes > 0 {
            stat.f_blocks = limits.bytes / block;
            let free = limits.bytes.saturating_sub(usage.bytes) / block;
            stat.f_bfree = stat.f_bfree.min(free);
            stat.f_bavail = stat.f_bavail.min(free);
        }
        if limits.inodes > 0 {
            stat.f_files = limits.inodes;
            stat.f_ffree = stat.f_ffree.min(limits.inodes.saturating_sub(usage.inodes));
            stat.f_favail = stat.f_ffree;
        }
        Ok(stat)
    }

    /// New limits for a mount that is in use.
    pub fn set_limits(&self, limits: Limits) {
        self.quota.change(limits);
    }

    pub fn limits(&self) -> Limits {
        self.quota.limits()
    }

    /// What the upper holds; counted only while there is a quota.
    pub fn usage(&self) -> Usage {
        self.quota.usage()
    }
}

fn join(owner: Owner) -> u64 {
    u64::from(owner.uid) << 32 | u64::from(owner.gid)
}

/// The bits that a write by somebody else, a truncation and a change of owner take away (`inode_owner_or_capable`,
/// `setattr_should_drop_suidgid`).
pub(crate) fn drops_privilege(mode: u32) -> bool {
    mode & SET_UID != 0 || mode & (SET_GID | GROUP_EXECUTES) == SET_GID | GROUP_EXECUTES
}

pub(crate) fn without_privilege(mode: u32) -> u32 {
    let kept = if mode & GROUP_EXECUTES != 0 { mode & !SET_GID } else { mode };
    kept & !SET_UID
}

fn stamp(stamp: Option<Stamp>) -> Timespec {
    match stamp {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(Stamp::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(Stamp::At(time)) => crate::copyup::timespec(time),
    }
}

impl At {
    pub(crate) fn set_mode(&self, mode: u32) -> Result<()> {
        let mode = Mode::from_raw_mode(mode & 0o7777);
        match self {
            Self::Name(fd, name) => chmodat(fd, &**name, mode, AtFlags::empty()),
            Self::Held(fd) => chmodat(CWD, crate::sys::proc_path(fd, b""), mode, AtFlags::empty()),
        }
    }

    pub(crate) fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        match self {
            Self::Name(fd, name) => chownat(fd, &**name, uid, gid, AtFlags::SYMLINK_NOFOLLOW),
            Self::Held(fd) => chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH),
        }
    }

    fn utimes(&self, times: &Timestamps) -> Result<()> {
        match self {
            Self::Name(fd, name) => utimensat(fd, &**name, times, AtFlags::SYMLINK_NOFOLLOW),
            Self::Held(fd) => utimensat(CWD, crate::sys::proc_path(fd, b""), times, AtFlags::empty()),
        }
    }

    pub(crate) fn set_times(&self, atime: Option<Time>, mtime: Option<Time>) -> Result<()> {
        let times = Timestamps {
            last_access: stamp(atime.map(Stamp::At)),
            last_modification: stamp(mtime.map(Stamp::At)),
        };
        self.utimes(&times)
    }
}

impl Overlay {
    /// When the reply to a read of `count` bytes is due; `None` is now.
    pub fn read_due(&self, count: usize, now: std::time::Instant) -> Option<std::time::Instant> {
        self.quota.reads.take(count as u64, now)
    }

    pub fn write_due(&self, count: usize, now: std::time::Instant) -> Option<std::time::Instant> {
        self.quota.writes.take(count as u64, now)
    }
}
