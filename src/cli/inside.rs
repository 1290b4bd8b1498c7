//! Work on the store where its files' owners can be handled: inside a user namespace with all ids that the
//! user has, or right here if that is one id. Called while the program has one thread; the work may start more.

use anyhow::Result;

use crate::cli;
use crate::spec::request::UserNamespace;
use crate::userns::maps;
use crate::userns::within;

/// Runs `work` where owners are real if they can be.
pub fn run(work: impl FnOnce() -> Result<i32>) -> Result<i32> {
    let maps = maps::choose(&UserNamespace::Auto)?;
    let mut work = Some(work);
    let mut once = || work.take().map_or(Ok(0), |work| work());
    if maps.one_id() || nix::unistd::geteuid().is_root() {
        return once();
    }
    let ran = within::run(&maps, 0, || match once() {
        Ok(status) => status,
        Err(error) => i32::from(cli::report(&error)),
    });
    ran.or_else(|refusal| {
        // Only the child took the work; the parent's copy has not been started.
        cli::warn(&format!("only one id is mapped: {refusal:#}"));
        once()
    })
}
