//! Limits as they were asked of a container: words parsed by the table of limits, whether they make sense together, and
//! what is to be written for them into a control group. Pure, but that a device is looked up for its numbers.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::spec::limits::{
    self, CPU_PERIOD, CPU_QUOTA, CPUS, File, Limit, MEMORY, MEMORY_SWAP, RESERVATION, Rate, TABLE, Unit,
};
use crate::units::{Bytes, CpuSet};

/// Limits, and where they are to be kept.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    pub limits: Limits,
    /// `--cgroup-parent`, a path of the hierarchy.
    pub parent: Option<String>,
    pub groups: Option<Groups>,
    /// `--strict-limits`: what the kernel does not enforce is an error.
    pub strict: bool,
    /// `--view=host`: the container sees the machine's numbers though it has limits.
    pub host_view: bool,
}

impl Resources {
    /// Whether a container costs anything for its limits.
    pub fn wants_anything(&self) -> bool {
        !self.limits.is_empty()
            || self.parent.is_some()
            || matches!(self.groups, Some(Groups::Enabled | Groups::Split))
    }
}

/// How fast the user-space overlay may read and write; 0 is as fast as it can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Throttle {
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub reads: u64,
    pub writes: u64,
}

/// `--cgroups`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Groups {
    Enabled,
    Disabled,
    Split,
}

/// A value, parsed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    Number(u64),
    Set(CpuSet),
    /// Numbers of a device as the kernel writes them, `8:0`, and a rate.
    Devices(Vec<(String, u64)>),
    Pairs(Vec<(String, String)>),
    Unlimited,
}

/// What was asked, by flag.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Limits(pub BTreeMap<String, Value>);

impl Limits {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn number(&self, flag: &str) -> Option<u64> {
        match self.0.get(flag) {
            Some(Value::Number(number)) => Some(*number),
            _ => None,
        }
    }

    pub fn set(&self, flag: &str) -> Option<&CpuSet> {
        match self.0.get(flag) {
            Some(Value::Set(set)) => Some(set),
            _ => None,
        }
    }

    /// Processors' time in billionths of a second a second, by whichever flag it was asked.
    pub fn nano_cpus(&self) -> Option<u64> {
        let quota = self.number(CPU_QUOTA).map(|quota| quota * 1_000_000_000 / self.period());
        self.number(CPUS).or(quota)
    }

    fn period(&self) -> u64 {
        self.number(CPU_PERIOD).unwrap_or(PERIOD)
    }

    /// What the limits of these devices, by number, come to together; and whether each one of that flag is in it.
    pub fn throttle(&self, flag: &str, devices: &BTreeSet<String>, throttle: &mut Throttle) -> bool {
        let Some(Value::Devices(list)) = self.0.get(flag) else { return false };
        let rates = list.iter().filter(|(device, _)| devices.contains(device)).map(|(_, rate)| *rate);
        let slowest = rates.min().unwrap_or(0);
        match limits::row(flag).map(|limit| limit.file) {
            Some(File::IoMax("rbps")) => throttle.read_bytes = slowest,
            Some(File::IoMax("wbps")) => throttle.write_bytes = slowest,
            Some(File::IoMax("riops")) => throttle.reads = slowest,
            Some(File::IoMax("wiops")) => throttle.writes = slowest,
            _ => return false,
        }
        list.iter().all(|(device, _)| devices.contains(device))
    }

    /// What the limits of these devices come to, of all flags.
    pub fn throttles(&self, devices: &BTreeSet<String>) -> Throttle {
        let mut throttle = Throttle::default();
        for flag in self.0.keys() {
            self.throttle(flag, devices, &mut throttle);
        }
        throttle
    }

    /// Whether a device has a limit.
    pub fn has_devices(&self) -> bool {
        self.0.values().any(|value| matches!(value, Value::Devices(_)))
    }

    /// Those of these limits that have to be written anew when `changed` has changed: what swap there is depends on
    /// memory, and a period goes with its quota.
    pub fn affected_by(&self, changed: &Self) -> Self {
        let coupled = |flag: &str| match flag {
            MEMORY_SWAP => changed.0.contains_key(MEMORY),
            MEMORY => changed.0.contains_key(MEMORY_SWAP),
            CPU_QUOTA => changed.0.contains_key(CPU_PERIOD),
            CPU_PERIOD => changed.0.contains_key(CPU_QUOTA),
            _ => false,
        };
        let kept = self.0.iter().filter(|(flag, _)| changed.0.contains_key(*flag) || coupled(flag));
        Self(kept.map(|(flag, value)| (flag.clone(), value.clone())).collect())
    }

