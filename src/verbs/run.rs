//! `kelp run`: from a request to the exit status of the program, with nothing left behind. It puts rooms
//! together and prints nothing.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Child;

use anyhow::{Context, Result};

use crate::container::folder::Container;
use crate::container::{files, sweep, volume};
use crate::error::Error;
use crate::ids::{ContainerName, Name};
use crate::launch::parent::{self, Launched, Running, Watcher};
use crate::launch::plan::{self, Plan, Surroundings};
use crate::launch::stage;
use crate::network::engine::Engine;
use crate::paths::Paths;
use crate::rootfs::overlay::Persistence;
use crate::rootfs::rung::{self, Rung};
use crate::rootfs::{fuse, host};
use crate::spec::mount::{MountKind, Propagation};
use crate::spec::request::{Driver, Request, Storage, UserNamespace};
use crate::spec::resolve::{self, Facts};
use crate::spec::{Root, Sharing, Spec};
use crate::supervise::foreground::{self, Foreground};
use crate::supervise::{orphans, streams};
use crate::userns::maps::{self, IdMaps};

/// Runs `request` in the foreground; `warn` is told what is weaker than it could be.
///
/// # Errors
/// Whatever keeps the program from running; nothing of the container is left then.
pub fn run(request: &Request, warn: &mut dyn FnMut(&str)) -> Result<i32> {
    let signals = foreground::signals()?;
    let paths = Paths::find()?;
    let request = &with_volumes(request, &paths, volume::ensure)?;
    sweep::sweep(&paths)?;
    let mut maps = maps::choose(&request.userns)?;
    let mut container = Container::create(&paths, request.name.clone(), image(request), request.remove)?;
    let outcome = loop {
        match start(request, &paths, &mut container, &maps, &signals, warn) {
            Ok(Started::MapsRefused(error)) if request.userns == UserNamespace::Auto && !maps.one_id() => {
                warn(&format!("only one id is mapped: {error:#}"));
                maps = IdMaps::single(format!("{error:#}"));
            }
            Ok(Started::MapsRefused(error)) => break Err(error),
            Ok(Started::Ended(status)) => break Ok(status),
            Err(error) => break Err(error),
        }
    };
    close(container, &paths, &maps, outcome.as_ref().ok().copied(), warn)?;
    outcome
}

/// The plan of `request` as text, without running it.
pub fn explain(request: &Request) -> Result<String> {
    let paths = Paths::find()?;
    let request = &with_volumes(request, &paths, |paths, name| Ok(volume::folder(paths, name)))?;
    let maps = maps::choose(&request.userns)?;
    let id = ContainerName::fresh()?;
    let folder = paths.containers().join(id.as_str());
    let spec = resolve::resolve(request, &facts(id, &maps))?;
    let first = first_rung(&paths, &spec.root, &ladder(request)?);
    Ok(plan::explain(&plan_for(&spec, &folder, &maps, first, request.remove)?))
}

fn image(request: &Request) -> Option<&str> {
    Some(request.image.id.as_str()).filter(|id| !id.is_empty())
}

/// The request with each named volume as a bind of its folder.
fn with_volumes(
    request: &Request,
    paths: &Paths,
    folder: impl Fn(&Paths, &Name) -> Result<PathBuf>,
) -> Result<Request> {
    let mut request = request.clone();
    for mount in &mut request.mounts {
        if let MountKind::Volume(name) = &mount.kind {
            let source = folder(paths, name)?;
            mount.kind = MountKind::Bind { source, recursive: false, propagation: Propagation::Private };
        }
    }
    Ok(request)
}

enum Started {
    Ended(i32),
    MapsRefused(anyhow::Error),
}

fn facts(id: ContainerName, maps: &IdMaps) -> Facts {
    let shared = ["/dev/shm", "/dev/mqueue"].map(PathBuf::from);
    Facts {
        id,
        one_id: maps.one_id() && maps.has_root(),
        term: std::env::var_os("TERM"),
        shared_memory: shared.into_iter().filter(|path| path.exists()).collect(),
    }
}

fn start(
    request: &Request,
    paths: &Paths,
    container: &mut Container,
    maps: &IdMaps,
    signals: &nix::sys::signalfd::SignalFd,
    warn: &mut dyn FnMut(&str),
) -> Result<Started> {
    if let Some(because) = &maps.weaker_because {
        warn(&format!("only one id is mapped: {because}"));
    }
    let spec = resolve::resolve(request, &facts(container.id.clone(), maps))?;
    container.watched.stop_signal = spec.stop_signal;
    if spec.namespaces.pid == Sharing::Host {
        orphans::adopt()?;
    }
    let ladder = ladder(request)?;
    let from = first_rung(paths, &spec.root, &ladder);
    let mut reasons = Vec::new();
    for rung in ladder.iter().skip_while(|rung| **rung != from) {
        let plan = plan_for(&spec, &container.folder, maps, *rung, request.remove)?;
        let (inner, pumps) = streams::without_terminal(request.interactive)?;
        let inner = if request.terminal { parent::no_streams()? } else { inner };
        let mut watch = Watch {
            container,
            warn,
            root: &spec.root,
            storage: request.storage,
            maps,
            store: &paths.store,
            namespace: None,
            server: None,
            network: spec.engine.as_ref(),
            engine: None,
        };
        let launched = parent::launch(&plan, inner, signals, &mut watch);
        let serving = (Server(watch.server), watch.engine);
        let called =
            container.watched.name.as_ref().map_or(container.id.short(), |name| name.as_str()).to_owned();
        match launched.with_context(|| format!("cannot start {called}"))? {
            Launched::Running(running) => {
                let status = serve(&spec, &running, signals, pumps).map(Started::Ended);
                drop(serving);
                return status;
            }
            Launched::MapsRefused(error) => return Ok(Started::MapsRefused(error)),
            Launched::Interrupted(signal) => return Ok(Started::Ended(128 + signal)),
            Launched::RootRefused { reason, lasting } => {
                drop(serving);
                warn(&format!("{rung} is refused here: {reason}"));
                // A full runtime folder only means that the rung is tried again next time.
                if lasting {
                    let _ = rung::refuse(paths, *rung, &spec.root, &reason);
                }
                container.clear_layers(maps)?;
                reasons.push(format!("{rung}: {reason}"));
            }
        }
    }
    Err(Error::host(format!("no way to make the root works here ({})", reasons.join("; ")))
        .hint("see `kelp doctor`")
        .into())
}

