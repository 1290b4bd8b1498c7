//! Capabilities by name and as bits (`capabilities(7)`), docker's default set, and `--cap-add`/`--cap-drop`.
//! It knows no process.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// A set of capabilities; bit n is capability n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CapabilitySet(pub u64);

/// Names by number, without `CAP_` (`linux/capability.h`).
pub const NAMES: [&str; 41] = [
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

/// Docker's default set (its documentation, "Runtime privilege and Linux capabilities").
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

impl CapabilitySet {
    pub const ALL: Self = Self((1 << NAMES.len()) - 1);

    pub fn default_set() -> Self {
        Self(DEFAULT.iter().filter_map(|name| number(name)).fold(0, |set, bit| set | 1 << bit))
    }

    pub fn has(self, name: &str) -> bool {
        number(name).is_some_and(|bit| self.0 & 1 << bit != 0)
    }

    /// The default set, less `drop`, plus `add`; `ALL` empties or fills first, as in docker.
    pub fn with(add: &[String], drop: &[String]) -> Result<Self> {
        let mut set = Self::default_set();
        if drop.iter().any(|name| is_all(name)) {
            set = Self::default();
        }
        if add.iter().any(|name| is_all(name)) {
            set = Self::ALL;
        }
        for name in drop.iter().filter(|name| !is_all(name)) {
            set.0 &= !(1 << parse(name)?);
        }
        for name in add.iter().filter(|name| !is_all(name)) {
            set.0 |= 1 << parse(name)?;
        }
        Ok(set)
    }
}

fn is_all(name: &str) -> bool {
    name.eq_ignore_ascii_case("all")
}

fn number(name: &str) -> Option<usize> {
    NAMES.iter().position(|known| *known == name)
}

fn parse(name: &str) -> Result<usize> {
    let upper = name.to_ascii_uppercase();
    number(upper.strip_prefix("CAP_").unwrap_or(&upper)).ok_or_else(|| {
        Error::usage(format!("{name:?} is not a capability")).hint("see capabilities(7) for the names").into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_gives_fourteen() {
        assert_eq!(CapabilitySet::default_set().0, 0x0000_0000_a804_25fb);
    }

    #[test]
    fn all_comes_first_whatever_the_order() {
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let set = CapabilitySet::with(&words(&["CAP_SYS_ADMIN"]), &words(&["chown", "all"])).unwrap();
        assert_eq!(set.0, 1 << 21);
        let set = CapabilitySet::with(&words(&["ALL"]), &words(&["net_raw"])).unwrap();
        assert!(set.has("SYS_ADMIN") && !set.has("NET_RAW"));
        assert!(CapabilitySet::with(&words(&["NOPE"]), &[]).is_err());
    }
}
