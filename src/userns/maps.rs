//! The id maps of a user namespace, and the choice among the rungs: pure once the host's ranges are known.
//! It writes nothing.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs;

use anyhow::{Context, Result};

use crate::error::Error;
use crate::ids::{ContainerId, HostId};
use crate::spec::request::{Extent, UserNamespace};
use crate::sys::process;
use crate::userns::setuid::{self, SetuidPrograms};
use crate::userns::subordinate::{self, Range};

/// One line of /proc/PID/uid_map (`user_namespaces(7)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    pub container: ContainerId,
    pub host: HostId,
    pub count: u32,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.container, self.host, self.count)
    }
}

/// Who writes the maps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Writer {
    /// The setuid programs, one for each kind, side by side.
    SetuidPrograms(SetuidPrograms),
    /// We ourselves: one id of ours, or any with `CAP_SETUID` and `CAP_SETGID`.
    Direct,
}

/// Both maps, and what goes with them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMaps {
    pub uid: Vec<Line>,
    pub gid: Vec<Line>,
    pub writer: Writer,
    /// Whether `setgroups(2)` must be denied for good before the gid map is written (CVE-2014-8989).
    pub deny_setgroups: bool,
    /// Why a better rung was not taken though the host has ranges for us.
    pub weaker_because: Option<String>,
}

impl IdMaps {
    /// Exactly one id is mapped: the caller's own.
    pub fn one_id(&self) -> bool {
        let single = |lines: &[Line]| lines.iter().map(|line| u64::from(line.count)).sum::<u64>() == 1;
        single(&self.uid) && single(&self.gid)
    }

    /// Whether the container has an id 0 of each kind.
    pub fn has_root(&self) -> bool {
        maps_to(&self.uid, ContainerId(0)).is_some() && maps_to(&self.gid, ContainerId(0)).is_some()
    }

    /// The same user's one id as the container's root, for when the helpers fail.
    pub fn single(because: String) -> Self {
        Self { weaker_because: Some(because), ..one_id(Ids::own(), 0, 0) }
    }
}

impl IdMaps {
    /// The maps of the user namespace of a process that runs.
    pub fn of_process(pid: i32) -> Result<Self> {
        let read = |name: &str| {
            fs::read_to_string(format!("/proc/{pid}/{name}"))
                .with_context(|| format!("cannot read the {name} of the container"))
        };
        let lines = |text: &str| -> Vec<Line> {
            let line = |line: &str| {
                let mut numbers = line.split_whitespace().map(str::parse);
                let mut next = || numbers.next()?.ok();
                Some(Line { container: ContainerId(next()?), host: HostId(next()?), count: next()? })
            };
            text.lines().filter_map(line).collect()
        };
        Ok(Self {
            uid: lines(&read("uid_map")?),
            gid: lines(&read("gid_map")?),
            writer: Writer::Direct,
            deny_setgroups: read("setgroups")?.trim() == "deny",
            weaker_because: None,
        })
    }
}

/// The host's id behind one of the container's.
pub fn maps_to(lines: &[Line], id: ContainerId) -> Option<HostId> {
    lines.iter().find_map(|line| {
        let offset = id.0.checked_sub(line.container.0)?;
        (offset < line.count).then(|| HostId(line.host.0.saturating_add(offset)))
    })
}

/// The container's id of one of the host's.
pub fn maps_from(lines: &[Line], id: HostId) -> Option<ContainerId> {
    lines.iter().find_map(|line| {
        let offset = id.0.checked_sub(line.host.0)?;
        (offset < line.count).then(|| ContainerId(line.container.0.saturating_add(offset)))
    })
}

/// Ids as one user namespace has them, in the numbers of another, where both hold the same ones of the host's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shift {
    from: (Vec<Line>, Vec<Line>),
    to: (Vec<Line>, Vec<Line>),
}

impl Shift {
    /// `None` if nothing changes.
    pub fn between(from: &IdMaps, to: &IdMaps) -> Option<Self> {
        let lines = |maps: &IdMaps| (maps.uid.clone(), maps.gid.clone());
        let shift = Self { from: lines(from), to: lines(to) };
        (shift.from != shift.to).then_some(shift)
    }

    pub fn uid(&self, id: u32) -> u32 {
        shifted(&self.from.0, &self.to.0, id)
    }

    pub fn gid(&self, id: u32) -> u32 {
        shifted(&self.from.1, &self.to.1, id)
    }
}

/// An id that the other has not is nobody's there, as the kernel shows it.
fn shifted(from: &[Line], to: &[Line], id: u32) -> u32 {
    const NOBODY: u32 = 65_534;
    maps_to(from, ContainerId(id)).and_then(|host| maps_from(to, host)).map_or(NOBODY, |id| id.0)
}

#[derive(Clone, Copy)]
struct Ids {
    uid: HostId,
    gid: HostId,
}

