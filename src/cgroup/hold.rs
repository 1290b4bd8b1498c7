//! Which limit is enforced by what: by a group of the kernel's where its controller is ours, else softly, else not at
//! all. What comes out is plain data beside the group: the child starts with some of it, the watcher keeps the rest,
//! and everybody may ask who enforces a limit.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::cgroup::delegation::{self, By, Ground};
use crate::cgroup::device;
use crate::cgroup::group::Group;
use crate::cgroup::scope::{self, Standing};
use crate::cgroup::soft::Watched;
use crate::error::Error;
use crate::spec::Inherited;
use crate::spec::limits::{self, BLKIO_WEIGHT, CPU_SHARES, CPUSET, MEMORY, PIDS, Soft, Unit};
use crate::spec::resources::{Groups, Limits, Resources, Throttle, Write};
use crate::sys::process;
use crate::units::CpuSet;

/// How long what systemd removes, because the last container in it ends at this moment, is made anew: each time another
/// one has ended.
pub const PATIENCE: Duration = scope::PATIENCE;

/// Who enforces a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Enforcer {
    /// The kernel, in a group that was delegated.
    Cgroup,
    /// The kernel, in a scope of the user's systemd.
    Scope,
    /// kelp, from outside.
    Soft,
    None,
}

/// By flag.
pub type Enforced = BTreeMap<String, Enforcer>;

/// What holds the limits of one container.
#[derive(Debug, Default)]
pub struct Hold {
    pub group: Option<Group>,
    /// Who enforces what where the kernel makes the root.
    pub enforced: Enforced,
    /// The same where a server of ours is behind the root: what it reads and writes is not the container's.
    pub served: Enforced,
    pub watched: Watched,
    /// What the program starts with.
    pub inherited: Inherited,
    /// What the server of a user-space overlay is to keep.
    pub throttle: Throttle,
}

/// Nobody is left in the group of a hold that ends.
impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(group) = self.group.take() {
            let _ = group.remove();
        }
    }
}

/// The container that is to be held.
#[derive(Clone, Copy, Debug)]
pub struct Held<'a> {
    pub name: &'a str,
    /// Where its root lies.
    pub store: &'a Path,
    pub standing: Standing,
}

/// Makes what holds `resources`.
///
/// # Errors
/// A limit that the kernel refuses, or, with `strict`, one that the kernel does not enforce.
pub fn take(resources: &Resources, held: Held<'_>) -> Result<Hold> {
    if !resources.wants_anything() {
        return Ok(Hold::default());
    }
    check_processors(&resources.limits)?;
    let asked = matches!(resources.groups, Some(Groups::Enabled | Groups::Split));
    let wants_group = asked || resources.parent.is_some();
    let devices = if resources.limits.has_devices() { device::behind(held.store) } else { BTreeSet::new() };
    let mut hold = Hold::default();
    let refused = match ground(resources, held.standing) {
        Ok(ground) => {
            let (ground, group) = group(ground, resources, held)?;
            hold.group = Some(group.clone());
            hold.apply(&resources.limits, Some((&group, ground.by, &ground.controllers)), &devices)?;
            None
        }
        Err(error) if wants_group => return Err(error.context("cannot make a cgroup")),
        Err(error) => {
            hold.apply(&resources.limits, None, &devices)?;
            Some(error)
        }
    };
    if resources.strict {
        be_strict(&hold.enforced, refused)?;
    }
    // Whatever serves the container reads and writes for it.
    if let Some(level) = hold.inherited.io_priority {
        process::set_io_priority(0, level).with_context(|| format!("take I/O priority {level}"))?;
    }
    Ok(hold)
}

/// Limits that change while the container runs.
#[derive(Debug)]
pub struct Change<'a> {
    pub changed: &'a Limits,
    /// All that hold from now on.
    pub together: &'a Limits,
    /// Behind its root, if a server of ours makes that.
    pub devices: BTreeSet<String>,
}

/// Applies them: to its group where the controller is ours, else softly.
pub fn update(change: &Change<'_>, group: Option<&Group>, enforced: &Enforced) -> Result<Hold> {
    let limits = &change.together.affected_by(change.changed);
    check_processors(limits)?;
    let by = enforced.values().find_map(|enforcer| match enforcer {
        Enforcer::Cgroup => Some(By::Cgroup),
        Enforcer::Scope => Some(By::Scope),
        _ => None,
    });
    let controllers = group.map(|group| words(&group.read("cgroup.controllers"))).unwrap_or_default();
    let mut hold = Hold::default();
    let made = group.map(|group| (group, by.unwrap_or(By::Cgroup), &controllers));
    hold.apply(limits, made, &change.devices)?;
    Ok(hold)
}

fn words(text: &str) -> BTreeSet<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// A scope whose last container ends at this moment is asked for anew.
fn group(mut ground: Ground, resources: &Resources, held: Held<'_>) -> Result<(Ground, Group)> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match make(&ground, held.name) {
            Err(_) if ground.by == By::Scope && !ground.folder.exists() && Instant::now() < deadline => {
                ground = self::ground(resources, held.standing)?;
            }
            made => return made.map(|group| (ground, group)),
        }
    }
}

