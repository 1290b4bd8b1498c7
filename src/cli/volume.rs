//! `kelp volume ...`: folders that outlive containers, in docker's words. Whatever touches the files does so where
//! their owners can be handled.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::cli::filter::{self, Filter};
use crate::cli::table::{self, Column, ListArgs};
use crate::cli::{events, inside, report, system, words};
use crate::container::journal::Kind;
use crate::container::sweep;
use crate::container::volume::{self, Refusal, Volume};
use crate::error::Error;
use crate::ids::Name;
use crate::image::config::rfc3339;
use crate::image::snapshot;
use crate::paths::Paths;
use crate::verbs;

/// Work with volumes
#[derive(Debug, Args)]
pub struct VolumeArgs {
    #[command(subcommand)]
    verb: VolumeVerb,
}

#[derive(Debug, Subcommand)]
enum VolumeVerb {
    Create(CreateArgs),
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    Inspect(InspectArgs),
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
    Prune(PruneArgs),
    Export(ExportArgs),
    Import(ImportArgs),
    Exists(ExistsArgs),
}

/// Make a volume; one that is there already stays as it is
#[derive(Debug, Args)]
struct CreateArgs {
    /// Its name [default: 64 random digits]
    name: Option<Name>,
    /// Set a label: KEY[=VALUE]
    #[arg(short, long, value_name = "LABEL")]
    label: Vec<String>,
    /// local is the only one
    #[arg(short, long, value_name = "DRIVER", default_value = "local")]
    driver: String,
    /// For podman's command line: one that is there is never an error
    #[arg(long, hide = true)]
    ignore: bool,
}

/// List volumes
#[derive(Debug, Args)]
struct LsArgs {
    /// dangling=BOOL, driver=NAME, name=PART, label=KEY[=VALUE], label!=..., anonymous=BOOL, until=TIME
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    #[command(flatten)]
    list: ListArgs,
}

/// Show what is known of volumes
#[derive(Debug, Args)]
struct InspectArgs {
    #[arg(value_name = "VOLUME", required_unless_present = "all")]
    volumes: Vec<String>,
    /// Show all volumes
    #[arg(short, long)]
    all: bool,
    /// A Go template or `json`
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
}

/// Remove volumes with all their files
#[derive(Debug, Args)]
#[command(after_help = "Exit status: 1 a volume is not there, 2 a container has it, 125 any other failure.")]
struct RmArgs {
    #[arg(value_name = "VOLUME", required_unless_present = "all")]
    volumes: Vec<String>,
    /// Remove all volumes that no container has
    #[arg(short, long)]
    all: bool,
    /// A volume that is not there is no error
    #[arg(short, long)]
    force: bool,
}

/// Remove anonymous volumes that no container has
#[derive(Debug, Args)]
struct PruneArgs {
    /// Named volumes too
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// label=KEY[=VALUE], label!=KEY[=VALUE], until=TIME, name=PART
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
}

