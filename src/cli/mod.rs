//! Docker's words. Each verb has one file: its arguments, one call, its output. Here are the list of verbs and
//! the one printer of errors.

pub mod about;
pub mod archive;
pub mod attach;
pub mod cdi;
pub mod changes;
pub mod choice;
mod complete;
pub mod container;
pub mod cp;
pub mod describe;
mod descriptors;
pub mod df;
pub mod doctor;
pub mod events;
pub mod exec;
pub mod filter;
pub mod from_image;
pub mod functions;
pub mod generate;
pub mod health;
pub mod history;
pub mod image;
pub mod images;
pub mod inside;
pub mod inspect;
pub mod life;
pub mod limits;
pub mod login;
pub mod logs;
pub mod manifest;
pub mod moment;
pub mod mount;
mod network;
pub mod orders;
mod parse;
pub mod pattern;
pub mod port;
pub mod progress;
pub mod ps;
pub mod pull;
pub mod push;
pub mod restrain;
pub mod rmi;
pub mod run;
pub mod search;
pub mod secret;
pub mod start;
pub mod stats;
pub mod storage;
pub mod surroundings;
pub mod system;
pub mod table;
pub mod tag;
pub mod template;
pub mod top;
pub mod unshare;
pub mod volume;
pub mod words;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::error;
use crate::sys::process;

/// containers for people who have no root
#[derive(Debug, Parser)]
#[command(
    name = "kelp",
    version,
    disable_help_subcommand = true,
    max_term_width = 100,
    args_override_self = true
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    #[command(flatten)]
    OnContainer(container::Verb),
    Ps(ps::PsArgs),
    Healthcheck(health::HealthcheckArgs),
    Events(events::EventsArgs),
    Inspect(inspect::InspectArgs),
    Container(container::ContainerArgs),
    Unshare(unshare::UnshareArgs),
    Doctor(doctor::DoctorArgs),
    Pull(pull::PullArgs),
    Push(push::PushArgs),
    Images(images::ImagesArgs),
    Image(image::ImageArgs),
    Rmi(rmi::RmiArgs),
    Tag(tag::TagArgs),
    Untag(tag::UntagArgs),
    History(history::HistoryArgs),
    Save(archive::SaveArgs),
    Load(archive::LoadArgs),
    Import(archive::ImportArgs),
    Manifest(manifest::ManifestArgs),
    Search(search::SearchArgs),
    Login(login::LoginArgs),
    Logout(login::LogoutArgs),
    System(system::SystemArgs),
    Info(about::AboutArgs),
    Version(about::VersionArgs),
    Volume(volume::VolumeArgs),
    Secret(secret::SecretArgs),
    Cdi(cdi::CdiVerbs),
    Completion(generate::CompletionArgs),
    Generate(generate::GenerateArgs),
}

/// kelp's own failure, in docker's numbers.
const FAILED: u8 = 125;

/// Reads the command line, carries the verb out, and gives the exit status.
pub fn main() -> ExitCode {
    if complete::answered(Cli::command) {
        return ExitCode::SUCCESS;
    }
    let parsed = parse::words();
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(error) if error.use_stderr() => {
            let text = error.render().to_string();
            say(&format!("kelp: {}", text.strip_prefix("error: ").unwrap_or(&text).trim_end()));
            return ExitCode::from(FAILED);
        }
        Err(help) => {
            let _ = help.print();
            return ExitCode::SUCCESS;
        }
    };
    let moves_streams = match &cli.verb {
        Verb::OnContainer(verb) => verb.moves_streams(),
        Verb::Unshare(_) => true,
        Verb::Container(arguments) => arguments.moves_streams(),
        _ => false,
    };
    if !moves_streams {
        // `kelp images | head` ends quietly, as other programs do.
        let _ = process::default_action(libc::SIGPIPE);
    }
    let outcome = match cli.verb {
        Verb::OnContainer(verb) => verb.run(&matches),
        Verb::Ps(arguments) => ps::run(&arguments),
        Verb::Events(arguments) => events::run(&arguments),
        Verb::Healthcheck(arguments) => health::run(&arguments),
        Verb::Inspect(arguments) => inspect::run(&arguments),
        Verb::Container(arguments) => container::run(arguments, &matches),
        Verb::Unshare(arguments) => unshare::run(arguments),
        Verb::Doctor(arguments) => doctor::run(&arguments),
        Verb::Pull(arguments) => pull::run(arguments),
        Verb::Push(arguments) => push::run(arguments),
        Verb::Images(arguments) => images::run(&arguments),
        Verb::Image(arguments) => image::run(arguments),
        Verb::Rmi(arguments) => rmi::run(arguments),
        Verb::Tag(arguments) => tag::run(&arguments),
        Verb::Untag(arguments) => tag::untag(&arguments),
        Verb::History(arguments) => history::run(&arguments),
        Verb::Save(arguments) => archive::save(arguments),
        Verb::Load(arguments) => archive::load(arguments),
        Verb::Import(arguments) => archive::import(arguments),
        Verb::Manifest(arguments) => manifest::run(arguments),
        Verb::Search(arguments) => search::run(&arguments),
        Verb::Login(arguments) => login::run(arguments),
        Verb::Logout(arguments) => login::logout(arguments),
        Verb::Info(arguments) => about::about(&arguments),
        Verb::Version(arguments) => about::version(&arguments),
        Verb::System(arguments) => system::run(arguments),
        Verb::Volume(arguments) => volume::run(arguments),
        Verb::Secret(arguments) => secret::run(arguments),
        Verb::Cdi(arguments) => cdi::run(arguments),
        Verb::Completion(arguments) => generate::completion(&arguments),
        Verb::Generate(arguments) => generate::run(&arguments, Cli::command()),
    };
    match outcome {
        Ok(status) => ExitCode::from(u8::try_from(status & 0xff).unwrap_or(FAILED)),
        Err(error) => {
            let broken_pipe = error.chain().any(|cause| {
                cause
                    .downcast_ref::<std::io::Error>()
                    .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
            });
            if broken_pipe {
                return ExitCode::SUCCESS;
            }
            ExitCode::from(report(&error))
        }
    }
}

/// Prints an error with its hint; gives its exit status.
pub fn report(error: &anyhow::Error) -> u8 {
    let named = error::find(error);
    say(&format!("kelp: {}", sentence(error)));
    if let Some(hint) = named.and_then(|named| named.hint.as_ref()) {
        say(&format!("hint: {hint}"));
    }
    named.map_or(FAILED, |named| named.exit)
}

fn sentence(error: &anyhow::Error) -> String {
    plain(&error.chain().map(ToString::to_string).collect::<Vec<_>>().join(": "))
}

/// Without the numbers that Rust puts behind the words of an errno.
fn plain(text: &str) -> String {
    let mut pieces = text.split(" (os error ");
    let mut words = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        words.push_str(piece.split_once(')').map_or(piece, |(_, rest)| rest));
    }
    words
}

/// Prints what is weaker than it could be.
pub fn warn(text: &str) {
    say(&format!("kelp: warning: {}", plain(text)));
}

/// A closed or full stderr is no reason to fail.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
