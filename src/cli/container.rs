//! `kelp container ...`: the verbs on containers under their long names, and those that have no short one: prune,
//! exists.

use anyhow::Result;
use clap::{ArgMatches, Args, Subcommand};

use crate::cli::filter::{self, Filter};
use crate::cli::{
    attach, changes, cp, events, exec, inspect, logs, orders, port, ps, report, restrain, run, start, stats,
    storage, system, table, top, warn,
};
use crate::container::folder::Known;
use crate::container::journal::Kind;
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
    #[command(flatten)]
    Short(Verb),
    #[command(visible_aliases = ["list", "ps"])]
    Ls(ps::PsArgs),
    Inspect(inspect::ContainerArgs),
    Prune(PruneArgs),
    Exists(ExistsArgs),
}

/// The verbs on containers that stand by themselves as well as behind `container`.
#[derive(Debug, Subcommand)]
pub enum Verb {
    Run(Box<run::RunArgs>),
    #[command(about = "Make a container, to be started later")]
    Create(Box<run::RunArgs>),
    Start(start::StartArgs),
    Stop(orders::StopArgs),
    Restart(orders::RestartArgs),
    Kill(orders::KillArgs),
    Wait(orders::WaitArgs),
    #[command(alias = "remove")]
    Rm(orders::RmArgs),
    Rename(orders::RenameArgs),
    Update(restrain::UpdateArgs),
    Pause(restrain::PauseArgs),
    Unpause(restrain::UnpauseArgs),
    Stats(stats::StatsArgs),
    Exec(exec::ExecArgs),
    Attach(attach::AttachArgs),
    Logs(logs::LogsArgs),
    Top(top::TopArgs),
    Port(port::PortArgs),
    Diff(changes::DiffArgs),
    Commit(changes::CommitArgs),
    Export(changes::ExportArgs),
    Cp(cp::CpArgs),
}

impl Verb {
    /// Whether the verb moves streams, so that it hears of a broken pipe itself.
    pub fn moves_streams(&self) -> bool {
        matches!(self, Self::Run(_) | Self::Exec(_) | Self::Cp(_))
    }

    pub fn run(self, matches: &ArgMatches) -> Result<i32> {
        match self {
            Self::Run(arguments) => run::run(*arguments, &storage::Places::of_verb(matches)),
            Self::Create(arguments) => run::create(*arguments, &storage::Places::of_verb(matches)),
            Self::Start(arguments) => start::run(&arguments),
            Self::Stop(arguments) => orders::stop(arguments),
            Self::Restart(arguments) => orders::restart(arguments),
            Self::Kill(arguments) => orders::kill(arguments),
            Self::Wait(arguments) => orders::wait(arguments),
            Self::Rm(arguments) => orders::rm(arguments),
            Self::Rename(arguments) => orders::rename(arguments),
            Self::Update(arguments) => restrain::update(arguments),
            Self::Pause(arguments) => restrain::pause(arguments),
            Self::Unpause(arguments) => restrain::unpause(arguments),
            Self::Stats(arguments) => stats::run(&arguments),
            Self::Exec(arguments) => exec::run(arguments),
            Self::Attach(arguments) => attach::run(arguments),
            Self::Logs(arguments) => logs::run(&arguments),
            Self::Top(arguments) => top::run(&arguments),
            Self::Port(arguments) => port::run(&arguments),
            Self::Diff(arguments) => changes::diff(arguments),
            Self::Commit(arguments) => changes::commit(arguments),
            Self::Export(arguments) => changes::export(arguments),
            Self::Cp(arguments) => cp::run(arguments),
        }
    }
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
    /// Whether the verb moves streams.
    pub fn moves_streams(&self) -> bool {
        matches!(&self.verb, ContainerVerb::Short(verb) if verb.moves_streams())
    }
}

pub fn run(arguments: ContainerArgs, matches: &ArgMatches) -> Result<i32> {
    match arguments.verb {
        ContainerVerb::Short(verb) => verb.run(matches),
        ContainerVerb::Ls(arguments) => ps::run(&arguments),
        ContainerVerb::Inspect(arguments) => inspect::container(arguments),
        ContainerVerb::Prune(arguments) => prune(&arguments),
        ContainerVerb::Exists(arguments) => match list::find(&Paths::find()?, &arguments.container) {
            Ok(_) => Ok(0),
            Err(error) if list::is_absence(&error) => Ok(1),
            Err(error) => Err(error),
        },
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
        match remove::remove(paths, known.made.id.as_str(), Way::default(), &mut warn) {
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
    events::pruned(paths, Kind::Container, freed);
    (status, freed)
}

fn fits(filter: &Filter<'_>, known: &Known) -> bool {
    let fits = match filter.key {
        "until" => filter::until(filter.value, known.made.created / 1_000_000_000),
        _ => filter::has_label(&known.made.request.labels(), filter.value),
    };
    fits != filter.is_not
}
