//! `kelp tag` and `kelp untag`: names are records of their own, so giving or taking one touches nothing of the
//! image.

use anyhow::Result;
use clap::Args;

use crate::error::Error;
use crate::image::reference::Reference;
use crate::image::store::Store;
use crate::paths::Paths;

/// Give an image another name
#[derive(Debug, Args)]
pub struct TagArgs {
    image: String,
    #[arg(required = true, value_name = "NAME")]
    names: Vec<Reference>,
}

/// Take names from an image; the image stays
#[derive(Debug, Args)]
pub struct UntagArgs {
    image: String,
    #[arg(value_name = "NAME")]
    names: Vec<Reference>,
}

pub fn run(arguments: &TagArgs) -> Result<i32> {
    let store = Store::open(&Paths::find()?)?;
    let image = store.expect(&arguments.image)?;
    for name in &arguments.names {
        if name.digest.is_some() {
            return Err(Error::usage(format!("{name} can't be a name: it has a digest")).into());
        }
        store.put_name(name, &image.id)?;
    }
    Ok(0)
}

pub fn untag(arguments: &UntagArgs) -> Result<i32> {
    let store = Store::open(&Paths::find()?)?;
    let image = store.expect(&arguments.image)?;
    let own = store.names_of(&image.id)?;
    for name in if arguments.names.is_empty() { &own } else { &arguments.names } {
        if !own.contains(name) {
            return Err(Error::usage(format!("{} is not a name of image {}", name, image.id.short())).into());
        }
        store.remove_name(name)?;
    }
    Ok(0)
}
