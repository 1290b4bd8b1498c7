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
mod network;
mod rootfs;
mod view;

// floor 4
mod cgroup;
mod userns;

// floor 3
mod paths;
mod record;
mod spec;
mod stage;

// floor 2
mod check;
mod ids;
mod raw;
mod units;

// floor 1
mod error;
mod sys;

fn main() -> std::process::ExitCode {
    // What the caller left open is no business of a container, nor of a helper (CVE-2024-21626).
    let _ = sys::process::close_from(3, true);
    if let Some(status) = stage_by_name() {
        return status;
    }
    cli::main()
}

/// kelp under the name of one of its stages is that stage.
fn stage_by_name() -> Option<std::process::ExitCode> {
    let name = std::env::args_os().next()?;
    let stage: fn() -> anyhow::Result<()> = match name.to_str()? {
        launch::stage::NAME => launch::stage::resume,
        rootfs::fuse::NAME => rootfs::fuse::serve,
        network::engine::NAME => network::engine::serve,
        supervise::member::NAME => supervise::member::serve,
        _ => return None,
    };
    // Started through /proc/self/exe it would be called `exe` in ps.
    let _ = std::ffi::CString::new(name.into_encoded_bytes()).map(|name| sys::process::rename(&name));
    let outcome = stage();
    Some(match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => std::process::ExitCode::from(cli::report(&error)),
    })
}