impl Ids {
    fn own() -> Self {
        Self { uid: HostId(nix::unistd::geteuid().as_raw()), gid: HostId(nix::unistd::getegid().as_raw()) }
    }
}

fn one_id(own: Ids, uid: u32, gid: u32) -> IdMaps {
    let line = |container, host| vec![Line { container: ContainerId(container), host, count: 1 }];
    IdMaps {
        uid: line(uid, own.uid),
        gid: line(gid, own.gid),
        writer: Writer::Direct,
        deny_setgroups: true,
        weaker_because: None,
    }
}

/// The ids that the caller may hand out, in podman's order: its own first, then the subordinate ones.
struct Supply {
    uid: Vec<Range>,
    gid: Vec<Range>,
    writer: Writer,
}

/// Chooses the maps by the ladder for what the user asked.
///
/// # Errors
/// Maps were asked for that the host has no ids for.
pub fn choose(asked: &UserNamespace) -> Result<IdMaps> {
    let own = Ids::own();
    match asked {
        UserNamespace::Single => Ok(one_id(own, 0, 0)),
        UserNamespace::Auto => match supply(own)? {
            Ok(supply) => Ok(whole(&supply)),
            Err(because) => Ok(IdMaps { weaker_because: because, ..one_id(own, 0, 0) }),
        },
        UserNamespace::KeepId { uid, gid } => keep_id(own, *uid, *gid),
        UserNamespace::Maps { uid, gid } => match supply(own)? {
            Ok(supply) => asked_maps(&supply, uid, gid),
            Err(because) => Err(no_ranges("--uidmap needs subordinate ids", because)),
        },
    }
}

fn no_ranges(intent: &str, because: Option<String>) -> anyhow::Error {
    let because = because.unwrap_or_else(|| "you have none in /etc/subuid and /etc/subgid".to_owned());
    Error::host(format!("{intent}: {because}")).hint(subordinate::HINT).into()
}

/// `Err(None)`: the host has no ranges for us, which is no fault. `Err(Some(why))`: it has, but they can't be
/// used.
fn supply(own: Ids) -> Result<std::result::Result<Supply, Option<String>>> {
    if own.uid == HostId(0) && may_write_any() {
        let range = |file: &str| full_range(file).with_context(|| format!("cannot read {file}"));
        let (uid, gid) = (range("/proc/self/uid_map")?, range("/proc/self/gid_map")?);
        return Ok(Ok(Supply { uid, gid, writer: Writer::Direct }));
    }
    let (uid, gid) = subordinate::both(own.uid)?;
    if uid.is_empty() || gid.is_empty() {
        return Ok(Err(None));
    }
    let programs = match setuid::find() {
        Ok(programs) => programs,
        Err(because) => return Ok(Err(Some(because))),
    };
    let with_own = |own: HostId, more: Vec<Range>| [vec![Range { first: own.0, count: 1 }], more].concat();
    Ok(Ok(Supply {
        uid: with_own(own.uid, uid),
        gid: with_own(own.gid, gid),
        writer: Writer::SetuidPrograms(programs),
    }))
}

const CAP_SETGID: u64 = 1 << 6;
const CAP_SETUID: u64 = 1 << 7;
const CAP_SETFCAP: u64 = 1 << 31;

/// A map of many ids, or one that holds the parent's root, needs these (`user_namespaces(7)`).
fn may_write_any() -> bool {
    let wanted = CAP_SETGID | CAP_SETUID | CAP_SETFCAP;
    process::capget().is_ok_and(|sets| sets.effective & wanted == wanted)
}

/// The ids that exist in our own namespace.
fn full_range(file: &str) -> Result<Vec<Range>> {
    let mut ranges = Vec::new();
    for line in fs::read_to_string(file)?.lines() {
        let numbers: Vec<u32> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        if let [first, _, count] = numbers[..] {
            ranges.push(Range { first, count });
        }
    }
    Ok(ranges)
}

/// Container ids from 0 on, over the whole supply.
fn whole(supply: &Supply) -> IdMaps {
    maps(lay(&supply.uid, 0), lay(&supply.gid, 0), supply)
}

fn maps(uid: Vec<Line>, gid: Vec<Line>, supply: &Supply) -> IdMaps {
    let writer = supply.writer.clone();
    IdMaps { uid, gid, writer, deny_setgroups: denied_outside(), weaker_because: None }
}

/// A namespace inherits the denial of the one around it (`user_namespaces(7)`).
fn denied_outside() -> bool {
    fs::read_to_string("/proc/self/setgroups").is_ok_and(|word| word.trim() == "deny")
}

fn lay(ranges: &[Range], first: u32) -> Vec<Line> {
    let mut next = first;
    let mut lines = Vec::new();
    for range in ranges {
        let count = range.count.min(u32::MAX - next);
        if count > 0 {
            lines.push(Line { container: ContainerId(next), host: HostId(range.first), count });
        }
        next += count;
    }
    lines
}

