//! kelp: containers for people who have no root. The `mod` lines below are the floors of the house, top to
//! bottom: a room uses only rooms of lower floors. `tests/tidy.rs` holds that.

// floor 10
mod cli;

// floor 9
mod verbs;

// floor 8
mod doctor;
mod supervise;

// floor 7
mod launch;

// floor 6
mod container;

// floor 5
mod image;
mod rootfs;

// floor 4
mod userns;

// floor 3
mod paths;
mod record;
mod spec;

// floor 2
mod check;
mod ids;
mod units;

// floor 1
mod error;
mod sys;

fn main() -> std::process::ExitCode {
    if std::env::args_os().next().is_some_and(|name| name == launch::stage::NAME) {
        return match launch::stage::resume() {
            Ok(()) => std::process::ExitCode::SUCCESS,
            Err(error) => std::process::ExitCode::from(cli::report(&error)),
        };
    }
    cli::main()
}
