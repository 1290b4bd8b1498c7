//! One start of a container: from its request to a running program, down the ladder of roots, with everything
//! outside that the program needs. Nothing is kept of a start that failed.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::Child;
use std::time::Instant;

use anyhow::{Context, Result};
use nix::sys::signalfd::siginfo;

use crate::cgroup::group::Group;
use crate::cgroup::hold::{self, Enforced, Held, Hold};
use crate::cgroup::scope::Standing;
use crate::container::call::Line;
use crate::container::folder::Container;
use crate::container::volume::{self, Volume};
use crate::container::{files, published};
use crate::error::Error;
use crate::ids::ContainerName;
use crate::launch::parent::{self, Launched, Running, Watcher};
use crate::launch::plan::{self, First, Plan, SecretFile, Surroundings, Upper};
use crate::launch::{orphans, stage};
use crate::network::engine::{self, Engine};
use crate::network::peer;
use crate::paths::Paths;
use crate::rootfs::fuse::{self, Access, Rates};
use crate::rootfs::host;
use crate::rootfs::overlay::Persistence;
use crate::rootfs::rung::{self, Owners, Rung};
use crate::spec::mount::{MountKind, Propagation};
use crate::spec::request::{Request, Storage};
use crate::spec::resolve;
use crate::spec::resources::{Limits, Resources, Throttle};
use crate::spec::{Root, Sharing, Spec, defaults};
use crate::supervise::monitor::Monitor;
use crate::supervise::restraint::Restraint;
use crate::supervise::service::Server;
use crate::supervise::{secrets, signals};
use crate::sys::socket;
use crate::userns::maps::IdMaps;
use crate::userns::numbers::Numbers;
use crate::verbs::neighbour::{Asked, Neighbour};
use crate::verbs::serving::{RootServer, Serving};
use crate::view::numbers::Subject;
use crate::view::server::View;

/// A program that runs, and what it needs outside.
#[derive(Debug)]
pub struct Begun {
    pub running: Running,
    pub spec: Spec,
    serving: Serving,
}

/// How a start ended.
#[derive(Debug)]
pub enum Start {
    Begun(Box<Begun>),
    /// A signal came before the program ran.
    Interrupted(i32),
}

enum Attempt {
    Done(Start),
    MapsRefused(anyhow::Error),
}

/// Starts the program of `container`; `warn` is told what is weaker than it could be.
///
/// # Errors
/// Whatever keeps the program from running.
pub fn begin(
    paths: &Paths,
    container: &mut Container,
    monitor: &mut Monitor,
    warn: &mut dyn FnMut(&str),
) -> Result<Start> {
    let id = container.made.id.clone();
    let mut request =
        with_volumes(&container.made.request, paths, &id, |volume| volume::create(paths, volume))?;
    let mut asked = Asked::of(paths, &mut request)?;
    peer::say_unkept(asked.request, warn)?;
    let standing = monitor.standing();
    let mut hold = hold(asked.request, paths, container, standing, warn)?;
    let deadline = Instant::now() + hold::PATIENCE;
    loop {
        let attempt = attempt(&asked, paths, container, &hold, monitor, warn);
        if attempt.is_err() && Instant::now() < deadline && hold.forget_removed() {
            hold = self::hold(asked.request, paths, container, standing, warn)?;
            continue;
        }
        match attempt? {
            Attempt::MapsRefused(error) if asked.may_have_one_id() => {
                warn(&format!("only one id is mapped: {error:#}"));
                asked.maps = IdMaps::single(format!("{error:#}"));
            }
            Attempt::MapsRefused(error) => return Err(error),
            Attempt::Done(start) => {
                let first = container.status.process.as_ref().map_or(0, |process| process.pid);
                monitor.restraint = Restraint::new(hold, first);
                return Ok(start);
            }
        }
    }
}

/// What is to hold the container's limits, made before anything of it is.
fn hold(
    request: &Request,
    paths: &Paths,
    container: &mut Container,
    standing: Standing,
    warn: &mut dyn FnMut(&str),
) -> Result<Hold> {
    let resources = Resources { limits: container.limits(), ..request.resources.clone() };
    let name = format!("kelp-{}", container.made.id);
    let hold = hold::take(&resources, Held { name: &name, store: &paths.store, standing })?;
    say_unenforced(&hold.served, warn);
    container.status.enforced = hold.served.clone();
    container.status.group = hold.group.clone();
    container.status.oom_killed = false;
    container.status.memory_peak = None;
    Ok(hold)
}

fn say_unenforced(enforced: &Enforced, warn: &mut dyn FnMut(&str)) {
    for flag in hold::unenforced(enforced) {
        warn(&format!("nothing enforces --{flag} here: see `kelp doctor`"));
    }
}

