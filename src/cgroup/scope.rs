//! A scope of the systemd user manager's: the group that a user may have without an administrator. The manager is asked
//! over its own socket; no bus has to run. A scope that is empty goes away by itself, whoever is killed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::cgroup::bus::{self, Value};
use crate::cgroup::delegation;
use crate::error::Error;
use crate::spec::resources::Write;

/// The leaf of a scope in which kelp itself stands, beside its container.
const MONITOR: &str = "monitor";

/// How long the manager has.
const PATIENCE: Duration = Duration::from_secs(10);

/// The runtime folder of the caller's own manager, if one runs.
pub fn runtime() -> Option<PathBuf> {
    let uid = nix::unistd::getuid();
    let named = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let usual = PathBuf::from(format!("/run/user/{uid}"));
    named.into_iter().chain([usual]).find(|folder| {
        let ours = fs::metadata(folder).is_ok_and(|found| found.uid() == uid.as_raw());
        ours && socket(folder).exists()
    })
}

/// Where the manager listens for `systemctl --user`.
fn socket(runtime: &Path) -> PathBuf {
    runtime.join("systemd/private")
}

/// Whether the path lies in what a user's manager keeps.
pub fn is_kept(path: &Path) -> bool {
    path.iter().any(|part| {
        let part = part.to_string_lossy();
        part.starts_with("user@") && part.ends_with(".service")
    })
}

/// Whether systemd says that the group is its unit's own: `user.delegate`, of systemd 251.
pub fn is_delegated(folder: &Path) -> bool {
    crate::sys::xattr::getxattr(folder, c"user.delegate").is_ok_and(|value| value == b"1")
}

/// A weight of the scope's own: siblings share by weights, and the container's siblings are its scope's, not its own.
/// systemd keeps these files, so it is asked to write them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight {
    /// `CPUWeight` or `IOWeight` of `systemd.resource-control(5)`.
    pub property: &'static str,
    pub weight: u64,
}

/// The weights among what is to be written into a group.
pub fn weights(writes: &[Write]) -> Vec<Weight> {
    let property = |write: &Write| match write.file.as_str() {
        "cpu.weight" => Some("CPUWeight"),
        "io.weight" => Some("IOWeight"),
        _ => None,
    };
    let weight =
        |write: &Write| Some(Weight { property: property(write)?, weight: write.text.parse().ok()? });
    writes.iter().filter_map(weight).collect()
}

/// The scope of that name, if this process stands in it since an earlier start of its container.
pub fn entered(name: &str) -> Result<Option<PathBuf>> {
    let unit = format!("{name}.scope");
    let Ok(own) = delegation::own_path() else { return Ok(None) };
    let scope = own.ancestors().find(|path| path.file_name().is_some_and(|last| last == unit.as_str()));
    let Some(scope) = scope else { return Ok(None) };
    Ok(Some(delegation::hierarchy()?.join(scope.strip_prefix("/").unwrap_or(scope))))
}

/// Makes the scope of a group called `name`, moves this process into it, and one level down, so that groups can be
/// made beside it.
pub fn enter(runtime: &Path, name: &str, weights: &[Weight]) -> Result<PathBuf> {
    let unit = format!("{name}.scope");
    start(runtime, &unit, weights).context("ask systemd for a scope")?;
    let deadline = Instant::now() + PATIENCE;
    let path = loop {
        let path = delegation::own_path()?;
        if path.file_name().is_some_and(|last| last == unit.as_str()) {
            break path;
        }
        if Instant::now() > deadline {
            return Err(Error::host(format!("systemd did not move kelp into {unit}")).into());
        }
        // The manager moves us when its job runs; there is no event for it.
        std::thread::sleep(Duration::from_millis(1));
    };
    let folder = delegation::hierarchy()?.join(path.strip_prefix("/").unwrap_or(&path));
    delegation::move_down(&folder, MONITOR).with_context(|| format!("cannot use {unit}"))?;
    Ok(folder)
}

/// `StartTransientUnit` of org.freedesktop.systemd1(5).
fn start(runtime: &Path, unit: &str, weights: &[Weight]) -> Result<()> {
    let own = [
        ("PIDs", Value::Numbers(vec![std::process::id()])),
        ("Delegate", Value::Boolean(true)),
        ("CollectMode", Value::Text("inactive-or-failed".to_owned())),
    ];
    let properties = own.into_iter().chain(weights.iter().map(property)).collect();
    let [unit, mode] = [unit, "fail"].map(|word| Value::Text(word.to_owned()));
    bus::call(
        &socket(runtime),
        "StartTransientUnit",
        &[unit, mode, Value::Properties(properties), Value::NoUnits],
    )
}

fn property(weight: &Weight) -> (&'static str, Value) {
    (weight.property, Value::Long(weight.weight))
}

/// Changes the weights of the scope that the group `folder` lies in.
pub fn set_weights(folder: &Path, weights: &[Weight]) -> Result<()> {
    let unit = folder.parent().and_then(Path::file_name).and_then(|name| name.to_str());
    let (Some(unit), Some(runtime)) = (unit.filter(|unit| unit.ends_with(".scope")), runtime()) else {
        return Ok(());
    };
    if weights.is_empty() {
        return Ok(());
    }
    let values = [
        Value::Text(unit.to_owned()),
        Value::Boolean(true),
        Value::Properties(weights.iter().map(property).collect()),
    ];
    bus::call(&socket(&runtime), "SetUnitProperties", &values)
        .with_context(|| format!("set the weights of {unit}"))
}
