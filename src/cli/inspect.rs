//! `kelp inspect`: containers and images as docker's API describes them. What a name means is looked for among
//! the containers first, as docker does.

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::cli::{describe, image, table};
use crate::container::list;
use crate::error::Error;
use crate::image::store::Store;
use crate::paths::Paths;

/// Show what a container or an image is made of
#[derive(Debug, Args)]
pub struct InspectArgs {
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// A Go template or `json`
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Say how much a container has written
    #[arg(short, long)]
    size: bool,
    /// Look only for these
    #[arg(long, value_enum, value_name = "TYPE", default_value = "all")]
    r#type: Type,
}

/// What a name may mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Type {
    All,
    Container,
    Image,
}

/// Show what a container is made of
#[derive(Debug, Args)]
pub struct ContainerArgs {
    #[arg(required = true, value_name = "CONTAINER")]
    names: Vec<String>,
    /// A Go template or `json`
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Say how much a container has written
    #[arg(short, long)]
    size: bool,
}

pub fn container(arguments: ContainerArgs) -> Result<i32> {
    let ContainerArgs { names, format, size } = arguments;
    run(&InspectArgs { names, format, size, r#type: Type::Container })
}

pub fn run(arguments: &InspectArgs) -> Result<i32> {
    let paths = Paths::find()?;
    table::inspect_each(&arguments.names, arguments.format.as_deref(), |word| find(&paths, word, arguments))
}

fn find(paths: &Paths, word: &str, arguments: &InspectArgs) -> Result<Value> {
    if arguments.r#type != Type::Image {
        match list::find(paths, word) {
            Ok(known) => return describe::container(paths, &known, arguments.size),
            Err(error) if arguments.r#type == Type::Container || !list::is_absence(&error) => {
                return Err(error);
            }
            Err(_) => {}
        }
    }
    let store = Store::open(paths)?;
    if arguments.r#type == Type::Image {
        return image::describe(&store, &store.expect(word)?);
    }
    match store.find(word) {
        Ok(Some(image)) => image::describe(&store, &image),
        // What can be no image's name is no such object either.
        Ok(None) | Err(_) => Err(Error::usage(format!("No such object: {word}")).exit(1).into()),
    }
}
