//! The union itself: lowers, upper, the nodes that are known, and the ways from a node to a real file. It knows no
//! FUSE: numbers, names and plain values in, plain values out. The operations are in the rooms beside it (`find`,
//! `create`, `remove`, `rename`, `copyup`, `metadata`, `contents`, `directory`, `xattr`), each an `impl Overlay`.

use crate::attr::{WANTED, is_whiteout};
use crate::cache::Descriptors;
use crate::config::{Config, Owners};
use crate::deferred::Deferred;
use crate::limits::Quota;
use crate::node::{Dir, Node, State, Table, Upper};
use crate::number::{Numbers, ROOT};
use crate::owners::Ids;
use crate::place::{OPEN_PATH, Place};
use crate::records::Records;
use crate::upper::UpperLayer;
use parking_lot::{Mutex, RwLock};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Statx, openat, statx};
use rustix::io::{Errno, Result};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A union of directories. Cheap to share between threads; every operation takes `&self`.
pub struct Overlay {
    pub(crate) table: Table,
    pub(crate) numbers: Numbers,
    pub(crate) descriptors: Descriptors,
    pub(crate) upper: Option<UpperLayer>,
    pub(crate) records: Records,
    pub(crate) ids: Ids,
    pub(crate) quota: Quota,
    pub(crate) deferred: Deferred,
    pub(crate) options: Options,
    /// Taken for writing while a directory moves, for reading while a path is walked.
    pub(crate) tree: RwLock<()>,
    /// One copy-up of a node at a time; striped by number.
    pub(crate) copying: Vec<Mutex<()>>,
    /// The ids that a new file of ours gets by itself.
    pub(crate) own: (u32, u32),
}

/// The switches of a `Config` that operations ask for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    pub(crate) owners: Owners,
    pub(crate) volatile: bool,
    pub(crate) coherent: bool,
    pub(crate) writeback: bool,
    pub(crate) acl: bool,
    pub(crate) redirect: bool,
    /// A lower directory that we may not read counts as empty when it is removed.
    pub(crate) unreadable_is_empty: bool,
}

/// How to reach a file of the upper.
pub(crate) enum At {
    Name(Arc<OwnedFd>, Arc<[u8]>),
    Held(Arc<OwnedFd>),
}

impl Overlay {
    /// Opens the layers and takes the work directory. Nothing is written before every layer was found.
    pub fn new(config: Config) -> anyhow::Result<Self> {
        let options = Options::of(&config);
        let ids = Ids::new(&config);
        let quota = Quota::new(config.limits);
        let layers = crate::layers::open(config.lowers)?;
        let numbers = Numbers::default();
        let upper = crate::layers::open_upper(config.upper, config.work, config.volatile)?;
        if let Some(upper) = &upper {
            numbers.of(&upper.stat);
        }
        for layer in &layers {
            numbers.publish(layer.device, 0);
        }
        let records = match &upper {
            Some(upper) => Records::open(&upper.work).map_err(anyhow::Error::from)?,
            None => Records::default(),
        };
        if let Some(upper) = &upper {
            quota.count(&upper.root)?;
        }
        let places = layers.into_iter().map(|layer| Place::root(Arc::new(layer))).collect();
        Ok(Self {
            table: Table::new(Arc::new(root_node(upper.as_ref(), places))),
            numbers,
            descriptors: Descriptors::new(crate::sys::descriptor_budget()),
            upper,
            records,
            ids,
            quota,
            deferred: Deferred::default(),
            options,
            tree: RwLock::new(()),
            copying: (0..64).map(|_| Mutex::new(())).collect(),
            own: crate::sys::file_ids(),
        })
    }

    pub(crate) fn node(&self, ino: u64) -> Result<Arc<Node>> {
        self.table.node(ino)
    }

    /// The kernel gives back `count` references that lookups handed out.
    pub fn forget(&self, ino: u64, count: u64) {
        if self.table.forget(ino, count) {
            self.wake_settler();
        }
    }

    /// How many nodes the kernel holds.
    pub fn nodes(&self) -> usize {
        self.table.len()
    }

    pub(crate) fn upper_layer(&self) -> Result<&UpperLayer> {
        self.upper.as_ref().ok_or(Errno::ROFS)
    }

    /// The upper's directory behind `node`, if it has one.
    pub(crate) fn upper_dir(&self, node: &Arc<Node>) -> Result<Option<Arc<OwnedFd>>> {
        if let Some(known) = known_fd(node) {
            return Ok(known);
        }
        let _still = self.tree.read();
        self.walk(node)
    }

    fn walk(&self, node: &Arc<Node>) -> Result<Option<Arc<OwnedFd>>> {
        if let Some(known) = known_fd(node) {
            return Ok(known);
        }
        let (parent, name) = {
            let state = node.state.lock();
            let first = state.names.first().ok_or(Errno::NOENT)?;
            (first.parent.clone(), first.name.clone())
        };
        let above = self.walk(&parent)?.ok_or(Errno::STALE)?;
        let fd = Arc::new(openat(&above, &*name, OPEN_PATH, Mode::empty())?);
        if let Some(dir) = node.state.lock().dir.as_mut() {
            dir.fd = Some(fd.clone());
        }
        self.descriptors.cached(node.clone());
        Ok(Some(fd))
    }