    /// `other`'s limits take the place of these.
    pub fn update(&mut self, other: &Self) {
        self.0.extend(other.0.clone());
    }

    /// Takes the words of one flag in.
    ///
    /// # Errors
    /// A word that has no meaning there.
    pub fn take(&mut self, limit: &Limit, words: &[String]) -> Result<()> {
        for word in words {
            let value = parse(limit, word)
                .map_err(|error| Error::usage(format!("--{} {word}: {error}", limit.flag)))?;
            self.put(limit.flag, value)?;
        }
        Ok(())
    }

    fn put(&mut self, flag: &str, value: Value) -> Result<()> {
        match (self.0.get_mut(flag), value) {
            (Some(Value::Devices(list)), Value::Devices(more)) => list.extend(more),
            (held, Value::Pairs(pairs)) => {
                let mut left = Vec::new();
                if let Some(Value::Pairs(list)) = held {
                    left.append(list);
                }
                for (name, word) in pairs {
                    // The name of cgroup v1 is the flag by another name.
                    match TABLE.iter().find(|limit| limit.v1 == name && limit.file != File::Plain(limit.v1)) {
                        Some(limit) => self.take(limit, std::slice::from_ref(&word))?,
                        None => left.push((name, word)),
                    }
                }
                if !left.is_empty() {
                    self.0.insert(flag.to_owned(), Value::Pairs(left));
                }
            }
            (_, value) => drop(self.0.insert(flag.to_owned(), value)),
        }
        Ok(())
    }

    /// Whether the limits make sense together, in docker's words.
    pub fn check(&self) -> Result<()> {
        let refused = |sentence: &str| Err(Error::usage(sentence).into());
        if self.0.contains_key(CPUS) && (self.0.contains_key(CPU_QUOTA) || self.0.contains_key(CPU_PERIOD)) {
            return refused("--cpus and --cpu-quota or --cpu-period say the same thing: use one of them");
        }
        let memory = self.number(MEMORY);
        match (memory, self.0.get(MEMORY_SWAP)) {
            (None, Some(Value::Number(_))) => return refused("--memory-swap needs --memory too"),
            (Some(memory), Some(Value::Number(swap))) if *swap < memory => {
                return refused("--memory-swap counts memory and swap: it can't be less than --memory");
            }
            _ => {}
        }
        if memory.zip(self.number(RESERVATION)).is_some_and(|(memory, reserved)| reserved > memory) {
            return refused("--memory-reservation can't be more than --memory");
        }
        Ok(())
    }

    /// What is to be written into a cgroup, in order. Pure.
    pub fn writes(&self) -> Vec<Write> {
        let mut writes = Vec::new();
        for limit in TABLE {
            if let Some(value) = self.0.get(limit.flag) {
                self.write(limit, value, &mut writes);
            }
        }
        if let (Some(memory), None) = (self.number(MEMORY), self.0.get(MEMORY_SWAP)) {
            let at = writes.iter().position(|write| write.flag == MEMORY).map_or(0, |at| at + 1);
            writes.insert(at, Write::new(MEMORY_SWAP, "memory.swap.max", memory.to_string()));
        }
        writes
    }

    fn write(&self, limit: &Limit, value: &Value, writes: &mut Vec<Write>) {
        let mut push = |file: &str, text: String| writes.push(Write::new(limit.flag, file, text));
        match (limit.file, value) {
            (File::Plain(file), Value::Number(number)) => push(file, number.to_string()),
            (File::Plain(file), Value::Set(set)) => push(file, set.to_string()),
            (File::Plain(file), _) => push(file, "max".to_owned()),
            (File::CpuMax, Value::Number(_)) => push("cpu.max", self.cpu_max()),
            (File::CpuMax, _) => push("cpu.max", "max".to_owned()),
            (File::Swap, Value::Number(both)) => {
                let swap = both.saturating_sub(self.number(MEMORY).unwrap_or(0));
                push("memory.swap.max", swap.to_string());
            }
            (File::Swap, _) => push("memory.swap.max", "max".to_owned()),
            (File::Shares, Value::Number(shares)) => {
                push("cpu.weight", weight_of_shares(*shares).to_string())
            }
            (File::IoWeight, Value::Number(weight)) => {
                push("io.weight", (1 + (weight - 10) * 9999 / 990).to_string());
                // Where BFQ schedules a device it has a file of its own, with docker's range.
                push("io.bfq.weight", weight.to_string());
            }
            (File::IoMax(key), Value::Devices(list)) => {
                list.iter().for_each(|(device, rate)| push("io.max", format!("{device} {key}={rate}")));
            }
            (File::Named, Value::Pairs(pairs)) => {
                pairs.iter().for_each(|(file, text)| push(file, text.clone()));
            }
            _ => {}
        }
    }

