//! New names: files, directories, links. A name where the upper holds a whiteout is made in the work directory and
//! moved over it, so that the lower's file never shines through.

use crate::attr::{Attr, Caller, WANTED, decode_device, encode_device, kind_of};
use crate::find::{Entry, Found};
use crate::listing::Source;
use crate::node::{Name, Node, Upper};
use crate::overlay::{At, Overlay, whiteout_at};
use crate::place::{OPEN_PATH, Place};
use crate::upper::UpperLayer;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Statx, linkat, mkdirat, mknodat, openat, renameat,
    renameat_with, statx, symlinkat, unlinkat,
};
use rustix::io::{Errno, Result};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// What a new name shall be.
pub enum New<'a> {
    /// A regular file, a device, a fifo or a socket; `mode` carries the type.
    Node {
        mode: u32,
        rdev: u32,
    },
    Directory {
        mode: u32,
    },
    Symlink {
        target: &'a [u8],
    },
}

impl New<'_> {
    fn kind(&self) -> FileType {
        match self {
            Self::Node { mode, .. } => match FileType::from_raw_mode(*mode) {
                FileType::Unknown => FileType::RegularFile,
                kind => kind,
            },
            Self::Directory { .. } => FileType::Directory,
            Self::Symlink { .. } => FileType::Symlink,
        }
    }

    fn mode(&self) -> u32 {
        match self {
            Self::Node { mode, .. } | Self::Directory { mode } => mode & 0o7777,
            Self::Symlink { .. } => 0o777,
        }
    }
}

/// How a new directory hides what lowers have under its name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Covering {
    Whole,
    /// Name by name: it is merged with them, and nothing of theirs is seen.
    Names,
}

/// A name in a directory of the upper that is being made.
struct Making<'a> {
    upper: &'a UpperLayer,
    directory: &'a OwnedFd,
    name: &'a [u8],
    new: &'a New<'a>,
    caller: Caller,
    /// Permissions as asked for, less the umask.
    mode: u32,
    /// The directory's default access control list decides over the permissions, and the real one's passes it on.
    inherits: bool,
}

impl Overlay {
    /// Makes a new name; the kernel then holds a reference to it.
    pub fn create(&self, parent: u64, name: &[u8], new: &New<'_>, caller: Caller) -> Result<Attr> {
        check_name(name)?;
        let upper = self.upper_layer()?;
        let whiteout = matches!(new, New::Node { mode, rdev }
            if FileType::from_raw_mode(*mode) == FileType::CharacterDevice && *rdev == encode_device(0, 0));
        if whiteout {
            return Err(Errno::PERM);
        }
        let parent = self.node(parent)?;
        self.settle()?;
        self.quota.admit_inode()?;
        self.copy_up(&parent)?;
        let directory = self.upper_dir(&parent)?.ok_or(Errno::NOENT)?;
        let inherits = !matches!(new, New::Symlink { .. }) && self.has_default_acl(&parent, &directory)?;
        let mode = if inherits { new.mode() } else { new.mode() & !caller.umask };
        let making = Making { upper, directory: &directory, name, new, caller, mode, inherits };
        let made = match self.make_at(&making, &directory, name) {
            Err(Errno::EXIST) if whiteout_at(&directory, name)? => {
                self.make_over_whiteout(&making, &parent)?
            }
            other => other.map(|(stat, file)| (stat, file, Covering::Whole))?,
        };
        let (stat, file, covering) = made;
        self.quota.gained(&stat);
        self.added(&parent, name, &stat);
        let found = match covering {
            Covering::Whole => Found { upper: Some(stat), ..Found::default() },
            Covering::Names => self.find(&parent, name)?,
        };
        let Entry { node, attr } = self.adopt(&parent, name, found)?;
        if let Some(file) = file {
            node.state.lock().data = Some(Arc::new(file));
            self.descriptors.cached(node);
        }
        Ok(attr)
    }

    /// Makes the file in `directory`, with its owner and mode; returns a regular file's descriptor, because a write
    /// follows most creations.
    fn make_at(
        &self,
        making: &Making<'_>,
        directory: &OwnedFd,
        name: &[u8],
    ) -> Result<(Statx, Option<OwnedFd>)> {
        let mode = Mode::from_raw_mode(making.mode);
        let mut file = None;
        match making.new {
            New::Directory { .. } => mkdirat(directory, name, mode)?,
            New::Symlink { target } => symlinkat(*target, directory, name)?,
            New::Node { rdev, .. } => match making.new.kind() {
                FileType::RegularFile => {
                    let flags =
                        OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    file = Some(openat(directory, name, flags, mode)?);
                }
                kind => mknodat(directory, name, kind, mode, decode_device(*rdev))?,
            },
        }
        let made = match &file {
            Some(file) => statx(file, c"", AtFlags::EMPTY_PATH, WANTED)?,
            None => statx(directory, name, AtFlags::SYMLINK_NOFOLLOW, WANTED)?,
        };
        match self.dress_new(making, directory, name, made) {
            Ok(stat) => Ok((stat, file)),
            Err(error) => {
                let flags =
                    if kind_of(&made) == FileType::Directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
                let _nothing_else_to_do = unlinkat(directory, name, flags);
                Err(error)
            }
        }
    }

