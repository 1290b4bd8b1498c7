//! Work on the store where its files' owners can be handled: inside a user namespace with all ids that the
//! user has, or right here if that is one id and root's rights are not needed. Called while the program has one
//! thread; the work may start more.

use anyhow::Result;

use crate::cli;
use crate::spec::request::UserNamespace;
use crate::userns::maps::{self, IdMaps};
use crate::userns::within;

/// Runs `work` where owners are real if they can be.
pub fn run(work: impl FnOnce() -> Result<i32>) -> Result<i32> {
    let maps = maps::choose(&UserNamespace::Auto)?;
    if maps.one_id() || nix::unistd::geteuid().is_root() {
        return work();
    }
    within_maps(&maps, 0, work, |work| {
        // Only the child took the work; the parent's copy has not been started.
        work()
    })
}

/// Runs `work` as root of a user namespace, and of further `CLONE_NEW*` ones: with all ids that the user has or
/// with one, it may read what containers have closed to others.
pub fn as_root(namespaces: u64, work: impl FnOnce() -> Result<i32>) -> Result<i32> {
    as_root_of(&maps::choose(&UserNamespace::Auto)?, namespaces, work)
}

/// The same with these ids.
pub fn as_root_of(maps: &IdMaps, namespaces: u64, work: impl FnOnce() -> Result<i32>) -> Result<i32> {
    within_maps(maps, namespaces, work, |work| {
        let single = IdMaps::single("the id maps were refused".to_owned());
        within_maps(&single, namespaces, work, |_| anyhow::bail!("user namespaces are refused"))
    })
}

fn within_maps<W: FnOnce() -> Result<i32>>(
    maps: &IdMaps,
    namespaces: u64,
    work: W,
    otherwise: impl FnOnce(W) -> Result<i32>,
) -> Result<i32> {
    let mut work = Some(work);
    let ran = within::run(maps, namespaces, || match work.take().map_or(Ok(0), |work| work()) {
        Ok(status) => status,
        Err(error) => i32::from(cli::report(&error)),
    });
    match (ran, work) {
        (Err(refusal), Some(work)) => {
            cli::warn(&format!("only one id is mapped: {refusal:#}"));
            otherwise(work)
        }
        (ran, _) => ran,
    }
}