/// Write a volume's files as a tar archive
#[derive(Debug, Args)]
struct ExportArgs {
    volume: String,
    /// The file to write [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Add the files of a tar archive to a volume
#[derive(Debug, Args)]
struct ImportArgs {
    volume: String,
    /// The archive, also packed by gzip or zstd [default: standard input]
    #[arg(value_name = "FILE", default_value = "-")]
    source: PathBuf,
}

/// Say by the exit status whether there is such a volume
#[derive(Debug, Args)]
struct ExistsArgs {
    volume: String,
}

pub fn run(arguments: VolumeArgs) -> Result<i32> {
    match arguments.verb {
        VolumeVerb::Create(arguments) => create(arguments),
        VolumeVerb::Ls(arguments) => list(&arguments),
        VolumeVerb::Inspect(arguments) => inspect(&arguments),
        VolumeVerb::Rm(arguments) => remove(arguments),
        VolumeVerb::Prune(arguments) => prune(arguments),
        VolumeVerb::Export(arguments) => export(arguments),
        VolumeVerb::Import(arguments) => import(arguments),
        VolumeVerb::Exists(arguments) => {
            let name: Name = arguments.volume.parse()?;
            Ok(i32::from(volume::read(&Paths::find()?, name)?.is_none()))
        }
    }
}

/// What killed monitors left is put right first: it has no volume any more.
fn swept() -> Result<Paths> {
    let paths = Paths::find()?;
    sweep::sweep(&paths)?;
    Ok(paths)
}

fn create(arguments: CreateArgs) -> Result<i32> {
    if arguments.driver != "local" {
        let sentence = format!("there is no volume driver {:?}", arguments.driver);
        return Err(Error::usage(sentence).hint("local is the only one").into());
    }
    let volume = match arguments.name {
        Some(name) => Volume::named(name),
        None => Volume::anonymous()?,
    };
    let volume = Volume { labels: words::labels(&arguments.label)?, ..volume };
    volume::create(&Paths::find()?, &volume)?;
    println!("{}", volume.name);
    Ok(0)
}

fn list(arguments: &LsArgs) -> Result<i32> {
    let paths = swept()?;
    let mut volumes = volume::list(&paths)?;
    for filter in &arguments.filter {
        apply(&paths, filter, &mut volumes)?;
    }
    let rows: Vec<Value> = volumes.iter().map(|volume| row(&paths, volume)).collect();
    let columns = [Column::new("DRIVER", "Driver").yields(1), Column::new("VOLUME NAME", "Name")];
    arguments.list.print(&rows, &columns, "Name")?;
    Ok(0)
}

fn row(paths: &Paths, volume: &Volume) -> Value {
    let labels: Vec<String> = volume.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    json!({
        "Availability": "N/A",
        "Driver": "local",
        "Group": "N/A",
        "Labels": labels.join(","),
        "Links": volume::users(paths, &volume.name).len().to_string(),
        "Mountpoint": volume::folder(paths, &volume.name).display().to_string(),
        "Name": volume.name.as_str(),
        "Scope": "local",
        "Size": "N/A",
        "Status": "N/A",
    })
}

fn apply(paths: &Paths, text: &str, volumes: &mut Vec<Volume>) -> Result<()> {
    let unknown = || {
        Error::usage(format!("{text:?} is not a filter of volumes"))
            .hint("dangling, driver, scope, name, label, label!, anonymous and until are")
    };
    let Some(Filter { key, value, is_not }) = filter::parse(text) else { return Err(unknown().into()) };
    let on = || match value {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(Error::usage(format!("--filter {text}: true or false is expected"))),
    };
    match (key, is_not) {
        ("label", _) => volumes.retain(|volume| filter::has_label(&volume.labels, value) != is_not),
        ("dangling", false) => {
            let wanted = on()?;
            volumes.retain(|volume| volume::users(paths, &volume.name).is_empty() == wanted);
        }
        ("anonymous", false) => {
            let wanted = on()?;
            volumes.retain(|volume| volume.anonymous == wanted);
        }
        ("driver" | "scope", false) => volumes.retain(|_| value == "local"),
        ("name", false) => volumes.retain(|volume| volume.name.as_str().contains(value)),
        ("until", false) => volumes.retain(|volume| filter::until(value, volume.created)),
        _ => return Err(unknown().into()),
    }
    Ok(())
}

fn expect(paths: &Paths, word: &str) -> Result<Volume> {
    volume::find(paths, word)?.ok_or_else(|| missing(word))
}

fn missing(word: &str) -> anyhow::Error {
    Error::usage(format!("get {word}: no such volume")).hint("see `kelp volume ls`").exit(1).into()
}

fn inspect(arguments: &InspectArgs) -> Result<i32> {
    let paths = swept()?;
    let mut words = arguments.volumes.clone();
    if arguments.all {
        words.extend(volume::list(&paths)?.into_iter().map(|volume| volume.name.to_string()));
    }
    table::inspect_each(&words, arguments.format.as_deref(), |word| {
        expect(&paths, word).map(|volume| describe(&paths, &volume))
    })
}

/// A volume as docker's API describes it.
fn describe(paths: &Paths, volume: &Volume) -> Value {
    json!({
        "CreatedAt": rfc3339(volume.created),
        "Driver": "local",
        "Labels": volume.labels,
        "Mountpoint": volume::folder(paths, &volume.name).display().to_string(),
        "Name": volume.name.as_str(),
        "Options": BTreeMap::<String, String>::new(),
        "Scope": "local",
        "Anonymous": volume.anonymous,
        "MountCount": volume::users(paths, &volume.name).len(),
    })
}

fn remove(arguments: RmArgs) -> Result<i32> {
    let paths = swept()?;
    inside::run(move || {
        let mut words = arguments.volumes;
        if arguments.all {
            let unused = |volume: &Volume| volume::users(&paths, &volume.name).is_empty();
            words.extend(
                volume::list(&paths)?.into_iter().filter(unused).map(|volume| volume.name.to_string()),
            );
        }
        let mut status = 0;
        for word in words {
            match remove_one(&paths, &word) {
                Err(error) if arguments.force && crate::error::find(&error).is_some_and(|e| e.exit == 1) => {}
                Err(error) => status = status.max(i32::from(report(&error))),
                Ok(()) => println!("{word}"),
            }
        }
        Ok(status)
    })
}

fn remove_one(paths: &Paths, word: &str) -> Result<()> {
    let volume = expect(paths, word)?;
    match volume::remove(paths, &volume.name, None)? {
        Ok(()) => Ok(()),
        Err(Refusal::Missing) => Err(missing(word)),
        Err(Refusal::InUse(containers)) => {
            let sentence = format!("remove {word}: volume is in use - [{}]", containers.join(", "));
            Err(Error::usage(sentence).hint("remove the container first").exit(2).into())
        }
    }
}

fn prune(arguments: PruneArgs) -> Result<i32> {
    let which = if arguments.all { "all" } else { "anonymous" };
    let question = format!(
        "WARNING! This will remove {which} local volumes not used by at least one container.\nAre you sure you want to continue?"
    );
    if !arguments.force && !system::agrees(&question)? {
        return Ok(1);
    }
    let paths = swept()?;
    inside::run(move || {
        let freed = remove_unused(&paths, arguments.all, &arguments.filter)?;
        println!("Total reclaimed space: {}", table::size(freed));
        Ok(0)
    })
}

/// Removes volumes that no container has, named ones too if `all`, and prints which; the bytes that are free.
pub fn remove_unused(paths: &Paths, all: bool, filters: &[String]) -> Result<u64> {
    let mut volumes = volume::list(paths)?;
    volumes.retain(|volume| all || volume.anonymous);
    for filter in filters {
        apply(paths, filter, &mut volumes)?;
    }
    let (mut removed, mut freed) = (Vec::new(), 0);
    for volume in volumes {
        if !volume::users(paths, &volume.name).is_empty() {
            continue;
        }
        let size = volume::size(&volume::folder(paths, &volume.name));
        if volume::remove(paths, &volume.name, None)?.is_ok() {
            freed += size;
            removed.push(volume.name);
        }
    }
    if !removed.is_empty() {
        println!("Deleted Volumes:");
        removed.iter().for_each(|name| println!("{name}"));
        println!();
    }
    events::pruned(paths, Kind::Volume, freed);
    Ok(freed)
}

fn export(arguments: ExportArgs) -> Result<i32> {
    let paths = Paths::find()?;
    let volume = expect(&paths, &arguments.volume)?;
    if arguments.output.is_none() && std::io::stdout().is_terminal() {
        return Err(Error::usage("an archive is not for the terminal").hint("use -o FILE or a pipe").into());
    }
    inside::run(move || {
        let folder = volume::folder(&paths, &volume.name);
        let failed = || format!("cannot export volume {}", volume.name);
        match &arguments.output {
            None => snapshot::pack(&folder, std::io::BufWriter::new(std::io::stdout().lock()))
                .with_context(failed)?,
            Some(file) => {
                let made = File::create(file).with_context(|| format!("cannot make {}", file.display()))?;
                snapshot::pack(&folder, std::io::BufWriter::new(made)).with_context(failed)?;
            }
        }
        Ok(0)
    })
}

fn import(arguments: ImportArgs) -> Result<i32> {
    let paths = Paths::find()?;
    let volume = expect(&paths, &arguments.volume)?;
    inside::run(move || {
        let source: Box<dyn Read + Send> = if arguments.source.as_os_str() == "-" {
            Box::new(std::io::stdin())
        } else {
            let open = File::open(&arguments.source);
            Box::new(open.with_context(|| format!("cannot open {}", arguments.source.display()))?)
        };
        verbs::volume::import(&paths, &volume, source)?;
        Ok(0)
    })
}
