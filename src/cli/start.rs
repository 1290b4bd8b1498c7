//! `kelp start`: containers that were created or have ended run again, in the background or attached to. One that
//! runs already is left alone.

use anyhow::Result;
use clap::Args;

use crate::cli::attach::ProxyArgs;
use crate::cli::{orders, warn};
use crate::error::Error;
use crate::paths::Paths;
use crate::spec::life::Stream;
use crate::verbs::attach::Seat;
use crate::verbs::start;

/// Start containers
#[derive(Debug, Args)]
pub struct StartArgs {
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
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
    if !arguments.attach && !arguments.interactive {
        return orders::each(&arguments.containers, |word| {
            start::start(&paths, word, &mut warn).map(|()| word.to_owned())
        });
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
