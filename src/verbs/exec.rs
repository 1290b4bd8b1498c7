//! `kelp exec`: a further program in a container that runs, with the container's own credentials, capabilities
//! and seccomp filter unless it asks for others. The command itself is the program's parent; no monitor is asked.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Result;

use crate::container::list;
use crate::container::state::State;
use crate::error::Error;
use crate::image::store::Store;
use crate::launch::child::Streams;
use crate::launch::join::{self, Target};
use crate::launch::plan::{First, Keeper, Plan};
use crate::launch::stage;
use crate::paths::Paths;
use crate::spec::capability::CapabilitySet;
use crate::spec::resolve;
use crate::supervise::keys::{self, Keys};
use crate::supervise::session::Session;
use crate::supervise::signals;
use crate::supervise::streams::null;
use crate::sys::process;
use crate::userns::maps::IdMaps;
use crate::verbs::order::refusal;
use crate::verbs::{begin, secrets};

/// What to run and how.
#[derive(Clone, Debug)]
pub struct Exec {
    pub command: Vec<OsString>,
    pub environment: Vec<(OsString, OsString)>,
    pub cwd: Option<PathBuf>,
    pub user: Option<String>,
    pub interactive: bool,
    pub terminal: bool,
    pub detach: bool,
    pub privileged: bool,
    pub detach_keys: Option<String>,
}

/// Runs it in the container that `word` means; its exit status, or 0 at once if it is detached.
pub fn exec(paths: &Paths, word: &str, exec: Exec, warn: &mut dyn FnMut(&str)) -> Result<i32> {
    let known = list::find(paths, word).map_err(|error| or_an_image(paths, word, error))?;
    let id = &known.made.id;
    let not_running = || refusal(format!("container {id} is not running"));
    match known.status.state {
        State::Running => {}
        State::Paused => {
            return Err(refusal(format!("container {id} is paused, unpause the container before exec")));
        }
        _ => return Err(not_running()),
    }
    let first = known.status.process.clone().ok_or_else(not_running)?;
    let pidfd = process::pidfd_open(first.pid).map_err(|_| not_running())?;
    if !first.lives() {
        return Err(not_running());
    }
    let target = Target { pid: first.pid, pidfd };
    let maps = IdMaps::of_process(first.pid)?;
    if stage::needs_seal(&maps)? {
        stage::run_from_copy()?;
    }
    let mut plan = plan(&known.made.request, &exec, begin::facts(id.clone(), &maps), maps)?;
    // A secret that was removed meanwhile is known to the container's own program only.
    let secrets = secrets::variables(paths, &known.made.request).unwrap_or_default();
    secrets::add_variables(&secrets, &mut plan.process.environment);
    let signals = signals::signals()?;
    let keys = Keys::parse(exec.detach_keys.as_deref().unwrap_or(keys::DEFAULT))?;
    let mut session = Session::new(exec.interactive && !exec.detach, exec.terminal.then_some(keys));
    let streams = if exec.detach || exec.terminal {
        Streams { stdin: Some(null()?), stdout: Some(null()?), stderr: Some(null()?) }
    } else {
        session.connect()?
    };
    let running = join::join(&target, &plan, streams, warn)?;
    if exec.detach { Ok(0) } else { session.serve(&running, &signals) }
}

/// Whoever comes from a tool that runs programs in images may say `exec` for it.
fn or_an_image(paths: &Paths, word: &str, error: anyhow::Error) -> anyhow::Error {
    let is_image =
        || Store::open(paths).and_then(|store| store.find(word)).is_ok_and(|found| found.is_some());
    if !list::is_absence(&error) || !(word == "@host" || is_image()) {
        return error;
    }
    let hint = format!("{word} is an image: use `kelp run {word} ...`");
    Error::usage(format!("{error:#}")).hint(hint).exit(1).into()
}

fn plan(
    request: &crate::spec::request::Request,
    exec: &Exec,
    facts: resolve::Facts,
    maps: IdMaps,
) -> Result<Plan> {
    let mut request = request.clone();
    request.terminal = exec.terminal && !exec.detach;
    request.interactive = exec.interactive;
    request.environment.extend(exec.environment.iter().cloned());
    request.entrypoint = Some(OsString::new());
    request.command.clone_from(&exec.command);
    request.cwd = exec.cwd.clone().or(request.cwd);
    request.user = exec.user.clone().or(request.user);
    let mut process = resolve::resolve(&request, &facts)?.process;
    if exec.privileged {
        process.capabilities = CapabilitySet::with(&["ALL".to_owned()], &[])?;
    }
    Ok(Plan {
        namespaces: 0,
        early: 0,
        steps: Vec::new(),
        process,
        maps,
        first: First::Program,
        keeper: Keeper::Nobody,
    })
}
