//! What this process sees, as one JSON object. Ids, capabilities, limits and the terminal come from system
//! calls, so that they are true without `/proc`; mounts, descriptors and namespaces come from `/proc` and are
//! null where it is missing. `report FIELD...` prints only the named fields.

use crate::sys;
use serde_json::{Map, Value, json};
use std::fs;

/// A field says what it sees at the moment it is asked.
type Field = fn() -> Value;

const FIELDS: &[(&str, Field)] = &[
    ("ids", ids),
    ("capabilities", capabilities),
    ("mounts", mounts),
    ("fds", descriptors),
    ("limits", limits),
    ("links", links),
    ("routes", routes),
    ("env", environment),
    ("arguments", || json!(std::env::args().collect::<Vec<_>>())),
    ("cwd", || json!(std::env::current_dir().ok())),
    ("umask", || json!(format!("{:03o}", sys::umask()))),
    ("hostname", || json!(sys::uname().0)),
    ("domainname", || json!(sys::uname().1)),
    ("process", process),
    ("namespaces", namespaces),
    ("seccomp", || {
        status("Seccomp").and_then(|mode| mode.parse().ok()).map_or(Value::Null, |mode: u32| json!(mode))
    }),
    ("no_new_privs", || json!(sys::no_new_privs())),
    ("dumpable", || json!(sys::dumpable())),
    ("signals", signals),
    ("tty", terminal),
    ("maps", maps),
    ("root", || json!(names_in("/"))),
    ("processes", || {
        json!(
            names_in("/proc")
                .map(|names| names.into_iter().filter(|n| n.parse::<u32>().is_ok()).collect::<Vec<_>>())
        )
    }),
];

pub(crate) fn report(words: &[String]) -> Option<Value> {
    let wanted = |name: &str| words.is_empty() || words.iter().any(|word| word == name);
    let seen: Map<String, Value> =
        FIELDS.iter().filter(|(name, _)| wanted(name)).map(|(name, see)| (name.to_string(), see())).collect();
    Some(Value::Object(seen))
}

fn ids() -> Value {
    let (ruid, euid, suid) = sys::uids();
    let (rgid, egid, sgid) = sys::gids();
    json!({"ruid": ruid, "euid": euid, "suid": suid, "rgid": rgid, "egid": egid, "sgid": sgid, "groups": sys::groups()})
}

fn capabilities() -> Value {
    let sets = sys::capabilities();
    json!({"effective": names(sets.effective), "permitted": names(sets.permitted), "inheritable": names(sets.inheritable),
        "bounding": names(sets.bounding), "ambient": names(sets.ambient)})
}

fn names(set: u64) -> Vec<String> {
    (0..64)
        .filter(|bit| set & (1 << bit) != 0)
        .map(|bit| CAPABILITIES.get(bit).map_or_else(|| format!("CAP_{bit}"), |name| format!("CAP_{name}")))
        .collect()
}

/// capabilities(7), in the order of their numbers.
const CAPABILITIES: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// One line of `/proc/self/mountinfo` an object; the octal escapes of proc_pid_mountinfo(5) undone.
fn mounts() -> Value {
    let Ok(text) = fs::read_to_string("/proc/self/mountinfo") else { return Value::Null };
    text.lines().map(mount).collect()
}

fn mount(line: &str) -> Value {
    let words: Vec<&str> = line.split(' ').collect();
    let dash = words.iter().position(|word| *word == "-").unwrap_or(words.len());
    let word = |at: usize| words.get(at).map(|word| unescape(word));
    let options = |at: usize| word(at).map(|list| list.split(',').map(str::to_string).collect::<Vec<_>>());
    json!({"id": word(0), "parent": word(1), "device": word(2), "root": word(3), "target": word(4), "options": options(5),
        "propagation": words.get(6..dash), "type": word(dash + 1), "source": word(dash + 2), "super": options(dash + 3)})
}

fn unescape(word: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(word.to_string(), |text, (octal, plain)| text.replace(octal, plain))
}

fn descriptors() -> Value {
    let Some(open) = names_in("/proc/self/fd") else { return Value::Null };
    let shown = open.iter().filter_map(|fd| {
        let target = fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
        Some((fd.clone(), json!(target)))
    });
    Value::Object(shown.collect())
}

fn limits() -> Value {
    let shown = sys::LIMITS.iter().map(|(name, kind)| {
        let (soft, hard) = sys::limit(*kind);
        let value = |bytes: u64| if bytes == u64::MAX { json!("unlimited") } else { json!(bytes) };
        (name.to_string(), json!([value(soft), value(hard)]))
    });
    Value::Object(shown.collect())
}

fn links() -> Value {
    Value::Object(sys::links().into_iter().map(|(name, up)| (name, json!({"up": up}))).collect())
}

fn routes() -> Value {
    let lines = |path: &str| {
        fs::read_to_string(path).map(|text| text.lines().map(str::to_string).collect::<Vec<_>>())
    };
    let four = lines("/proc/net/route").map(|all| all.into_iter().skip(1).collect::<Vec<_>>()).ok();
    json!({"four": four, "six": lines("/proc/net/ipv6_route").ok()})
}

fn environment() -> Value {
    let pairs = std::env::vars_os();
    Value::Object(
        pairs.map(|(k, v)| (k.to_string_lossy().into_owned(), json!(v.to_string_lossy()))).collect(),
    )
}

fn process() -> Value {
    let (pid, parent, session, group) = sys::process();
    json!({"pid": pid, "ppid": parent, "sid": session, "pgid": group,
        "exe": fs::read_link("/proc/self/exe").ok(), "one": fs::read_to_string("/proc/1/comm").ok().map(|c| c.trim().to_string())})
}

fn namespaces() -> Value {
    let Some(kinds) = names_in("/proc/self/ns") else { return Value::Null };
    Value::Object(
        kinds
            .into_iter()
            .map(|kind| (kind.clone(), json!(fs::read_link(format!("/proc/self/ns/{kind}")).ok())))
            .collect(),
    )
}

fn signals() -> Value {
    json!({"blocked": status("SigBlk"), "ignored": format!("{:016x}", sys::ignored_at_start()), "caught": status("SigCgt")})
}

fn terminal() -> Value {
    let isatty = [0, 1, 2].map(sys::isatty);
    json!({"isatty": isatty, "name": fs::read_link("/proc/self/fd/0").ok(), "controlling": fs::File::open("/dev/tty").is_ok(),
        "window": sys::window(0).map(|(rows, columns)| [rows, columns])})
}

fn maps() -> Value {
    let read = |name: &str| {
        let text = fs::read_to_string(format!("/proc/self/{name}")).ok()?;
        Some(
            text.lines()
                .map(|l| l.split_whitespace().map(str::to_string).collect::<Vec<_>>())
                .collect::<Vec<_>>(),
        )
    };
    json!({"uid": read("uid_map"), "gid": read("gid_map"),
        "setgroups": fs::read_to_string("/proc/self/setgroups").ok().map(|s| s.trim().to_string())})
}

fn status(key: &str) -> Option<String> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    Some(line.trim().to_string())
}

pub(crate) fn names_in(folder: &str) -> Option<Vec<String>> {
    let entries = fs::read_dir(folder).ok()?;
    let mut names: Vec<String> =
        entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Some(names)
}
