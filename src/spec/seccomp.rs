//! Seccomp profiles as plain data: docker's default written out, and docker's JSON format read. It knows the
//! names of system calls, not their numbers; the launch room compiles it.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::error::Error;
use crate::spec::capability::CapabilitySet;
use crate::spec::syscalls;

/// What filter the program runs under.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    #[default]
    Unconfined,
    Filter(Filter),
}

/// A default action and the rules that differ from it; the first rule that matches wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    pub default: Action,
    pub rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub names: Vec<String>,
    pub action: Action,
    /// All must hold.
    pub conditions: Vec<Condition>,
}

/// `seccomp(2)`'s return values, weakest last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    KillProcess,
    KillThread,
    Trap,
    Errno(u16),
    Log,
    /// Whoever holds the filter's listener answers.
    Ask,
    Allow,
}

/// A comparison of one argument of a system call, as unsigned 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    pub argument: u32,
    pub comparison: Comparison,
    pub value: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// The argument and this mask equal `value`.
    Masked(u64),
}

/// Flags of `clone(2)` that make namespaces; refused without `CAP_SYS_ADMIN`.
const CLONE_NAMESPACES: u64 = 0x7E02_0000;
/// Values of `personality(2)` that docker allows.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x20000, 0x20008, 0xffff_ffff];
const AF_VSOCK: u64 = 40;

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

fn rule(list: &[&str], action: Action, conditions: Vec<Condition>) -> Rule {
    Rule { names: names(list), action, conditions }
}

fn when(argument: u32, comparison: Comparison, value: u64) -> Vec<Condition> {
    vec![Condition { argument, comparison, value }]
}

/// Docker's default profile for a container with `capabilities`.
pub fn docker_default(capabilities: CapabilitySet) -> Filter {
    let mut rules = vec![rule(syscalls::ALLOWED, Action::Allow, vec![])];
    for (capability, list) in syscalls::BY_CAPABILITY {
        if capabilities.has(capability) {
            rules.push(rule(list, Action::Allow, vec![]));
        }
    }
    if !capabilities.has("SYS_ADMIN") {
        rules.push(rule(&["clone"], Action::Allow, when(0, Comparison::Masked(CLONE_NAMESPACES), 0)));
        rules.push(rule(&["clone3"], Action::Errno(libc::ENOSYS as u16), vec![]));
    }
    for value in PERSONALITIES {
        rules.push(rule(&["personality"], Action::Allow, when(0, Comparison::Equal, value)));
    }
    rules.push(rule(&["socket"], Action::Allow, when(0, Comparison::NotEqual, AF_VSOCK)));
    Filter { default: Action::Errno(libc::EPERM as u16), rules }
}

/// Rules that answer with success what a single mapped id can't do: groups, ids and owners other than 0.
/// Package managers ask for them and go on well without (charliecloud calls this root emulation).
pub fn root_emulation() -> Vec<Rule> {
    let pretend = Action::Errno(0);
    let foreign = |argument| {
        vec![
            Condition { argument, comparison: Comparison::NotEqual, value: 0 },
            Condition { argument, comparison: Comparison::NotEqual, value: u64::from(u32::MAX) },
        ]
    };
    let mut rules = vec![rule(&["setgroups", "setgroups32"], pretend, vec![])];
    for (list, arguments) in syscalls::CREDENTIALS {
        for argument in *arguments {
            rules.push(rule(list, pretend, foreign(*argument)));
        }
    }
    rules
}

