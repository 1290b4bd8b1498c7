//! `kelp start`: containers that were created or have ended run again, in the background or attached to. One that
//! runs already is left alone.

use anyhow::Result;
use clap::Args;

use crate::cli::attach::ProxyArgs;
use crate::cli::choice::Choice;
use crate::cli::{orders, warn};
use crate::container::folder::Known;
use crate::error::Error;
use crate::paths::Paths;
use crate::spec::life::Stream;
use crate::verbs::attach::Seat;
use crate::verbs::start;

/// Start containers
#[derive(Debug, Args)]
pub struct StartArgs {
    #[arg(required_unless_present_any = ["all", "filter"], value_name = "CONTAINER")]
    containers: Vec<String>,
    /// All that do not run
    #[arg(long)]
    all: bool,
    /// Those that fit, such as restart-policy=always; the filters are those of ps
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Attach to the container's output, pass signals on, and end with its exit status
    #[arg(short, long)]
    attach: bool,
    /// Attach to its input too
    #[arg(short, long)]
    interactive: bool,
    /// The keys that leave the container running [default: the container's, or ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<String>,
    #[command(flatten)]
    proxy: ProxyArgs,
}

pub fn run(arguments: &StartArgs) -> Result<i32> {
    let paths = Paths::find()?;
    if arguments.all || !arguments.filter.is_empty() {
        if !arguments.containers.is_empty() || arguments.attach {
            return Err(Error::usage("either containers are named or chosen by --all and --filter").into());
        }
        let choice = Choice::of(&paths, &arguments.filter)?;
        let fits = |known: &Known| !known.status.state.is_live() && choice.fits(known);
        return start_all(&paths, &orders::chosen(&paths, &[], true, fits));
    }
    if !arguments.attach && !arguments.interactive {
        return start_all(&paths, &arguments.containers);
    }
    let [container] = arguments.containers.as_slice() else {
        let sentence = "you cannot start and attach multiple containers at once";
        return Err(Error::usage(sentence).exit(1).into());
    };
    let mut seat = Seat::whole(arguments.detach_keys.clone(), arguments.proxy.sig_proxy);
    if !arguments.interactive {
        seat.streams.retain(|stream| *stream != Stream::Stdin);
    }
    start::attached(&paths, container, &seat, &mut warn)
}

/// In the background.
fn start_all(paths: &Paths, containers: &[String]) -> Result<i32> {
    orders::each(containers, |word| start::start(paths, word, &mut warn).map(|()| word.to_owned()))
}

/// Start what is to run after a reboot
///
/// Containers that have run, with --restart always, unless-stopped (but for those that were stopped), or on-failure (those that have failed).
#[derive(Debug, Args)]
pub struct StartAllArgs {}

pub fn after_boot(_: &StartAllArgs) -> Result<i32> {
    let paths = Paths::find()?;
    let fits = |known: &Known| {
        let status = &known.status;
        let policy = status.policy(&known.made);
        !status.state.is_live() && status.started > 0 && policy.after_boot(status.exit, status.stopped)
    };
    start_all(&paths, &orders::chosen(&paths, &[], true, fits))
}
