//! Who the program runs as: the user looked up in the container's own files, and the order in which a process
//! gives up what it has. The files belong to the image, so they are opened as an attacker's: regular files
//! only, never blocking, bounded.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::error::Error;
use crate::ids::{ContainerId, parse_id};
use crate::rootfs::target;
use crate::spec::Process;
use crate::spec::capability::{CapabilitySet, NAMES};
use crate::sys::process::{self, CapabilitySets};
use crate::userns::maps::{IdMaps, maps_to};

/// The largest passwd or group file that is read.
const LARGEST: u64 = 16 << 20;

/// A user as the container counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: PathBuf,
}

/// Looks `USER[:GROUP]` up, in `root` where the process is not inside it yet. A number is never taken for a name.
pub fn look_up(process: &Process, maps: &IdMaps, root: Option<BorrowedFd<'_>>) -> Result<Identity> {
    let (user, wanted_group) = process.user.split_once(':').unwrap_or((&process.user, ""));
    let is_name = |word: &str| !word.is_empty() && parse_id(word).is_none();
    let names_a_group = is_name(wanted_group) || process.additional_groups.iter().any(|group| is_name(group));
    let passwd = read_table(root, "/etc/passwd", is_name(user))?;
    let group = read_table(root, "/etc/group", names_a_group)?;
    let identity = find(process, &passwd, &group)?;
    for (kind, lines, id) in [("user", &maps.uid, identity.uid), ("group", &maps.gid, identity.gid)] {
        if maps_to(lines, ContainerId(id)).is_none() {
            let count: u64 = lines.iter().map(|line| u64::from(line.count)).sum();
            return Err(Error::usage(format!(
                "{kind} {id} is not one of the container's {count} {kind} ids"
            ))
            .hint(format!("--userns=keep-id:uid={},gid={} gives it your own id", identity.uid, identity.gid))
            .into());
        }
    }
    Ok(identity)
}

/// The text of the file; one that can't be used is as good as an empty one where numbers alone are looked up.
fn read_table(root: Option<BorrowedFd<'_>>, path: &str, is_needed: bool) -> Result<String> {
    match read(root, path) {
        Err(_) if !is_needed => Ok(String::new()),
        other => other,
    }
}

fn read(root: Option<BorrowedFd<'_>>, path: &str) -> Result<String> {
    match open(root, path) {
        Ok(file) => read_regular(file, path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => Ok(String::new()),
        Err(error) => Err(error).with_context(|| format!("open the container's {path}")),
    }
}

fn open(root: Option<BorrowedFd<'_>>, path: &str) -> std::io::Result<File> {
    let found = root.map(|root| target::open(root, Path::new(path))).transpose()?;
    let path = found.as_ref().map_or_else(|| PathBuf::from(path), |found| target::path_of(found.as_fd()));
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

fn read_regular(file: File, path: &str) -> Result<String> {
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(Error::container(format!("the container's {path} is not a regular file")).into());
    }
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Err(Error::container(format!("the container's {path} is larger than 16 MiB")).into());
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn find(process: &Process, passwd: &str, group: &str) -> Result<Identity> {
    let (user, wanted_group) = match process.user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (process.user.as_str(), None),
    };
    let entry = find_user(user, passwd)?;
    let name = entry.name.clone();
    let gid = match wanted_group {
        Some(wanted) => find_group(wanted, group)?,
        None => entry.gid,
    };
    let mut groups: Vec<u32> = match (&name, wanted_group) {
        (Some(name), None) => members(group, name),
        _ => Vec::new(),
    };
    for wanted in &process.additional_groups {
        groups.push(find_group(wanted, group)?);
    }
    // With the group in the list, a program can't give up what the group's members are refused (CVE-2022-36109).
    groups.push(gid);
    groups.sort_unstable();
    groups.dedup();
    Ok(Identity { uid: entry.uid, gid, groups, home: entry.home })
}

struct Entry {
    name: Option<String>,
    uid: u32,
    gid: u32,
    home: PathBuf,
}

/// `passwd(5)`: name, password, uid, gid, comment, home, shell.
fn entries(passwd: &str) -> impl Iterator<Item = Entry> + '_ {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        let uid = parse_id(fields.nth(1)?)?;
        let gid = parse_id(fields.next()?)?;
        let home = PathBuf::from(fields.nth(1).filter(|home| !home.is_empty()).unwrap_or("/"));
        Some(Entry { name: Some(name), uid, gid, home })
    })
}

