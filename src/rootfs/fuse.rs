//! The user-space overlay: rung T2, or, without a layer to write, what lies below rung T1. The container's child
//! opens /dev/fuse in its own user namespace and mounts it; the device goes to a helper of the monitor's, which joins
//! that user namespace, so that it holds the container's ids, and stays outside its pid namespace, so that the
//! container can't touch it.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use fuse_overlay::config::{Config, Directory, IdRange, Limits, Lower, Owner};
use fuse_overlay::overlay::Overlay;
use fuse_overlay::transport::{mounting, session};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use serde::{Deserialize, Serialize};

use crate::rootfs::host::{self, Piece};
use crate::spec::Root;
use crate::spec::resources::Throttle;
use crate::stage::{self, Number};
use crate::sys::mount::{FsOption, fsmount};
use crate::sys::{memory, process, socket};
use crate::userns::numbers::{Numbers, Run};

/// `argv[0]` of the helper.
pub const NAME: &str = "kelp-fuse";

/// How many threads the helper has: those that serve, one more near whoever asks and the one that says when, one that
/// waits for them, one that heeds, one that pauses.
pub fn threads() -> u64 {
    session::default_threads() as u64 + 5
}

/// One layer below, as the helper opens it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    #[serde(with = "crate::raw::path")]
    pub path: PathBuf,
    /// Paths below the layer that are not there.
    #[serde(with = "crate::raw::paths")]
    pub without: Vec<PathBuf>,
}

/// What the helper needs.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    pub layers: Vec<Layer>,
    pub access: Access,
    /// Holds `upper` and `work`.
    #[serde(with = "crate::raw::path")]
    pub folder: PathBuf,
    pub volatile: bool,
    /// Whether the user namespace has an id 0.
    pub has_root: bool,
    /// How the container sees the owners of files, if that is not how they carry them.
    pub numbers: Option<Numbers>,
    pub bytes: u64,
    pub inodes: u64,
    pub throttle: Throttle,
    pub device: Number,
    pub user_namespace: Number,
    /// A procfs that shows who asks.
    pub processes: Option<Number>,
    pub word: Number,
    /// Over which other rates arrive while it serves.
    pub rates: Number,
}

/// The other end of that line.
#[derive(Debug)]
pub struct Rates(pub OwnedFd);

impl Rates {
    /// Returns once these hold.
    pub fn change(&self, throttle: Throttle) -> Result<()> {
        let lost = "the server of its root can't be told";
        socket::send(self.0.as_fd(), &serde_json::to_vec(&throttle)?, None).context(lost)?;
        let (answer, _) = socket::receive(self.0.as_fd()).context(lost)?;
        anyhow::ensure!(!answer.is_empty(), lost);
        Ok(())
    }
}

/// The layers of `root`. Of the machine's own, all but the store, what `replaced` names and mounts of the kernel's
/// own file systems.
pub fn layers(root: &Root, store: &Path, replaced: &[Piece]) -> Vec<Layer> {
    match root {
        Root::Directory { path, .. } => {
            vec![Layer { path: path.clone(), without: Vec::new() }]
        }
        Root::Layers(layers) => {
            let layer = |path: &PathBuf| Layer { path: path.clone(), without: Vec::new() };
            layers.iter().rev().map(layer).collect()
        }
        Root::Host => {
            let folders = replaced.iter().map(|piece| piece.path().to_owned());
            let without = folders.chain([store.to_owned()]).chain(host::kernel_mounts()).collect();
            vec![Layer { path: PathBuf::from("/"), without }]
        }
    }
}

/// What a mount is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    Reads,
    Writes,
}

/// Opens the device in the caller's user namespace and makes a detached mount of it.
pub fn mount(access: Access) -> Result<(OwnedFd, OwnedFd)> {
    let device = mounting::open_device().context("open /dev/fuse")?;
    let mut options = Vec::new();
    for option in mounting::mount_options(&device).split(',') {
        options.push(match option.split_once('=') {
            Some((key, value)) => FsOption::Text(CString::new(key)?, CString::new(value)?),
            None => FsOption::Flag(CString::new(option)?),
        });
    }
    if access == Access::Reads {
        options.push(FsOption::Flag(c"ro".to_owned()));
    }
    let mount = fsmount(c"fuse", &options, 0).context("mount /dev/fuse")?;
    Ok((device, mount))
}

