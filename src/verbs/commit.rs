//! `kelp commit`: how a container was run becomes how its image runs, as docker has it, and a container that runs
//! stands still while its files are read.

use std::ffi::OsStr;

use anyhow::Result;
use kelp_net::config::Config;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::container::call::Line;
use crate::container::list;
use crate::container::state::State;
use crate::image::config::RunConfig;
use crate::paths::Paths;
use crate::spec::life::{Health, HealthChoice};
use crate::spec::mount::MountKind;
use crate::spec::request::{Network, Request};
use crate::verbs::contents::Contents;
use crate::verbs::restrain;

/// A container that stands still until this is dropped, or this process is killed.
#[derive(Debug)]
pub struct Still {
    /// To the monitor of the one that we have paused; one that was paused before stays so.
    line: Option<Line>,
}

impl Still {
    pub fn new(paths: &Paths, contents: &Contents) -> Result<Self> {
        let runs =
            || list::find(paths, &contents.name).is_ok_and(|known| known.status.state == State::Running);
        if contents.process.is_none() || !runs() {
            return Ok(Self { line: None });
        }
        match restrain::stand_still(paths, &contents.name) {
            Ok(line) => Ok(Self { line: Some(line) }),
            Err(error) if runs() => Err(error),
            Err(_has_ended) => Ok(Self { line: None }),
        }
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        if let Some(line) = &self.line {
            let _may_have_ended = restrain::go_on(line);
        }
    }
}

/// The image's configuration with what the user said when the container was made.
pub fn run_config(image: &RunConfig, request: &Request) -> RunConfig {
    let text = |word: &OsStr| word.to_string_lossy().into_owned();
    let mut config = image.clone();
    for (name, value) in &request.environment {
        let start = format!("{}=", text(name));
        let line = format!("{start}{}", text(value));
        match config.env.iter_mut().find(|known| known.starts_with(&start)) {
            Some(known) => *known = line,
            None => config.env.push(line),
        }
    }
    let command = || request.command.iter().map(|word| text(word)).collect::<Vec<_>>();
    if let Some(program) = &request.entrypoint {
        config.entrypoint =
            Some(text(program)).filter(|program| !program.is_empty()).map(|program| vec![program]);
        config.cmd = Some(command()).filter(|words| !words.is_empty());
    } else if !request.command.is_empty() {
        config.cmd = Some(command());
    }
    if let Some(user) = &request.user {
        config.user.clone_from(user);
    }
    if let Some(cwd) = &request.cwd {
        config.working_dir = text(cwd.as_os_str());
    }
    if let Some(signal) = request.stop_signal.and_then(|signal| Signal::try_from(signal).ok()) {
        config.stop_signal = signal.to_string();
    }
    let exposed = request.image.exposed.iter().cloned().chain(published(&request.network));
    config.exposed_ports.extend(exposed.map(|port| (port, json!({}))));
    config.labels.extend(request.life.labels.clone());
    let own = request.mounts.iter().filter(|mount| mount.kind == MountKind::Anonymous);
    config.volumes.extend(own.map(|mount| (text(mount.target.as_os_str()), json!({}))));
    if let Some(said) = request.life.health.as_ref().filter(|said| **said != HealthChoice::default()) {
        let merged = request.health();
        config.healthcheck = merged.or_else(|| said.test.as_ref().map(|_| Health::default())).map(health);
    }
    config
}

/// Docker's object, in nanoseconds.
fn health(health: Health) -> Value {
    let mut value = json!({ "Test": health.test.words() });
    let usual = Health::default();
    let times = [
        ("Interval", health.interval, usual.interval),
        ("Timeout", health.timeout, usual.timeout),
        ("StartPeriod", health.start_period, usual.start_period),
        ("StartInterval", health.start_interval, usual.start_interval),
    ];
    for (key, time, usual) in times {
        if time != usual {
            value[key] = json!(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        }
    }
    if health.retries != usual.retries {
        value["Retries"] = json!(health.retries);
    }
    value
}

fn published(network: &Network) -> Vec<String> {
    let ports = |config: &Config| {
        let each = config.published.iter().flat_map(|port| {
            (0..port.count).map(move |at| format!("{}/{}", port.container_port + at, port.protocol))
        });
        each.collect()
    };
    match network {
        Network::User(config) => ports(config),
        Network::None | Network::Host | Network::Container(_) => Vec::new(),
    }
}
