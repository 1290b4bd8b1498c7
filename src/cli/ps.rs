//! `kelp ps`: docker's list of containers. It reads the records and asks no monitor, so that a hundred
//! containers take no longer than a few.

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::cli::choice::{self, Choice};
use crate::cli::describe;
use crate::cli::table::{self, Column};
use crate::container::folder::{Healthiness, Known};
use crate::container::list;
use crate::container::state::State;
use crate::container::volume;
use crate::image::config::rfc3339;
use crate::image::store::Store;
use crate::paths::Paths;
use crate::spec::mount::MountKind;
use crate::units;

/// List containers
#[derive(Debug, Args)]
pub struct PsArgs {
    /// Those that have ended too
    #[arg(short, long)]
    all: bool,
    /// id=, name=PATTERN, label=KEY[=VALUE], label!=, status=, exited=CODE, ancestor=IMAGE, volume=, network=,
    /// health=, before=CONTAINER, since=CONTAINER, publish=PORT, expose=PORT, until=TIME
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    /// The last COUNT that were made, whether they run or not
    #[arg(short = 'n', long, value_name = "COUNT", allow_negative_numbers = true)]
    last: Option<i64>,
    /// The last one that was made
    #[arg(short, long, conflicts_with = "last")]
    latest: bool,
    /// The order of the rows: command, created, id, image, names, runningfor, size or status [default: created, the last
    /// first]
    #[arg(long, value_name = "KEY")]
    sort: Option<SortKey>,
    /// Say how much each has written
    #[arg(short, long)]
    size: bool,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
    /// A Go template, `table TEMPLATE` or `json`
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Whole ids and commands
    #[arg(long)]
    no_trunc: bool,
    /// Print no heading
    #[arg(long)]
    noheading: bool,
}

/// What podman's `ps --sort` knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SortKey {
    Command,
    Created,
    Id,
    Image,
    Names,
    Runningfor,
    Size,
    Status,
}

impl SortKey {
    fn sort(self, containers: &mut [Known]) {
        match self {
            Self::Command => containers.sort_by_cached_key(|known| known.made.request.arguments().to_vec()),
            Self::Created => containers.sort_by_key(|known| known.made.created),
            Self::Id => containers.sort_by_cached_key(|known| known.made.id.to_string()),
            Self::Image => containers.sort_by_cached_key(|known| known.made.request.root_name.clone()),
            Self::Names => containers.sort_by_cached_key(|known| known.name().to_string()),
            Self::Runningfor => containers.sort_by_key(|known| known.status.started),
            Self::Size => containers.sort_by_cached_key(|known| volume::size(&known.folder)),
            Self::Status => containers.sort_by_cached_key(|known| known.status.state.word()),
        }
    }
}

pub fn run(arguments: &PsArgs) -> Result<i32> {
    let paths = Paths::find()?;
    let choice = Choice::of(&paths, &arguments.filter)?;
    let last = if arguments.latest { Some(1) } else { arguments.last };
    let last = last.and_then(|count| usize::try_from(count).ok()).filter(|count| *count > 0);
    let all = arguments.all || last.is_some() || choice.is_about_states();
    let mut known = list::all(&paths);
    known.retain(|known| (all || known.status.state.is_live()) && choice.fits(known));
    known.truncate(last.unwrap_or(usize::MAX));
    if let Some(key) = arguments.sort {
        key.sort(&mut known);
    }
    if arguments.quiet {
        for known in &known {
            println!("{}", id(known, arguments.no_trunc));
        }
        return Ok(0);
    }
    let sized = arguments.size || arguments.format.as_ref().is_some_and(|format| format.contains(".Size"));
    let store = if sized { Some(Store::open(&paths)?) } else { None };
    let rows: Vec<Value> = known.iter().map(|known| row(known, arguments.no_trunc, store.as_ref())).collect();
    let mut columns = vec![
        Column::new("CONTAINER ID", "ID"),
        Column::new("IMAGE", "Image").shrinks(10),
        Column::new("COMMAND", "Command").shrinks(12).yields(1),
        Column::new("CREATED", "RunningFor").yields(2),
        Column::new("STATUS", "Status"),
        Column::new("PORTS", "Ports").shrinks(12).yields(3),
        Column::new("NAMES", "Names").shrinks(10),
    ];
    if arguments.size {
        columns[4] = Column::new("STATUS", "Status").shrinks(20);
        columns.push(Column::new("SIZE", "Size").shrinks(10));
    }
    if arguments.no_trunc {
        columns.iter_mut().for_each(Column::keep);
    }
    table::print(&rows, &columns, arguments.format.as_deref(), !arguments.noheading)?;
    Ok(0)
}

fn id(known: &Known, whole: bool) -> &str {
    if whole { known.made.id.as_str() } else { known.made.id.short() }
}

fn ago(time: i64) -> String {
    table::duration((units::now() - time) / 1_000_000_000)
}

