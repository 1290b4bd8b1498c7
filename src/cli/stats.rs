//! `kelp stats`: what containers use, live or once, in docker's columns and one more: who enforces each limit. It knows
//! no source of a figure.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use crate::cgroup::hold::Enforcer;
use crate::cgroup::stats::Usage;
use crate::cli::limits::host_config;
use crate::cli::table::{self, Column};
use crate::container::folder::Known;
use crate::container::list;
use crate::container::state::State;
use crate::paths::Paths;
use crate::spec::limits;
use crate::spec::resources::Limits;
use crate::verbs::restrain;

/// Show what containers use
#[derive(Debug, Args)]
pub struct StatsArgs {
    #[arg(value_name = "CONTAINER")]
    containers: Vec<String>,
    /// Those that do not run too
    #[arg(short, long)]
    all: bool,
    /// Show it once
    #[arg(long)]
    no_stream: bool,
    /// A Go template, `table TEMPLATE` or `json`
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Whole ids
    #[arg(long)]
    no_trunc: bool,
}

/// How far two looks lie apart: processors' time is what was used between them.
const ONCE: Duration = Duration::from_millis(250);
const LIVE: Duration = Duration::from_secs(1);

const COLUMNS: [Column; 9] = [
    Column::new("CONTAINER ID", "ID"),
    Column::new("NAME", "Name").shrinks(10),
    Column::new("CPU %", "CPUPerc"),
    Column::new("MEM USAGE / LIMIT", "MemUsage"),
    Column::new("MEM %", "MemPerc"),
    Column::new("NET I/O", "NetIO").yields(2),
    Column::new("BLOCK I/O", "BlockIO").yields(1),
    Column::new("PIDS", "PIDs"),
    Column::new("ENFORCED BY", "EnforcedBy").shrinks(11).yields(3),
];

/// One look at one container.
struct Look {
    known: Known,
    at: Instant,
    usage: Usage,
    network: (u64, u64),
}

pub fn run(arguments: &StatsArgs) -> Result<i32> {
    let paths = Paths::find()?;
    let mut before = looks(&paths, arguments)?;
    loop {
        std::thread::sleep(if arguments.no_stream { ONCE } else { LIVE });
        let now = looks(&paths, arguments)?;
        let rows: Vec<Value> = now.iter().map(|look| row(look, &before, arguments.no_trunc)).collect();
        if !arguments.no_stream && io::stdout().is_terminal() {
            // Clears the screen, as docker does between two looks.
            write!(io::stdout(), "\x1b[2J\x1b[H")?;
        }
        let mut columns = COLUMNS;
        if arguments.no_trunc {
            columns.iter_mut().for_each(Column::keep);
        }
        table::print(&rows, &columns, arguments.format.as_deref(), true)?;
        if arguments.no_stream || (now.is_empty() && !arguments.containers.is_empty()) {
            return Ok(0);
        }
        before = now;
    }
}

fn looks(paths: &Paths, arguments: &StatsArgs) -> Result<Vec<Look>> {
    let known: Vec<Known> = if arguments.containers.is_empty() {
        let all = list::all(paths).into_iter();
        let runs = |known: &Known| matches!(known.status.state, State::Running | State::Paused);
        all.filter(|known| arguments.all || runs(known)).collect()
    } else {
        arguments.containers.iter().map(|word| list::find(paths, word)).collect::<Result<_>>()?
    };
    let look = |known: Known| {
        let (usage, network) = restrain::usage(&known).unwrap_or_default();
        Look { known, at: Instant::now(), usage, network }
    };
    Ok(known.into_iter().map(look).collect())
}

fn row(look: &Look, before: &[Look], whole: bool) -> Value {
    let Look { known, at, usage, network } = look;
    let earlier = before.iter().find(|look| look.known.made.id == known.made.id);
    let percent = earlier.map_or(0.0, |earlier| {
        let passed = (*at - earlier.at).as_nanos().max(1) as f64;
        usage.cpu.saturating_sub(earlier.usage.cpu) as f64 / passed * 100.0
    });
    let mut limits = known.made.request.resources.limits.clone();
    limits.update(&known.status.limits);
    let limit = memory_limit(&limits);
    let size = table::size;
    json!({
        "ID": if whole { known.made.id.as_str() } else { known.made.id.short() },
        "Container": known.made.id.as_str(),
        "Name": known.name().as_str(),
        "CPUPerc": format!("{percent:.2}%"),
        "MemUsage": format!("{} / {}", binary(usage.memory), binary(limit)),
        "MemPerc": format!("{:.2}%", usage.memory as f64 / limit.max(1) as f64 * 100.0),
        "MemPeak": usage.memory_peak.map_or_else(|| "--".to_owned(), binary),
        "NetIO": format!("{} / {}", size(network.0), size(network.1)),
        "BlockIO": format!("{} / {}", size(usage.read), size(usage.written)),
        "PIDs": usage.pids.to_string(),
        "Limits": host_config(&limits),
        "EnforcedBy": enforced(known),
    })
}

/// `memory:soft cpus:cgroup`.
fn enforced(known: &Known) -> String {
    let word = |enforcer: &Enforcer| serde_json::to_value(enforcer).ok()?.as_str().map(str::to_owned);
    let each = known.status.enforced.iter();
    let words: Vec<String> =
        each.filter_map(|(flag, enforcer)| Some(format!("{flag}:{}", word(enforcer)?))).collect();
    if words.is_empty() { "--".to_owned() } else { words.join(" ") }
}

/// `77.8MiB`: four digits, as docker's `units.BytesSize`.
fn binary(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = [3, 2, 1].into_iter().zip([10.0, 100.0, 1000.0]).find(|(_, most)| value < *most);
    let number = format!("{value:.*}", digits.map_or(0, |(digits, _)| digits));
    let short =
        if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.') } else { &number };
    format!("{short}{}", units[unit])
}

/// The machine's memory bounds what has no limit.
fn memory_limit(limits: &Limits) -> u64 {
    let host = nix::sys::sysinfo::sysinfo().map_or(u64::MAX, |info| info.ram_total());
    limits.number(limits::MEMORY).map_or(host, |limit| limit.min(host))
}
