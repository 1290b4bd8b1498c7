//! `kelp exec`: docker's flags to a further program in a container. Like `run` it is parsed alone, since people
//! wait for it.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::cli::{parse, run, warn};
use crate::error::Error;
use crate::paths::Paths;
use crate::spec::exec::Exec;
use crate::verbs::exec;

/// Run a program in a container that runs
#[derive(Debug, Args)]
#[command(trailing_var_arg = true)]
pub struct ExecArgs {
    /// Run in the background
    #[arg(short, long)]
    detach: bool,
    /// The keys that leave the program running
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<String>,
    /// Set an environment variable: NAME=VALUE, or NAME to pass it on
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<OsString>,
    /// Read environment variables from a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Keep stdin open
    #[arg(short, long)]
    interactive: bool,
    /// Give the program all capabilities of the container's user namespace
    #[arg(long)]
    privileged: bool,
    /// Give the program a terminal
    #[arg(short, long)]
    tty: bool,
    /// USER[:GROUP], by name or number, as the container knows them
    #[arg(short, long)]
    user: Option<String>,
    /// Working folder
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// CONTAINER COMMAND [ARG...]
    #[arg(required = true, num_args = 1.., allow_hyphen_values = true, value_name = "CONTAINER COMMAND")]
    words: Vec<OsString>,
}

pub fn run(arguments: ExecArgs) -> Result<i32> {
    let mut words = arguments.words.into_iter();
    let container = words.next().unwrap_or_default();
    parse::no_flag(&container, "exec")?;
    let container = container.to_string_lossy().into_owned();
    let command: Vec<OsString> = words.skip_while(|word| word == "--").collect();
    if command.is_empty() {
        return Err(Error::usage("exec needs a container and a command").hint("kelp exec NAME sh").into());
    }
    let exec = Exec {
        command,
        environment: run::variables(&arguments.env_file, &arguments.env)?,
        cwd: run::cwd(arguments.workdir)?,
        user: arguments.user,
        interactive: arguments.interactive,
        terminal: arguments.tty,
        detach: arguments.detach,
        privileged: arguments.privileged,
        detach_keys: arguments.detach_keys,
        number: None,
    };
    exec::exec(&Paths::find()?, &container, exec, &mut warn)
}