/// `Up 2 minutes`, `Exited (0) 3 hours ago`: docker's words.
pub fn status(known: &Known) -> String {
    let status = &known.status;
    let health = match status.health {
        Some(Healthiness::Starting) => " (health: starting)",
        Some(Healthiness::Healthy) => " (healthy)",
        Some(Healthiness::Unhealthy) => " (unhealthy)",
        None => "",
    };
    match status.state {
        State::Running => format!("Up {}{health}", ago(status.started)),
        State::Paused => format!("Up {} (Paused)", ago(status.started)),
        State::Restarting => format!("Restarting ({}) {} ago", status.exit, ago(status.finished)),
        State::Exited => format!("Exited ({}) {} ago", status.exit, ago(status.finished)),
        State::Created | State::Starting => "Created".to_owned(),
        State::Dead => "Dead".to_owned(),
    }
}

fn shortened(text: &str, longest: usize, whole: bool) -> String {
    if whole || text.chars().count() <= longest {
        return text.to_owned();
    }
    text.chars().take(longest - 1).chain(['…']).collect()
}

fn row(known: &Known, whole: bool, store: Option<&Store>) -> Value {
    let request = &known.made.request;
    let words: Vec<String> =
        request.arguments().iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let labels: Vec<String> = request.labels().iter().map(|(key, value)| format!("{key}={value}")).collect();
    let volumes: Vec<String> = volume::all_of(&known.made).map(|volume| volume.name.to_string()).collect();
    let sources = request.mounts.iter().filter_map(|mount| match &mount.kind {
        MountKind::Bind { source, .. } => Some(source.display().to_string()),
        _ => volume::of(mount, &known.made.id).map(|volume| volume.name.to_string()),
    });
    let mounts: Vec<String> = sources.map(|source| shortened(&source, 15, whole)).collect();
    let created = known.made.created / 1_000_000_000;
    json!({
        "ID": id(known, whole),
        "Names": known.name().as_str(),
        "Image": request.root_name,
        "ImageID": request.image.id,
        "Command": format!("{:?}", shortened(&words.join(" "), 20, whole)),
        "Created": created,
        "CreatedAt": rfc3339(created).replace('T', " ").replace('Z', " +0000 UTC"),
        "RunningFor": format!("{} ago", ago(known.made.created)),
        "Status": status(known),
        "State": known.status.state.word(),
        "ExitCode": known.status.exit,
        "Exited": known.status.state == State::Exited,
        "Pid": describe::pid(known).unwrap_or(0),
        "Ports": ports(known),
        "Labels": labels.join(","),
        "Mounts": mounts.join(","),
        "LocalVolumes": volumes.len().to_string(),
        "Networks": choice::network(request),
        "Size": store.map(|store| size(known, store)).unwrap_or_default(),
    })
}

/// `0.0.0.0:8080->80/tcp, [::]:8080->80/tcp`, and the image's ports that lead nowhere; ports in a row together.
fn ports(known: &Known) -> String {
    if !known.status.state.is_live() {
        return String::new();
    }
    let listening = describe::listening(known);
    let open = known
        .made
        .request
        .image
        .exposed
        .iter()
        .filter(|port| !listening.iter().any(|(published, _)| published == *port));
    let mut open: Vec<String> = open.cloned().collect();
    open.sort();
    let mut runs: Vec<Run> = Vec::new();
    for run in listening.iter().filter_map(|(port, address)| Run::of(port, address)) {
        match runs.iter_mut().find(|known| known.goes_on_with(&run)) {
            Some(known) => known.count += 1,
            None => runs.push(run),
        }
    }
    open.extend(runs.iter().map(Run::text));
    open.join(", ")
}

/// Ports in a row that lead to ports in a row.
struct Run {
    host: String,
    first: u16,
    inside: u16,
    protocol: String,
    count: u16,
}

impl Run {
    fn of(port: &str, address: &str) -> Option<Self> {
        let (inside, protocol) = port.split_once('/')?;
        let (host, first) = address.rsplit_once(':')?;
        Some(Self {
            host: host.to_owned(),
            first: first.parse().ok()?,
            inside: inside.parse().ok()?,
            protocol: protocol.to_owned(),
            count: 1,
        })
    }

    fn goes_on_with(&self, other: &Self) -> bool {
        (&self.host, &self.protocol) == (&other.host, &other.protocol)
            && u32::from(self.first) + u32::from(self.count) == u32::from(other.first)
            && u32::from(self.inside) + u32::from(self.count) == u32::from(other.inside)
    }

    fn text(&self) -> String {
        let range = |first: u16| match self.count {
            1 => first.to_string(),
            count => format!("{first}-{}", first + (count - 1)),
        };
        format!("{}:{}->{}/{}", self.host, range(self.first), range(self.inside), self.protocol)
    }
}

/// `12kB (virtual 80MB)`: what it has written, and that with its image.
fn size(known: &Known, store: &Store) -> String {
    let written = volume::size(&known.folder.join("upper"));
    let image = store.find(&known.made.request.image.id).ok().flatten();
    match image {
        Some(image) => {
            format!("{} (virtual {})", table::size(written), table::size(written + image.record.size))
        }
        None => table::size(written),
    }
}
