//! `kelp container ...`: the verbs on containers under their long names, and those that have no short one: prune,
//! exists.

use anyhow::Result;
use clap::{ArgMatches, Args, Subcommand};

use crate::cli::filter::{self, Filter};
use crate::cli::{
    attach, changes, cp, describe, exec, inspect, logs, orders, port, ps, report, restrain, run, start,
    stats, storage, system, table, top,
};
use crate::container::folder::Known;
use crate::container::{list, volume};
use crate::error::Error;
use crate::paths::Paths;
use crate::verbs::remove::{self, Way};

/// Work with containers
#[derive(Debug, Args)]
pub struct ContainerArgs {
    #[command(subcommand)]
    verb: ContainerVerb,
}

#[derive(Debug, Subcommand)]
enum ContainerVerb {
    #[command(visible_aliases = ["list", "ps"])]
    Ls(ps::PsArgs),
    Run(Box<run::RunArgs>),
    #[command(about = "Make a container, to be started later")]
    Create(Box<run::RunArgs>),
    Start(start::StartArgs),
    Stop(orders::StopArgs),
    Restart(orders::RestartArgs),
    Kill(orders::KillArgs),
    Wait(orders::WaitArgs),
    #[command(visible_alias = "remove")]
    Rm(orders::RmArgs),
    Rename(orders::RenameArgs),
    Exec(exec::ExecArgs),
    Attach(attach::AttachArgs),
    Logs(logs::LogsArgs),
    Inspect(inspect::ContainerArgs),
    Top(top::TopArgs),
    Port(port::PortArgs),
    Stats(stats::StatsArgs),
    Update(restrain::UpdateArgs),
    Pause(restrain::PauseArgs),
    Unpause(restrain::UnpauseArgs),
    Diff(changes::DiffArgs),
    Commit(changes::CommitArgs),
    Export(changes::ExportArgs),
    Cp(cp::CpArgs),
    Prune(PruneArgs),
    Exists(ExistsArgs),
}

/// Remove containers that have ended
#[derive(Debug, Args)]
struct PruneArgs {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// label=KEY[=VALUE], label!=KEY[=VALUE], until=TIME
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
}

/// Say by the exit status whether there is such a container
#[derive(Debug, Args)]
struct ExistsArgs {
    container: String,
}

impl ContainerArgs {
    /// Whether the verb moves streams, so that it hears of a broken pipe itself.
    pub fn moves_streams(&self) -> bool {
        matches!(self.verb, ContainerVerb::Run(_) | ContainerVerb::Exec(_) | ContainerVerb::Cp(_))
    }
}

pub fn run(arguments: ContainerArgs, matches: &ArgMatches) -> Result<i32> {
    match arguments.verb {
        ContainerVerb::Ls(arguments) => ps::run(&arguments),
        ContainerVerb::Run(arguments) => run::run(*arguments, &storage::Places::of_verb(matches)),
        ContainerVerb::Create(arguments) => run::create(*arguments, &storage::Places::of_verb(matches)),
        ContainerVerb::Start(arguments) => start::run(&arguments),
        ContainerVerb::Stop(arguments) => orders::stop(arguments),
        ContainerVerb::Restart(arguments) => orders::restart(arguments),
        ContainerVerb::Kill(arguments) => orders::kill(arguments),
        ContainerVerb::Wait(arguments) => orders::wait(arguments),
        ContainerVerb::Rm(arguments) => orders::rm(arguments),
        ContainerVerb::Rename(arguments) => orders::rename(arguments),
        ContainerVerb::Exec(arguments) => exec::run(arguments),
        ContainerVerb::Attach(arguments) => attach::run(arguments),
        ContainerVerb::Logs(arguments) => logs::run(&arguments),
        ContainerVerb::Top(arguments) => top::run(&arguments),
        ContainerVerb::Port(arguments) => port::run(&arguments),
        ContainerVerb::Stats(arguments) => stats::run(&arguments),
        ContainerVerb::Update(arguments) => restrain::update(arguments),
        ContainerVerb::Pause(arguments) => restrain::pause(arguments),
        ContainerVerb::Unpause(arguments) => restrain::unpause(arguments),
        ContainerVerb::Inspect(arguments) => inspect::container(arguments),
        ContainerVerb::Diff(arguments) => changes::diff(arguments),
        ContainerVerb::Commit(arguments) => changes::commit(arguments),
        ContainerVerb::Export(arguments) => changes::export(arguments),
        ContainerVerb::Cp(arguments) => cp::run(arguments),
        ContainerVerb::Prune(arguments) => prune(&arguments),
        ContainerVerb::Exists(arguments) => {
            let found = list::find(&Paths::find()?, &arguments.container);
            match found {
                Ok(_) => Ok(0),
                Err(error) if list::is_absence(&error) => Ok(1),
                Err(error) => Err(error),
            }
        }
    }
}

fn prune(arguments: &PruneArgs) -> Result<i32> {
    let filters = parsed(&arguments.filter)?;
    if !arguments.force && !system::agrees("Remove all containers that have ended?")? {
        return Ok(1);
    }
    let (status, freed) = remove_ended(&Paths::find()?, &filters);
    println!("Total reclaimed space: {}", table::size(freed));
    Ok(status)
}

/// The filters that a removal of several knows.
pub fn parsed(words: &[String]) -> Result<Vec<Filter<'_>>> {
    let mut filters = Vec::new();
    for word in words {
        let filter = filter::parse(word).filter(|filter| matches!(filter.key, "label" | "until"));
        filters.push(filter.ok_or_else(|| Error::usage(format!("invalid filter {word:?}")))?);
    }
    Ok(filters)
}

/// Removes the containers that have ended and fit, and prints which; 1 if one failed, and the bytes that are free.
pub fn remove_ended(paths: &Paths, filters: &[Filter<'_>]) -> (i32, u64) {
    let (mut removed, mut freed, mut status) = (Vec::new(), 0, 0);
    for known in list::all(paths) {
        if known.status.state.is_live() || !filters.iter().all(|filter| fits(filter, &known)) {
            continue;
        }
        let size = volume::size(&known.folder);
        match remove::remove(paths, known.made.id.as_str(), Way::default()) {
            Ok(id) => {
                removed.push(id);
                freed += size;
            }
            Err(error) => {
                report(&error);
                status = 1;
            }
        }
    }
    if !removed.is_empty() {
        println!("Deleted Containers:\n{}\n", removed.join("\n"));
    }
    (status, freed)
}

fn fits(filter: &Filter<'_>, known: &Known) -> bool {
    let fits = match filter.key {
        "until" => filter::until(filter.value, known.made.created / 1_000_000_000),
        _ => filter::has_label(&describe::labels(&known.made.request), filter.value),
    };
    fits != filter.is_not
}
