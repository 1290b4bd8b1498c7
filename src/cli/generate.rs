//! What is made from the tables of verbs and flags: `kelp completion SHELL`, and by the hidden `kelp generate` the
//! reference pages of docs/reference, man pages, and completions as files.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::builder::StyledStr;
use clap::{Arg, Args, Command, Subcommand};
use clap_complete::Shell;

use crate::cli::complete;
use crate::error::Error;

/// Print a script for a shell that completes kelp's words, and the names of containers, images and volumes
///
/// For one session: source <(kelp completion bash). For good: kelp completion bash > ~/.local/share/bash-completion/completions/kelp
#[derive(Debug, Args)]
pub struct CompletionArgs {
    shell: Shell,
}

/// Write documentation from the tables of verbs and flags
#[derive(Debug, Args)]
#[command(hide = true)]
pub struct GenerateArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The pages of docs/reference
    Docs { folder: PathBuf },
    /// Man pages
    Man { folder: PathBuf },
    /// Completions for bash, zsh and fish
    Completions { folder: PathBuf },
}

pub fn completion(arguments: &CompletionArgs) -> Result<i32> {
    let text = complete::script(&arguments.shell.to_string())?;
    std::io::Write::write_all(&mut std::io::stdout(), &text)?;
    Ok(0)
}

pub fn run(arguments: &GenerateArgs, command: Command) -> Result<i32> {
    let (What::Docs { folder } | What::Man { folder } | What::Completions { folder }) = &arguments.what;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    match &arguments.what {
        What::Docs { .. } => pages(folder, command)?,
        What::Man { .. } => clap_mangen::generate_to(command, folder)?,
        What::Completions { .. } => {
            for shell in ["bash", "zsh", "fish"] {
                let path = folder.join(complete::file(shell));
                fs::write(&path, complete::script(shell)?)
                    .with_context(|| format!("cannot write {}", path.display()))?;
            }
        }
    }
    Ok(0)
}

/// A page for each verb, with its own verbs on the same page, and a list of all.
fn pages(folder: &Path, mut command: Command) -> Result<()> {
    command.build();
    let mut list = String::from(
        "# kelp: all verbs\n\nMade by `kelp generate docs`; `kelp VERB --help` prints the same.\n\n",
    );
    list.push_str("| verb | what it does |\n|---|---|\n");
    for verb in command.get_subcommands_mut() {
        if verb.is_hide_set() {
            continue;
        }
        let name = verb.get_name().to_owned();
        let _ = writeln!(list, "| [{name}]({name}.md) | {} |", about(verb));
        let mut page = String::new();
        section(&mut page, verb, 1);
        write(&folder.join(format!("{name}.md")), &page)?;
    }
    write(&folder.join("README.md"), &list)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)
        .map_err(|error| Error::host(format!("cannot write {}: {error}", path.display())).into())
}

fn about(command: &Command) -> String {
    command.get_about().map(ToString::to_string).unwrap_or_default()
}

fn section(page: &mut String, verb: &mut Command, depth: usize) {
    let title = verb.get_bin_name().unwrap_or(verb.get_name()).to_owned();
    let _ = writeln!(page, "{} {title}\n", "#".repeat(depth));
    let described = verb.get_long_about().or(verb.get_about()).map(ToString::to_string).unwrap_or_default();
    let sentences = described.split("\n\n").map(|part| format!("{}.\n", part.trim().trim_end_matches('.')));
    let _ = writeln!(page, "{}", sentences.collect::<Vec<_>>().join("\n"));
    let usage = verb.render_usage().to_string();
    for line in usage.trim_start_matches("Usage:").lines() {
        let _ = writeln!(page, "    {}", line.trim());
    }
    page.push('\n');
    let aliases: Vec<String> = verb.get_visible_aliases().map(|alias| format!("`{alias}`")).collect();
    if !aliases.is_empty() {
        let _ = writeln!(page, "Also called {}.\n", aliases.join(", "));
    }
    tables(page, verb, depth);
    if let Some(after) = verb.get_after_help().map(StyledStr::to_string) {
        let _ = writeln!(page, "{}\n", after.trim());
    }
    for inside in verb.get_subcommands_mut() {
        if !inside.is_hide_set() && inside.get_name() != "help" {
            section(page, inside, depth + 1);
        }
    }
    let trimmed = page.trim_end().len();
    page.truncate(trimmed);
    page.push_str(if depth == 1 { "\n" } else { "\n\n" });
}

/// The flags, a table for each heading, in the order in which the headings come.
fn tables(page: &mut String, verb: &Command, depth: usize) {
    let mut headings: Vec<Option<&str>> = Vec::new();
    let shown = |argument: &&Arg| !argument.is_hide_set() && argument.get_id() != "help";
    for argument in verb.get_arguments().filter(shown) {
        if !headings.contains(&argument.get_help_heading()) {
            headings.push(argument.get_help_heading());
        }
    }
    headings.sort_by_key(Option::is_some);
    for heading in headings {
        if let Some(heading) = heading {
            let _ = writeln!(page, "{} {heading}\n", "#".repeat(depth + 1));
        }
        page.push_str("| | |\n|---|---|\n");
        for argument in verb.get_arguments().filter(shown) {
            if argument.get_help_heading() == heading {
                let _ = writeln!(page, "| {} | {} |", names(argument), meaning(argument));
            }
        }
        page.push('\n');
    }
}

fn names(argument: &Arg) -> String {
    let values = argument.get_value_names().unwrap_or_default();
    let values = values.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let takes = argument.get_action().takes_values();
    let long = |name: &str| match takes {
        true if argument.is_require_equals_set() => format!("`--{name}[={values}]`"),
        true => format!("`--{name} {values}`"),
        false => format!("`--{name}`"),
    };
    let mut names: Vec<String> =
        argument.get_short().map(|short| format!("`-{short}`")).into_iter().collect();
    names.extend(argument.get_long().map(long));
    names.extend(argument.get_visible_aliases().unwrap_or_default().iter().map(|name| format!("`--{name}`")));
    if names.is_empty() { format!("`{values}`") } else { names.join(", ") }
}

fn meaning(argument: &Arg) -> String {
    let mut text = argument.get_help().map(ToString::to_string).unwrap_or_default();
    let possible: Vec<String> = argument
        .get_possible_values()
        .iter()
        .filter(|value| !value.is_hide_set() && argument.get_action().takes_values())
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    if !possible.is_empty() {
        let _ = write!(text, ": {}", possible.join(", "));
    }
    let default: Vec<String> =
        argument.get_default_values().iter().map(|value| format!("`{}`", value.to_string_lossy())).collect();
    if !default.is_empty() && argument.get_action().takes_values() {
        let _ = write!(text, " (default {})", default.join(" "));
    }
    text.replace('|', "\\|")
}
