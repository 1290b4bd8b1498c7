//! `kelp update`, `pause` and `unpause`: each takes several containers; one that fails does not keep the others
//! from it.

use anyhow::Result;
use clap::Args;

use crate::cli::limits::LimitArgs;
use crate::cli::orders::{chosen, each};
use crate::cli::warn;
use crate::container::state::State;
use crate::error::Error;
use crate::paths::Paths;
use crate::spec::life::Restart;
use crate::verbs::restrain;

/// Change the limits of containers
#[derive(Debug, Args)]
pub struct UpdateArgs {
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
    #[command(flatten)]
    limits: LimitArgs,
    /// no, on-failure[:COUNT], always or unless-stopped
    #[arg(long, value_name = "POLICY")]
    restart: Option<Restart>,
}

pub fn update(arguments: UpdateArgs) -> Result<i32> {
    let limits = arguments.limits.given()?;
    if limits.is_empty() && arguments.restart.is_none() {
        return Err(Error::usage("update: no limit is given").hint("such as --memory 512m").into());
    }
    let paths = Paths::find()?;
    each(&arguments.containers, |word| {
        restrain::update(&paths, word, &limits, arguments.restart, &mut warn)?;
        Ok(word.to_owned())
    })
}

/// Freeze the processes of containers
#[derive(Debug, Args)]
pub struct PauseArgs {
    #[arg(value_name = "CONTAINER", required_unless_present = "all")]
    containers: Vec<String>,
    /// All that run
    #[arg(short, long)]
    all: bool,
}

pub fn pause(arguments: PauseArgs) -> Result<i32> {
    let paths = Paths::find()?;
    let fits = |state: State| state == State::Running;
    let words = chosen(&paths, &arguments.containers, arguments.all, |known| fits(known.status.state));
    each(&words, |word| {
        restrain::pause(&paths, word)?;
        Ok(word.to_owned())
    })
}

/// Let the processes of paused containers go on
#[derive(Debug, Args)]
pub struct UnpauseArgs {
    #[arg(value_name = "CONTAINER", required_unless_present = "all")]
    containers: Vec<String>,
    /// All that are paused
    #[arg(short, long)]
    all: bool,
}

pub fn unpause(arguments: UnpauseArgs) -> Result<i32> {
    let paths = Paths::find()?;
    let fits = |state: State| state == State::Paused;
    let words = chosen(&paths, &arguments.containers, arguments.all, |known| fits(known.status.state));
    each(&words, |word| {
        restrain::unpause(&paths, word)?;
        Ok(word.to_owned())
    })
}
