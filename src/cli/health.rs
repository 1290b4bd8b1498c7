//! The flags of `run` and `create` about the health of a container, and `kelp healthcheck run`: docker's and
//! podman's words for a check that the monitor carries out.

use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::error::Error;
use crate::paths::Paths;
use crate::spec::life::{HealthChoice, HealthTest, NEVER, OnFailure};
use crate::units;
use crate::verbs::order;

#[derive(Debug, Default, Args)]
pub struct HealthArgs {
    /// Command that says by its exit status whether the container is healthy; none switches the image's off
    #[arg(long, value_name = "COMMAND")]
    health_cmd: Option<String>,
    /// Time between two checks, or disable for none but by hand [default: 30s]
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true)]
    health_interval: Option<String>,
    /// Time that a check may take [default: 30s]
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true)]
    health_timeout: Option<String>,
    /// Failures in a row that make a container unhealthy [default: 3]
    #[arg(long, value_name = "COUNT", allow_hyphen_values = true)]
    health_retries: Option<i64>,
    /// Time that a container has to come up, in which failures do not count
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true)]
    health_start_period: Option<String>,
    /// Time between two checks while a container comes up [default: 5s]
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true)]
    health_start_interval: Option<String>,
    /// What is done with an unhealthy container: none, kill, restart, stop [default: none]
    #[arg(long, value_name = "ACTION")]
    health_on_failure: Option<String>,
    /// No health check, not even the image's
    #[arg(long)]
    no_healthcheck: bool,
}

impl HealthArgs {
    /// What is asked, and what is done on failure; `has_image_test` says whether the image has a check.
    pub fn choice(&self, has_image_test: bool) -> Result<(HealthChoice, OnFailure)> {
        let choice = HealthChoice {
            test: self.test(),
            interval: match self.health_interval.as_deref() {
                Some("disable") => Some(NEVER),
                word => duration("--health-interval", word)?,
            },
            timeout: duration("--health-timeout", self.health_timeout.as_deref())?,
            start_period: duration("--health-start-period", self.health_start_period.as_deref())?,
            start_interval: duration("--health-start-interval", self.health_start_interval.as_deref())?,
            retries: self.retries()?,
        };
        if self.no_healthcheck
            && choice != (HealthChoice { test: choice.test.clone(), ..HealthChoice::default() })
        {
            return Err(Error::usage("--no-healthcheck conflicts with --health-* options").into());
        }
        if self.no_healthcheck && self.health_cmd.is_some() {
            return Err(Error::usage("--no-healthcheck conflicts with --health-* options").into());
        }
        let word = self.health_on_failure.as_deref().unwrap_or("none");
        let action: OnFailure = word.parse()?;
        let checked = match &choice.test {
            Some(test) => *test != HealthTest::None,
            None => has_image_test,
        };
        if action != OnFailure::None && !checked {
            let sentence = format!("cannot set on-failure action to {word} without a health check");
            return Err(Error::usage(sentence).into());
        }
        Ok((choice, action))
    }

    fn test(&self) -> Option<HealthTest> {
        if self.no_healthcheck {
            return Some(HealthTest::None);
        }
        let word = self.health_cmd.as_deref()?;
        match serde_json::from_str::<Vec<String>>(word) {
            Ok(words) => HealthTest::of(&words),
            Err(_) if word.is_empty() => None,
            Err(_) if word == "none" => Some(HealthTest::None),
            Err(_) => Some(HealthTest::Shell(word.to_owned())),
        }
    }

    fn retries(&self) -> Result<Option<u32>> {
        let Some(count) = self.health_retries else { return Ok(None) };
        let count = u32::try_from(count).map_err(|_| Error::usage("--health-retries cannot be negative"))?;
        Ok(Some(count).filter(|count| *count > 0))
    }
}

/// As in docker, 0 is the image's, or the default.
fn duration(flag: &str, word: Option<&str>) -> Result<Option<Duration>> {
    let Some(word) = word else { return Ok(None) };
    if word.starts_with('-') {
        return Err(Error::usage(format!("{flag} cannot be negative")).into());
    }
    let time = units::parse_duration(word)?;
    if !time.is_zero() && time < Duration::from_millis(1) {
        return Err(Error::usage(format!("{flag} cannot be less than 1ms")).into());
    }
    Ok(Some(time).filter(|time| !time.is_zero()))
}

/// Look after the health of containers
#[derive(Debug, Args)]
pub struct HealthcheckArgs {
    #[command(subcommand)]
    verb: HealthcheckVerb,
}

#[derive(Debug, Subcommand)]
enum HealthcheckVerb {
    Run(RunArgs),
}

/// Run the health check of a container now
///
/// Exit status: 0 it succeeded, 1 it failed, 125 it could not be run.
#[derive(Debug, Args)]
struct RunArgs {
    container: String,
}

pub fn run(arguments: &HealthcheckArgs) -> Result<i32> {
    let HealthcheckVerb::Run(RunArgs { container }) = &arguments.verb;
    if order::check_health(&Paths::find()?, container)? == 0 {
        return Ok(0);
    }
    println!("unhealthy");
    Ok(1)
}
