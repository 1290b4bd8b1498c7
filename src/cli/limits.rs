//! The flags of the table of limits, for every verb that takes them, those that say where limits are kept, and docker's
//! names for both.

use std::collections::BTreeMap;

use anyhow::Result;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error as ClapError, FromArgMatches};
use serde_json::{Map, Value as Json, json};

use crate::cgroup::device;
use crate::error::Error;
use crate::spec::limits::{Limit, MEMORY, MEMORY_SWAP, TABLE, Unit};
use crate::spec::resources::{Groups, Limits, Resources, Value};

/// The words of the flags of the table.
#[derive(Clone, Debug, Default)]
pub struct LimitArgs(BTreeMap<&'static str, Vec<String>>);

impl LimitArgs {
    /// The limits that were given, which may be less than makes sense alone.
    pub fn given(&self) -> Result<Limits> {
        let mut limits = Limits::default();
        for limit in TABLE {
            limits.take(limit, self.0.get(limit.flag).map(Vec::as_slice).unwrap_or_default())?;
        }
        Ok(limits)
    }

    /// The limits of a container that is made.
    fn whole(&self) -> Result<Limits> {
        let limits = self.given()?;
        limits.check()?;
        Ok(limits)
    }
}

impl Args for LimitArgs {
    fn augment_args(command: Command) -> Command {
        TABLE.iter().fold(command, |command, limit| command.arg(flag(limit)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for LimitArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, ClapError> {
        let words = |limit: &Limit| -> Option<Vec<String>> {
            Some(matches.get_many::<String>(limit.flag)?.cloned().collect())
        };
        Ok(Self(TABLE.iter().filter_map(|limit| Some((limit.flag, words(limit)?))).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), ClapError> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn flag(limit: &'static Limit) -> Arg {
    let several = matches!(limit.unit, Unit::Device(_) | Unit::Pairs);
    let flag = Arg::new(limit.flag)
        .long(limit.flag)
        .value_name(limit.value)
        .help(limit.help)
        .help_heading("Limits")
        .allow_hyphen_values(true)
        .action(if several { ArgAction::Append } else { ArgAction::Set });
    match limit.short {
        Some(short) => flag.short(short),
        None => flag,
    }
}

/// Limits of a container that is made, and where they are kept.
#[derive(Clone, Debug, Default, Args)]
pub struct ResourceArgs {
    #[command(flatten)]
    limits: LimitArgs,
    /// Make the container's cgroup below this one
    #[arg(long, value_name = "CGROUP", help_heading = "Limits")]
    cgroup_parent: Option<String>,
    /// enabled, disabled, or split: below the current cgroup [default: one where there are limits]
    #[arg(long, value_name = "MODE", help_heading = "Limits")]
    cgroups: Option<String>,
    /// Fail where the kernel does not enforce each limit
    #[arg(long, help_heading = "Limits")]
    strict_limits: bool,
    /// Which numbers /proc shows: container, or host [default: the container's if it has limits]
    #[arg(long, value_name = "WHOSE", help_heading = "Limits")]
    view: Option<String>,
    /// Refused: an out of memory container can't be kept alive
    #[arg(long, help_heading = "Limits")]
    oom_kill_disable: bool,
}

impl ResourceArgs {
    pub fn resources(&self) -> Result<Resources> {
        if self.oom_kill_disable {
            return Err(Error::usage("--oom-kill-disable: cgroup v2 has no such switch")
                .hint("--memory-high slows a container down instead of ending it")
                .into());
        }
        Ok(Resources {
            limits: self.limits.whole()?,
            parent: self.cgroup_parent.clone(),
            groups: self.cgroups.as_deref().map(groups).transpose()?,
            strict: self.strict_limits,
            host_view: match self.view.as_deref() {
                None | Some("container") => false,
                Some("host") => true,
                Some(word) => {
                    return Err(Error::usage(format!("--view {word}: container or host is expected")).into());
                }
            },
        })
    }
}

fn groups(word: &str) -> Result<Groups> {
    match word {
        "enabled" => Ok(Groups::Enabled),
        "disabled" => Ok(Groups::Disabled),
        "split" => Ok(Groups::Split),
        _ => Err(Error::usage(format!("--cgroups {word}: enabled, disabled or split is expected")).into()),
    }
}

/// As docker's `HostConfig` has them, with docker's word for each that was not asked.
pub fn host_config(limits: &Limits) -> Map<String, Json> {
    let named =
        TABLE.iter().map(|limit| (limit.docker.to_owned(), in_docker(limit, limits.0.get(limit.flag))));
    let mut config: Map<String, Json> = named.collect();
    if let (Some(memory), false) = (limits.number(MEMORY), limits.0.contains_key(MEMORY_SWAP)) {
        config.insert("MemorySwap".to_owned(), json!(memory.saturating_mul(2)));
    }
    config
}

fn in_docker(limit: &Limit, value: Option<&Value>) -> Json {
    match (limit.unit, value) {
        (_, Some(Value::Number(number))) => json!(number),
        (_, Some(Value::Set(set))) => json!(set.to_string()),
        (_, Some(Value::Unlimited)) => json!(-1),
        (_, Some(Value::Pairs(pairs))) => {
            Json::Object(pairs.iter().cloned().map(|(k, v)| (k, v.into())).collect())
        }
        (_, Some(Value::Devices(list))) => {
            let path = |number: &String| device::path(number).unwrap_or_else(|| number.clone());
            list.iter().map(|(number, rate)| json!({"Path": path(number), "Rate": rate})).collect()
        }
        (Unit::Set, None) => json!(""),
        (Unit::Count, None) => Json::Null,
        (Unit::Device(_), None) => json!([]),
        (Unit::Pairs, None) => json!({}),
        (_, None) => json!(0),
    }
}
