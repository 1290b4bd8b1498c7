//! `kelp start`: containers that were created or have ended run again, in the background. One that runs already
//! is left alone.

use anyhow::Result;
use clap::Args;

use crate::cli::{orders, warn};
use crate::paths::Paths;
use crate::verbs::start;

/// Start containers
#[derive(Debug, Args)]
pub struct StartArgs {
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

pub fn run(arguments: &StartArgs) -> Result<i32> {
    let paths = Paths::find()?;
    orders::each(&arguments.containers, |word| {
        start::start(&paths, word, &mut warn).map(|()| word.to_owned())
    })
}
