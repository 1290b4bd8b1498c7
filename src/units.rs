//! Quantities as users write them: sizes (`64m`), durations (`1m30s`), lists of processors (`0-2,4`). Parsed once,
//! at the door.
//! It knows no flag.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// A number of bytes; `b k m g t` are binary multiples, in either case, with an optional `b` or `ib` behind
/// (docker's `units.RAMInBytes`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Bytes {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused =
            || Error::usage(format!("{text:?} is not a size: a number and b, k, m, g or t is expected"));
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: f64 = number.parse().map_err(|_| refused())?;
        let power = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 1,
            "m" | "mb" | "mib" => 2,
            "g" | "gb" | "gib" => 3,
            "t" | "tb" | "tib" => 4,
            _ => return Err(refused().into()),
        };
        let bytes = number * 1024f64.powi(power);
        if bytes > 9.0e18 { Err(refused().into()) } else { Ok(Self(bytes as u64)) }
    }
}

/// A century in seconds; the kernel's timers hold it.
const LONGEST: u64 = 100 * 366 * 24 * 3600;

/// A duration: seconds as a plain number, or Go's `1h2m3.5s`, `250ms`.
pub fn parse_duration(text: &str) -> Result<Duration> {
    let refused = || Error::usage(format!("{text:?} is not a duration: 10, 1m30s or 250ms is expected"));
    if let Ok(seconds) = text.parse::<u64>() {
        return if seconds <= LONGEST { Ok(Duration::from_secs(seconds)) } else { Err(refused().into()) };
    }
    let (mut rest, mut total) = (text, 0f64);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(refused)?;
        let (number, tail) = rest.split_at(digits);
        let unit_end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, next) = tail.split_at(unit_end);
        let scale = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(refused().into()),
        };
        total += number.parse::<f64>().map_err(|_| refused())? * scale;
        rest = next;
    }
    if total > LONGEST as f64 {
        return Err(refused().into());
    }
    Duration::try_from_secs_f64(total).map_err(|_| refused().into())
}

/// Now, in nanoseconds since 1970.
pub fn now() -> i64 {
    let elapsed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    elapsed.map_or(0, |elapsed| i64::try_from(elapsed.as_nanos()).unwrap_or(0))
}

/// Processors or memory nodes by number, as the kernel lists them (`cpuset(7)`, "List format").
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct CpuSet(pub BTreeSet<u32>);

/// As many as `cpu_set_t` of `sched_setaffinity(2)` holds.
pub const MOST_CPUS: u32 = 1024;

impl FromStr for CpuSet {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = || Error::usage(format!("{text:?} is not a list such as 0-2,4"));
        let mut set = BTreeSet::new();
        for part in text.trim().split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |word: &str| word.parse::<u32>().map_err(|_| refused());
            let (first, last) = (number(first)?, number(last)?);
            if first > last || last >= MOST_CPUS {
                return Err(refused().into());
            }
            set.extend(first..=last);
        }
        Ok(Self(set))
    }
}

impl TryFrom<String> for CpuSet {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<CpuSet> for String {
    fn from(set: CpuSet) -> Self {
        set.to_string()
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.iter().copied().peekable();
        let mut separator = "";
        while let Some(first) = rest.next() {
            let mut last = first;
            while rest.next_if_eq(&(last + 1)).is_some() {
                last += 1;
            }
            if first == last {
                write!(f, "{separator}{first}")?;
            } else {
                write!(f, "{separator}{first}-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary_multiples() {
        for (text, bytes) in [("0", 0), ("64m", 64 << 20), ("1.5g", 3 << 29), ("7KiB", 7 << 10), ("9b", 9)] {
            assert_eq!(text.parse::<Bytes>().unwrap(), Bytes(bytes), "{text}");
        }
        for refused in ["", "m", "-1", "1x", "1e30t"] {
            assert!(refused.parse::<Bytes>().is_err(), "{refused}");
        }
    }

    #[test]
    fn processors_are_listed_as_the_kernel_lists_them() {
        for (text, listed) in [("0", "0"), ("3,0-1", "0-1,3"), ("2,1,0", "0-2")] {
            assert_eq!(text.parse::<CpuSet>().unwrap().to_string(), listed);
        }
        for refused in ["", "a", "2-1", "0-1024", "1,", "-1"] {
            assert!(refused.parse::<CpuSet>().is_err(), "{refused}");
        }
    }

    #[test]
    fn durations_are_seconds_or_gos() {
        assert_eq!(parse_duration("90").unwrap(), Duration::from_secs(90));
        assert_eq!(parse_duration("1m30s").unwrap(), Duration::from_secs(90));
        assert_eq!(parse_duration("250ms").unwrap(), Duration::from_millis(250));
        assert!(parse_duration("s").is_err());
        assert!(parse_duration("1y").is_err());
    }
}
