//! The verbs that give an order to containers by name: start, stop, restart, kill, wait, rm, rename. Each takes
//! several; one that fails does not keep the others from it.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::cli::{report, warn, words};
use crate::container::call::{Condition, Then};
use crate::container::folder::Known;
use crate::container::list;
use crate::error::Error;
use crate::paths::Paths;
use crate::verbs::order::{self, Given};
use crate::verbs::remove::{self, Way};

/// Does `work` for each word and prints what it gives; 1 if one failed.
pub fn each(words: &[String], mut work: impl FnMut(&str) -> Result<String>) -> Result<i32> {
    let mut status = 0;
    for word in words {
        match work(word) {
            Ok(said) => println!("{said}"),
            Err(error) => {
                report(&error);
                status = 1;
            }
        }
    }
    Ok(status)
}

/// The containers that are named, or all that `fits`.
pub fn chosen(
    paths: &Paths,
    named: &[String],
    all: bool,
    fits: impl Fn(&crate::container::folder::Known) -> bool,
) -> Vec<String> {
    if !all {
        return named.to_vec();
    }
    list::all(paths).iter().filter(|known| fits(known)).map(|known| known.made.id.to_string()).collect()
}

/// Gives an order to all, then waits for each.
fn together(words: &[String], paths: &Paths, give: impl Fn(&str) -> Result<Given>) -> Result<i32> {
    let given: Vec<(&String, Result<Given>)> = words.iter().map(|word| (word, give(word))).collect();
    let mut status = 0;
    for (word, given) in given {
        match given.and_then(|given| given.ended(paths, &mut warn)) {
            Ok(_) => println!("{word}"),
            Err(error) => {
                report(&error);
                status = 1;
            }
        }
    }
    Ok(status)
}

/// Containers by name and by files that hold an id, as `run --cidfile` writes them.
#[derive(Debug, Args)]
struct Named {
    #[arg(value_name = "CONTAINER", required_unless_present_any = ["all", "cidfile"])]
    containers: Vec<String>,
    /// A container whose id is in the file
    #[arg(long, value_name = "FILE")]
    cidfile: Vec<PathBuf>,
}

impl Named {
    /// # Errors
    /// A file can't be read.
    fn words(&self) -> Result<Vec<String>> {
        let mut words = self.containers.clone();
        for file in &self.cidfile {
            let refused = |error| Error::usage(format!("cannot read --cidfile {}: {error}", file.display()));
            let text = fs::read_to_string(file).map_err(refused)?;
            words.push(text.lines().next().unwrap_or_default().to_owned());
        }
        Ok(words)
    }
}

/// Stop containers
#[derive(Debug, Args)]
pub struct StopArgs {
    #[command(flatten)]
    named: Named,
    /// Seconds until the container is killed; -1 waits for ever
    #[arg(short, long, visible_alias = "timeout", value_name = "SECONDS", allow_negative_numbers = true)]
    time: Option<i64>,
    /// Signal to send
    #[arg(short, long)]
    signal: Option<String>,
    /// All that run
    #[arg(short, long)]
    all: bool,
    /// A container that is not there is no error
    #[arg(short, long)]
    ignore: bool,
}

pub fn stop(arguments: StopArgs) -> Result<i32> {
    let paths = Paths::find()?;
    let signal = arguments.signal.as_deref().map(words::signal).transpose()?;
    let named = arguments.named.words()?;
    let mut containers = chosen(&paths, &named, arguments.all, |known| known.status.state.is_live());
    if arguments.ignore {
        containers.retain(|word| list::find(&paths, word).is_ok());
    }
    together(&containers, &paths, |word| order::stop(&paths, word, signal, arguments.time, Then::Stay))
}

/// Restart containers
#[derive(Debug, Args)]
pub struct RestartArgs {
    #[arg(value_name = "CONTAINER", required_unless_present_any = ["all", "running", "cidfile"])]
    containers: Vec<String>,
    /// A container whose id is in the file
    #[arg(long, value_name = "FILE")]
    cidfile: Vec<PathBuf>,
    /// Seconds until the container is killed; -1 waits for ever
    #[arg(short, long, visible_alias = "timeout", value_name = "SECONDS", allow_negative_numbers = true)]
    time: Option<i64>,
    /// Signal to send
    #[arg(short, long)]
    signal: Option<String>,
    /// All, also those that do not run
    #[arg(short, long)]
    all: bool,
    /// All that run
    #[arg(long)]
    running: bool,
}

