//! `kelp secret ...`, in podman's words. What a secret says is printed by `inspect --showsecret` only; a container
//! gets it by `run --secret`.

use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::cli::filter::{self, Filter};
use crate::cli::table::{self, Column, ListArgs};
use crate::cli::{report, words};
use crate::container::secret::{self, Same, Secret};
use crate::error::Error;
use crate::ids::{Name, parse_id};
use crate::image::config::{now, rfc3339};
use crate::paths::Paths;
use crate::spec::request::{SecretPlace, SecretUse};

/// Work with secrets
#[derive(Debug, Args)]
pub struct SecretArgs {
    #[command(subcommand)]
    verb: SecretVerb,
}

#[derive(Debug, Subcommand)]
enum SecretVerb {
    Create(CreateArgs),
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    Inspect(InspectArgs),
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
    Exists(ExistsArgs),
}

/// Keep a secret for containers
#[derive(Debug, Args)]
struct CreateArgs {
    name: Name,
    /// The file with the secret; - is standard input
    #[arg(value_name = "FILE")]
    from: std::ffi::OsString,
    /// FILE is the name of an environment variable
    #[arg(long)]
    env: bool,
    /// Put it in the place of one of the same name
    #[arg(long)]
    replace: bool,
    /// Set a label: KEY[=VALUE]
    #[arg(short, long, value_name = "LABEL")]
    label: Vec<String>,
    /// file is the only one
    #[arg(short, long, value_name = "DRIVER", default_value = "file")]
    driver: String,
}

/// List secrets
#[derive(Debug, Args)]
struct LsArgs {
    /// name=PART, id=BEGINNING
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    #[command(flatten)]
    list: ListArgs,
}

/// Show what is known of secrets
#[derive(Debug, Args)]
struct InspectArgs {
    #[arg(value_name = "SECRET", required = true)]
    secrets: Vec<String>,
    /// A Go template or `json`
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Show what the secret says, too
    #[arg(long)]
    showsecret: bool,
}

/// Remove secrets; containers that run keep theirs
#[derive(Debug, Args)]
struct RmArgs {
    #[arg(value_name = "SECRET", required_unless_present = "all")]
    secrets: Vec<String>,
    /// Remove all secrets
    #[arg(short, long)]
    all: bool,
    /// A secret that is not there is no error
    #[arg(short, long)]
    ignore: bool,
}

/// Say by the exit status whether there is such a secret
#[derive(Debug, Args)]
struct ExistsArgs {
    secret: String,
}

pub fn run(arguments: SecretArgs) -> Result<i32> {
    match arguments.verb {
        SecretVerb::Create(arguments) => create(&arguments),
        SecretVerb::Ls(arguments) => list(&arguments),
        SecretVerb::Inspect(arguments) => inspect(&arguments),
        SecretVerb::Rm(arguments) => remove(arguments),
        SecretVerb::Exists(arguments) => {
            Ok(i32::from(secret::find(&Paths::find()?, &arguments.secret).is_err()))
        }
    }
}

fn create(arguments: &CreateArgs) -> Result<i32> {
    if arguments.driver != "file" {
        let sentence = format!("there is no secret driver {:?}", arguments.driver);
        return Err(Error::usage(sentence).hint("file is the only one").into());
    }
    let from = &arguments.from;
    let content = if arguments.env {
        let value = std::env::var_os(from);
        value.ok_or_else(|| Error::usage(format!("--env: {from:?} is not set")))?.into_vec()
    } else if from == "-" {
        let mut content = Vec::new();
        std::io::stdin().read_to_end(&mut content).context("cannot read the secret")?;
        content
    } else {
        std::fs::read(from)
            .map_err(|error| Error::usage(format!("cannot read the secret {from:?}: {error}")))?
    };
    let same = if arguments.replace { Same::Replaced } else { Same::Refused };
    let labels = words::labels(&arguments.label)?;
    println!("{}", secret::create(&Paths::find()?, &arguments.name, content, labels, same)?);
    Ok(0)
}