/// The rule by which `sysinfo(2)` has the container's numbers.
pub fn asked_numbers() -> Rule {
    rule(&["sysinfo"], Action::Ask, vec![])
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Json {
    default_action: String,
    #[serde(default)]
    default_errno_ret: Option<u16>,
    #[serde(default)]
    syscalls: Vec<JsonRule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonRule {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    names: Vec<String>,
    action: String,
    #[serde(default)]
    errno_ret: Option<u16>,
    #[serde(default)]
    args: Option<Vec<JsonCondition>>,
    #[serde(default)]
    includes: Option<JsonWhen>,
    #[serde(default)]
    excludes: Option<JsonWhen>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonCondition {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Default, Deserialize)]
struct JsonWhen {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
}

impl JsonWhen {
    fn holds(&self, capabilities: CapabilitySet) -> bool {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        self.caps.iter().all(|name| capabilities.has(name.strip_prefix("CAP_").unwrap_or(name)))
            && (self.arches.is_empty() || self.arches.iter().any(|name| name == architecture))
    }

    fn is_empty(&self) -> bool {
        self.caps.is_empty() && self.arches.is_empty()
    }
}

/// Reads a profile in docker's JSON format, with `includes` and `excludes` decided for `capabilities`.
pub fn parse(file: &Path, text: &str, capabilities: CapabilitySet) -> Result<Filter> {
    let intent = || format!("cannot use seccomp profile {}", file.display());
    let json: Json =
        serde_json::from_str(text).map_err(|error| Error::usage(error.to_string())).with_context(intent)?;
    let default = action(&json.default_action, json.default_errno_ret).with_context(intent)?;
    let mut rules = Vec::new();
    for said in json.syscalls {
        let included = said.includes.as_ref().is_none_or(|when| when.holds(capabilities));
        let excluded =
            said.excludes.as_ref().is_some_and(|when| !when.is_empty() && when.holds(capabilities));
        if included && !excluded {
            rules.push(json_rule(said).with_context(intent)?);
        }
    }
    Ok(Filter { default, rules })
}

fn json_rule(said: JsonRule) -> Result<Rule> {
    let action = action(&said.action, said.errno_ret)?;
    let conditions = said.args.unwrap_or_default().into_iter().map(condition).collect::<Result<_>>()?;
    Ok(Rule { names: said.names.into_iter().chain(said.name).collect(), action, conditions })
}

fn condition(said: JsonCondition) -> Result<Condition> {
    let (comparison, value) = match said.op.as_str() {
        "SCMP_CMP_EQ" => (Comparison::Equal, said.value),
        "SCMP_CMP_NE" => (Comparison::NotEqual, said.value),
        "SCMP_CMP_LT" => (Comparison::Less, said.value),
        "SCMP_CMP_LE" => (Comparison::LessOrEqual, said.value),
        "SCMP_CMP_GT" => (Comparison::Greater, said.value),
        "SCMP_CMP_GE" => (Comparison::GreaterOrEqual, said.value),
        "SCMP_CMP_MASKED_EQ" => (Comparison::Masked(said.value), said.value_two),
        other => return Err(Error::usage(format!("{other:?} is not a comparison")).into()),
    };
    if said.index > 5 {
        return Err(Error::usage(format!("argument {} does not exist", said.index)).into());
    }
    Ok(Condition { argument: said.index, comparison, value })
}

fn action(name: &str, errno: Option<u16>) -> Result<Action> {
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_LOG" => Action::Log,
        "SCMP_ACT_ERRNO" => Action::Errno(errno.unwrap_or(libc::EPERM as u16)),
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        other => {
            return Err(Error::usage(format!("action {other:?} is not supported"))
                .hint("kelp knows ALLOW, LOG, ERRNO, TRAP, KILL, KILL_THREAD and KILL_PROCESS")
                .into());
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_json_is_read_with_its_conditions() {
        let text = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"syscalls":[
            {"names":["read","write"],"action":"SCMP_ACT_ALLOW"},
            {"names":["clone"],"action":"SCMP_ACT_ALLOW","excludes":{"caps":["CAP_SYS_ADMIN"]},
             "args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]},
            {"names":["mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}}]}"#;
        let filter = parse(Path::new("f"), text, CapabilitySet::default_set()).unwrap();
        assert_eq!(filter.default, Action::Errno(38));
        assert_eq!(filter.rules.len(), 2);
        assert_eq!(filter.rules[1].conditions[0].comparison, Comparison::Masked(0x7E02_0000));
        assert!(parse(Path::new("f"), "{}", CapabilitySet::default_set()).is_err());
        let notify = r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#;
        assert!(parse(Path::new("f"), notify, CapabilitySet::default_set()).is_err());
    }
}
