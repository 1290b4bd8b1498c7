//! `kelp logs`: what a container has written, by stream: its stdout to ours, its stderr to ours. With `-f` up to
//! the container's end.

use std::io::{self, Write};
use std::path::Path;

use anyhow::Result;
use clap::Args;

use crate::cli::moment;
use crate::container::logged::{Entry, Reader};
use crate::container::watch::Watch;
use crate::container::{list, sweep};
use crate::error::Error;
use crate::image::config::rfc3339_nanos;
use crate::paths::Paths;
use crate::spec::life::{LogFormat, Stream};

/// Show what a container has written
#[derive(Debug, Args)]
pub struct LogsArgs {
    container: String,
    /// Go on until the container ends
    #[arg(short, long)]
    follow: bool,
    /// From this time on: RFC 3339, seconds since 1970, or a duration before now such as 10m
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Up to this time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// The last so many lines, or all
    #[arg(short = 'n', long, value_name = "LINES", default_value = "all", allow_hyphen_values = true)]
    tail: String,
    /// Each line's time before it
    #[arg(short, long)]
    timestamps: bool,
}

pub fn run(arguments: &LogsArgs) -> Result<i32> {
    let paths = Paths::find()?;
    let known = list::find(&paths, &arguments.container)?;
    if matches!(known.made.request.life.log.format, LogFormat::None | LogFormat::Passthrough) {
        return Err(Error::usage("configured logging driver does not support reading").exit(1).into());
    }
    let (since, until) = (time(arguments.since.as_deref())?, time(arguments.until.as_deref())?);
    let wanted = |entry: &Entry| {
        since.as_ref().is_none_or(|since| entry.time >= *since)
            && until.as_ref().is_none_or(|until| entry.time <= *until)
    };
    let (mut reader, mut entries) = Reader::open(&known.folder)?;
    entries.retain(&wanted);
    if let Ok(lines) = arguments.tail.parse::<usize>() {
        entries.drain(..entries.len().saturating_sub(lines));
    }
    print(&entries, arguments.timestamps)?;
    if arguments.follow {
        follow(&paths, &known.folder, &mut reader, &wanted, arguments.timestamps)?;
    }
    Ok(0)
}

fn follow(
    paths: &Paths,
    folder: &Path,
    reader: &mut Reader,
    wanted: &impl Fn(&Entry) -> bool,
    timestamps: bool,
) -> Result<()> {
    // A container that is gone by now has nothing more to say.
    let Ok(watch) = Watch::new(folder) else { return Ok(()) };
    loop {
        // In this order, so that what was written before the end is seen after it.
        let lives = sweep::look(paths, folder)?.is_some_and(|known| known.status.state.is_live());
        let mut entries = reader.more()?;
        entries.retain(wanted);
        print(&entries, timestamps)?;
        if !lives {
            return Ok(());
        }
        watch.wait(None)?;
    }
}

fn print(entries: &[Entry], timestamps: bool) -> Result<()> {
    let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
    for entry in entries {
        let to: &mut dyn Write = if entry.stream == Stream::Stderr { &mut err } else { &mut out };
        if timestamps {
            write!(to, "{} ", entry.time)?;
        }
        to.write_all(&entry.text)?;
    }
    Ok(out.flush()?)
}

/// A moment in the log's own form.
fn time(word: Option<&str>) -> Result<Option<String>> {
    word.map(|word| Ok(rfc3339_nanos(moment::nanoseconds(word)?))).transpose()
}
