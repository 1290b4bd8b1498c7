//! The guest: one static program that tests put into a container. Without arguments it prints what it sees as
//! JSON (`report`), so that tests compare facts and not the output of tools; with a verb it does one small
//! thing and says how that went. It knows nothing of kelp: it would print the same under any runtime.
//! Several verbs in one process: `guest all VERB ARGS , VERB ARGS`, an array with one answer each.

mod attacks;
mod load;
mod process;
mod report;
mod sys;

use serde_json::{Value, json};
use std::io::Write;
use std::process::ExitCode;

/// A verb answers with JSON, or with nothing when its own output or exit status is the answer.
type Verb = fn(&[String]) -> Option<Value>;

const VERBS: &[(&str, Verb)] = &[
    ("report", report::report),
    ("all", all),
    ("read", process::read),
    ("write", process::write),
    ("list", process::list),
    ("stat", process::stat),
    ("remove", process::remove),
    ("say", process::say),
    ("copy", process::copy),
    ("isatty", process::isatty),
    ("window", process::window),
    ("exit", process::exit),
    ("raise", process::raise),
    ("sleep", process::sleep),
    ("await-signal", process::await_signal),
    ("spawn-orphan", process::spawn_orphan),
    ("reap-orphan", process::reap_orphan),
    ("spawn", process::spawn),
    ("clock", process::clock),
    ("burn", load::burn),
    ("fill", load::fill),
    ("grow", load::grow),
    ("forks", load::forks),
    ("transfer", load::transfer),
    ("read-all", load::read_all),
    ("operations", load::operations),
    ("processors", load::processors),
    ("umask-file", process::umask_file),
    ("chroot-escape", attacks::chroot_escape),
    ("unmount-escape", attacks::unmount_escape),
    ("open-exe-write", attacks::open_exe_write),
    ("tiocsti", attacks::tiocsti),
    ("keyctl", attacks::keyctl),
    ("syscall", attacks::syscall),
    ("syscalls", attacks::syscalls),
    ("mknod", attacks::mknod),
    ("mount", attacks::mount),
    ("shm", attacks::shm),
    ("connect", attacks::connect),
    ("listen", attacks::listen),
    ("walk-descriptors", attacks::walk_descriptors),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect();
    let words = arguments.get(1..).unwrap_or_default();
    let (verb, rest) = match words.split_first() {
        Some((verb, rest)) => (verb.as_str(), rest),
        None => ("report", words),
    };
    match VERBS.iter().find(|(name, _)| *name == verb) {
        Some((_, run)) => {
            let written = run(rest).map_or(Ok(()), |answer| writeln!(std::io::stdout(), "{answer}"));
            if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        None => {
            eprintln!("guest: no verb {verb}");
            ExitCode::from(99)
        }
    }
}

fn all(words: &[String]) -> Option<Value> {
    let answers = words.split(|word| word == ",").map(|command| {
        let Some((verb, rest)) = command.split_first() else { return Value::Null };
        match VERBS.iter().find(|(name, _)| name == verb) {
            Some((_, run)) => run(rest).unwrap_or(Value::Null),
            None => json!({"error": format!("no verb {verb}")}),
        }
    });
    Some(Value::Array(answers.collect()))
}