    fn cpu_max(&self) -> String {
        let period = self.period();
        match self.nano_cpus() {
            Some(nano) => format!("{} {period}", (nano * period / 1_000_000_000).max(1000)),
            None => format!("max {period}"),
        }
    }
}

/// The scheduler's own period, in microseconds.
const PERIOD: u64 = 100_000;

/// One write into a cgroup, and the flag that asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub flag: &'static str,
    pub file: String,
    pub text: String,
}

impl Write {
    fn new(flag: &'static str, file: &str, text: String) -> Self {
        Self { flag, file: file.to_owned(), text }
    }

    /// The controller that the file belongs to: `memory` of `memory.swap.max`.
    pub fn controller(&self) -> &str {
        self.file.split('.').next().unwrap_or_default()
    }
}

/// The formula of runc 1.4, crun 1.23 and Kubernetes: 1024 shares are a weight of 100, 2 are 1, 262144 are 10000.
/// Before, runtimes used a straight line, on which everybody's 1024 was a weight of 39.
fn weight_of_shares(shares: u64) -> u64 {
    let log = (shares.clamp(2, 262_144) as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    // A part in 10^9 is rounding, not weight.
    ((10f64.powf(exponent) - 1e-9).ceil() as u64).clamp(1, 10_000)
}

fn parse(limit: &Limit, word: &str) -> Result<Value> {
    let number = || word.parse::<u64>().map_err(|_| Error::usage("a number is expected"));
    match limit.unit {
        Unit::Bytes | Unit::Count | Unit::Microseconds if word == "-1" => Ok(Value::Unlimited),
        Unit::Count if word == "0" => Ok(Value::Unlimited),
        Unit::Bytes => Ok(Value::Number(word.parse::<Bytes>()?.0)),
        Unit::Count => Ok(Value::Number(number()?)),
        Unit::Microseconds => in_range(number()?, 1000, 1_000_000_000),
        Unit::Range(low, high) => in_range(number()?, low, high),
        Unit::Cpus => {
            let cpus: f64 = word.parse().map_err(|_| Error::usage("a number of processors is expected"))?;
            if !(0.01..=10_000.0).contains(&cpus) {
                return Err(Error::usage("0.01 and more is expected").into());
            }
            Ok(Value::Number((cpus * 1e9).round() as u64))
        }
        Unit::Set => Ok(Value::Set(word.parse()?)),
        Unit::Device(rate) => device(rate, word),
        Unit::Pairs => match word.split_once('=') {
            Some((file, text)) if is_file_name(file) && !text.contains('\n') => {
                Ok(Value::Pairs(vec![(file.to_owned(), text.to_owned())]))
            }
            _ => Err(Error::usage("FILE=VALUE is expected, such as pids.max=100").into()),
        },
    }
}

fn in_range(number: u64, low: u64, high: u64) -> Result<Value> {
    if (low..=high).contains(&number) {
        return Ok(Value::Number(number));
    }
    Err(Error::usage(format!("{low} to {high} is expected")).into())
}

/// A file of a controller's: never a path, and never one of `cgroup.*`, which say who is in the group.
fn is_file_name(file: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '_';
    file.contains('.')
        && !file.starts_with(['.', '_'])
        && file.chars().all(known)
        && !file.starts_with("cgroup.")
}

/// `DEVICE:NUMBER`: the door looks the device's numbers up, as it does for `--device`.
fn device(rate: Rate, word: &str) -> Result<Value> {
    let refused = || Error::usage("DEVICE:NUMBER is expected, such as /dev/vda:1mb");
    let (path, number) = word.rsplit_once(':').ok_or_else(refused)?;
    let rate = match rate {
        Rate::Bytes => number.parse::<Bytes>()?.0,
        Rate::Operations => number.parse().map_err(|_| refused())?,
    };
    let found = nix::sys::stat::stat(path).map_err(|errno| Error::usage(errno.desc()))?;
    if found.st_mode & libc::S_IFMT != libc::S_IFBLK {
        return Err(Error::usage(format!("{path} is no block device")).into());
    }
    let (major, minor) = (nix::sys::stat::major(found.st_rdev), nix::sys::stat::minor(found.st_rdev));
    Ok(Value::Devices(vec![(format!("{major}:{minor}"), rate)]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::limits::row;

    fn limits(words: &[(&str, &str)]) -> Limits {
        let mut limits = Limits::default();
        for (flag, word) in words {
            limits.take(row(flag).unwrap(), &[(*word).to_owned()]).unwrap();
        }
        limits
    }

    fn written(words: &[(&str, &str)]) -> Vec<(String, String)> {
        limits(words).writes().into_iter().map(|write| (write.file, write.text)).collect()
    }

    /// What each flag writes: one line a limit.
    #[test]
    fn each_limit_is_written_as_the_kernel_takes_it() {
        type Pairs = &'static [(&'static str, &'static str)];
        let table: &[(Pairs, Pairs)] = &[
            (&[("memory", "20m")], &[("memory.max", "20971520"), ("memory.swap.max", "20971520")]),
            (
                &[("memory", "20m"), ("memory-swap", "30m")],
                &[("memory.max", "20971520"), ("memory.swap.max", "10485760")],
            ),
            (
                &[("memory", "20m"), ("memory-swap", "-1")],
                &[("memory.max", "20971520"), ("memory.swap.max", "max")],
            ),
            (&[("memory-reservation", "1k")], &[("memory.low", "1024")]),
            (&[("memory-high", "1k")], &[("memory.high", "1024")]),
            (&[("cpus", "0.2")], &[("cpu.max", "20000 100000")]),
            (
                &[("cpu-quota", "10000"), ("cpu-period", "50000")],
                &[("cpu.max", "10000 50000"), ("cpu.max", "10000 50000")],
            ),
            (&[("cpu-shares", "1024")], &[("cpu.weight", "100")]),
            (&[("cpuset-cpus", "3,0-1")], &[("cpuset.cpus", "0-1,3")]),
            (&[("cpuset-mems", "0")], &[("cpuset.mems", "0")]),
            (&[("pids-limit", "20")], &[("pids.max", "20")]),
            (&[("pids-limit", "-1")], &[("pids.max", "max")]),
            (&[("blkio-weight", "10")], &[("io.weight", "1"), ("io.bfq.weight", "10")]),
            (&[("cgroup-conf", "hugetlb.2MB.max=0")], &[("hugetlb.2MB.max", "0")]),
            (&[("cgroup-conf", "cpu.shares=2")], &[("cpu.weight", "1")]),
            (
                &[("cgroup-conf", "memory.limit_in_bytes=20971820")],
                &[("memory.max", "20971820"), ("memory.swap.max", "20971820")],
            ),
        ];
        for (words, expected) in table {
            let expected: Vec<_> = expected.iter().map(|(f, t)| ((*f).to_owned(), (*t).to_owned())).collect();
            assert_eq!(written(words), expected, "{words:?}");
        }
    }

    #[test]
    fn shares_become_weights_by_the_published_formula() {
        for (shares, weight) in [(2, 1), (256, 35), (512, 59), (1024, 100), (2048, 174), (262_144, 10_000)] {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
    }

    #[test]
    fn words_without_meaning_are_refused() {
        for (flag, word) in [
            ("memory", "lots"),
            ("cpus", "0"),
            ("cpus", "nan"),
            ("cpu-shares", "1"),
            ("cpuset-cpus", "3-1"),
            ("pids-limit", "many"),
            ("blkio-weight", "1001"),
            ("device-read-bps", "/dev/null:1m"),
            ("cgroup-conf", "../x=1"),
            ("cgroup-conf", "cgroup.procs=1"),
        ] {
            assert!(Limits::default().take(row(flag).unwrap(), &[word.to_owned()]).is_err(), "{flag} {word}");
        }
        assert!(limits(&[("memory", "20m"), ("memory-swap", "10m")]).check().is_err());
        assert!(limits(&[("cpus", "1"), ("cpu-quota", "5000")]).check().is_err());
    }
}