/// The plan of `request` as text, without running it.
pub fn explain(request: &Request) -> Result<String> {
    let paths = Paths::find()?;
    let id = ContainerName::fresh()?;
    let mut request = with_volumes(request, &paths, &id, |_| Ok(()))?;
    let asked = Asked::of(&paths, &mut request)?;
    let (request, maps) = (asked.request, &asked.maps);
    let folder = paths.containers().join(id.as_str());
    let spec = resolve::resolve(request, &asked.facts(id))?;
    let ladder = ladder(request, numbers(request, maps)?.as_ref())?;
    let first = first_rung(&paths, &spec.root, &ladder);
    Ok(plan::explain(&plan_for(
        &spec,
        &folder,
        maps,
        first,
        Layer { upper: Upper::Fresh, remove: request.remove },
        secrets::files(&paths, request)?,
    )?))
}

/// The request with each volume as a bind of its folder, after `prepare`.
fn with_volumes(
    request: &Request,
    paths: &Paths,
    id: &ContainerName,
    prepare: impl Fn(&Volume) -> Result<()>,
) -> Result<Request> {
    let mut request = request.clone();
    for mount in &mut request.mounts {
        if let Some(volume) = volume::of(mount, id) {
            prepare(&volume)?;
            let source = volume::folder(paths, &volume.name);
            mount.kind = MountKind::Bind { source, recursive: false, propagation: Propagation::Private };
        }
    }
    Ok(request)
}

fn attempt(
    asked: &Asked<'_>,
    paths: &Paths,
    container: &mut Container,
    hold: &Hold,
    monitor: &mut Monitor,
    warn: &mut dyn FnMut(&str),
) -> Result<Attempt> {
    let (request, maps) = (asked.request, &asked.maps);
    if let Some(because) = &maps.weaker_because {
        warn(&format!("only one id is mapped: {because}"));
    }
    let mut spec = resolve::resolve(request, &asked.facts(container.made.id.clone()))?;
    let secrets = secrets::files(paths, request)?;
    secrets::add_variables(&secrets::variables(paths, request)?, &mut spec.process.environment);
    spec.process.inherited = hold.inherited.clone();
    let group = hold.group.as_ref().map(Group::open).transpose()?;
    if group.is_some() {
        defaults::add_cgroup(&mut spec.mounts);
    }
    if spec.namespaces.pid == Sharing::Host {
        orphans::adopt()?;
    }
    // The layer of an earlier start can be used on the rung that made it only.
    let used = container.status.rung;
    let numbers = numbers(request, maps)?;
    let mut ladder = used.map_or_else(|| ladder(request, numbers.as_ref()), |rung| Ok(vec![rung]))?;
    if request.resources.strict && hold.served != hold.enforced {
        leave_out_the_server(&mut ladder)?;
    }
    let from = if hold.wants_server() {
        // Only our own overlay can be slow on purpose.
        ladder.sort_by_key(|rung| *rung != Rung::FuseOverlay);
        ladder.first().copied().unwrap_or(Rung::Through)
    } else {
        used.unwrap_or_else(|| first_rung(paths, &spec.root, &ladder))
    };
    let upper = if used.is_some() { Upper::Used } else { Upper::Fresh };
    let may_clear = used.is_none() && !container.is_filled();
    let mut reasons = Vec::new();
    for rung in ladder.iter().skip_while(|rung| **rung != from) {
        say_owners(*rung, numbers.as_ref(), warn);
        spec.process.inherited.processes = most_processes(hold, &spec, *rung);
        let layer = Layer { upper, remove: request.remove };
        let plan = plan_for(&spec, &container.folder, maps, *rung, layer, secrets.clone())?;
        let streams = monitor.connect(request.terminal, request.interactive)?;
        let (called, limits) = (container.name(), container.limits());
        let mut watch = Watch {
            container,
            warn,
            spec: &spec,
            neighbour: asked.neighbour.as_ref(),
            numbers: numbers.clone(),
            storage: request.storage,
            throttle: hold.throttle,
            access: if rung.is_kernels() { Access::Reads } else { Access::Writes },
            maps,
            store: &paths.store,
            namespace: None,
            server: None,
            rates: None,
            engine: None,
            window: monitor.window,
            group: group.as_ref(),
            view: spec.view.then(|| View::new(subject(hold, limits))),
            calls: Vec::new(),
        };
        let launched = parent::launch(&plan, streams, &monitor.signals, &mut watch);
        let serving = Serving { root: RootServer(watch.server), engine: watch.engine };
        (monitor.view, monitor.rates) = (watch.view, watch.rates);
        watch.calls.into_iter().for_each(|line| monitor.admit(line));
        if may_clear && !matches!(launched, Ok(Launched::Running(_))) {
            let _ = container.clear_layers(maps);
        }
        match launched.with_context(|| format!("cannot start {called}"))? {
            Launched::Running(running) => {
                container.status.rung = Some(*rung);
                if *rung != Rung::FuseOverlay {
                    container.status.enforced = hold.enforced.clone();
                    say_unenforced(&hold.lost(), warn);
                }
                return Ok(Attempt::Done(Start::Begun(Box::new(Begun { running, spec, serving }))));
            }
            Launched::MapsRefused(error) => return Ok(Attempt::MapsRefused(error)),
            Launched::Interrupted(signal) => return Ok(Attempt::Done(Start::Interrupted(signal))),
            Launched::RootRefused { reason, lasting } => {
                drop(serving);
                warn(&format!("{rung} is refused here: {reason}"));
                // A full runtime folder only means that the rung is tried again next time.
                if lasting {
                    let _ = rung::refuse(paths, *rung, &spec.root, &reason);
                }
                reasons.push(format!("{rung}: {reason}"));
            }
        }
    }
    Err(Error::host(format!("no way to make the root works here ({})", reasons.join("; ")))
        .hint("see `kelp doctor`")
        .into())
}

