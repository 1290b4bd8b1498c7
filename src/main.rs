//! kelp: containers for people who have no root. The `mod` lines below are the floors of the house, top to
//! bottom: a room uses only rooms of lower floors. `tests/tidy.rs` holds that.

// floor 8
mod cli;

// floor 7
mod verbs;

// floor 6
mod supervise;

// floor 5
mod image;
mod launch;

// floor 4
mod container;
mod rootfs;
mod userns;

// floor 3
mod paths;
mod record;
mod spec;

// floor 2
mod ids;
mod units;

// floor 1
mod error;
mod sys;

fn main() -> std::process::ExitCode {
    cli::main()
}
