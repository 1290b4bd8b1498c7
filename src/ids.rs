//! Ids that must not be swapped: numbers as the host and as the container count them, the id of a container,
//! and the names that users give. Parsed once, at the door.

use std::fmt;
use std::str::FromStr;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::error::Error;

macro_rules! number {
    ($name:ident, $meaning:literal) => {
        #[doc = $meaning]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u32);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(HostId, "A uid or gid as the user namespace that kelp was started in counts it.");
number!(ContainerId, "A uid or gid as the container counts it.");

/// The id of a container: 64 lower-case hexadecimal digits, as docker's.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ContainerName(String);

impl ContainerName {
    /// A fresh id from the kernel's random numbers (`getrandom(2)`).
    pub fn fresh() -> std::io::Result<Self> {
        use std::io::Read;
        let mut bytes = [0u8; 32];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// The id that a folder of the store is named after.
    pub fn from_folder(name: String) -> Self {
        Self(name)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first twelve digits, as `docker ps` shows them and as the default host name.
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

impl fmt::Display for ContainerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name that a user gives to a container or a volume: docker's grammar, `[a-zA-Z0-9][a-zA-Z0-9_.-]*`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Name(String);

impl Name {
    /// A name that kelp itself makes of words that are allowed.
    pub fn generated(name: String) -> Self {
        Self(name)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        let rest = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
        if first && rest && text.len() <= 253 {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::usage(format!("{text:?} is not a name: only [a-zA-Z0-9][a-zA-Z0-9_.-]* is allowed"))
            .into())
    }
}

/// Parses a decimal uid or gid: no sign, no other base, below 4294967295, which the kernel keeps for "none"
/// (`user_namespaces(7)`; CVE-2018-15754 style parsing).
pub fn parse_id(text: &str) -> Option<u32> {
    let decimal = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|id| decimal && *id != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_decimal_and_below_the_kernels_none() {
        for refused in ["", "-1", "0x0", "4294967295", "4294967296", "+1", " 1", "1 "] {
            assert_eq!(parse_id(refused), None, "{refused:?}");
        }
        assert_eq!(parse_id("0"), Some(0));
        assert_eq!(parse_id("4294967294"), Some(4_294_967_294));
    }

    #[test]
    fn a_name_follows_dockers_grammar() {
        for refused in ["", "/abs", "..", ".a", "-a", "a/b", "a\n", "a b", "é"] {
            assert!(refused.parse::<Name>().is_err(), "{refused:?}");
        }
        assert!("a_b.c-1".parse::<Name>().is_ok());
    }
}
