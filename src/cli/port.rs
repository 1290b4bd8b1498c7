//! `kelp port`: which ports of the host lead into a container that runs, with the number that the kernel gave where
//! the choice was left to it.

use anyhow::Result;
use clap::Args;

use crate::cli::describe;
use crate::container::list;
use crate::paths::Paths;
use crate::verbs::order::refusal;

/// Show the ports of the host that lead into a container
#[derive(Debug, Args)]
pub struct PortArgs {
    #[arg(required_unless_present = "all")]
    container: Option<String>,
    /// The ports of all containers that run
    #[arg(short, long, conflicts_with = "container")]
    all: bool,
    /// Only this port of the container: PORT[/tcp|udp]
    #[arg(value_name = "PORT")]
    port: Option<String>,
}

pub fn run(arguments: &PortArgs) -> Result<i32> {
    let paths = Paths::find()?;
    let Some(container) = &arguments.container else {
        for known in list::all(&paths).iter().filter(|known| known.status.state.is_live()) {
            for (port, address) in describe::listening(known) {
                println!("{}\t{port} -> {address}", known.made.id.short());
            }
        }
        return Ok(0);
    };
    let known = list::find(&paths, container)?;
    let all = if known.status.state.is_live() { describe::listening(&known) } else { Vec::new() };
    let Some(port) = &arguments.port else {
        for (port, address) in all {
            println!("{port} -> {address}");
        }
        return Ok(0);
    };
    let wanted = if port.contains('/') { port.clone() } else { format!("{port}/tcp") };
    let mut found = all.into_iter().filter(|(port, _)| *port == wanted).peekable();
    if found.peek().is_none() {
        return Err(refusal(format!("no public port '{wanted}' published for {container}")));
    }
    found.for_each(|(_, address)| println!("{address}"));
    Ok(0)
}
