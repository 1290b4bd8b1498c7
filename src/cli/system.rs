//! `kelp system ...`: how much space is used, is it sound, what can go. What removes things asks first, or is
//! told `--force`.

use std::io::{IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

use crate::cli::table;
use crate::cli::{about, container, df, events, image, inside, start, volume, warn};
use crate::container::call::Then;
use crate::container::list;
use crate::error::Error;
use crate::image::check::{self, Depth};
use crate::image::store::Store;
use crate::paths::Paths;
use crate::rootfs::tree;
use crate::verbs::order;

/// Look after the store
#[derive(Debug, Args)]
pub struct SystemArgs {
    #[command(subcommand)]
    verb: SystemVerb,
}

#[derive(Debug, Subcommand)]
enum SystemVerb {
    Df(df::DfArgs),
    Events(events::EventsArgs),
    Fsck(FsckArgs),
    StartAll(start::StartAllArgs),
    Info(about::AboutArgs),
    Version(about::VersionArgs),
    Prune(PruneArgs),
    Reset(ResetArgs),
}

/// Check that the store is whole
#[derive(Debug, Args)]
struct FsckArgs {
    /// Take out what is damaged, so that the next pull brings it again
    #[arg(long)]
    repair: bool,
    /// Read every file of every layer
    #[arg(long)]
    verify_layers: bool,
}

/// Remove containers that have ended, images without a name, and what nothing refers to
#[derive(Debug, Args)]
struct PruneArgs {
    /// Remove all images that no container uses
    #[arg(short, long)]
    all: bool,
    /// Remove anonymous volumes that no container has, too
    #[arg(long)]
    volumes: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// label=KEY[=VALUE], label!=KEY[=VALUE], until=TIME
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
}

/// Remove everything that kelp keeps
#[derive(Debug, Args)]
struct ResetArgs {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

pub fn run(arguments: SystemArgs) -> Result<i32> {
    match arguments.verb {
        SystemVerb::Df(arguments) => df::run(arguments),
        SystemVerb::Events(arguments) => events::run(&arguments),
        SystemVerb::Fsck(arguments) => fsck(arguments),
        SystemVerb::StartAll(arguments) => start::after_boot(&arguments),
        SystemVerb::Info(arguments) => about::about(&arguments),
        SystemVerb::Version(arguments) => about::version(&arguments),
        SystemVerb::Prune(arguments) => prune(arguments),
        SystemVerb::Reset(arguments) => reset(arguments),
    }
}

fn fsck(arguments: FsckArgs) -> Result<i32> {
    let paths = Paths::find()?;
    inside::run(move || {
        let store = Store::open(&paths)?;
        let depth = Depth { layers: arguments.verify_layers, repair: arguments.repair };
        let report = check::check(&store, depth)?;
        for sentence in &report.damage {
            println!("{sentence}");
        }
        println!(
            "{} images, {} layers, {} blobs: {} damaged, {} repaired, {} leftovers swept",
            report.images,
            report.layers,
            report.blobs,
            report.damage.len(),
            report.repaired,
            report.swept
        );
        if !report.damage.is_empty() && !arguments.repair {
            eprintln!(
                "hint: kelp system fsck --repair takes out what is damaged; pull the images again then"
            );
        }
        Ok(i32::from(!report.damage.is_empty()))
    })
}

fn prune(arguments: PruneArgs) -> Result<i32> {
    let filters = container::parsed(&arguments.filter)?;
    let question =
        "Remove all containers that have ended, images without a name and everything that nothing refers to?";
    if !arguments.force && !agrees(question)? {
        return Ok(1);
    }
    let paths = Paths::find()?;
    let (status, freed) = container::remove_ended(&paths, &filters);
    let pruned = inside::run(|| {
        let images = image::remove_unused(&paths, arguments.all, &arguments.filter)?;
        let volumes =
            if arguments.volumes { volume::remove_unused(&paths, false, &arguments.filter)? } else { 0 };
        println!("Total reclaimed space: {}", table::size(freed + images + volumes));
        Ok(0)
    })?;
    Ok(status.max(pruned))
}

fn reset(arguments: ResetArgs) -> Result<i32> {
    let paths = Paths::find()?;
    let question = format!("Remove everything in {}, containers and images?", paths.store.display());
    if !arguments.force && !agrees(&question)? {
        return Ok(1);
    }
    // What runs would go on without its files.
    for known in list::all(&paths).iter().filter(|known| known.status.state.is_live()) {
        let given = order::stop(&paths, known.made.id.as_str(), Some(libc::SIGKILL), Some(-1), Then::Stay)?;
        given.ended(&paths, &mut warn)?;
    }
    inside::run(move || {
        let store = Store::open(&paths)?;
        let lock = store.lock("removing everything")?;
        let locks = paths.store.join("locks");
        let listing = std::fs::read_dir(&paths.store);
        for entry in listing.with_context(|| format!("cannot read {}", paths.store.display()))? {
            let path = entry?.path();
            // The one that is held stays as long: NFS keeps the folder of an open file.
            if path != locks {
                remove(&path)?;
            }
        }
        drop(lock);
        remove(&locks)?;
        Ok(0)
    })
}

fn remove(path: &Path) -> Result<()> {
    // An overlay's work folder has mode 000.
    let removed = if path.is_dir() { tree::remove(path) } else { std::fs::remove_file(path) };
    removed.with_context(|| format!("cannot remove {}", path.display()))
}

/// Asks on the terminal.
///
/// # Errors
/// There is none.
pub fn agrees(question: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(Error::usage("there is no terminal to ask on").hint("use --force").into());
    }
    eprint!("{question} [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
