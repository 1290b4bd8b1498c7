//! `kelp doctor`: every room's checks in one list, and the rung of each facility that kelp takes.
//! It knows which rooms have checks, not what they try.

use crate::check::{self, Check, State};
use crate::paths::Paths;
use crate::rootfs::rung::Rung;
use crate::spec::request::UserNamespace;
use crate::userns::maps::{self, IdMaps};
use crate::{cgroup, launch, network, rootfs, userns};

/// What the host permits, best rung first within each facility; `wanted` is the user's own choice of a root.
pub fn examine(paths: &anyhow::Result<Paths>, wanted: Option<Rung>) -> Vec<Check> {
    let mut checks = userns::check::checks();
    let maps =
        maps::choose(&UserNamespace::Auto).unwrap_or_else(|error| IdMaps::single(format!("{error:#}")));
    let maps = match userns::within::run(&maps, 0, || 0) {
        Ok(0) => maps,
        _ => IdMaps::single(String::new()),
    };
    match paths {
        Ok(paths) => {
            checks.push(Check::works("store", "folder", paths.store.display().to_string()));
            checks.push(Check::works("runtime folder", "folder", paths.runtime.display().to_string()));
            checks.extend(rootfs::check::checks(paths, &maps));
        }
        Err(error) => checks.push(Check::from_error("store", "folder", error)),
    }
    checks.extend(launch::check::checks(&maps));
    checks.extend(network::check::checks(&maps));
    checks.extend(cgroup::check::checks());
    let wanted = wanted.map(|rung| rung.to_string());
    for check in checks.iter_mut().filter(|check| Some(check.rung) == wanted.as_deref()) {
        if check.state == State::Works {
            check.state = State::Used;
        }
    }
    check::choose(&mut checks);
    checks
}