    /// Runs `act` on the upper's file behind `node`, which cannot be renamed meanwhile. `None` if it is not in the upper.
    pub(crate) fn at_upper<T>(
        &self,
        node: &Arc<Node>,
        mut act: impl FnMut(&At, &mut State) -> Result<T>,
    ) -> Result<Option<T>> {
        loop {
            let (parent, name) = {
                let mut state = node.state.lock();
                match &state.upper {
                    Upper::Absent => return Ok(None),
                    Upper::Held(fd) => {
                        let at = At::Held(fd.clone());
                        return act(&at, &mut state).map(Some);
                    }
                    Upper::Named => {}
                }
                let name = state.name_up().ok_or(Errno::STALE)?;
                (name.parent.clone(), name.name.clone())
            };
            // The parent's descriptor first: its state may not be locked for long under ours.
            let above = self.upper_dir(&parent)?.ok_or(Errno::STALE)?;
            let mut state = node.state.lock();
            let still = state.name_mut(&parent, &name).is_some_and(|found| found.up);
            if still && matches!(state.upper, Upper::Named) {
                return act(&At::Name(above, name), &mut state).map(Some);
            }
        }
    }

    /// The attributes of the real file behind `node`, and whether it is the upper's.
    pub(crate) fn stat(&self, node: &Arc<Node>) -> Result<(Statx, bool)> {
        if node.is_dir()
            && let Some(fd) = self.upper_dir(node)?
        {
            return Ok((statx(&fd, c"", AtFlags::EMPTY_PATH, WANTED)?, true));
        }
        if let Some(stat) = self.at_upper(node, |at, _| at.stat())? {
            return Ok((stat, true));
        }
        let (place, lower) = {
            let state = node.state.lock();
            let place = state.dir.as_ref().and_then(|dir| dir.places.first().cloned());
            (place, state.lower.clone())
        };
        if let Some(place) = place {
            let fd = place.fd(&self.descriptors)?;
            return Ok((statx(&fd, c"", AtFlags::EMPTY_PATH, WANTED)?, false));
        }
        let (place, name) = lower.ok_or(Errno::STALE)?;
        Ok((place.stat(&self.descriptors, &name)?.ok_or(Errno::STALE)?, false))
    }

    pub(crate) fn copy_lock(&self, node: &Node) -> &Mutex<()> {
        self.copying.get((node.ino % 64) as usize).expect("64 stripes")
    }
}

/// `Some` if the answer needs no walk: the descriptor is cached, or there is none.
fn known_fd(node: &Node) -> Option<Option<Arc<OwnedFd>>> {
    let state = node.state.lock();
    match &state.upper {
        Upper::Absent => Some(None),
        Upper::Held(fd) => Some(Some(fd.clone())),
        Upper::Named => state.dir.as_ref().and_then(|dir| dir.fd.clone()).map(Some),
    }
}

fn root_node(upper: Option<&UpperLayer>, places: Vec<Arc<Place>>) -> Node {
    let state = State {
        names: Vec::new(),
        upper: upper.map_or(Upper::Absent, |upper| Upper::Held(upper.root.clone())),
        upper_ino: upper.map_or(0, |upper| upper.stat.stx_ino),
        lower: None,
        data: None,
        links: None,
        dir: Some(Box::new(Dir { places, ..Dir::default() })),
    };
    Node::new(ROOT, FileType::Directory, state)
}

impl Options {
    fn of(config: &Config) -> Self {
        Self {
            owners: config.owners,
            volatile: config.volatile,
            coherent: config.coherent,
            // Late errors would hide a full quota from the writer.
            writeback: config.writeback && config.limits.bytes == 0 && config.limits.inodes == 0,
            redirect: config.redirect,
            // Where files carry other owners than they are shown with, no list of ids can be right.
            acl: config.acl
                && config.owners == Owners::Real
                && config.squash_uid.is_none()
                && config.squash_gid.is_none(),
            unreadable_is_empty: config.squash_unmapped.is_some(),
        }
    }
}

impl At {
    pub(crate) fn stat(&self) -> Result<Statx> {
        match self {
            Self::Name(fd, name) => statx(fd, &**name, AtFlags::SYMLINK_NOFOLLOW, WANTED),
            Self::Held(fd) => statx(fd, c"", AtFlags::EMPTY_PATH, WANTED),
        }
    }

    /// Opens a regular file. A held file may be known by an `O_PATH` descriptor only, so it is opened through /proc.
    pub(crate) fn open(&self, flags: OFlags) -> Result<OwnedFd> {
        match self {
            Self::Name(fd, name) => {
                openat(fd, &**name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            }
            Self::Held(fd) => openat(
                rustix::fs::CWD,
                crate::sys::proc_path(fd, b""),
                flags | OFlags::CLOEXEC,
                Mode::empty(),
            ),
        }
    }

    /// A path for the calls that take no descriptor of a directory. `follow` says whether its last link must be
    /// followed: the magic link of a held file must, and a file's own name must not.
    pub(crate) fn path(&self) -> (Vec<u8>, bool) {
        match self {
            Self::Name(fd, name) => (crate::sys::proc_path(fd, name), false),
            Self::Held(fd) => (crate::sys::proc_path(fd, b""), true),
        }
    }
}

/// Does a whiteout stand in the upper under this name?
pub(crate) fn whiteout_at(fd: &OwnedFd, name: &[u8]) -> Result<bool> {
    let stat = crate::place::absent(statx(fd, name, AtFlags::SYMLINK_NOFOLLOW, WANTED))?;
    Ok(stat.is_some_and(|stat| is_whiteout(&stat)))
}