fn ground(resources: &Resources, standing: Standing) -> Result<Ground> {
    match (resources.groups, &resources.parent) {
        (Some(Groups::Disabled), _) => Err(Error::usage("--cgroups=disabled was asked").into()),
        (_, Some(parent)) => delegation::below(parent),
        (Some(Groups::Split), None) => delegation::split(),
        _ => delegation::take(standing),
    }
}

fn make(ground: &Ground, name: &str) -> Result<Group> {
    let group = Group::make(&ground.folder, name)?;
    // One process that is killed for memory would leave the others half alive; and pid 1 is not the one that grows.
    let together = Write { flag: MEMORY, file: "memory.oom.group".to_owned(), text: "1".to_owned() };
    let _ = group.write(&together);
    Ok(group)
}

impl Hold {
    fn apply(
        &mut self,
        limits: &Limits,
        made: Option<(&Group, By, &BTreeSet<String>)>,
        devices: &BTreeSet<String>,
    ) -> Result<()> {
        let mut taken: BTreeMap<&str, Option<Enforcer>> = BTreeMap::new();
        for write in limits.writes() {
            let enforcer = match made {
                Some((group, by, controllers)) if controllers.contains(write.controller()) => {
                    written(group, &write, by, limits)?
                }
                _ => None,
            };
            // Some have a file for each of the kernel's ways; one of them is enough.
            let flag = taken.entry(write.flag).or_default();
            *flag = flag.or(enforcer);
        }
        for (flag, enforcer) in taken.into_iter().filter(|(flag, _)| limits.0.contains_key(*flag)) {
            let enforcer = enforcer.map_or_else(|| self.soften(flag, limits), Ok)?;
            let throttled = limits.throttle(flag, devices, &mut self.throttle);
            self.served.insert(flag.to_owned(), if throttled { Enforcer::Soft } else { enforcer });
            self.enforced.insert(flag.to_owned(), enforcer);
        }
        Ok(())
    }

    /// The kernel does not enforce it; says who does.
    fn soften(&mut self, flag: &str, limits: &Limits) -> Result<Enforcer> {
        let row = limits::row(flag).context("a limit without a row")?;
        if row.unit == Unit::Pairs {
            return Err(Error::host("--cgroup-conf: no cgroup with that controller is yours")
                .hint("see `kelp doctor`")
                .into());
        }
        match flag {
            MEMORY => self.watched.memory = limits.number(MEMORY),
            PIDS => {
                self.watched.pids = limits.number(PIDS);
                self.inherited.processes = limits.number(PIDS);
            }
            CPUSET => self.inherited.affinity = limits.set(CPUSET).cloned(),
            BLKIO_WEIGHT if device::some_are_weighed() => {
                self.inherited.io_priority = limits.number(BLKIO_WEIGHT).map(io_priority_of_weight);
            }
            CPU_SHARES => self.inherited.nice = limits.number(CPU_SHARES).map_or(0, nice_of_shares),
            _ if row.soft == Soft::Watched => self.watched.nano_cpus = limits.nano_cpus(),
            _ => return Ok(Enforcer::None),
        }
        Ok(Enforcer::Soft)
    }

    /// Limits that hold only if a server of ours is behind the root, as they are without one.
    pub fn lost(&self) -> Enforced {
        let none = self.enforced.iter().filter(|(_, enforcer)| **enforcer == Enforcer::None);
        let lost = none.filter(|(flag, _)| self.served.get(*flag) != Some(&Enforcer::None));
        lost.map(|(flag, enforcer)| (flag.clone(), *enforcer)).collect()
    }

    /// Whether the group was removed by systemd, which found its scope empty before the container was born. It is
    /// forgotten then: the next one has its name, and must not be removed at the end of this.
    pub fn forget_removed(&mut self) -> bool {
        self.group.take_if(|group| !group.folder.exists()).is_some()
    }

    pub fn wants_server(&self) -> bool {
        !self.lost().is_empty()
    }
}

/// What a program that joins starts with where the kernel does not hold it by a group: the number of processes is the
/// watcher's, which sees all.
pub fn of_one_that_joins(limits: &Limits, enforced: &Enforced) -> Inherited {
    let softly = |flag: &str| enforced.get(flag) == Some(&Enforcer::Soft);
    let shares = limits.number(CPU_SHARES).filter(|_| softly(CPU_SHARES));
    let weight = limits.number(BLKIO_WEIGHT).filter(|_| softly(BLKIO_WEIGHT));
    Inherited {
        affinity: limits.set(CPUSET).filter(|_| softly(CPUSET)).cloned(),
        nice: shares.map_or(0, nice_of_shares),
        io_priority: weight.map(io_priority_of_weight),
        processes: None,
    }
}

/// The limits that nothing enforces, for a warning.
pub fn unenforced(enforced: &Enforced) -> Vec<&str> {
    let none = enforced.iter().filter(|(_, enforcer)| **enforcer == Enforcer::None);
    none.map(|(flag, _)| flag.as_str()).collect()
}

