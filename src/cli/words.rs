//! The small grammars of docker's flags: `NAME=VALUE`, `--ulimit`, `--device`, signals, maps. Each takes a
//! word and gives a value or a sentence.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::net::IpAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result};

use crate::error::Error;
use crate::ids::parse_id;
use crate::network::names::HOST_GATEWAY;
use crate::spec::request::{Driver, Extent, Storage, UserNamespace};
use crate::spec::{Device, Rlimit, Root, Sharing, TimeOffsets, Writes};
use crate::units::Bytes;

fn refused(flag: &str, word: &str, why: &str) -> anyhow::Error {
    Error::usage(format!("{flag} {word}: {why}")).into()
}

/// `-e NAME=VALUE`, or `-e NAME` for the caller's value, if it has one.
pub fn variable(word: &OsStr) -> Option<(OsString, OsString)> {
    let bytes = word.as_bytes();
    match bytes.iter().position(|byte| *byte == b'=') {
        Some(at) => {
            let (name, value) = (bytes.get(..at)?, bytes.get(at + 1..)?);
            Some((OsString::from_vec(name.to_vec()), OsString::from_vec(value.to_vec())))
        }
        None => std::env::var_os(word).map(|value| (word.to_owned(), value)),
    }
}

/// `--env-file`: docker's format, a variable a line, `#` begins a comment.
pub fn env_file(path: &Path) -> Result<Vec<(OsString, OsString)>> {
    let bytes = std::fs::read(path)
        .map_err(|error| Error::usage(error.to_string()))
        .with_context(|| format!("cannot read the environment file {}", path.display()))?;
    let lines = bytes.split(|byte| *byte == b'\n').map(|line| line.trim_ascii_start());
    let lines = lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let mut variables = Vec::new();
    for line in lines.filter(|line| !line.is_empty() && !line.starts_with(b"#")) {
        let name = line.split(|byte| *byte == b'=').next().unwrap_or_default();
        if name.is_empty() || name.iter().any(u8::is_ascii_whitespace) {
            let shown = String::from_utf8_lossy(line).into_owned();
            return Err(refused("--env-file", &shown, "a variable's name is empty or holds white space"));
        }
        variables.extend(variable(OsStr::from_bytes(line)));
    }
    Ok(variables)
}

/// `--add-host NAME:ADDRESS`.
pub fn host(word: &str) -> Result<(String, String)> {
    let (name, address) = word
        .split_once(':')
        .or_else(|| word.split_once('='))
        .ok_or_else(|| refused("--add-host", word, "NAME:ADDRESS is expected"))?;
    let address = address.trim_matches(['[', ']']);
    let known = address == HOST_GATEWAY || IpAddr::from_str(address).is_ok();
    if !known || name.is_empty() || name.contains(char::is_whitespace) {
        return Err(refused("--add-host", word, "NAME:ADDRESS is expected"));
    }
    Ok((name.to_owned(), address.to_owned()))
}

/// `--ulimit NAME=SOFT[:HARD]` (`getrlimit(2)`); -1 is unlimited.
pub fn ulimit(word: &str) -> Result<Rlimit> {
    const NAMES: [(&str, u32); 16] = [
        ("as", libc::RLIMIT_AS),
        ("core", libc::RLIMIT_CORE),
        ("cpu", libc::RLIMIT_CPU),
        ("data", libc::RLIMIT_DATA),
        ("fsize", libc::RLIMIT_FSIZE),
        ("locks", libc::RLIMIT_LOCKS),
        ("memlock", libc::RLIMIT_MEMLOCK),
        ("msgqueue", libc::RLIMIT_MSGQUEUE),
        ("nice", libc::RLIMIT_NICE),
        ("nofile", libc::RLIMIT_NOFILE),
        ("nproc", libc::RLIMIT_NPROC),
        ("rss", libc::RLIMIT_RSS),
        ("rtprio", libc::RLIMIT_RTPRIO),
        ("rttime", libc::RLIMIT_RTTIME),
        ("sigpending", libc::RLIMIT_SIGPENDING),
        ("stack", libc::RLIMIT_STACK),
    ];
    let flag = "--ulimit";
    let (name, values) =
        word.split_once('=').ok_or_else(|| refused(flag, word, "NAME=SOFT[:HARD] is expected"))?;
    let (name, resource) = NAMES
        .iter()
        .find(|(known, _)| *known == name)
        .ok_or_else(|| refused(flag, word, &format!("there is no limit {name:?}")))?;
    let number = |text: &str| match text {
        "-1" | "unlimited" => Ok(u64::MAX),
        _ => text.parse().map_err(|_| refused(flag, word, &format!("{text:?} is not a number"))),
    };
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let (soft, hard) = (number(soft)?, number(hard)?);
    if soft > hard {
        return Err(refused(flag, word, "the soft limit is above the hard one"));
    }
    Ok(Rlimit { resource: *resource, name: (*name).to_owned(), soft, hard })
}

