//! `kelp cp`: its arguments, and which of its two words means a container. What is copied how is the business of
//! `verbs/copy`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use crate::cli::report;
use crate::verbs::copy::{self, Copy, End};

/// Copy files between a container and the host
///
/// DIR/. means what is in the folder; - is a tar on standard input or output.
#[derive(Debug, Args)]
pub struct CpArgs {
    /// CONTAINER:PATH, PATH or -
    from: String,
    /// CONTAINER:PATH, PATH or -
    to: String,
    /// Keep the owners of files
    #[arg(short, long)]
    archive: bool,
    /// Copy what a link leads to
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// A folder may replace a file, and the other way round
    #[arg(long)]
    overwrite: bool,
    /// For docker's command line: nothing is printed anyway
    #[arg(short, long)]
    quiet: bool,
}

pub fn run(arguments: CpArgs) -> Result<i32> {
    let request = Copy {
        from: end(&arguments.from)?,
        to: end(&arguments.to)?,
        follow: arguments.follow_link,
        archive: arguments.archive,
        overwrite: arguments.overwrite,
    };
    copy::copy(&request, &|error| i32::from(report(error)))
}

/// A path that begins with `/` or `.` is the host's, whatever follows.
fn end(word: &str) -> Result<End> {
    match word.split_once(':') {
        _ if word == "-" => Ok(End::Stream),
        Some((name, path)) if !word.starts_with(['/', '.']) && !name.is_empty() => {
            Ok(End::Container { name: name.to_owned(), path: PathBuf::from(path) })
        }
        _ => {
            let here = std::env::current_dir().context("cannot find the working folder")?;
            // `DIR/.` means another thing than `DIR`, which Path::join keeps.
            Ok(End::Host(if word == "." { here.join("./.") } else { here.join(word) }))
        }
    }
}
