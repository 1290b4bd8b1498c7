//! `kelp commit`: how a container was run becomes how its image runs, as docker has it, and a container that runs
//! stands still while its files are read.

use std::ffi::OsStr;

use anyhow::Result;
use kelp_net::config::Config;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::container::list;
use crate::container::state::State;
use crate::image::config::RunConfig;
use crate::paths::Paths;
use crate::spec::request::{Network, Request};
use crate::verbs::contents::Contents;
use crate::verbs::restrain;

/// A container that stands still until this is dropped.
#[derive(Debug)]
pub struct Still<'a> {
    paths: &'a Paths,
    /// Whom we have paused; one that was paused before stays so.
    paused: Option<&'a str>,
}

impl<'a> Still<'a> {
    pub fn new(paths: &'a Paths, contents: &'a Contents) -> Result<Self> {
        let runs =
            || list::find(paths, &contents.name).is_ok_and(|known| known.status.state == State::Running);
        let mut paused = None;
        if contents.process.is_some() && runs() {
            match restrain::pause(paths, &contents.name) {
                Ok(()) => paused = Some(contents.name.as_str()),
                Err(error) if runs() => return Err(error),
                Err(_has_ended) => {}
            }
        }
        Ok(Self { paths, paused })
    }
}

impl Drop for Still<'_> {
    fn drop(&mut self) {
        if let Some(name) = self.paused {
            let _may_have_ended = restrain::unpause(self.paths, name);
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
    config
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
        Network::None | Network::Host => Vec::new(),
    }
}