fn say_owners(rung: Rung, numbers: Option<&Numbers>, warn: &mut dyn FnMut(&str)) {
    if rung == Rung::KernelOverlay && numbers.is_some() {
        warn("kernel overlay shows the image's files with other owners under these id maps");
    }
}

/// How a container with these maps is to see the owners of an image's files, which every container has in common.
fn numbers(request: &Request, maps: &IdMaps) -> Result<Option<Numbers>> {
    match request.root {
        Root::Layers(_) => Numbers::of_image(&request.userns, maps),
        _ => Ok(None),
    }
}

/// The helpers are in the container's user namespace, where the kernel counts its processes.
fn most_processes(hold: &Hold, spec: &Spec, rung: Rung) -> Option<u64> {
    let root = if rung.is_served() { fuse::threads() } else { 0 };
    let network = if spec.engine.is_some() { engine::THREADS } else { 0 };
    hold.inherited.processes.map(|most| most.saturating_add(root + network))
}

/// Whom the view is about; the number of its first process is not known yet.
fn subject(hold: &Hold, limits: Limits) -> Subject {
    Subject { first: 0, limits, group: hold.group.iter().map(|group| group.folder.clone()).collect() }
}

/// The rungs for what was asked.
fn ladder(request: &Request, numbers: Option<&Numbers>) -> Result<Vec<Rung>> {
    let owners = if numbers.is_some() { Owners::Others } else { Owners::Theirs };
    let ladder = rung::ladder(&request.root, owners, request.storage.driver.map(Rung::from));
    if ladder.is_empty() {
        let error = Error::usage("that storage driver can't make this root");
        return Err(error.hint("--storage-driver and KELP_STORAGE_DRIVER name it").into());
    }
    Ok(ladder)
}

fn leave_out_the_server(ladder: &mut Vec<Rung>) -> Result<()> {
    ladder.retain(|rung| !rung.is_served());
    if ladder.is_empty() {
        let sentence =
            "--strict-limits: what the user-space overlay reads and writes is not held by the kernel";
        return Err(Error::host(sentence).hint("--storage-driver overlay is another way").into());
    }
    Ok(())
}

/// A rung that was refused for this root on this boot is not tried again, nor is T1 where T0 was: it needs more.
fn first_rung(paths: &Paths, root: &Root, ladder: &[Rung]) -> Rung {
    let refused = rung::refused(paths, root).map(|refusal| refusal.rung);
    let refused = match (refused, ladder.first()) {
        (Some(Rung::KernelOverlay), Some(Rung::OverlayOnFuse)) => Some(Rung::OverlayOnFuse),
        (refused, _) => refused,
    };
    let next = ladder.iter().position(|rung| Some(*rung) == refused).and_then(|at| ladder.get(at + 1));
    next.or(ladder.first()).copied().unwrap_or(Rung::Through)
}

/// What is known of the throw-away layer.
#[derive(Clone, Copy)]
struct Layer {
    upper: Upper,
    remove: bool,
}

fn plan_for(
    spec: &Spec,
    folder: &Path,
    maps: &IdMaps,
    rung: Rung,
    layer: Layer,
    secrets: Vec<SecretFile>,
) -> Result<Plan> {
    let pieces = match (&spec.root, rung) {
        (Root::Host, rung) if rung.is_served() => host::replaced()?,
        (Root::Host, _) => host::pieces()?,
        _ => Vec::new(),
    };
    let Layer { upper, remove } = layer;
    let persistence = if remove { Persistence::Volatile } else { Persistence::Kept };
    let folder = folder.to_owned();
    let files = files::texts(spec);
    let seal = plan::first(spec) != First::Program || stage::needs_seal(maps)?;
    let maps = maps.clone();
    let around = Surroundings { folder, rung, persistence, upper, maps, pieces, files, seal, secrets };
    Ok(plan::from_spec(spec, &around))
}