/// Writes one value; `None` if the kernel has no such file.
fn written(group: &Group, write: &Write, by: By, limits: &Limits) -> Result<Option<Enforcer>> {
    let enforcer = if by == By::Scope { Enforcer::Scope } else { Enforcer::Cgroup };
    match group.write(write) {
        Ok(()) => Ok(Some(enforcer)),
        Err(error)
            if error.kind() == std::io::ErrorKind::NotFound
                || error.kind() == std::io::ErrorKind::PermissionDenied =>
        {
            if limits::row(write.flag).is_some_and(|row| row.unit == Unit::Pairs) {
                return Err(Error::usage(format!("--cgroup-conf: the kernel has no {}", write.file)).into());
            }
            Ok(None)
        }
        Err(error) if limits.0.contains_key(write.flag) => {
            let sentence =
                format!("--{}: the kernel refuses {:?} in {}: {error}", write.flag, write.text, write.file);
            Err(Error::usage(sentence).into())
        }
        Err(_) => Ok(None),
    }
}

fn be_strict(enforced: &Enforced, refused: Option<anyhow::Error>) -> Result<()> {
    let soft = enforced.iter().find(|(_, by)| matches!(by, Enforcer::Soft | Enforcer::None));
    let Some((flag, _)) = soft else { return Ok(()) };
    let why =
        refused.map_or_else(|| "its controller is not delegated".to_owned(), |error| format!("{error:#}"));
    Err(Error::host(format!("--strict-limits: the kernel does not enforce --{flag} here: {why}"))
        .hint("see `kelp doctor` for the mend")
        .into())
}

/// docker refuses what the machine does not have; cgroups would silently fall back to all.
fn check_processors(limits: &Limits) -> Result<()> {
    let Some(asked) = limits.set(CPUSET) else { return Ok(()) };
    let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let Ok(online) = online.parse::<CpuSet>() else { return Ok(()) };
    if asked.0.is_subset(&online.0) {
        return Ok(());
    }
    Err(Error::usage(format!("--cpuset-cpus {asked}: this machine has {online}")).into())
}

/// Each step of nice is a quarter of processors' time (`sched(7)`), downwards only: upwards is root's.
fn nice_of_shares(shares: u64) -> i32 {
    let steps = (1024.0 / shares as f64).ln() / 1.25f64.ln();
    steps.round().clamp(0.0, 19.0) as i32
}

/// BFQ takes a level for the weight (8 - level) · 10 (block/bfq-wf2q.c); what docker calls the usual weight, 500, is the
/// usual level, 4.
fn io_priority_of_weight(weight: u64) -> u8 {
    let eighths = (weight as f64 / 125.0).round().clamp(1.0, 8.0);
    8 - eighths as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::resources::Value;

    #[test]
    fn fewer_shares_are_a_higher_nice_value() {
        for (shares, nice) in [(4096, 0), (1024, 0), (512, 3), (256, 6), (2, 19)] {
            assert_eq!(nice_of_shares(shares), nice, "{shares}");
        }
    }

    #[test]
    fn a_weight_of_disks_is_one_of_eight_levels() {
        for (weight, level) in [(1000, 0), (800, 2), (500, 4), (200, 6), (125, 7), (10, 7)] {
            assert_eq!(io_priority_of_weight(weight), level, "{weight}");
        }
    }

    #[test]
    fn without_a_group_each_limit_says_who_holds_it() {
        let mut limits = Limits::default();
        for (flag, word) in
            [("memory", "20m"), ("cpus", "0.5"), ("memory-high", "10m"), ("cpu-shares", "256")]
        {
            limits.take(limits::row(flag).unwrap(), &[word.to_owned()]).unwrap();
        }
        let mut hold = Hold::default();
        hold.apply(&limits, None, &BTreeSet::new()).unwrap();
        assert_eq!(
            hold.watched,
            Watched { nano_cpus: Some(500_000_000), memory: Some(20 << 20), pids: None }
        );
        assert_eq!(hold.inherited.nice, 6);
        assert_eq!(unenforced(&hold.enforced), ["memory-high"]);
        assert!(be_strict(&hold.enforced, None).is_err());
    }

    #[test]
    fn a_device_is_throttled_where_the_root_lies_on_it() {
        let held = |devices: &[&str]| {
            let mut limits = Limits::default();
            let rates = Value::Devices(vec![("8:0".to_owned(), 100), ("8:0".to_owned(), 50)]);
            limits.0.insert("device-write-iops".to_owned(), rates);
            let mut hold = Hold::default();
            let devices = devices.iter().map(|device| (*device).to_owned()).collect();
            hold.apply(&limits, None, &devices).unwrap();
            (hold.throttle.writes, hold.wants_server(), hold.served["device-write-iops"])
        };
        assert_eq!(held(&["8:1", "8:0"]), (50, true, Enforcer::Soft));
        assert_eq!(held(&["8:16"]), (0, false, Enforcer::None));
    }
}
