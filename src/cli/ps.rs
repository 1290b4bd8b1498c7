//! `kelp ps`: docker's list of containers. It reads the records and asks no monitor, so that a hundred
//! containers take no longer than a few.

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use crate::cli::table::{self, Column};
use crate::container::folder::Known;
use crate::container::list;
use crate::container::state::State;
use crate::image::config::rfc3339;
use crate::paths::Paths;
use crate::units;

/// List containers
#[derive(Debug, Args)]
pub struct PsArgs {
    /// Those that have ended too
    #[arg(short, long)]
    all: bool,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
    /// A Go template, `table TEMPLATE` or `json`
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Whole ids and commands
    #[arg(long)]
    no_trunc: bool,
}

pub fn run(arguments: &PsArgs) -> Result<i32> {
    let paths = Paths::find()?;
    let mut known = list::all(&paths);
    known.retain(|known| arguments.all || known.status.state.is_live());
    if arguments.quiet {
        for known in &known {
            println!("{}", id(known, arguments.no_trunc));
        }
        return Ok(0);
    }
    let rows: Vec<Value> = known.iter().map(|known| row(known, arguments.no_trunc)).collect();
    let columns = [
        Column::new("CONTAINER ID", "ID"),
        Column::new("IMAGE", "Image"),
        Column::new("COMMAND", "Command"),
        Column::new("CREATED", "RunningFor"),
        Column::new("STATUS", "Status"),
        Column::new("PORTS", "Ports"),
        Column::new("NAMES", "Names"),
    ];
    table::print(&rows, &columns, arguments.format.as_deref(), true)?;
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
    match status.state {
        State::Running => format!("Up {}", ago(status.started)),
        State::Paused => format!("Up {} (Paused)", ago(status.started)),
        State::Restarting => format!("Restarting ({}) {} ago", status.exit, ago(status.finished)),
        State::Exited => format!("Exited ({}) {} ago", status.exit, ago(status.finished)),
        State::Created | State::Starting => "Created".to_owned(),
        State::Dead => "Dead".to_owned(),
    }
}

fn row(known: &Known, whole: bool) -> Value {
    let request = &known.made.request;
    let words: Vec<String> =
        request.arguments().iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let mut command = words.join(" ");
    if !whole && command.chars().count() > 20 {
        command = command.chars().take(19).chain(['…']).collect();
    }
    json!({
        "ID": id(known, whole),
        "Names": known.name().as_str(),
        "Image": request.root_name,
        "Command": format!("\"{command}\""),
        "CreatedAt": rfc3339(known.made.created / 1_000_000_000),
        "RunningFor": format!("{} ago", ago(known.made.created)),
        "Status": status(known),
        "State": known.status.state.word(),
        "Ports": "",
    })
}
