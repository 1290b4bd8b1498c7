//! The command line to a verb. clap's tables of all verbs take most of a millisecond to build, longer than many verbs take:
//! those that scripts call often are parsed by their own table alone.

use std::ffi::{OsStr, OsString};

use anyhow::Result;
use clap::{ArgMatches, Args, Command, CommandFactory, FromArgMatches};

use crate::cli::container::Verb as OnContainer;
use crate::cli::{Cli, Verb};
use crate::error::Error;

/// What was parsed, or what to print instead: an error, a help text.
type Parsed = Result<(Cli, ArgMatches), clap::Error>;

/// Parses the words that kelp was called with.
pub fn words() -> Parsed {
    let words: Vec<OsString> = std::env::args_os().collect();
    let verb = words.get(1).and_then(|word| word.to_str());
    if let Some((name, alone)) = ALONE.iter().find(|(name, _)| Some(*name) == verb) {
        return alone(name, words.into_iter().skip(1).collect());
    }
    let matches = Cli::command().try_get_matches_from(words)?;
    Ok((Cli::from_arg_matches(&matches)?, matches))
}

/// One verb's parser: its name, and its words with the name first.
type Alone = fn(&'static str, Vec<OsString>) -> Parsed;

/// The verbs that are parsed by their own table.
const ALONE: &[(&str, Alone)] = &[
    ("run", |name, words| by_table(name, words, |it| OnContainer::Run(Box::new(it)).into())),
    ("exec", |name, words| by_table(name, words, |it| OnContainer::Exec(it).into())),
    ("start", |name, words| by_table(name, words, |it| OnContainer::Start(it).into())),
    ("stop", |name, words| by_table(name, words, |it| OnContainer::Stop(it).into())),
    ("restart", |name, words| by_table(name, words, |it| OnContainer::Restart(it).into())),
    ("kill", |name, words| by_table(name, words, |it| OnContainer::Kill(it).into())),
    ("wait", |name, words| by_table(name, words, |it| OnContainer::Wait(it).into())),
    ("rm", |name, words| by_table(name, words, |it| OnContainer::Rm(it).into())),
    ("pause", |name, words| by_table(name, words, |it| OnContainer::Pause(it).into())),
    ("unpause", |name, words| by_table(name, words, |it| OnContainer::Unpause(it).into())),
    ("logs", |name, words| by_table(name, words, |it| OnContainer::Logs(it).into())),
    ("port", |name, words| by_table(name, words, |it| OnContainer::Port(it).into())),
    ("top", |name, words| by_table(name, words, |it| OnContainer::Top(it).into())),
    ("inspect", |name, words| by_table(name, words, Verb::Inspect)),
    ("ps", |name, words| by_table(name, words, Verb::Ps)),
    ("images", |name, words| by_table(name, words, Verb::Images)),
];

/// Of verbs whose last words are a command: what stands where its first word is expected is a flag that nobody knows.
pub fn no_flag(word: &OsStr, verb: &str) -> Result<()> {
    if !word.as_encoded_bytes().starts_with(b"-") {
        return Ok(());
    }
    let flag = word.to_string_lossy();
    let flag = flag.split('=').next().unwrap_or_default();
    Err(Error::usage(format!("unknown flag: {flag}")).hint(format!("see `kelp {verb} --help`")).into())
}

impl From<OnContainer> for Verb {
    fn from(verb: OnContainer) -> Self {
        Self::OnContainer(verb)
    }
}

fn by_table<A: Args>(name: &'static str, words: Vec<OsString>, verb: fn(A) -> Verb) -> Parsed {
    let command = A::augment_args(Command::new(name).bin_name(format!("kelp {name}")));
    // As in docker, the last of a flag counts.
    let matches = command.args_override_self(true).try_get_matches_from(words)?;
    let verb = verb(A::from_arg_matches(&matches)?);
    Ok((Cli { verb }, matches))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn help(parsed: Parsed) -> String {
        parsed.expect_err("a help text is no verb").render().to_string()
    }

    #[test]
    fn a_verb_s_own_table_says_what_the_table_of_all_says() {
        for (name, alone) in ALONE {
            let all = Cli::command().try_get_matches_from(["kelp", name, "--help"]);
            let all = all.expect_err("a help text is no verb").render().to_string();
            assert_eq!(help(alone(name, vec![name.into(), "--help".into()])), all);
        }
    }
}
