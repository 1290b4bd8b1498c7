//! Rename. What moves must be in the upper; where it stood a whiteout stays if a lower would shine through; where it
//! goes it must not merge with a lower directory of that name. Each variant is one `renameat2(2)`, so a crash leaves
//! the old names or the new ones. A directory that a lower holds is refused with EXDEV, as the kernel's overlay does
//! without redirects: mv(1) and every package manager then copy. With redirects it says where its lowers are, in the
//! kernel's attribute, before it moves; the work directory is marked first, so that no kernel mounts such an upper.

use crate::find::Found;
use crate::listing::Source;
use crate::node::{Name, Node, Upper};
use crate::overlay::{Overlay, whiteout_at};
use crate::upper::UpperLayer;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, mkdirat, openat, renameat, renameat_with, unlinkat,
};
use rustix::io::{Errno, Result};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What a rename does when the new name exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replace {
    Over,
    Refuse,
    Exchange,
}

/// One end of a rename.
pub struct Spot<'a> {
    pub parent: u64,
    pub name: &'a [u8],
}

/// An end with all that is known of it.
struct End<'a> {
    parent: Arc<Node>,
    name: &'a [u8],
    found: Found,
    node: Option<Arc<Node>>,
    directory: Arc<OwnedFd>,
    /// A lower would show something here.
    covered: bool,
}

impl End<'_> {
    /// A directory of which lowers hold something.
    fn is_merged(&self) -> bool {
        self.found.is_dir() && !self.found.places.is_empty()
    }
}

impl Overlay {
    pub fn rename(&self, from: &Spot<'_>, to: &Spot<'_>, mode: Replace) -> Result<()> {
        crate::create::check_name(to.name)?;
        let upper = self.upper_layer()?;
        self.settle()?;
        let (source, target) = (self.end(from)?, self.end(to)?);
        let moving = source.node.clone().ok_or(Errno::NOENT)?;
        let exists = target.found.stat().is_some();
        match mode {
            Replace::Refuse if exists => return Err(Errno::EXIST),
            Replace::Exchange if !exists => return Err(Errno::NOENT),
            _ => {}
        }
        for end in [&source, &target] {
            let moves = mode == Replace::Exchange || std::ptr::eq(end, &source);
            if moves && end.is_merged() && !self.options.redirect {
                return Err(Errno::XDEV);
            }
        }
        if mode == Replace::Exchange {
            return self.exchange(upper, &source, &target);
        }
        self.check_target(&source, &target)?;
        self.raise(&source)?;
        self.set_apart(upper, &source, &moving, &target)?;
        // A directory's path must not be walked while it changes.
        let _alone = source.found.is_dir().then(|| self.tree.write());
        self.carry_out(upper, &source, &target, &moving)
    }

