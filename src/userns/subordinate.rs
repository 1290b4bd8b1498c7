//! Subordinate ids: the ranges of `subuid(5)` and `subgid(5)`, or of NSS through `getsubids(1)` where
//! nsswitch.conf names a source for them.

use std::fs;
use std::process::Command;

use anyhow::Result;

use crate::error::Error;
use crate::ids::HostId;

/// What an administrator does so that a user has ranges.
pub const HINT: &str =
    "an administrator can run: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Uid,
    Gid,
}

impl Kind {
    pub fn file(self) -> &'static str {
        match self {
            Self::Uid => "/etc/subuid",
            Self::Gid => "/etc/subgid",
        }
    }
}

/// `count` ids of the host from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub first: u32,
    pub count: u32,
}

impl Range {
    /// The range without one id, as one or two.
    pub fn without(self, id: u32) -> Vec<Self> {
        let offset = match id.checked_sub(self.first) {
            Some(offset) if offset < self.count => offset,
            _ => return vec![self],
        };
        let below = Self { first: self.first, count: offset };
        let above = Self { first: id.saturating_add(1), count: self.count - offset - 1 };
        [below, above].into_iter().filter(|range| range.count > 0).collect()
    }
}

/// The first `count` ids of `ranges`, and the rest.
pub fn split(ranges: &[Range], count: u32) -> (Vec<Range>, Vec<Range>) {
    let (mut below, mut above, mut left) = (Vec::new(), Vec::new(), count);
    for range in ranges {
        let taken = left.min(range.count);
        if taken > 0 {
            below.push(Range { first: range.first, count: taken });
        }
        if taken < range.count {
            above.push(Range { first: range.first + taken, count: range.count - taken });
        }
        left -= taken;
    }
    (below, above)
}

/// The ranges of the user with `uid`.
///
/// # Errors
/// A file that exists and can't be read.
pub fn ranges(kind: Kind, uid: HostId) -> Result<Vec<Range>> {
    of_user(kind, uid, user_name(uid), nss_serves_ids())
}

/// Both kinds at the price of one look at who the user is.
pub fn both(uid: HostId) -> Result<(Vec<Range>, Vec<Range>)> {
    let (name, nss) = (user_name(uid), nss_serves_ids());
    Ok((of_user(Kind::Uid, uid, name.clone(), nss)?, of_user(Kind::Gid, uid, name, nss)?))
}

fn of_user(kind: Kind, uid: HostId, name: Option<String>, nss: bool) -> Result<Vec<Range>> {
    if nss {
        return Ok(from_nss(kind, name.as_deref().unwrap_or(&uid.to_string())));
    }
    match fs::read_to_string(kind.file()) {
        Ok(text) => Ok(parse(&text, name.as_deref(), uid)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Error::host(format!("cannot read {}: {error}", kind.file())).into()),
    }
}

/// Lines `NAME-OR-UID:FIRST:COUNT`; what is no such line is skipped, as newuidmap does.
fn parse(text: &str, name: Option<&str>, uid: HostId) -> Vec<Range> {
    let uid = uid.to_string();
    let ours = |line: &&str| line.split(':').next().is_some_and(|who| Some(who) == name || who == uid);
    text.lines().filter(ours).filter_map(|line| range(line.split(':').skip(1))).collect()
}

fn range<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<Range> {
    let first = words.next()?.trim().parse().ok()?;
    let count = words.next()?.trim().parse().ok()?;
    (count > 0 && u32::checked_add(first, count).is_some()).then_some(Range { first, count })
}

pub fn nss_serves_ids() -> bool {
    fs::read_to_string("/etc/nsswitch.conf").is_ok_and(|text| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix("subid:").map(str::to_owned));
        line.is_some_and(|sources| sources.split_whitespace().any(|source| source != "files"))
    })
}

/// `getsubids [-g] USER` prints `0: USER FIRST COUNT` a line.
fn from_nss(kind: Kind, user: &str) -> Vec<Range> {
    let mut command = Command::new("getsubids");
    if kind == Kind::Gid {
        command.arg("-g");
    }
    let Ok(output) = command.arg(user).output() else { return Vec::new() };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter_map(|line| range(line.split_whitespace().skip(2))).collect()
}

fn user_name(uid: HostId) -> Option<String> {
    let wanted = uid.to_string();
    let found = fs::read_to_string("/etc/passwd").ok().and_then(|text| {
        text.lines()
            .find(|line| line.split(':').nth(2) == Some(&wanted))
            .map(|line| line.split(':').next().unwrap_or_default().to_owned())
    });
    found.or_else(|| {
        let output = Command::new("getent").args(["passwd", &wanted]).output().ok()?;
        let line = String::from_utf8(output.stdout).ok()?;
        line.split(':').next().filter(|name| !name.is_empty()).map(str::to_owned)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_belong_to_a_name_or_a_number() {
        let text =
            "root:1:2\nme:100000:65536\n# comment\n1000:5:x\n1000:300000:10\nmeow:7:7\nme:4294967295:9\n";
        assert_eq!(
            parse(text, Some("me"), HostId(1000)),
            [Range { first: 100_000, count: 65_536 }, Range { first: 300_000, count: 10 }]
        );
    }

    #[test]
    fn a_range_loses_one_id() {
        let range = Range { first: 10, count: 3 };
        assert_eq!(range.without(11), [Range { first: 10, count: 1 }, Range { first: 12, count: 1 }]);
        assert_eq!(range.without(10), [Range { first: 11, count: 2 }]);
        assert_eq!(range.without(13), [range]);
    }
}
