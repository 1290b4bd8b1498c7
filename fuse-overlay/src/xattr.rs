//! Extended attributes: the overlay's own marks on real files, and what users may see of the rest. Everything under
//! `user.overlay.` belongs to the overlay: it is hidden, and a user who sets such a name gets it stored under
//! `user.overlay.overlay.`, which is how an overlay inside this one keeps its marks.

use crate::acl::{self, ACCESS, Who};
use crate::attr::{Caller, Changes};
use crate::config::Owner;
use crate::node::Node;
use crate::overlay::{At, Overlay};
use crate::sys::proc_path;
use rustix::fs::{
    XattrFlags, getxattr, lgetxattr, listxattr, llistxattr, lremovexattr, lsetxattr, removexattr, setxattr,
};
use rustix::io::{Errno, Result};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

const OWN: &[u8] = b"user.overlay.";
const ESCAPED: &[u8] = b"user.overlay.overlay.";
pub(crate) const OVERRIDE: &[u8] = b"user.containers.override_stat";
const OVERRIDES: &[&[u8]] = &[b"user.containers.override_", b"user.fuseoverlayfs."];
const OPAQUE: [&str; 2] = ["user.overlay.opaque", "user.fuseoverlayfs.opaque"];

/// The value of the opaque mark of the directory `name` (or of `fd` itself): `y` hides the lowers, `x` says that files
/// in it may be marked as whiteouts.
pub(crate) fn opaque_mark(fd: impl AsFd, name: &[u8]) -> Option<u8> {
    let path = proc_path(fd, name);
    let follow = name.is_empty();
    OPAQUE.iter().find_map(|mark| {
        let mut value = [0; 8];
        let read =
            if follow { getxattr(&path, *mark, &mut value) } else { lgetxattr(&path, *mark, &mut value) };
        read.ok().filter(|length| *length == 1).and_then(|_| value.first().copied())
    })
}

/// Marks the directory `name` (or `fd` itself) opaque.
pub(crate) fn set_opaque(fd: impl AsFd, name: &[u8]) -> Result<()> {
    let (path, mark, value) = (proc_path(fd, name), "user.overlay.opaque", b"y");
    if name.is_empty() {
        return setxattr(path, mark, value, XattrFlags::empty());
    }
    lsetxattr(path, mark, value, XattrFlags::empty())
}

/// Gives the directory `name` the default access control list of `from`.
pub(crate) fn copy_default_acl(from: &OwnedFd, fd: &OwnedFd, name: &[u8]) -> Result<()> {
    let list = Target { path: proc_path(from, b""), follow: true }.read(acl::DEFAULT)?;
    lsetxattr(proc_path(fd, name), acl::DEFAULT, &list, XattrFlags::empty())
}

const REDIRECT: &str = "user.overlay.redirect";
/// The kernel's limit of it (`OVL_REDIRECT_MAX`).
pub(crate) const REDIRECT_MAX: usize = 256;