    fn end<'a>(&self, place: &Spot<'a>) -> Result<End<'a>> {
        let parent = self.node(place.parent)?;
        let found = self.find(&parent, place.name)?;
        self.copy_up(&parent)?;
        let directory = self.upper_dir(&parent)?.ok_or(Errno::NOENT)?;
        let covered = self.shines_through(&parent, place.name, &found)?;
        let node = match found.stat() {
            None => None,
            Some(_) if found.is_dir() => Some(self.directory(&parent, place.name, &found)?),
            Some(_) => match self.known(&found) {
                Some(node) => Some(node),
                None => self.entry(&parent, place.name)?.map(|entry| {
                    self.forget(entry.node.ino, 1);
                    entry.node
                }),
            },
        };
        Ok(End { parent, name: place.name, found, node, directory, covered })
    }

    fn check_target(&self, source: &End<'_>, target: &End<'_>) -> Result<()> {
        let Some(node) = &target.node else { return Ok(()) };
        match (source.found.is_dir(), target.found.is_dir()) {
            (true, false) => Err(Errno::NOTDIR),
            (false, true) => Err(Errno::ISDIR),
            (true, true) if !self.is_empty(node)? => Err(Errno::NOTEMPTY),
            _ => Ok(()),
        }
    }

    /// Makes sure that the upper holds the file under the name that is to move.
    fn raise(&self, end: &End<'_>) -> Result<()> {
        let node = end.node.as_ref().ok_or(Errno::NOENT)?;
        self.copy_up(node)?;
        if node.is_dir() {
            return Ok(());
        }
        self.at_upper(node, |at, state| {
            if state.name_mut(&end.parent, end.name).is_some_and(|name| name.up) {
                return Ok(());
            }
            // Another name of the hard link was copied up.
            at.link(&end.directory, end.name)?;
            if let Some(name) = state.name_mut(&end.parent, end.name) {
                name.up = true;
            }
            state.upper = Upper::Named;
            Ok(())
        })?;
        Ok(())
    }

    /// A directory that moves takes along what lowers hold of it, and nothing of what they hold where it goes.
    fn set_apart(
        &self,
        upper: &UpperLayer,
        source: &End<'_>,
        node: &Arc<Node>,
        target: &End<'_>,
    ) -> Result<()> {
        if source.is_merged() {
            return self.set_redirect(upper, node);
        }
        if node.is_dir() && target.parent.is_merged() { self.make_opaque(node, target) } else { Ok(()) }
    }

    fn set_redirect(&self, upper: &UpperLayer, node: &Arc<Node>) -> Result<()> {
        let fd = self.upper_dir(node)?.ok_or(Errno::STALE)?;
        let first = node.places().first().cloned().ok_or(Errno::STALE)?;
        let path = [b"/", &*first.path].concat();
        if path.len() > crate::xattr::REDIRECT_MAX {
            return Err(Errno::XDEV);
        }
        if crate::xattr::redirect(&fd, b"")?.as_deref() == Some(&path) {
            return Ok(());
        }
        crate::layers::mark_incompatible(&upper.temporary, crate::upper::REDIRECT)?;
        match crate::xattr::set_redirect(&fd, &path) {
            Ok(()) => upper.redirected.store(true, Ordering::Release),
            Err(Errno::OPNOTSUPP | Errno::NOSPC | Errno::RANGE) => return Err(Errno::XDEV),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// A directory that moves below a merged one must not merge with what lowers hold there. Where no attribute can say
    /// so, it is copied by whoever moves it, as over a mount.
    fn make_opaque(&self, node: &Arc<Node>, target: &End<'_>) -> Result<()> {
        let fd = self.upper_dir(node)?.ok_or(Errno::STALE)?;
        match crate::xattr::set_opaque(&fd, b"") {
            Err(Errno::OPNOTSUPP) if self.lowers_of(&target.parent, target.name)?.is_empty() => Ok(()),
            Err(Errno::OPNOTSUPP) => Err(Errno::XDEV),
            other => other,
        }
    }

    fn carry_out(
        &self,
        upper: &UpperLayer,
        source: &End<'_>,
        target: &End<'_>,
        moving: &Arc<Node>,
    ) -> Result<()> {
        let act = || self.move_real(upper, source, target);
        match &target.node {
            Some(replaced) if !replaced.is_dir() => {
                self.drop_name(replaced, &target.parent, target.name, &target.found, || {
                    self.locked(moving, source, target, act)
                })?;
            }
            Some(replaced) => {
                let held = self.walked(replaced);
                self.locked(moving, source, target, act)?;
                let mut state = replaced.state.lock();
                state.names.clear();
                if let Some(fd) = held {
                    state.upper = Upper::Held(fd);
                    if let Some(dir) = state.dir.as_mut() {
                        (dir.places, dir.fd) = (Vec::new(), None);
                    }
                }
            }
            None => self.locked(moving, source, target, act)?,
        }
        if let Some(stat) =
            target.found.upper.as_ref().filter(|stat| stat.stx_nlink < 2 || target.found.is_dir())
        {
            self.quota.lost(stat);
        }
        self.removed(&source.parent, source.name);
        self.relisted(target, moving);
        Ok(())
    }

    fn walked(&self, node: &Arc<Node>) -> Option<Arc<OwnedFd>> {
        let state = node.state.lock();
        match &state.upper {
            Upper::Held(fd) => Some(fd.clone()),
            _ => state.dir.as_ref().and_then(|dir| dir.fd.clone()),
        }
    }

    /// Runs `act` while nobody else uses the moving node's name, and gives it the new one.
    fn locked(
        &self,
        moving: &Arc<Node>,
        source: &End<'_>,
        target: &End<'_>,
        act: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let mut state = moving.state.lock();
        act()?;
        state.forget_name(&source.parent, source.name);
        state.names.push(Name { parent: target.parent.clone(), name: target.name.into(), up: true });
        Ok(())
    }

    fn relisted(&self, end: &End<'_>, node: &Arc<Node>) {
        let mut state = end.parent.state.lock();
        if let Some(listing) = state.dir.as_mut().and_then(|dir| dir.listing.as_mut()) {
            listing.insert(end.name, node.ino, node.kind, Source::Upper);
        }
    }

    fn move_real(&self, upper: &UpperLayer, source: &End<'_>, target: &End<'_>) -> Result<()> {
        let (from, to) = (&source.directory, &target.directory);
        let whiteout_there = target.found.upper.is_none() && whiteout_at(to, target.name)?;
        if source.found.is_dir() {
            if let Some(replaced) = target.found.upper.as_ref().map(|_| target.node.as_ref()) {
                self.clear(upper, target, replaced)?;
            }
            if whiteout_there || (target.found.is_dir() && target.found.upper.is_none()) {
                return self.move_over_whiteout(upper, source, target, whiteout_there);
            }
        }
        self.secure_replacement(upper, source, target)?;
        if source.covered {
            return move_leaving_whiteout(upper, from, source.name, to, target.name);
        }
        renameat(from, source.name, to, target.name)
    }

    /// A file that takes a lower file's name must not be empty after a power cut. The upper's file system takes care of a
    /// file that is replaced (`auto_da_alloc` of ext4), but it sees none here (decision 0110).
    fn secure_replacement(&self, upper: &UpperLayer, source: &End<'_>, target: &End<'_>) -> Result<()> {
        let regular = source.node.as_ref().is_some_and(|node| node.kind == FileType::RegularFile);
        let replaces = target.found.stat().is_some() && target.found.upper.is_none();
        if !regular || !replaces || self.options.volatile {
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(&source.directory, source.name, flags, Mode::empty()) {
            Ok(file) => upper.secure(&file),
            // What cannot be opened cannot be written to the disk by us either; the rename goes on.
            Err(_) => Ok(()),
        }
    }

    /// An empty directory of the union may hold whiteouts; the real one must be empty before it is replaced.
    fn clear(&self, upper: &UpperLayer, target: &End<'_>, replaced: Option<&Arc<Node>>) -> Result<()> {
        let Some(fd) = replaced.and_then(|node| self.walked(node)) else { return Ok(()) };
        if crate::sweep::names(&crate::sweep::open_dir(&fd, b".")?)?.is_empty() {
            return Ok(());
        }
        let temporary = upper.temporary_name();
        mkdirat(&upper.temporary, &temporary, Mode::from_raw_mode(0o755))?;
        match crate::xattr::set_opaque(&upper.temporary, &temporary) {
            // Then nothing is below, or the move was refused.
            Err(Errno::OPNOTSUPP) => {}
            other => other?,
        }
        match renameat_with(
            &upper.temporary,
            &temporary,
            &target.directory,
            target.name,
            RenameFlags::EXCHANGE,
        ) {
            // NFS has no exchange: the name is free for a moment.
            Err(Errno::INVAL) => {
                let aside = upper.temporary_name();
                renameat(&target.directory, target.name, &upper.temporary, &aside)?;
                renameat(&upper.temporary, &temporary, &target.directory, target.name)?;
                crate::sweep::remove(&upper.temporary, &aside)
            }
            other => other.and_then(|()| crate::sweep::remove(&upper.temporary, &temporary)),
        }
    }

    /// A directory cannot replace a whiteout, so the two change places.
    fn move_over_whiteout(
        &self,
        upper: &UpperLayer,
        source: &End<'_>,
        target: &End<'_>,
        there: bool,
    ) -> Result<()> {
        if !there {
            upper.link_whiteout(&target.directory, target.name)?;
        }
        let (from, to) = (&source.directory, &target.directory);
        match renameat_with(from, source.name, to, target.name, RenameFlags::EXCHANGE) {
            Err(Errno::INVAL) => {
                unlinkat(to, target.name, AtFlags::empty())?;
                renameat(from, source.name, to, target.name)?;
                if source.covered { upper.link_whiteout(from, source.name) } else { Ok(()) }
            }
            Ok(()) if !source.covered => unlinkat(from, source.name, AtFlags::empty()),
            other => other,
        }
    }

    fn exchange(&self, upper: &UpperLayer, source: &End<'_>, target: &End<'_>) -> Result<()> {
        let (Some(a), Some(b)) = (&source.node, &target.node) else { return Err(Errno::NOENT) };
        for (end, other) in [(source, target), (target, source)] {
            self.raise(end)?;
            if let Some(node) = &end.node {
                self.set_apart(upper, end, node, other)?;
            }
        }
        let _alone = (a.is_dir() || b.is_dir()).then(|| self.tree.write());
        // Two states at once: the lower number first, so that two exchanges cannot wait for each other.
        let (first, second) = if a.ino < b.ino { (a, b) } else { (b, a) };
        let (mut one, mut two) = (first.state.lock(), second.state.lock());
        renameat_with(&source.directory, source.name, &target.directory, target.name, RenameFlags::EXCHANGE)?;
        let (state_a, state_b) = if a.ino < b.ino { (&mut one, &mut two) } else { (&mut two, &mut one) };
        state_a.forget_name(&source.parent, source.name);
        state_a.names.push(Name { parent: target.parent.clone(), name: target.name.into(), up: true });
        state_b.forget_name(&target.parent, target.name);
        state_b.names.push(Name { parent: source.parent.clone(), name: source.name.into(), up: true });
        drop((one, two));
        self.relisted(source, b);
        self.relisted(target, a);
        Ok(())
    }
}

/// Moves a file and leaves a whiteout where it was, in one step where the file system can.
fn move_leaving_whiteout(
    upper: &UpperLayer,
    from: &OwnedFd,
    name: &[u8],
    to: &OwnedFd,
    new: &[u8],
) -> Result<()> {
    match renameat_with(from, name, to, new, RenameFlags::WHITEOUT) {
        Err(Errno::INVAL | Errno::PERM | Errno::NOSYS) => {
            renameat(from, name, to, new)?;
            upper.link_whiteout(from, name)
        }
        other => other,
    }
}

/// Moves what was finished in the work directory to a name that must be free.
pub(crate) fn no_replace(from: &OwnedFd, name: &[u8], to: &OwnedFd, new: &[u8]) -> Result<()> {
    match renameat_with(from, name, to, new, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS) => {
            match openat(to, new, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
                Ok(_) => Err(Errno::EXIST),
                Err(Errno::NOENT) => renameat(from, name, to, new),
                Err(error) => Err(error),
            }
        }
        other => other,
    }
}
