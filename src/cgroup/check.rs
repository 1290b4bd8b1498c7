//! The checks of this room: who enforces limits here, which controllers there are, where they stop, and the mend. They
//! look and change nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::cgroup::delegation::{self, Found, WANTED};
use crate::cgroup::scope;
use crate::check::Check;

const LIMITS: &str = "limits";

/// Nothing is made: a scope is only asked for when a container needs it.
pub fn checks() -> Vec<Check> {
    let (cgroup, scope) = ("delegated cgroup", "systemd user scope");
    let soft = Check::works(
        LIMITS,
        "soft",
        "kelp holds memory, cpus, cpuset, pids and weights from outside, devices in its overlay",
    );
    let mut checks = match delegation::find() {
        Ok(Found::Writable(folders)) => {
            let folder = delegation::best(&folders).cloned().unwrap_or_default();
            vec![offered(cgroup, &folder)]
        }
        Ok(Found::Manager(_)) => match delegation::kept_by_systemd() {
            Ok(folder) => vec![
                Check::refused(LIMITS, cgroup, "the cgroup that kelp runs in is not yours").mend(SCOPE_MEND),
                offered(scope, &folder),
            ],
            Err(error) => vec![Check::from_error(LIMITS, scope, &error)],
        },
        Err(error) => vec![Check::from_error(LIMITS, cgroup, &error)],
    };
    checks.push(soft);
    checks
}

/// The controllers of a folder; those that are missing stop at the nearest ancestor that does not hand them on.
fn offered(rung: &'static str, folder: &Path) -> Check {
    let has = controllers(folder, "cgroup.controllers");
    let missing: Vec<&str> =
        WANTED.into_iter().filter(|name| *name != "hugetlb" && !has.contains(*name)).collect();
    let listed = has.iter().cloned().collect::<Vec<_>>().join(" ");
    let reason = format!("{listed} in {}", folder.display());
    if missing.is_empty() {
        return Check::works(LIMITS, rung, reason);
    }
    let stop = folder.ancestors().skip(1).find(|above| {
        let offers = controllers(above, "cgroup.controllers");
        missing.iter().all(|name| offers.contains(*name))
    });
    let mend = match stop {
        Some(above) if !scope::is_kept(folder) => {
            let words = missing.iter().map(|name| format!("+{name}")).collect::<Vec<_>>().join(" ");
            format!("an administrator can run: echo {words} >{}/cgroup.subtree_control", above.display())
        }
        // Above the root of a cgroup namespace nothing is seen, and v1 may keep them.
        None if !scope::is_kept(folder) => HANDED_ON_MEND.to_owned(),
        _ => MEND.to_owned(),
    };
    if has.is_empty() {
        return Check::refused(LIMITS, rung, format!("no controller reaches {}", folder.display()))
            .mend(mend);
    }
    let stop = stop.map_or_else(String::new, |above| format!(", which {} does not hand on", above.display()));
    Check::works(LIMITS, rung, format!("{reason}; without {}{stop}", missing.join(" "))).mend(mend)
}

const SCOPE_MEND: &str = "none is needed: your own systemd gives your containers a scope";

const HANDED_ON_MEND: &str = "whoever gave you that cgroup can hand more on, by writing +cpu +cpuset +io +memory +pids to the \
                              cgroup.subtree_control above it, if cgroup v1 does not keep them";

const MEND: &str = "an administrator can run: mkdir -p /etc/systemd/system/user@.service.d && printf \
                    '[Service]\\nDelegate=cpu cpuset io memory pids\\n' >/etc/systemd/system/user@.service.d/delegate.conf \
                    && systemctl daemon-reload; then log in again";

fn controllers(folder: &Path, file: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}
