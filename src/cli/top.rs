//! `kelp top`: the processes of a container, as `ps -ef` on the host shows them. With options of its own, the
//! host's `ps` is asked, and its lines are picked by their PID.

use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};

use crate::cli::descriptors;
use crate::cli::table::{self, Column};
use crate::container::list;
use crate::container::state::State;
use crate::error::Error;
use crate::paths::Paths;
use crate::sys::clock;
use crate::units;
use crate::verbs::observe::{self, Seen};
use crate::verbs::order::refusal;

/// Show the processes of a container
#[derive(Debug, Args)]
#[command(trailing_var_arg = true)]
pub struct TopArgs {
    container: String,
    /// Options for the host's ps, whose list must have a PID; or podman's columns, such as pid user args
    #[arg(value_name = "PS OPTIONS", allow_hyphen_values = true)]
    options: Vec<String>,
}

pub fn run(arguments: &TopArgs) -> Result<i32> {
    let known = list::find(&Paths::find()?, &arguments.container)?;
    let runs = matches!(known.status.state, State::Running | State::Paused);
    let Some(first) = known.status.process.as_ref().filter(|_| runs) else {
        return Err(refusal(format!("container {} is not running", known.made.id)));
    };
    let processes = observe::processes(first.pid);
    if let Some(columns) = descriptors::asked(&arguments.options)? {
        descriptors::print(&processes, &columns, first.pid)?;
        return Ok(0);
    }
    if !arguments.options.is_empty() {
        return of_ps(&arguments.options, &processes);
    }
    let columns =
        ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"].map(|name| Column::new(name, name));
    table::print(&processes.iter().map(row).collect::<Vec<_>>(), &columns, None, true)?;
    Ok(0)
}

fn row(seen: &Seen) -> Value {
    let used = seen.used.as_secs();
    let share = 100.0 * seen.used.as_secs_f64() / seen.age.as_secs_f64().max(0.01);
    let started = units::now() / 1_000_000_000 - seen.age.as_secs().cast_signed();
    let (hour, minute) = clock::local(started);
    json!({
        "UID": seen.uid.to_string(),
        "PID": seen.pid,
        "PPID": seen.parent,
        "C": share.min(99.0) as u64,
        "STIME": format!("{hour:02}:{minute:02}"),
        "TTY": terminal(seen.terminal),
        "TIME": format!("{:02}:{:02}:{:02}", used / 3600, used % 3600 / 60, used % 60),
        "CMD": seen.command,
    })
}

/// The name of a terminal by its `dev_t` of proc_pid_stat(5); 136 and on are pseudo-terminals.
pub fn terminal(number: u32) -> String {
    let (major, minor) = (number >> 8 & 0xfff, number & 0xff | number >> 12 & 0xfff00);
    match major {
        0 => "?".to_owned(),
        136..=143 => format!("pts/{}", minor + (major - 136) * 256),
        _ => format!("tty{minor}"),
    }
}

fn of_ps(options: &[String], processes: &[Seen]) -> Result<i32> {
    let asked = Command::new("ps").args(options).output().context("cannot run ps")?;
    if !asked.status.success() {
        let said = String::from_utf8_lossy(&asked.stderr);
        return Err(refusal(format!("ps does not like its options: {}", said.trim())));
    }
    let text = String::from_utf8_lossy(&asked.stdout);
    let mut lines = text.lines();
    let heading = lines.next().unwrap_or_default();
    let Some(column) = heading.split_whitespace().position(|word| word == "PID") else {
        return Err(Error::usage("couldn't find PID field in ps output").hint("add -o pid").exit(1).into());
    };
    println!("{heading}");
    for line in lines {
        let pid = line.split_whitespace().nth(column).and_then(|word| word.parse().ok());
        if processes.iter().any(|process| Some(process.pid) == pid) {
            println!("{line}");
        }
    }
    Ok(0)
}