/// `--device HOST[:CONTAINER[:PERMISSIONS]]`; permissions are `r`, `w`, `m`.
pub fn device(word: &str) -> Result<Device> {
    let flag = "--device";
    let mut parts = word.splitn(3, ':');
    let host = parts.next().unwrap_or_default();
    let is_permission = |text: &str| !text.is_empty() && text.bytes().all(|byte| b"rwm".contains(&byte));
    let (container, permissions) = match (parts.next(), parts.next()) {
        (None, _) => (host, "rwm"),
        (Some(permissions), None) if is_permission(permissions) => (host, permissions),
        (Some(container), None) => (container, "rwm"),
        (Some(container), Some(permissions)) => (container, permissions),
    };
    if !is_permission(permissions) || !host.starts_with('/') || !container.starts_with('/') {
        return Err(refused(flag, word, "HOST[:CONTAINER[:rwm]] with absolute paths is expected"));
    }
    let read_only = !permissions.contains('w');
    Ok(Device { host: PathBuf::from(host), container: PathBuf::from(container), read_only })
}

/// `--stop-signal`: a number, or a name with or without `SIG`.
pub fn signal(word: &str) -> Result<i32> {
    let unknown = || refused("--stop-signal", word, "it is not a signal");
    if let Ok(number) = word.parse::<i32>() {
        return if (1..=64).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let upper = word.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    if let Some(offset) = name.strip_prefix("SIGRTMIN+").and_then(|text| text.parse::<i32>().ok()) {
        return if offset <= 30 { Ok(34 + offset) } else { Err(unknown()) };
    }
    nix::sys::signal::Signal::from_str(&name).map(|signal| signal as i32).map_err(|_| unknown())
}

/// `--userns`: `auto`, `single`, `keep-id[:uid=N,gid=N]`.
pub fn userns(word: &str) -> Result<UserNamespace> {
    let flag = "--userns";
    let (mode, options) = word.split_once(':').unwrap_or((word, ""));
    match mode {
        "auto" | "" => Ok(UserNamespace::Auto),
        "single" => Ok(UserNamespace::Single),
        "keep-id" => {
            let (mut uid, mut gid) = (None, None);
            for option in options.split(',').filter(|option| !option.is_empty()) {
                let (key, value) = option.split_once('=').unwrap_or((option, ""));
                let id =
                    parse_id(value).ok_or_else(|| refused(flag, word, &format!("{value:?} is not an id")))?;
                match key {
                    "uid" => uid = Some(id),
                    "gid" => gid = Some(id),
                    _ => return Err(refused(flag, word, &format!("{key:?} is not uid or gid"))),
                }
            }
            Ok(UserNamespace::KeepId { uid, gid })
        }
        "host" => Err(Error::usage("--userns host: kelp always makes a user namespace")
            .hint("--userns=keep-id gives the container your own ids")
            .into()),
        _ => Err(refused(flag, word, "auto, single or keep-id[:uid=N,gid=N] is expected")),
    }
}

/// `--uidmap CONTAINER:HOST[:COUNT]`.
pub fn extent(flag: &str, word: &str) -> Result<Extent> {
    let numbers: Option<Vec<u32>> = word.split(':').map(parse_id).collect();
    match numbers.as_deref() {
        Some([container, host]) => Ok(Extent { container: *container, host: *host, count: 1 }),
        Some([container, host, count]) if *count > 0 => {
            Ok(Extent { container: *container, host: *host, count: *count })
        }
        _ => Err(refused(flag, word, "CONTAINER:HOST[:COUNT] in decimal numbers is expected")),
    }
}

/// `--pid`, `--ipc`, `--uts`, `--cgroupns`.
pub fn sharing(flag: &str, word: &str) -> Result<Sharing> {
    match word {
        "private" | "" => Ok(Sharing::Private),
        "host" => Ok(Sharing::Host),
        _ => Err(refused(flag, word, "host or private is expected")),
    }
}

/// `--time-offset boottime=SECONDS,monotonic=SECONDS`.
pub fn time_offsets(word: &str) -> Result<TimeOffsets> {
    let mut offsets = TimeOffsets::default();
    for part in word.split(',') {
        let (clock, seconds) = part.split_once('=').unwrap_or((part, ""));
        let seconds =
            seconds.parse().map_err(|_| refused("--time-offset", word, "CLOCK=SECONDS is expected"))?;
        match clock {
            "boottime" => offsets.boottime = seconds,
            "monotonic" => offsets.monotonic = seconds,
            _ => {
                return Err(refused(
                    "--time-offset",
                    word,
                    "the clocks are boottime and monotonic; the wall clock has no namespace",
                ));
            }
        }
    }
    Ok(offsets)
}

/// `--storage-driver` and `--storage-opt size=BYTES|inodes=COUNT`; limits need the fuse driver. A root that is written
/// through needs no driver, so the one of the environment is not asked for there.
pub fn storage(root: &Root, driver: Option<&str>, options: &[String]) -> Result<Storage> {
    let mut storage = Storage::default();
    for option in options {
        let unknown = || refused("--storage-opt", option, "size=BYTES or inodes=COUNT is expected");
        match option.split_once('=') {
            Some(("size", size)) => storage.bytes = size.parse::<Bytes>()?.0,
            Some(("inodes", count)) => storage.inodes = count.parse().map_err(|_| unknown())?,
            _ => return Err(unknown()),
        }
    }
    storage.driver = match driver {
        Some(word) => Some(storage_driver("--storage-driver", word)?),
        None if !options.is_empty() => Some(Driver::Fuse),
        None if matches!(root, Root::Directory { writes: Writes::Through, .. }) => None,
        None => usual_driver()?,
    };
    if !options.is_empty() && storage.driver != Some(Driver::Fuse) {
        return Err(Error::usage("--storage-opt: only the fuse driver keeps limits").into());
    }
    Ok(storage)
}

/// `KELP_STORAGE_DRIVER`, the user's own default for `--storage-driver`.
pub fn usual_driver() -> Result<Option<Driver>> {
    const VARIABLE: &str = "KELP_STORAGE_DRIVER";
    match std::env::var_os(VARIABLE) {
        Some(word) if !word.is_empty() => storage_driver(VARIABLE, &word.to_string_lossy()).map(Some),
        _ => Ok(None),
    }
}

fn storage_driver(place: &str, word: &str) -> Result<Driver> {
    match word {
        "fuse" | "fuse-overlayfs" => Ok(Driver::Fuse),
        "overlay" | "overlay2" => Ok(Driver::Overlay),
        "overlay-on-fuse" => Ok(Driver::OverlayOnFuse),
        "copy" | "vfs" => Ok(Driver::Copy),
        other => Err(refused(place, other, "overlay, overlay-on-fuse, fuse or copy is expected")),
    }
}

/// `--sysctl NAME=VALUE`.
pub fn sysctl(word: &str) -> Result<(String, String)> {
    let (name, value) =
        word.split_once('=').ok_or_else(|| refused("--sysctl", word, "NAME=VALUE is expected"))?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    if name.is_empty() || !name.chars().all(plain) || name.contains("..") || name.starts_with('/') {
        return Err(refused("--sysctl", word, &format!("{name:?} is not the name of a sysctl")));
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// `--label KEY[=VALUE]`; the last one of a key counts.
pub fn labels(words: &[String]) -> Result<BTreeMap<String, String>> {
    let label = |word: &String| {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        if key.is_empty() {
            return Err(refused("--label", word, "KEY[=VALUE] is expected"));
        }
        Ok((key.to_owned(), value.to_owned()))
    };
    words.iter().map(label).collect()
}

/// A host or domain name: `hostname(7)`, at most 64 bytes.
pub fn hostname(flag: &str, word: &str) -> Result<String> {
    let plain = word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if plain && !word.is_empty() && word.len() <= 64 {
        return Ok(word.to_owned());
    }
    Err(refused(flag, word, "letters, digits, `-`, `.` and `_` are allowed, at most 64"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ulimits_are_named_and_ordered() {
        let limit = ulimit("nofile=10:20").unwrap();
        assert_eq!((limit.soft, limit.hard, limit.resource), (10, 20, libc::RLIMIT_NOFILE));
        assert_eq!(ulimit("core=-1").unwrap().hard, u64::MAX);
        for bad in ["nofile", "x=1", "nofile=2:1", "nofile=a"] {
            assert!(ulimit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for (word, number) in [("9", 9), ("KILL", 9), ("sigterm", 15), ("RTMIN+3", 37)] {
            assert_eq!(signal(word).unwrap(), number, "{word}");
        }
        assert!(signal("0").is_err() && signal("65").is_err() && signal("NOPE").is_err());
    }

    #[test]
    fn devices_may_name_their_place_and_permissions() {
        assert!(device("/dev/fuse:r").unwrap().read_only);
        assert_eq!(device("/dev/fuse:/dev/x:rwm").unwrap().container, Path::new("/dev/x"));
        assert!(device("fuse").is_err() && device("/dev/fuse:/x:z").is_err());
    }

    #[test]
    fn user_namespaces_are_parsed_strictly() {
        assert_eq!(userns("keep-id:uid=5").unwrap(), UserNamespace::KeepId { uid: Some(5), gid: None });
        assert!(userns("keep-id:uid=-1").is_err() && userns("host").is_err() && userns("x").is_err());
        assert_eq!(extent("--uidmap", "0:1:10").unwrap(), Extent { container: 0, host: 1, count: 10 });
        assert!(extent("--uidmap", "0:1:0").is_err() && extent("--uidmap", "0").is_err());
    }
}
