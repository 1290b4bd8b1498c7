//! `kelp tag` and `kelp untag`: names are records of their own, so giving or taking one touches nothing of the
//! image.

use std::collections::BTreeMap;

use anyhow::Result;
use clap::Args;

use crate::container::journal::{Journal, Kind};
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
    let paths = Paths::find()?;
    let store = Store::open(&paths)?;
    let image = store.expect(&arguments.image)?;
    for name in &arguments.names {
        if name.digest.is_some() {
            return Err(Error::usage(format!("{name} can't be a name: it has a digest")).into());
        }
        store.put_name(name, &image.id)?;
        tell(&paths, "tag", image.id.hex(), &name.familiar());
    }
    Ok(0)
}

pub fn untag(arguments: &UntagArgs) -> Result<i32> {
    let paths = Paths::find()?;
    let store = Store::open(&paths)?;
    let image = store.expect(&arguments.image)?;
    let own = store.names_of(&image.id)?;
    for name in if arguments.names.is_empty() { &own } else { &arguments.names } {
        if !own.contains(name) {
            return Err(Error::usage(format!("{} is not a name of image {}", name, image.id.short())).into());
        }
        store.remove_name(name)?;
        tell(&paths, "untag", image.id.hex(), &name.familiar());
    }
    Ok(0)
}

/// Says in the journal what has happened to an image.
pub fn tell(paths: &Paths, action: &str, id: &str, name: &str) {
    let name = BTreeMap::from([("name".to_owned(), name.to_owned())]);
    Journal::of(&paths.store).tell(Kind::Image, action, &format!("sha256:{id}"), name);
}