/// Where the directory `name` (or `fd` itself) has its lowers, if that is not where it stands.
pub(crate) fn redirect(fd: impl AsFd, name: &[u8]) -> Result<Option<Vec<u8>>> {
    let path = proc_path(fd, name);
    let mut value = [0; REDIRECT_MAX];
    let read = if name.is_empty() {
        getxattr(&path, REDIRECT, &mut value)
    } else {
        lgetxattr(&path, REDIRECT, &mut value)
    };
    match read {
        Ok(length) => Ok(value.get(..length).map(<[u8]>::to_vec)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(crate) fn set_redirect(fd: impl AsFd, path: &[u8]) -> Result<()> {
    setxattr(proc_path(fd, b""), REDIRECT, path, XattrFlags::empty())
}

pub(crate) fn is_marked_whiteout(fd: impl AsFd, name: &[u8]) -> bool {
    lgetxattr(proc_path(fd, name), "user.overlay.whiteout", &mut [0; 8]).is_ok()
}

pub(crate) fn has(fd: impl AsFd, name: &[u8], mark: &str) -> bool {
    lgetxattr(proc_path(fd, name), mark, &mut [0; 4096]).is_ok()
}

/// Where a file's attributes are reached, and whether the last link of the path is to be followed.
struct Target {
    path: Vec<u8>,
    follow: bool,
}

/// Reads a whole value. Sizes may change between the question and the answer, so it asks again on `ERANGE`.
fn read(size: impl Fn() -> Result<usize>, fill: impl Fn(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    loop {
        let mut value = vec![0; size()?];
        match fill(&mut value) {
            Err(Errno::RANGE) => {}
            Ok(length) => {
                value.truncate(length);
                return Ok(value);
            }
            Err(error) => return Err(error),
        }
    }
}

impl Target {
    fn at(at: &At) -> Self {
        let (path, follow) = at.path();
        Self { path, follow }
    }

    fn read(&self, name: &[u8]) -> Result<Vec<u8>> {
        // Most values are short: one call instead of two.
        let mut short = [0; 256];
        let first = if self.follow {
            getxattr(&self.path, name, &mut short)
        } else {
            lgetxattr(&self.path, name, &mut short)
        };
        match first {
            Ok(length) => return Ok(short.get(..length).unwrap_or_default().to_vec()),
            Err(Errno::RANGE) => {}
            Err(error) => return Err(error),
        }
        if self.follow {
            read(|| rustix::fs::getxattr_query(&self.path, name), |value| getxattr(&self.path, name, value))
        } else {
            read(|| rustix::fs::lgetxattr_query(&self.path, name), |value| lgetxattr(&self.path, name, value))
        }
    }

    fn list(&self) -> Result<Vec<u8>> {
        if self.follow {
            read(|| rustix::fs::listxattr_query(&self.path), |value| listxattr(&self.path, value))
        } else {
            read(|| rustix::fs::llistxattr_query(&self.path), |value| llistxattr(&self.path, value))
        }
    }

    fn set(&self, name: &[u8], value: &[u8], flags: XattrFlags) -> Result<()> {
        if self.follow {
            setxattr(&self.path, name, value, flags)
        } else {
            lsetxattr(&self.path, name, value, flags)
        }
    }

    fn remove(&self, name: &[u8]) -> Result<()> {
        if self.follow { removexattr(&self.path, name) } else { lremovexattr(&self.path, name) }
    }
}

/// The name under which a user's attribute is stored; `None` if users may not have it.
fn stored(name: &[u8]) -> Option<Vec<u8>> {
    if OVERRIDES.iter().any(|prefix| name.starts_with(prefix)) {
        return None;
    }
    match name.strip_prefix(OWN) {
        Some(rest) => Some([ESCAPED, rest].concat()),
        None => Some(name.to_vec()),
    }
}

/// The name that a user sees for a stored attribute; `None` if it is hidden.
fn shown(name: &[u8]) -> Option<Vec<u8>> {
    if let Some(rest) = name.strip_prefix(ESCAPED) {
        return Some([OWN, rest].concat());
    }
    let hidden = name.starts_with(OWN) || OVERRIDES.iter().any(|prefix| name.starts_with(prefix));
    (!hidden).then(|| name.to_vec())
}

impl Overlay {
    fn attributes<T>(&self, node: &Arc<Node>, act: impl Fn(&Target) -> Result<T>) -> Result<T> {
        if node.is_dir() {
            let fd = match self.upper_dir(node)? {
                Some(fd) => fd,
                None => node.places().first().ok_or(Errno::STALE)?.fd(&self.descriptors)?,
            };
            return act(&Target { path: proc_path(&fd, b""), follow: true });
        }
        if let Some(outcome) = self.at_upper(node, |at, _| act(&Target::at(at)))? {
            return Ok(outcome);
        }
        let lower = node.state.lock().lower.clone();
        let (place, name) = lower.ok_or(Errno::STALE)?;
        act(&Target { path: proc_path(place.fd(&self.descriptors)?, &name), follow: false })
    }

    pub fn xattr(&self, ino: u64, name: &[u8]) -> Result<Vec<u8>> {
        let name = stored(name).ok_or(Errno::NODATA)?;
        let value = self.attributes(&self.node(ino)?, |target| target.read(&name));
        if !name.starts_with(acl::PREFIX) {
            return value;
        }
        match value {
            Ok(list) => Ok(acl::renamed(&list, |who| self.shown_id(who)).0),
            // The kernel asks of every file, also of those that can have none.
            Err(Errno::OPNOTSUPP) => Err(Errno::NODATA),
            other => other,
        }
    }

    fn shown_id(&self, who: Who) -> Option<u32> {
        let shown = |uid, gid| self.ids.shown(Owner { uid, gid }, false);
        let id = match who {
            Who::User(u32::MAX) | Who::Group(u32::MAX) => return None,
            Who::User(id) => shown(id, 0).uid,
            Who::Group(id) => shown(0, id).gid,
        };
        (id != crate::owners::OVERFLOW).then_some(id)
    }

    fn stored_id(&self, who: Who) -> Option<u32> {
        match who {
            Who::User(id) => self.ids.stored_uid(id).ok().flatten(),
            Who::Group(id) => self.ids.stored_gid(id).ok().flatten(),
        }
    }

    /// Does a list of the directory stand in for the umask of whoever makes something in it?
    pub(crate) fn has_default_acl(&self, node: &Arc<Node>, directory: &OwnedFd) -> Result<bool> {
        if !self.options.acl {
            return Ok(false);
        }
        let known = node.state.lock().dir.as_ref().and_then(|dir| dir.default_acl);
        if let Some(known) = known.filter(|_| !self.options.coherent) {
            return Ok(known);
        }
        let asked = match rustix::fs::getxattr_query(proc_path(directory, b""), acl::DEFAULT) {
            Ok(length) => length > 0,
            Err(Errno::NODATA | Errno::OPNOTSUPP) => false,
            Err(error) => return Err(error),
        };
        if let Some(dir) = node.state.lock().dir.as_mut() {
            dir.default_acl = Some(asked);
        }
        Ok(asked)
    }

    /// Whoever sets a file's access control list without being of its group takes its set-group-id bit away
    /// (`posix_acl_update_mode`); further groups of theirs are not known here.
    pub fn list_changed(&self, ino: u64, name: &[u8], caller: Caller) -> Result<()> {
        if name != ACCESS || caller.uid == 0 {
            return Ok(());
        }
        let attr = self.attributes_of(ino)?;
        if attr.mode & 0o2000 == 0 || attr.gid == caller.gid {
            return Ok(());
        }
        let mode = Some(attr.mode & 0o7777 & !0o2000);
        self.set_attr(ino, &Changes { mode, ..Changes::default() }).map(drop)
    }

    fn asks_again(node: &Arc<Node>, name: &[u8]) {
        if name == acl::DEFAULT
            && let Some(dir) = node.state.lock().dir.as_mut()
        {
            dir.default_acl = None;
        }
    }

    /// The names, each with a NUL behind it.
    pub fn list_xattr(&self, ino: u64) -> Result<Vec<u8>> {
        let all = self.attributes(&self.node(ino)?, Target::list)?;
        let names = all.split(|byte| *byte == 0).filter(|name| !name.is_empty()).filter_map(shown);
        let names = names.filter(|name| self.options.acl || !name.starts_with(acl::PREFIX));
        Ok(names.flat_map(|name| [name, vec![0]].concat()).collect())
    }

    /// `flags` are those of `setxattr(2)`.
    pub fn set_xattr(&self, ino: u64, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        let name = stored(name).ok_or(Errno::PERM)?;
        let node = self.node(ino)?;
        let (list, whole) = match name.starts_with(acl::PREFIX) {
            true => acl::renamed(value, |who| self.stored_id(who)),
            false => (Vec::new(), true),
        };
        if !whole {
            return Err(Errno::INVAL);
        }
        self.settle()?;
        self.copy_up(&node)?;
        let value = if list.is_empty() { value } else { &list };
        self.attributes(&node, |target| target.set(&name, value, XattrFlags::from_bits_retain(flags)))?;
        Self::asks_again(&node, &name);
        Ok(())
    }

    pub fn remove_xattr(&self, ino: u64, name: &[u8]) -> Result<()> {
        let name = stored(name).ok_or(Errno::NODATA)?;
        let node = self.node(ino)?;
        match self.attributes(&node, |target| target.read(&name)) {
            // Taking away a list that is not there is no fault.
            Err(Errno::NODATA) if name.starts_with(acl::PREFIX) => return Ok(()),
            other => other?,
        };
        self.settle()?;
        self.copy_up(&node)?;
        self.attributes(&node, |target| target.remove(&name))?;
        Self::asks_again(&node, &name);
        Ok(())
    }

    /// Copies what users see, and what overlays inside this one left, to a file that is being copied up. What we may
    /// not set is left behind: such attributes mean nothing to a user without privilege.
    pub(crate) fn copy_xattrs(&self, node: &Arc<Node>, to: &At) -> Result<()> {
        let to = Target::at(to);
        self.attributes(node, |from| {
            let all = match from.list() {
                Err(Errno::OPNOTSUPP) => return Ok(()),
                other => other?,
            };
            for name in all.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
                if name.starts_with(OWN) && !name.starts_with(ESCAPED) {
                    continue;
                }
                let privileged =
                    [&b"security."[..], b"trusted.", b"system."].iter().any(|p| name.starts_with(p));
                let read = from.read(name).map(|value| match name.starts_with(acl::PREFIX) {
                    true => acl::known(&value),
                    false => value,
                });
                match read.and_then(|value| to.set(name, &value, XattrFlags::empty())) {
                    Ok(()) | Err(Errno::NODATA) => {}
                    Err(Errno::PERM | Errno::OPNOTSUPP | Errno::INVAL) if privileged => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        })
    }

    /// The value of an attribute that users do not see.
    pub(crate) fn own_xattr(&self, node: &Arc<Node>, name: &[u8]) -> Option<Vec<u8>> {
        self.attributes(node, |target| target.read(name)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_overlay_are_hidden_and_those_of_users_come_back() {
        assert_eq!(shown(b"user.overlay.opaque"), None);
        assert_eq!(shown(OVERRIDE), None);
        assert_eq!(stored(OVERRIDE), None);
        for name in [
            &b"user.overlay.opaque"[..],
            b"user.overlay.overlay.opaque",
            b"user.mine",
            b"security.capability",
        ] {
            assert_eq!(shown(&stored(name).unwrap()).as_deref(), Some(name));
        }
    }
}