    /// Owner and mode of a new file. A set-group-id directory has given it its own group already.
    fn dress_new(&self, making: &Making<'_>, directory: &OwnedFd, name: &[u8], made: Statx) -> Result<Statx> {
        let mut attr = Attr::new(0, &made);
        let inherited = made.stx_gid != self.own.1;
        (attr.uid, attr.gid) = (making.caller.uid, making.caller.gid);
        let wanted = match making.inherits {
            true => (making.mode & !0o777) | (u32::from(made.stx_mode) & 0o777),
            false => making.mode,
        };
        let plain = self.options.owners == crate::config::Owners::Real;
        let same_owner = (making.caller.uid, making.caller.gid) == self.own
            || (self.own.0 == making.caller.uid && inherited);
        let same_mode = making.new.kind() == FileType::Symlink
            || u32::from(made.stx_mode) & 0o7777 & !0o2000 == wanted & !0o2000;
        if plain && same_owner && same_mode && self.ids.is_plain() {
            return Ok(made);
        }
        let at = At::Name(Arc::new(rustix::io::fcntl_dupfd_cloexec(directory, 0)?), name.into());
        if inherited {
            attr.gid = self.ids.shown(crate::config::Owner { uid: 0, gid: made.stx_gid }, false).gid;
        }
        self.give_owner(&at, &attr, Some(made.stx_gid))?;
        if !same_mode || (wanted & 0o6000 != 0 && !same_owner) {
            at.set_mode(wanted | (u32::from(made.stx_mode) & 0o2000))?;
        }
        at.stat()
    }

    fn make_over_whiteout(
        &self,
        making: &Making<'_>,
        parent: &Arc<Node>,
    ) -> Result<(Statx, Option<OwnedFd>, Covering)> {
        let Making { upper, directory, name, .. } = *making;
        let temporary = upper.temporary_name();
        let (stat, file) = match making.inherits {
            true => self.make_in_twin(making, &temporary)?,
            false => self.make_at(making, &upper.temporary, &temporary)?,
        };
        let is_dir = kind_of(&stat) == FileType::Directory;
        let moved = inherit_group(upper, &temporary, directory, making).and_then(|()| {
            if is_dir {
                return self.move_dir_over_whiteout(making, parent, &temporary);
            }
            renameat(&upper.temporary, &temporary, directory, name).map(|()| Covering::Whole)
        });
        let covering = upper.discard_on_error(
            moved,
            &temporary,
            if is_dir { AtFlags::REMOVEDIR } else { AtFlags::empty() },
        )?;
        Ok((statx(directory, name, AtFlags::SYMLINK_NOFOLLOW, WANTED)?, file, covering))
    }

    /// Makes the file in a directory of the work directory that has the list of the one it shall move to.
    fn make_in_twin(&self, making: &Making<'_>, name: &[u8]) -> Result<(Statx, Option<OwnedFd>)> {
        let temporary = &making.upper.temporary;
        let twin = making.upper.temporary_name();
        mkdirat(temporary, &twin, Mode::from_raw_mode(0o700))?;
        let made = crate::xattr::copy_default_acl(making.directory, temporary, &twin)
            .and_then(|()| openat(temporary, &twin, OPEN_PATH, Mode::empty()))
            .and_then(|inside| {
                let made = self.make_at(making, &inside, name)?;
                renameat(&inside, name, temporary, name).map(|()| made)
            });
        let _swept_at_the_next_mount = unlinkat(temporary, &twin, AtFlags::REMOVEDIR);
        made
    }

    fn move_dir_over_whiteout(
        &self,
        making: &Making<'_>,
        parent: &Arc<Node>,
        temporary: &[u8],
    ) -> Result<Covering> {
        let Making { upper, directory, name, .. } = *making;
        let mut covering = Covering::Whole;
        if parent.is_merged() {
            match crate::xattr::set_opaque(&upper.temporary, temporary) {
                Err(Errno::OPNOTSUPP) => {
                    self.cover_names(upper, parent, name, temporary)?;
                    covering = Covering::Names;
                }
                other => other?,
            }
        }
        let moved = match renameat_with(&upper.temporary, temporary, directory, name, RenameFlags::EXCHANGE) {
            Ok(()) => unlinkat(&upper.temporary, temporary, AtFlags::empty()),
            Err(Errno::INVAL) => {
                unlinkat(directory, name, AtFlags::empty())?;
                renameat(&upper.temporary, temporary, directory, name)
            }
            Err(error) => Err(error),
        };
        moved.map(|()| covering)
    }