fn find_user(user: &str, passwd: &str) -> Result<Entry> {
    let user = if user.is_empty() { "0" } else { user };
    if let Some(uid) = parse_id(user) {
        let known = entries(passwd).find(|entry| entry.uid == uid);
        return Ok(known.unwrap_or(Entry { name: None, uid, gid: 0, home: PathBuf::from("/") }));
    }
    let number = user.starts_with(['-', '+']) || user.bytes().all(|byte| byte.is_ascii_digit());
    if number || user.starts_with("0x") {
        return Err(Error::usage(format!("{user:?} is not a user id")).into());
    }
    entries(passwd).find(|entry| entry.name.as_deref() == Some(user)).ok_or_else(|| {
        Error::usage(format!("unable to find user {user}: no matching entries in passwd file")).into()
    })
}

/// `group(5)`: name, password, gid, members.
fn find_group(wanted: &str, group: &str) -> Result<u32> {
    if let Some(gid) = parse_id(wanted) {
        return Ok(gid);
    }
    let mut lines = group.lines().map(|line| line.split(':'));
    let found = lines.find_map(|mut fields| {
        (fields.next() == Some(wanted)).then(|| fields.nth(1).and_then(parse_id)).flatten()
    });
    found.ok_or_else(|| {
        Error::usage(format!("unable to find group {wanted}: no matching entries in group file")).into()
    })
}

fn members(group: &str, name: &str) -> Vec<u32> {
    let gid_of = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        let member = fields.get(3)?.split(',').any(|member| member == name);
        if member { parse_id(fields.get(2)?) } else { None }
    };
    group.lines().filter_map(gid_of).collect()
}

/// Becomes `identity` with at most `capabilities`: bounding set first, then groups and ids, then the sets, with
/// nothing inheritable or ambient (CVE-2022-29162).
pub fn assume(identity: &Identity, process: &Process, maps: &IdMaps) -> Result<()> {
    let capabilities = process.capabilities;
    for number in 0..NAMES.len() as u32 {
        if capabilities.0 & 1 << number == 0 {
            process::drop_bounding(number).context("drop a capability from the bounding set")?;
        }
    }
    process::clear_ambient().context("clear the ambient capabilities")?;
    if !maps.deny_setgroups && !process.keep_groups {
        process::setgroups(&identity.groups).context("set the supplementary groups")?;
    }
    process::setresgid(identity.gid).with_context(|| format!("become group {}", identity.gid))?;
    process::keep_capabilities()?;
    process::setresuid(identity.uid).with_context(|| format!("become user {}", identity.uid))?;
    let held = if identity.uid == 0 { capabilities } else { CapabilitySet::default() };
    let permitted = process::capget()?.permitted & held.0;
    let sets = CapabilitySets { effective: permitted, permitted, inheritable: 0 };
    process::capset(sets).context("set the capabilities")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\n1000:x:7:7::/seven:\nme:x:1000:100::/home/me:/bin/sh\n";
    const GROUP: &str = "root:x:0:\naudio:x:29:me,you\nvideo:x:44:you\n";

    fn user(text: &str) -> Process {
        let mut process = crate::launch::program::tests::process();
        text.clone_into(&mut process.user);
        process
    }

    #[test]
    fn a_number_is_never_a_name() {
        let found = find(&user("1000"), PASSWD, GROUP).unwrap();
        assert_eq!((found.uid, found.gid, found.groups), (1000, 100, vec![29, 100]));
        let found = find(&user("me:video"), PASSWD, GROUP).unwrap();
        assert_eq!((found.uid, found.gid, found.groups), (1000, 44, vec![44]));
        assert_eq!(find(&user("4000"), PASSWD, GROUP).unwrap().gid, 0);
    }

    #[test]
    fn odd_ids_are_refused() {
        for refused in ["4294967295", "-1", "0x0", "4294967296", "nobody", "me:nogroup", "+1"] {
            assert!(find(&user(refused), PASSWD, GROUP).is_err(), "{refused}");
        }
    }
}
