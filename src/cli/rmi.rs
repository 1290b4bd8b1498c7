//! `kelp rmi`, `kelp image rm`: one image after the other; one that can't be removed does not keep the others
//! from it.

use anyhow::Result;
use clap::Args;

use crate::cli::{inside, report, tag};
use crate::container::list::made_from;
use crate::image::collect::{self, Removed};
use crate::image::reference::Digest;
use crate::image::store::Store;
use crate::paths::Paths;

/// Remove images
#[derive(Debug, Args)]
pub struct RmiArgs {
    #[arg(value_name = "IMAGE", required_unless_present = "all")]
    images: Vec<String>,
    /// Remove an image with all its names, also if a container uses it
    #[arg(short, long)]
    force: bool,
    /// Remove all images
    #[arg(short, long)]
    all: bool,
    /// An image that is not there is no error
    #[arg(short, long)]
    ignore: bool,
}

pub fn run(arguments: RmiArgs) -> Result<i32> {
    let paths = Paths::find()?;
    inside::run(move || {
        let store = Store::open(&paths)?;
        let holders = |id: &Digest| made_from(&paths, id.hex());
        let mut status = 0;
        let mut words = arguments.images;
        if arguments.all {
            words.extend(store.images()?.iter().map(|image| image.id.hex().to_owned()));
        }
        for word in words {
            let force = arguments.force || arguments.all;
            if arguments.ignore && store.find(&word)?.is_none() {
                continue;
            }
            match collect::remove(&store, &word, force, &holders) {
                Ok(removed) => {
                    print(&removed);
                    tell(&paths, &removed, Some(&word));
                }
                Err(error) => {
                    report(&error);
                    status = 1;
                }
            }
        }
        Ok(status)
    })
}

/// Says in the journal what went; an image that is asked for by `word` is called so.
pub fn tell(paths: &Paths, removed: &Removed, word: Option<&str>) {
    for name in &removed.untagged {
        let id = removed.images.first().map_or("", Digest::hex);
        tag::tell(paths, "untag", id, &name.familiar());
    }
    for image in &removed.images {
        tag::tell(paths, "delete", image.hex(), word.unwrap_or(&image.to_string()));
    }
}

/// As docker prints it.
pub fn print(removed: &Removed) {
    for name in &removed.untagged {
        println!("Untagged: {}", name.familiar());
    }
    for image in &removed.images {
        println!("Deleted: {image}");
    }
}