/// The caller's id appears as `uid` inside; the subordinate ones fill the numbers round it.
fn keep_id(own: Ids, uid: Option<u32>, gid: Option<u32>) -> Result<IdMaps> {
    let (uid, gid) = (uid.unwrap_or(own.uid.0), gid.unwrap_or(own.gid.0));
    match supply(own)? {
        Ok(supply) => {
            let uids = lay_round(&supply.uid, own.uid, uid);
            let gids = lay_round(&supply.gid, own.gid, gid);
            Ok(maps(uids, gids, &supply))
        }
        Err(because) => Ok(IdMaps { weaker_because: because, ..one_id(own, uid, gid) }),
    }
}

fn lay_round(supply: &[Range], own: HostId, kept: u32) -> Vec<Line> {
    let others: Vec<Range> = supply.iter().flat_map(|range| range.without(own.0)).collect();
    let (below, above) = subordinate::split(&others, kept);
    let own = Line { container: ContainerId(kept), host: own, count: 1 };
    let mut lines = lay(&below, 0);
    lines.push(own);
    lines.extend(lay(&above, kept.saturating_add(1)));
    lines
}

fn asked_maps(supply: &Supply, uid: &[Extent], gid: &[Extent]) -> Result<IdMaps> {
    let uids = extents(&supply.uid, if uid.is_empty() { gid } else { uid }, "uid")?;
    let gids = extents(&supply.gid, if gid.is_empty() { uid } else { gid }, "gid")?;
    Ok(maps(uids, gids, supply))
}

fn extents(supply: &[Range], asked: &[Extent], kind: &str) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    let total: u64 = supply.iter().map(|range| u64::from(range.count)).sum();
    for extent in asked {
        let (mut from, mut left, mut inside) = (extent.host, extent.count, extent.container);
        if u64::from(from) + u64::from(left) > total {
            return Err(Error::usage(format!(
                "cannot map {kind}s {}:{}:{}: you have {total}",
                extent.container, extent.host, extent.count
            ))
            .hint(subordinate::HINT)
            .into());
        }
        for range in supply {
            if from >= range.count {
                from -= range.count;
                continue;
            }
            let count = left.min(range.count - from);
            if count > 0 {
                let host = HostId(range.first + from);
                lines.push(Line { container: ContainerId(inside), host, count });
            }
            (from, left, inside) = (0, left - count, inside.saturating_add(count));
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(container: u32, host: u32, count: u32) -> Line {
        Line { container: ContainerId(container), host: HostId(host), count }
    }

    #[test]
    fn keep_id_fills_the_numbers_round_the_own_one() {
        let supply = [Range { first: 1000, count: 1 }, Range { first: 100_000, count: 65_536 }];
        assert_eq!(
            lay_round(&supply, HostId(1000), 1000),
            [line(0, 100_000, 1000), line(1000, 1000, 1), line(1001, 101_000, 64_536)]
        );
        assert_eq!(lay_round(&supply, HostId(1000), 0), [line(0, 1000, 1), line(1, 100_000, 65_536)]);
    }

    #[test]
    fn asked_maps_count_the_own_id_as_zero() {
        let supply = [Range { first: 1000, count: 1 }, Range { first: 100_000, count: 10 }];
        let asked = [Extent { container: 5, host: 0, count: 3 }];
        assert_eq!(extents(&supply, &asked, "uid").unwrap(), [line(5, 1000, 1), line(6, 100_000, 2)]);
        assert!(extents(&supply, &[Extent { container: 0, host: 1, count: 11 }], "uid").is_err());
    }

    #[test]
    fn ids_are_shifted_between_namespaces() {
        let maps = |uid: Vec<Line>| IdMaps { gid: uid.clone(), uid, ..IdMaps::single(String::new()) };
        let automatic = maps(vec![line(0, 1000, 1), line(1, 100_000, 65_536)]);
        let kept = maps(vec![line(0, 100_000, 1000), line(1000, 1000, 1), line(1001, 101_000, 64_536)]);
        assert_eq!(Shift::between(&automatic, &automatic), None);
        let shift = Shift::between(&automatic, &kept).unwrap();
        for (from, to) in [(0, 1000), (1, 0), (1000, 999), (1001, 1001), (65_536, 65_536), (70_000, 65_534)] {
            assert_eq!((shift.uid(from), shift.gid(from)), (to, to));
        }
    }

    #[test]
    fn the_hosts_id_is_found_through_the_lines() {
        let lines = [line(0, 1000, 1), line(1, 100_000, 10)];
        assert_eq!(maps_to(&lines, ContainerId(0)), Some(HostId(1000)));
        assert_eq!(maps_to(&lines, ContainerId(10)), Some(HostId(100_009)));
        assert_eq!(maps_to(&lines, ContainerId(11)), None);
    }
}