/// The helper: serves until the mount is gone.
pub fn serve() -> Result<()> {
    let request: Request = stage::request()?;
    let (word, rates) = (stage::take(request.word)?, stage::take(request.rates)?);
    let served = prepare(&request);
    let (overlay, device) = match served {
        Ok(served) => served,
        Err(error) => {
            stage::tell(word, &Err(error));
            return Ok(());
        }
    };
    let heeded = Arc::clone(&overlay);
    let ready = || {
        stage::tell(word, &Ok(()));
        let _ = std::thread::Builder::new().spawn(move || heed(&rates, &heeded));
    };
    let placing = match request.processes {
        Some(processes) => session::Placing::Near(stage::take(processes)?),
        None => session::Placing::Spread,
    };
    session::serve_counted(overlay, device, session::default_threads(), placing, Arc::default(), ready)
        .context("cannot serve the root file system")
}

/// The thread that waits: for the moment at which memory can be given back, and for other rates.
fn heed(line: &OwnedFd, overlay: &Overlay) {
    let settling = PollTimeout::try_from(memory::SETTLING).unwrap_or(PollTimeout::ZERO);
    let _ = poll(&mut [PollFd::new(line.as_fd(), PollFlags::POLLIN)], settling);
    // Only memory is at stake.
    let _ = memory::release_code();
    while let Ok((words, _)) = socket::receive(line.as_fd()) {
        let Ok(throttle) = serde_json::from_slice(&words) else { return };
        overlay.set_limits(limits(throttle, overlay.limits()));
        if socket::send(line.as_fd(), b"1", None).is_err() {
            return;
        }
    }
}

/// The rates, beside what the upper may hold.
fn limits(throttle: Throttle, room: Limits) -> Limits {
    Limits {
        read_bytes_per_second: throttle.read_bytes,
        write_bytes_per_second: throttle.write_bytes,
        reads_per_second: throttle.reads,
        writes_per_second: throttle.writes,
        ..room
    }
}

fn prepare(request: &Request) -> Result<(Arc<Overlay>, OwnedFd)> {
    process::parent_death_signal(libc::SIGKILL)?;
    let device = stage::take(request.device)?;
    let namespace = stage::take(request.user_namespace)?;
    nix::sched::setns(namespace, CloneFlags::CLONE_NEWUSER).context("join the user namespace")?;
    if request.has_root {
        process::setresgid(0)?;
        process::setresuid(0)?;
    }
    process::no_new_privileges()?;
    process::not_dumpable()?;
    let overlay = Overlay::new(config(request))?;
    process::parent_death_signal(libc::SIGKILL)?;
    Ok((Arc::new(overlay), device))
}

fn config(request: &Request) -> Config {
    let numbers = request.numbers.clone().unwrap_or_default();
    let (uid, gid) = numbers.of_root();
    let own =
        |name: &str| (request.access == Access::Writes).then(|| Directory::Path(request.folder.join(name)));
    let lower = |layer: &Layer| Lower {
        directory: Directory::Path(layer.path.clone()),
        xdev: false,
        exclude: layer.without.iter().map(|path| relative(path)).collect(),
        raw: false,
    };
    Config {
        lowers: request.layers.iter().map(lower).collect(),
        upper: own("upper"),
        work: own("work"),
        squash_unmapped: request.has_root.then_some(Owner { uid, gid }),
        uid_map: ranges(&numbers.uid),
        gid_map: ranges(&numbers.gid),
        limits: limits(
            request.throttle,
            Limits { bytes: request.bytes, inodes: request.inodes, ..Limits::default() },
        ),
        volatile: request.volatile,
        ..Config::default()
    }
}

pub fn ranges(runs: &[Run]) -> Vec<IdRange> {
    runs.iter().map(|run| IdRange { inside: run.shown, outside: run.carried, count: run.count }).collect()
}

fn relative(path: &Path) -> Vec<u8> {
    path.strip_prefix("/").unwrap_or(path).as_os_str().as_encoded_bytes().to_vec()
}
