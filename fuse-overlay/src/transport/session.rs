//! Serving a mount: threads on a device until it is unmounted. kelp mounts by itself and hands the device in; the
//! program mounts first, or lets the setuid helper do it.

use crate::overlay::Overlay;
use crate::transport::counters::Counters;
use crate::transport::fuser::Wire;
use crate::transport::pause::Pause;
use crate::transport::placement::Placement;
use fuser::{MountOption, Session, SessionACL};
use rustix::fs::{Mode, OFlags, open};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// As good as for ever; the kernel adds it to its clock.
const FOREVER: Duration = Duration::from_secs(1 << 30);

/// How many threads serve a mount on this machine: more only rotate and cool the caches.
pub fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().min(4))
}

/// Where the threads of a mount run (`placement`).
#[derive(Debug)]
pub enum Placing {
    Spread,
    /// Near the program that asks, while no more do than there are CPUs. The device must have been mounted in the pid
    /// namespace that this procfs shows.
    Near(OwnedFd),
}

impl Placing {
    /// Near where the caller mounts the device itself and sees its own /proc.
    pub fn here() -> Self {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        open("/proc", flags, Mode::empty()).map_or(Self::Spread, Self::Near)
    }
}

/// Serves a device that is already mounted, until it is unmounted, with counters that somebody prints, and a call when
/// the kernel was answered first.
pub fn serve_counted(
    overlay: Arc<Overlay>,
    device: OwnedFd,
    threads: usize,
    placing: Placing,
    counters: Arc<Counters>,
    ready: impl FnOnce(),
) -> io::Result<()> {
    let (mut wire, mut config) = prepare(overlay.clone(), threads, counters)?;
    if let (Placing::Near(proc), true) = (placing, threads > 1) {
        wire.placement = Placement::start(&device, proc)?;
        // One more than asked for: the near thread serves while the others rest.
        config.n_threads = Some(threads + usize::from(wire.placement.is_some()));
    }
    let pause = wire.pause.clone();
    let session = Session::from_fd(wire, device, SessionACL::All, config)?;
    ready();
    run(session, &overlay, &pause)
}

/// Serves until the end, with the thread that settles removals, and settles the last ones.
fn run(session: Session<Wire>, overlay: &Arc<Overlay>, pause: &Pause) -> io::Result<()> {
    let settler = overlay.clone();
    let settling =
        std::thread::Builder::new().name("settle".into()).spawn(move || settler.settle_in_time())?;
    let outcome = session.run();
    pause.close();
    overlay.stop_settling();
    let _panicked = settling.join();
    outcome.and(overlay.settle().map_err(io::Error::from))
}

/// Mounts by the setuid helper `fusermount3` and serves, where nothing else may mount.
pub fn serve_by_fusermount(
    overlay: Arc<Overlay>,
    target: &Path,
    threads: usize,
    counters: Arc<Counters>,
    ready: impl FnOnce(),
) -> io::Result<()> {
    let (wire, mut config) = prepare(overlay.clone(), threads, counters)?;
    let pause = wire.pause.clone();
    config.acl = SessionACL::Owner;
    config.mount_options = vec![MountOption::DefaultPermissions, MountOption::FSName("fuse-overlay".into())];
    let session = Session::new(wire, target, &config)?;
    ready();
    run(session, &overlay, &pause)
}

fn prepare(
    overlay: Arc<Overlay>,
    threads: usize,
    counters: Arc<Counters>,
) -> io::Result<(Wire, fuser::Config)> {
    // Modes arrive finished from the kernel.
    rustix::process::umask(rustix::fs::Mode::empty());
    let ttl = if overlay.is_coherent() { Duration::from_secs(1) } else { FOREVER };
    let wire = Wire { overlay, ttl, counters, pause: Pause::start()?, placement: None };
    let mut config = fuser::Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(threads.max(1));
    config.clone_fd = threads > 1;
    Ok((wire, config))
}
