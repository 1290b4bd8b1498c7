//! `kelp doctor`: the checks as a list for people, or as JSON. Ends with 0 if containers can run here, else 1.
//! It knows no check by name but the one that decides.

use std::io::{self, IsTerminal, Write};

use anyhow::Result;
use clap::Args;

use crate::check::{Check, State};
use crate::cli::words;
use crate::doctor;
use crate::paths::Paths;
use crate::rootfs::rung::Rung;

/// Show what this host permits, what kelp uses, and the mend for what it refuses
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &DoctorArgs) -> Result<i32> {
    let checks = doctor::examine(&Paths::find(), words::usual_driver()?.map(Rung::from));
    let mut out = io::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &checks)?;
        writeln!(out)?;
    } else {
        let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        for check in &checks {
            show(&mut out, check, colour)?;
        }
    }
    let runs =
        checks.iter().any(|check| check.facility == "user namespaces" && check.state != State::Refused);
    Ok(i32::from(!runs))
}

fn show(out: &mut impl Write, check: &Check, colour: bool) -> io::Result<()> {
    let (word, code) = match check.state {
        State::Used => ("used", "32"),
        State::Works => ("works", "0"),
        State::Refused => ("refused", "31"),
    };
    let word = if colour { format!("\x1b[{code}m{word:<8}\x1b[0m") } else { format!("{word:<8}") };
    writeln!(out, "{word}{}: {}", check.facility, check.rung)?;
    writeln!(out, "        {}", check.reason)?;
    match &check.mend {
        Some(mend) => writeln!(out, "        mend: {mend}"),
        None => Ok(()),
    }
}
