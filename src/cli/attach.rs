//! `kelp attach`: docker's flags to sitting down before a container that runs, and the flag that `run` and `start`
//! share with it.

use anyhow::Result;
use clap::Args;

use crate::cli::warn;
use crate::paths::Paths;
use crate::spec::life::Stream;
use crate::verbs::attach::{self, Seat};

/// Whether signals go on to the program.
#[derive(Clone, Copy, Debug, Args)]
pub struct ProxyArgs {
    /// Pass signals on to the program; without that they end this command only
    #[arg(
        long,
        value_name = "BOOL",
        default_value_t = true,
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true,
        action = clap::ArgAction::Set
    )]
    pub sig_proxy: bool,
}

impl Default for ProxyArgs {
    fn default() -> Self {
        Self { sig_proxy: true }
    }
}

/// Attach to a container that runs
#[derive(Debug, Args)]
pub struct AttachArgs {
    container: String,
    /// Send no input
    #[arg(long)]
    no_stdin: bool,
    /// The keys that leave the container running [default: the container's, or ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<String>,
    #[command(flatten)]
    proxy: ProxyArgs,
}

pub fn run(arguments: AttachArgs) -> Result<i32> {
    let mut seat = Seat::whole(arguments.detach_keys, arguments.proxy.sig_proxy);
    if arguments.no_stdin {
        seat.streams.retain(|stream| *stream != Stream::Stdin);
    }
    attach::attach(&Paths::find()?, &arguments.container, &seat, &mut warn)
}
