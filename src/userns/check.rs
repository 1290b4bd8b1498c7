//! The checks of this room: user namespaces at all, and each rung of the id maps, tried by making one.
//! It knows nothing of what a container does with them.

use crate::check::Check;
use crate::error::Error;
use crate::ids::HostId;
use crate::spec::request::UserNamespace;
use crate::userns::maps::{self, IdMaps};
use crate::userns::subordinate::{self, Kind};
use crate::userns::{setuid, within};

const NAMESPACES: &str = "user namespaces";
const MAPS: &str = "id maps";

/// All checks of this room, best rung first.
pub fn checks() -> Vec<Check> {
    let single = IdMaps::single(String::new());
    let (made, one_id) = match within::run(&single, 0, || 0) {
        Ok(0) => (
            Check::works(NAMESPACES, "CLONE_NEWUSER", "a user namespace was made"),
            Check::works(MAPS, "one id", "your own id is the container's root"),
        ),
        Ok(status) => {
            let reason = format!("the trial ended with {status}");
            (
                Check::refused(NAMESPACES, "CLONE_NEWUSER", reason.clone()),
                Check::refused(MAPS, "one id", reason),
            )
        }
        Err(error) => (
            Check::from_error(NAMESPACES, "CLONE_NEWUSER", &error),
            Check::refused(MAPS, "one id", "there are no user namespaces"),
        ),
    };
    vec![made, many(), one_id]
}

fn many() -> Check {
    let rung = "many ids";
    match many_ids() {
        Ok(reason) => Check::works(MAPS, rung, reason),
        Err(error) => Check::from_error(MAPS, rung, &error),
    }
}

fn many_ids() -> anyhow::Result<String> {
    let maps = maps::choose(&UserNamespace::Auto)?;
    if maps.one_id() {
        return Err(why_one(&maps)?.into());
    }
    within::run(&maps, 0, || 0)?;
    let count: u64 = maps.uid.iter().map(|line| u64::from(line.count)).sum();
    let writer = match maps.writer {
        maps::Writer::SetuidPrograms(_) => "newuidmap and newgidmap wrote",
        maps::Writer::Direct => "kelp wrote",
    };
    Ok(format!("{writer} a map of {count} ids"))
}

fn why_one(maps: &IdMaps) -> anyhow::Result<Error> {
    if let Some(because) = &maps.weaker_because {
        let hint = match setuid::find() {
            Err(reason) if reason.contains("setuid") => {
                "an administrator can run: chmod u+s /usr/bin/newuidmap /usr/bin/newgidmap"
            }
            _ => "an administrator can install the package uidmap (Debian) or shadow-utils (Fedora)",
        };
        return Ok(Error::host(because.clone()).hint(hint));
    }
    let own = HostId(nix::unistd::geteuid().as_raw());
    let missing = match subordinate::ranges(Kind::Uid, own)?.is_empty() {
        true => Kind::Uid.file(),
        false => Kind::Gid.file(),
    };
    let source = if subordinate::nss_serves_ids() { "NSS (getsubids)" } else { missing };
    Ok(Error::host(format!("you have no subordinate ids in {source}")).hint(subordinate::HINT))
}
