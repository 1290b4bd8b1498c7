//! What a shell is told when somebody presses TAB: the words of clap's tables, and for what stands for a container, an
//! image, a volume or a secret the names that the store has. The scripts call kelp with `KELP_COMPLETE` set.

use std::path::Path;

use anyhow::{Context, Result};
use clap::{Arg, Command};
use clap_complete::CompleteEnv;
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use clap_complete::env::Shells;

use crate::container::{list, secret, volume};
use crate::image::store::Store;
use crate::paths::Paths;

const VARIABLE: &str = "KELP_COMPLETE";

/// Answers a shell that asks; `false` if none does.
pub fn answered(command: impl Fn() -> Command) -> bool {
    if std::env::var_os(VARIABLE).is_none() {
        return false;
    }
    let words: Vec<_> = std::env::args_os().collect();
    let here = std::env::current_dir().ok();
    let asked = CompleteEnv::with_factory(|| with_names(command())).var(VARIABLE);
    asked.try_complete(words, here.as_deref()).unwrap_or(true)
}

/// The script that a shell reads once.
pub fn script(shell: &str) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let shells = Shells::builtins();
    let completer = shells.completer(shell).context("that shell is not known")?;
    completer.write_registration(VARIABLE, "kelp", "kelp", "kelp", &mut text)?;
    Ok(text)
}

/// What the script is called where shells look for it.
pub fn file(shell: &str) -> &'static Path {
    Path::new(match shell {
        "bash" => "kelp.bash",
        "zsh" => "_kelp",
        _ => "kelp.fish",
    })
}

/// Each argument whose place in the help says what it stands for offers such names.
fn with_names(command: Command) -> Command {
    let name = command.get_name().to_owned();
    let command = command.mut_args(|argument| match names_of(&name, &argument) {
        Some(names) => argument.add(ArgValueCandidates::new(move || candidates(names))),
        None => argument,
    });
    command.mut_subcommands(with_names)
}

/// Where the names come from.
type Names = fn(&Paths) -> Result<Vec<String>>;

fn names_of(verb: &str, argument: &Arg) -> Option<Names> {
    if !argument.is_positional() {
        return None;
    }
    let shown = match argument.get_value_names() {
        Some([first, ..]) => first.to_string(),
        _ => argument.get_id().as_str().to_uppercase(),
    };
    let names: Names = match shown.split(' ').next()? {
        "CONTAINER" => containers,
        "IMAGE" | "ROOT" => images,
        "VOLUME" => volumes,
        "SECRET" => secrets,
        "NAME" if verb == "inspect" => |paths| Ok([containers(paths)?, images(paths)?].concat()),
        _ => return None,
    };
    Some(names)
}

/// A store that can't be read offers nothing.
fn candidates(names: Names) -> Vec<CompletionCandidate> {
    let found = Paths::find().and_then(|paths| names(&paths)).unwrap_or_default();
    found.into_iter().map(CompletionCandidate::new).collect()
}

fn containers(paths: &Paths) -> Result<Vec<String>> {
    Ok(list::all(paths).iter().map(|known| known.name().to_string()).collect())
}

fn images(paths: &Paths) -> Result<Vec<String>> {
    Ok(Store::open(paths)?.names()?.iter().map(|name| name.reference.familiar()).collect())
}

fn volumes(paths: &Paths) -> Result<Vec<String>> {
    Ok(volume::list(paths)?.iter().map(|volume| volume.name.to_string()).collect())
}

fn secrets(paths: &Paths) -> Result<Vec<String>> {
    Ok(secret::list(paths)?.iter().map(|secret| secret.name.to_string()).collect())
}