impl Begun {
    /// The processes that serve the container, to be watched.
    pub fn servers(&self) -> Vec<Server> {
        self.serving.servers()
    }

    /// Ends what serves the container.
    pub fn end(self) {
        drop(self.serving);
    }
}

struct Watch<'a, 'b> {
    container: &'a mut Container,
    warn: &'b mut dyn FnMut(&str),
    spec: &'a Spec,
    neighbour: Option<&'a Neighbour>,
    numbers: Option<Numbers>,
    storage: Storage,
    throttle: Throttle,
    /// To what is served.
    access: Access,
    maps: &'a IdMaps,
    store: &'a Path,
    /// Of its user, or a process in it; opened while the child can still be looked at: later it is not dumpable.
    namespace: Option<OwnedFd>,
    server: Option<Child>,
    rates: Option<Rates>,
    engine: Option<Engine>,
    window: Option<(u16, u16)>,
    /// Who called meanwhile.
    calls: Vec<Line>,
    group: Option<&'a OwnedFd>,
    /// What answers for the machine, if /proc shows the container's numbers.
    view: Option<View>,
}

impl Watcher for Watch<'_, '_> {
    fn meanwhile(&mut self) -> Result<()> {
        self.container.clear_leftovers()
    }

    fn neighbour(&self) -> Option<BorrowedFd<'_>> {
        self.neighbour.map(|neighbour| neighbour.pidfd.as_fd())
    }

    fn group(&self) -> Option<BorrowedFd<'_>> {
        self.group.map(AsFd::as_fd)
    }

    fn begin_view(&mut self, device: OwnedFd) -> Result<()> {
        Ok(self.view.as_mut().context("the view was not asked for")?.mounted(device)?)
    }

    fn begin_listening(&mut self, listener: OwnedFd) {
        if let Some(view) = &mut self.view {
            view.listen(listener);
        }
    }

    fn view(&self) -> Vec<BorrowedFd<'_>> {
        self.view.iter().flat_map(View::waits_on).collect()
    }

    fn answer_view(&mut self) {
        self.view.iter_mut().for_each(View::turn);
    }

    fn cloned(&mut self, pid: i32) -> Result<()> {
        self.namespace = Some(match self.neighbour {
            Some(neighbour) => neighbour.pidfd.try_clone()?,
            None => std::fs::File::open(format!("/proc/{pid}/ns/user"))?.into(),
        });
        self.view.iter_mut().for_each(|view| view.is_of(pid));
        if let Some(config) = &self.spec.engine {
            self.engine = Some(Engine::start(config, self.spec.backend, pid)?);
        }
        self.container.watch(pid)
    }

    fn warn(&mut self, sentence: &str) {
        (self.warn)(sentence);
    }

    fn has_servers(&self) -> bool {
        self.engine.is_some()
    }

    fn ready(&mut self) -> Result<()> {
        let given = self.engine.as_mut().map_or(Ok(None), Engine::wait)?;
        given.map_or(Ok(()), |ports| published::keep(&self.container.folder, &ports))
    }

    fn serve_root(&mut self, device: OwnedFd, processes: Option<OwnedFd>) -> Result<()> {
        let namespace = self.namespace.as_ref().context("the user namespace was not kept")?;
        let (hear, word) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let (ours, theirs) = socket::pair()?;
        // One that only reads can't hold back what is written.
        let writes = self.access == Access::Writes;
        let request = fuse::Request {
            layers: fuse::layers(&self.spec.root, self.store, &host::replaced()?),
            access: self.access,
            folder: self.container.folder.clone(),
            volatile: self.container.status.remove,
            has_root: self.maps.has_root(),
            numbers: self.numbers.take(),
            bytes: self.storage.bytes,
            inodes: self.storage.inodes,
            throttle: if writes { self.throttle } else { Throttle::default() },
            device: device.as_raw_fd(),
            user_namespace: namespace.as_raw_fd(),
            processes: processes.as_ref().map(OwnedFd::as_raw_fd),
            word: word.as_raw_fd(),
            rates: theirs.as_raw_fd(),
        };
        let mut kept = vec![device.as_fd(), namespace.as_fd(), word.as_fd(), theirs.as_fd()];
        kept.extend(processes.as_ref().map(AsFd::as_fd));
        self.server = Some(crate::stage::start(fuse::NAME, &request, &kept)?);
        drop((device, word, theirs));
        self.rates = Some(Rates(ours)).filter(|_| writes);
        crate::stage::hear(hear)
    }

    fn signal(&mut self, found: &siginfo) {
        self.calls.extend(signals::caller(found));
    }

    fn terminal(&mut self, master: &OwnedFd) {
        if let Some(window) = self.window {
            let _ = crate::sys::terminal::set_window(master.as_fd(), window);
        }
    }
}
