//! `kelp run`: from a request to the exit status of the program, with nothing left behind. It puts rooms
//! together and prints nothing.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::container::folder::Container;
use crate::container::{files, sweep, volume};
use crate::error::Error;
use crate::ids::{ContainerName, Name};
use crate::launch::parent::{self, Launched, Running, Watcher};
use crate::launch::plan::{self, Plan, Surroundings};
use crate::launch::stage;
use crate::paths::Paths;
use crate::rootfs::host;
use crate::rootfs::overlay::Persistence;
use crate::rootfs::rung::{self, Rung};
use crate::spec::mount::{MountKind, Propagation};
use crate::spec::request::{Request, UserNamespace};
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
    let mut container = Container::create(&paths, request.name.clone(), request.remove)?;
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
    let first = first_rung(&paths, rung::ladder(&spec.root));
    Ok(plan::explain(&plan_for(&spec, &folder, &maps, first, request.remove)?))
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
    let ladder = rung::ladder(&spec.root);
    let from = first_rung(paths, ladder);
    let mut reasons = Vec::new();
    for rung in ladder.iter().skip_while(|rung| **rung != from) {
        let plan = plan_for(&spec, &container.folder, maps, *rung, request.remove)?;
        let (inner, pumps) = streams::without_terminal(request.interactive)?;
        let inner = if request.terminal { parent::no_streams()? } else { inner };
        let mut watch = Watch { container, warn };
        match parent::launch(&plan, inner, signals, &mut watch)? {
            Launched::Running(running) => {
                return serve(&spec, &running, signals, pumps).map(Started::Ended);
            }
            Launched::MapsRefused(error) => return Ok(Started::MapsRefused(error)),
            Launched::Interrupted(signal) => return Ok(Started::Ended(128 + signal)),
            Launched::RootRefused(reason) => {
                rung::refuse(paths, *rung, &reason)?;
                container.clear_layers(maps)?;
                reasons.push(format!("{rung}: {reason}"));
            }
        }
    }
    Err(Error::host(format!("no way to make the root works here ({})", reasons.join("; ")))
        .hint("see `kelp doctor`")
        .into())
}

/// A rung that was refused on this boot is not tried again.
fn first_rung(paths: &Paths, ladder: &[Rung]) -> Rung {
    let refused = rung::refused(paths).map(|refusal| refusal.rung);
    let next = ladder.iter().position(|rung| Some(*rung) == refused).and_then(|at| ladder.get(at + 1));
    next.or(ladder.first()).copied().unwrap_or(Rung::Through)
}

fn plan_for(spec: &Spec, folder: &Path, maps: &IdMaps, rung: Rung, remove: bool) -> Result<Plan> {
    let pieces = if spec.root == Root::Host { host::pieces()? } else { Vec::new() };
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
}

impl Watcher for Watch<'_, '_> {
    fn cloned(&mut self, pid: i32) -> Result<()> {
        self.container.watch(pid)
    }

    fn warn(&mut self, sentence: &str) {
        (self.warn)(sentence);
    }

    fn terminal(&mut self, master: &OwnedFd) {
        foreground::resize(master);
    }
}