fn list(arguments: &LsArgs) -> Result<i32> {
    let mut secrets = secret::list(&Paths::find()?)?;
    for text in &arguments.filter {
        match filter::parse(text) {
            Some(Filter { key: "name", value, is_not: false }) => {
                secrets.retain(|secret| secret.name.as_str().contains(value));
            }
            Some(Filter { key: "id", value, is_not: false }) => {
                secrets.retain(|secret| secret.id.starts_with(value))
            }
            _ => {
                return Err(
                    Error::usage(format!("{text:?} is not a filter of secrets: name and id are")).into()
                );
            }
        }
    }
    let age = |time: i64| format!("{} ago", table::duration(now() - time));
    let row = |secret: &Secret| {
        json!({
            "ID": secret.id,
            "Name": secret.name.as_str(),
            "Driver": "file",
            "CreatedAt": age(secret.created),
            "UpdatedAt": age(secret.updated),
        })
    };
    let rows: Vec<Value> = secrets.iter().map(row).collect();
    let columns = [
        Column::new("ID", "ID"),
        Column::new("NAME", "Name").shrinks(10),
        Column::new("DRIVER", "Driver").yields(1),
        Column::new("CREATED", "CreatedAt"),
        Column::new("UPDATED", "UpdatedAt"),
    ];
    arguments.list.print(&rows, &columns, "ID")?;
    Ok(0)
}

fn inspect(arguments: &InspectArgs) -> Result<i32> {
    let paths = Paths::find()?;
    table::inspect_each(&arguments.secrets, arguments.format.as_deref(), |word| {
        secret::find(&paths, word).map(|secret| describe(&secret, arguments.showsecret))
    })
}

/// A secret as podman describes it.
fn describe(secret: &Secret, show: bool) -> Value {
    let mut value = json!({
        "ID": secret.id,
        "CreatedAt": rfc3339(secret.created),
        "UpdatedAt": rfc3339(secret.updated),
        "Spec": {
            "Name": secret.name.as_str(),
            "Driver": { "Name": "file", "Options": {} },
            "Labels": secret.labels,
        },
    });
    if show {
        value["SecretData"] = String::from_utf8_lossy(&secret.content).into();
    }
    value
}

/// `run --secret NAME[,type=mount|env,target=,uid=,gid=,mode=]`.
pub fn asked(word: &str) -> Result<SecretUse> {
    let refused = |why: String| Error::usage(format!("--secret {word}: {why}"));
    let (name, options) = word.split_once(',').unwrap_or((word, ""));
    let (mut kind, mut target, mut uid, mut gid, mut mode) = ("mount", None, None, None, None);
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        let id = || parse_id(value).ok_or_else(|| refused(format!("{value:?} is not an id")));
        match key {
            "type" => kind = value,
            "target" if !value.is_empty() => target = Some(value),
            "uid" => uid = Some(id()?),
            "gid" => gid = Some(id()?),
            "mode" => {
                let bits = u32::from_str_radix(value, 8).ok().filter(|bits| *bits <= 0o777);
                mode = Some(bits.ok_or_else(|| refused("an octal mode up to 777 is expected".to_owned()))?);
            }
            _ => return Err(refused(format!("{option:?} is not type, target, uid, gid or mode")).into()),
        }
    }
    let found = secret::find(&Paths::find()?, name).map_err(|error| Error::usage(format!("{error:#}")))?;
    let only_files = uid.is_some() || gid.is_some() || mode.is_some();
    let place = match kind {
        "env" if only_files => return Err(refused("a variable has no owner and no mode".to_owned()).into()),
        "env" => SecretPlace::Variable(target.unwrap_or(name).to_owned()),
        "mount" => {
            let target = Path::new("/run/secrets").join(target.unwrap_or(name));
            SecretPlace::File { target, uid, gid, mode: mode.unwrap_or(0o444) }
        }
        other => return Err(refused(format!("{other:?} is not mount or env")).into()),
    };
    Ok(SecretUse { name: found.name, id: found.id, place })
}

fn remove(arguments: RmArgs) -> Result<i32> {
    let paths = Paths::find()?;
    let mut words = arguments.secrets;
    if arguments.all {
        words.extend(secret::list(&paths)?.into_iter().map(|secret| secret.name.to_string()));
    }
    let mut status = 0;
    for word in words {
        let removed = secret::find(&paths, &word).and_then(|found| {
            secret::remove(&paths, &found.name)?;
            Ok(found.id)
        });
        match removed {
            Ok(id) => println!("{id}"),
            Err(error) if arguments.ignore && crate::error::find(&error).is_some_and(|e| e.exit == 1) => {}
            Err(error) => status = i32::from(report(&error)),
        }
    }
    Ok(status)
}
