//! A scope of the systemd user manager's: the group that a user may have without an administrator. The manager is asked
//! over D-Bus by `busctl`, which is part of systemd, so that no bus library and no thread lives in this process. A
//! scope that is empty goes away by itself, whoever is killed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

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
        ours && folder.join("bus").exists() && folder.join("systemd").exists()
    })
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
    let pid = std::process::id().to_string();
    let count = (3 + weights.len()).to_string();
    let own = ["PIDs", "au", "1", &pid, "Delegate", "b", "true", "CollectMode", "s", "inactive-or-failed"];
    let mut words = vec!["StartTransientUnit", "ssa(sv)a(sa(sv))", unit, "fail", &count];
    words.extend(own);
    let numbers: Vec<String> = weights.iter().map(|weight| weight.weight.to_string()).collect();
    for (weight, number) in weights.iter().zip(&numbers) {
        words.extend([weight.property, "t", number]);
    }
    words.push("0");
    call(runtime, &words)
}

/// Changes the weights of the scope that the group `folder` lies in.
pub fn set_weights(folder: &Path, weights: &[Weight]) -> Result<()> {
    let unit = folder.parent().and_then(Path::file_name).and_then(|name| name.to_str());
    let (Some(unit), Some(runtime)) = (unit.filter(|unit| unit.ends_with(".scope")), runtime()) else {
        return Ok(());
    };
    for weight in weights {
        let number = weight.weight.to_string();
        let words = ["SetUnitProperties", "sba(sv)", unit, "true", "1", weight.property, "t", &number];
        call(&runtime, &words).with_context(|| format!("set {} of {unit}", weight.property))?;
    }
    Ok(())
}

/// One call of the manager's.
fn call(runtime: &Path, words: &[&str]) -> Result<()> {
    let manager =
        ["org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"];
    let asked = Command::new("busctl")
        .args(["--user", "--quiet", "call"])
        .args(manager)
        .args(words)
        .env("XDG_RUNTIME_DIR", runtime)
        .env("DBUS_SESSION_BUS_ADDRESS", format!("unix:path={}", runtime.join("bus").display()))
        .stdin(Stdio::null())
        .output()
        .context("run busctl")?;
    if asked.status.success() {
        return Ok(());
    }
    Err(Error::host(String::from_utf8_lossy(&asked.stderr).trim().to_owned()).into())
}