/// The rungs for what was asked.
fn ladder(request: &Request) -> Result<Vec<Rung>> {
    let only = request.storage.driver.map(|driver| match driver {
        Driver::Overlay => Rung::KernelOverlay,
        Driver::Fuse => Rung::FuseOverlay,
        Driver::Copy => Rung::Copy,
    });
    let ladder = rung::ladder(&request.root, only);
    if ladder.is_empty() {
        return Err(Error::usage("--storage-driver: that driver can't make this root").into());
    }
    Ok(ladder)
}

/// A rung that was refused for this root on this boot is not tried again.
fn first_rung(paths: &Paths, root: &Root, ladder: &[Rung]) -> Rung {
    let refused = rung::refused(paths, root).map(|refusal| refusal.rung);
    let next = ladder.iter().position(|rung| Some(*rung) == refused).and_then(|at| ladder.get(at + 1));
    next.or(ladder.first()).copied().unwrap_or(Rung::Through)
}

fn plan_for(spec: &Spec, folder: &Path, maps: &IdMaps, rung: Rung, remove: bool) -> Result<Plan> {
    let pieces = match (&spec.root, rung) {
        (Root::Host, Rung::FuseOverlay) => host::replaced()?,
        (Root::Host, _) => host::pieces()?,
        _ => Vec::new(),
    };
    let persistence = if remove { Persistence::Volatile } else { Persistence::Kept };
    let folder = folder.to_owned();
    Ok({
        let files = files::texts(spec);
        plan::from_spec(
            spec,
            &Surroundings {
                folder,
                rung,
                persistence,
                maps: maps.clone(),
                pieces,
                files,
                seal: spec.init || stage::needs_seal(maps)?,
            },
        )
    })
}

fn serve(
    spec: &Spec,
    running: &Running,
    signals: &nix::sys::signalfd::SignalFd,
    mut pumps: Vec<streams::Pump>,
) -> Result<i32> {
    let mut raw = None;
    if let Some(master) = &running.master {
        pumps = streams::with_terminal(master, spec.process.stdin)?;
        raw = if spec.process.stdin { streams::Raw::enter()? } else { None };
    }
    let status = Foreground { running, signals, pumps, timeout: spec.timeout }.serve();
    if status.is_err() {
        let _ = crate::sys::process::pidfd_send_signal(running.pidfd.as_fd(), libc::SIGKILL);
        let _ = foreground::reap(running.pidfd.as_fd());
    }
    drop(raw);
    if spec.namespaces.pid == Sharing::Host {
        orphans::end();
    }
    status
}

fn close(
    container: Container,
    paths: &Paths,
    maps: &IdMaps,
    status: Option<i32>,
    warn: &mut dyn FnMut(&str),
) -> Result<()> {
    if container.watched.remove || status.is_none() {
        if let Err(error) = container.remove(paths, Some(maps)) {
            warn(&format!("{error:#}"));
        }
        return Ok(());
    }
    container.keep_exit(status).context("cannot keep the exit status")
}

struct Watch<'a, 'b> {
    container: &'a mut Container,
    warn: &'b mut dyn FnMut(&str),
    root: &'a Root,
    storage: Storage,
    maps: &'a IdMaps,
    store: &'a Path,
    /// Opened while the child can still be looked at: later it is not dumpable.
    namespace: Option<std::fs::File>,
    server: Option<Child>,
    network: Option<&'a kelp_net::config::Config>,
    engine: Option<Engine>,
}

impl Watcher for Watch<'_, '_> {
    fn cloned(&mut self, pid: i32) -> Result<()> {
        self.namespace = Some(std::fs::File::open(format!("/proc/{pid}/ns/user"))?);
        if let Some(config) = self.network {
            self.engine = Some(Engine::start(config, pid)?);
        }
        self.container.watch(pid)
    }

    fn warn(&mut self, sentence: &str) {
        (self.warn)(sentence);
    }

    fn ready(&mut self) -> Result<()> {
        self.engine.as_mut().map_or(Ok(()), Engine::wait)
    }

    fn serve_root(&mut self, device: OwnedFd) -> Result<()> {
        let namespace = self.namespace.as_ref().context("the user namespace was not kept")?;
        let (hear, word) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let request = fuse::Request {
            layers: fuse::layers(self.root, self.store, &host::replaced()?),
            folder: self.container.folder.clone(),
            volatile: self.container.watched.remove,
            has_root: self.maps.has_root(),
            bytes: self.storage.bytes,
            inodes: self.storage.inodes,
            device: device.as_raw_fd(),
            user_namespace: namespace.as_raw_fd(),
            word: word.as_raw_fd(),
        };
        let kept = [device.as_fd(), namespace.as_fd(), word.as_fd()];
        self.server = Some(crate::stage::start(fuse::NAME, &request, &kept)?);
        drop((device, word));
        crate::stage::hear(hear)
    }

    fn terminal(&mut self, master: &OwnedFd) {
        foreground::resize(master);
    }
}

/// The server of a root; it ends with the container.
struct Server(Option<Child>);

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(server) = &mut self.0 {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}