    /// Where no attribute says that a directory hides the lowers', a whiteout for each of their names does.
    fn cover_names(
        &self,
        upper: &UpperLayer,
        parent: &Arc<Node>,
        name: &[u8],
        temporary: &[u8],
    ) -> Result<()> {
        let made = crate::sweep::open_dir(&upper.temporary, temporary)?;
        for place in self.lowers_of(parent, name)? {
            let below = crate::sweep::open_dir(place.fd(&self.descriptors)?, b".")?;
            for hidden in crate::sweep::names(&below)? {
                match upper.link_whiteout(&made, &hidden) {
                    Err(Errno::EXIST) => {}
                    other => other?,
                }
            }
        }
        Ok(())
    }

    /// The directories of lowers that one of this name in the upper is merged with.
    pub(crate) fn lowers_of(&self, parent: &Arc<Node>, name: &[u8]) -> Result<Vec<Arc<Place>>> {
        let mut found = Found::default();
        self.below(parent, name, &mut found)?;
        Ok(found.places)
    }

    /// One more name for a file.
    pub fn link(&self, ino: u64, parent: u64, name: &[u8]) -> Result<Attr> {
        check_name(name)?;
        let upper = self.upper_layer()?;
        let (node, parent) = (self.node(ino)?, self.node(parent)?);
        self.settle()?;
        self.copy_up(&node)?;
        self.copy_up(&parent)?;
        let directory = self.upper_dir(&parent)?.ok_or(Errno::NOENT)?;
        let whiteout = whiteout_at(&directory, name)?;
        let linked = self.at_upper(&node, |at, state| {
            if whiteout {
                let temporary = upper.temporary_name();
                at.link(&upper.temporary, &temporary)?;
                let moved = renameat(&upper.temporary, &temporary, &directory, name);
                upper.discard_on_error(moved, &temporary, AtFlags::empty())?;
            } else {
                at.link(&directory, name)?;
            }
            state.forget_name(&parent, name);
            state.names.push(Name { parent: parent.clone(), name: name.into(), up: true });
            state.upper = Upper::Named;
            state.links = state.links.map(|links| links + 1);
            Ok(state.links)
        })?;
        if let Some(Some(links)) = linked {
            self.remember_links(node.ino, links);
        }
        let entry = self.entry(&parent, name)?.ok_or(Errno::NOENT)?;
        if let Some(dir) = parent.state.lock().dir.as_mut()
            && let Some(listing) = dir.listing.as_mut()
        {
            listing.insert(name, node.ino, node.kind, Source::Upper);
        }
        Ok(entry.attr)
    }

    pub(crate) fn remember_links(&self, number: u64, links: u32) {
        let key = crate::records::Key::number(number);
        self.records.write(crate::records::Kind::Links, key, u64::from(links));
    }

    /// A reader in the middle of the directory may still meet the new name.
    pub(crate) fn added(&self, parent: &Arc<Node>, name: &[u8], stat: &Statx) {
        let mut state = parent.state.lock();
        if let Some(listing) = state.dir.as_mut().and_then(|dir| dir.listing.as_mut()) {
            listing.insert(name, self.upper_number(stat), kind_of(stat), Source::Upper);
        }
    }
}

impl At {
    pub(crate) fn link(&self, directory: &OwnedFd, name: &[u8]) -> Result<()> {
        match self {
            Self::Name(fd, old) => linkat(fd, &**old, directory, name, AtFlags::empty()),
            Self::Held(fd) => {
                linkat(CWD, crate::sys::proc_path(fd, b""), directory, name, AtFlags::SYMLINK_FOLLOW)
            }
        }
    }
}

/// The work directory gave a new file no group; the directory that it moves to might have.
fn inherit_group(
    upper: &UpperLayer,
    temporary: &[u8],
    directory: &OwnedFd,
    making: &Making<'_>,
) -> Result<()> {
    let above = statx(directory, c"", AtFlags::EMPTY_PATH, WANTED)?;
    if u32::from(above.stx_mode) & 0o2000 == 0 {
        return Ok(());
    }
    let at = At::Name(Arc::new(rustix::io::fcntl_dupfd_cloexec(&upper.temporary, 0)?), temporary.into());
    at.chown(None, Some(above.stx_gid))?;
    let mode = match making.inherits {
        true => u32::from(at.stat()?.stx_mode) & 0o7777,
        false => making.mode,
    };
    match making.new.kind() {
        FileType::Symlink => Ok(()),
        FileType::Directory => at.set_mode(mode | 0o2000),
        _ => at.set_mode(mode),
    }
}

pub(crate) fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > 255 { Err(Errno::NAMETOOLONG) } else { Ok(()) }
}
