//! `kelp push`: arguments, one call, and the digest that the registry has afterwards. The story itself is
//! `image/push`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use crate::cli::pull::RegistryArgs;
use crate::cli::{inside, tag};
use crate::image::push::{self, Event, Journey, Options};
use crate::image::reference::Reference;
use crate::image::store::Store;
use crate::paths::Paths;

/// Send an image to a registry
#[derive(Debug, Args)]
pub struct PushArgs {
    /// IMAGE [DESTINATION]
    image: String,
    destination: Option<Reference>,
    /// Write the manifest's digest into this file
    #[arg(long, value_name = "FILE")]
    digestfile: Option<PathBuf>,
    /// How layers are packed that have to be packed anew: gzip, zstd or none
    #[arg(long, value_name = "FORMAT", default_value = "gzip")]
    compression_format: String,
    /// How much is packed: 1 to 9 for gzip, 1 to 20 for zstd [default: by how far the registry is]
    #[arg(long, value_name = "LEVEL")]
    compression_level: Option<i32>,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

pub fn run(arguments: PushArgs) -> Result<i32> {
    let paths = Paths::find()?;
    let store = Store::open(&paths)?;
    let image = store.expect(&arguments.image)?;
    let target = arguments.destination.map_or_else(|| arguments.image.parse(), Ok)?;
    let compression = push::compression(&arguments.compression_format)?;
    let level = push::level(compression, arguments.compression_level)?;
    let options = Options { manner: arguments.registry.manner(), compression, level, parallel: 3 };
    let say = |event: Event<'_>| match event {
        _ if arguments.quiet => {}
        Event::Existed(layer) => eprintln!("{}: already there", layer.short()),
        Event::Mounted(layer) => eprintln!("{}: mounted from another repository", layer.short()),
        Event::Done(layer) => eprintln!("{}: pushed", layer.short()),
    };
    let journey = Journey::begin(&store, &image, &target, &options)?;
    let known = journey.known(&say)?;
    let is_all = known.iter().all(Option::is_some);
    let end = || {
        let digest = journey.end(known, &say)?.digest;
        if let Some(path) = &arguments.digestfile {
            std::fs::write(path, digest.to_string())
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        if !arguments.quiet {
            println!("{target}: digest: {digest}");
        }
        tag::tell(&paths, "push", image.id.hex(), &target.familiar());
        Ok(0)
    };
    // Only who reads layers needs the rights of their owners.
    if is_all { end() } else { inside::run(end) }
}
