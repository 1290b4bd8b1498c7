//! The command line to a verb. clap's tables of all verbs take most of a millisecond to build, longer than many verbs take:
//! those that scripts call often are parsed by their own table alone.

use std::ffi::{OsStr, OsString};

use anyhow::Result;
use clap::{ArgMatches, Args, Command, CommandFactory, FromArgMatches};

use crate::cli::container::Verb as OnContainer;
use crate::cli::run::RunArgs;
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
    ("run", run),
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

fn run(name: &'static str, words: Vec<OsString>) -> Parsed {
    let verb = |arguments: RunArgs| Verb::from(OnContainer::Run(Box::new(arguments)));
    match RunArgs::at_once(alone(name), &words) {
        Some((arguments, matches)) => Ok((Cli { verb: verb(arguments) }, matches)),
        None => by_table(name, words, verb),
    }
}

fn alone(name: &'static str) -> Command {
    // As in docker, the last of a flag counts.
    Command::new(name).bin_name(format!("kelp {name}")).args_override_self(true)
}

fn by_table<A: Args>(name: &'static str, words: Vec<OsString>, verb: fn(A) -> Verb) -> Parsed {
    let matches = A::augment_args(alone(name)).try_get_matches_from(words)?;
    let verb = verb(A::from_arg_matches(&matches)?);
    Ok((Cli { verb }, matches))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::storage::Places;

    fn help(parsed: Parsed) -> String {
        parsed.expect_err("a help text is no verb").render().to_string()
    }

    #[test]
    fn what_is_often_given_means_what_the_table_of_all_says() {
        const LINES: &[&str] = &[
            "--rm --network none --rootfs /r true",
            "--rootfs /r",
            "-d --name x -p 80:80 -v /a:/b --tmpfs /t --mount type=tmpfs,target=/u -e A=b -e C debian:12 sh -c -l",
            "-it --rm -w /w -u 1:2 --userns=keep-id --entrypoint /e -h host --read-only --init @host -- ls -m",
            "--name x --name y @host --memory 5m",
            "--dns 1.1.1.1 --allow-host-loopback @host",
            "--rm --memory 5m @host true",
            "-l a=b @host",
            "-itl a=b @host true",
            "--no-such-flag @host",
            "--rootfs /r --memory 5m true",
            "--rootfs /r -- --memory",
            "-e --memory @host",
            "-e A=b -e --memory @host",
            "--rm",
            "--name",
            "--rm=maybe @host",
            "--help",
        ];
        let mut at_once = 0;
        for line in LINES {
            let words: Vec<OsString> =
                std::iter::once("run").chain(line.split(' ')).map(Into::into).collect();
            at_once += usize::from(RunArgs::at_once(alone("run"), &words).is_some());
            let verb = |parsed: Parsed| match parsed {
                Ok((cli, matches)) => format!("{cli:?} {:?}", Places::of_verb(&matches)),
                Err(error) => error.render().to_string(),
            };
            let all = by_table("run", words.clone(), |it| OnContainer::Run(Box::new(it)).into());
            assert_eq!(verb(run("run", words)), verb(all), "{line}");
        }
        assert_eq!(at_once, 7);
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