pub fn restart(arguments: RestartArgs) -> Result<i32> {
    let paths = Paths::find()?;
    let signal = arguments.signal.as_deref().map(words::signal).transpose()?;
    let named = Named { containers: arguments.containers, cidfile: arguments.cidfile }.words()?;
    let fits = |known: &Known| arguments.all || known.status.state.is_live();
    let containers = chosen(&paths, &named, arguments.all || arguments.running, fits);
    each(&containers, |word| {
        order::restart(&paths, word, signal, arguments.time, &mut warn)?;
        Ok(word.to_owned())
    })
}

/// Send a signal to containers
#[derive(Debug, Args)]
pub struct KillArgs {
    #[command(flatten)]
    named: Named,
    /// Signal to send
    #[arg(short, long, default_value = "KILL")]
    signal: String,
    /// All that run
    #[arg(short, long)]
    all: bool,
}

pub fn kill(arguments: KillArgs) -> Result<i32> {
    let paths = Paths::find()?;
    let signal = words::signal(&arguments.signal)?;
    let named = arguments.named.words()?;
    let containers = chosen(&paths, &named, arguments.all, |known| known.status.state.is_live());
    each(&containers, |word| order::kill(&paths, word, signal, &mut warn).map(|()| word.to_owned()))
}

/// Wait until containers end, and print their exit status
#[derive(Debug, Args)]
pub struct WaitArgs {
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
    /// not-running, next-exit or removed
    #[arg(long, value_name = "CONDITION", default_value = "not-running")]
    condition: String,
    /// For podman's command line: nobody looks again and again here
    #[arg(short, long, value_name = "TIME")]
    interval: Option<String>,
}

pub fn wait(arguments: WaitArgs) -> Result<i32> {
    let paths = Paths::find()?;
    let condition = match arguments.condition.as_str() {
        "not-running" | "stopped" | "exited" | "" => Condition::NotRunning,
        "next-exit" => Condition::NextExit,
        "removed" => Condition::Removed,
        other => {
            let sentence = format!("--condition {other}: not-running, next-exit or removed is expected");
            return Err(Error::usage(sentence).into());
        }
    };
    let given: Vec<Result<Given>> =
        arguments.containers.iter().map(|word| order::wait(&paths, word, condition)).collect();
    let mut status = 0;
    for given in given {
        match given.and_then(|given| given.ended(&paths, &mut warn)) {
            Ok(exit) => println!("{exit}"),
            Err(error) => {
                report(&error);
                status = 1;
            }
        }
    }
    Ok(status)
}

/// Remove containers
#[derive(Debug, Args)]
pub struct RmArgs {
    #[command(flatten)]
    named: Named,
    /// Kill a container that runs
    #[arg(short, long)]
    force: bool,
    /// All containers
    #[arg(short, long)]
    all: bool,
    /// A container that is not there is no error
    #[arg(short, long)]
    ignore: bool,
    /// Remove its anonymous volumes too
    #[arg(short, long)]
    volumes: bool,
    /// With --force, seconds between the stop signal and the kill [default: 0]
    #[arg(short, long, value_name = "SECONDS", allow_negative_numbers = true)]
    time: Option<i64>,
}

pub fn rm(arguments: RmArgs) -> Result<i32> {
    let paths = Paths::find()?;
    let named = arguments.named.words()?;
    let mut containers = chosen(&paths, &named, arguments.all, |_| true);
    if arguments.ignore {
        containers.retain(|word| list::find(&paths, word).is_ok());
    }
    let way = Way { force: arguments.force, volumes: arguments.volumes, patience: arguments.time };
    if arguments.force {
        // Docker: a container that is not there is as good as removed, and said.
        containers.retain(|word| match list::find(&paths, word) {
            Err(error) if list::is_absence(&error) => {
                warn(&format!("{error:#}"));
                false
            }
            _ => true,
        });
    }
    each(&containers, |word| match remove::remove(&paths, word, way, &mut warn) {
        // It has gone meanwhile.
        Err(error) if arguments.force && list::is_absence(&error) => Ok(word.to_owned()),
        other => other.map(|_| word.to_owned()),
    })
}

/// Rename a container
#[derive(Debug, Args)]
pub struct RenameArgs {
    container: String,
    name: String,
}

pub fn rename(arguments: RenameArgs) -> Result<i32> {
    order::rename(&Paths::find()?, &arguments.container, &arguments.name.parse()?)?;
    Ok(0)
}
