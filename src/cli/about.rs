//! `kelp version` and `kelp info`: what kelp this is and what it runs on, in docker's shape. kelp has no server;
//! what asks for its version is told kelp's own.

use std::fs;

use anyhow::Result;
use clap::Args;
use nix::sys::utsname::uname;
use serde_json::{Value, json};

use crate::cli::table;
use crate::container::list;
use crate::container::state::State;
use crate::image::manifest::Platform;
use crate::image::store::Store;
use crate::paths::Paths;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Show kelp's version
#[derive(Debug, Args)]
pub struct VersionArgs {
    /// A Go template or `json`
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
}

/// Show what is here and what it runs on
#[derive(Debug, Args)]
pub struct AboutArgs {
    /// A Go template or `json`
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
}

pub fn version(arguments: &VersionArgs) -> Result<i32> {
    let platform = Platform::host();
    let part = json!({
        "Version": VERSION,
        "Os": platform.os,
        "Arch": platform.architecture,
        "OsArch": format!("{}/{}", platform.os, platform.architecture),
        "KernelVersion": kernel()?,
    });
    let value = json!({"Client": part, "Server": part});
    table::object(&value, arguments.format.as_deref(), |_| {
        println!("Client: kelp\n Version:  {VERSION}\n OS/Arch:  {}/{}", platform.os, platform.architecture);
    })
}

fn kernel() -> Result<String> {
    Ok(uname()?.release().to_string_lossy().into_owned())
}

pub fn about(arguments: &AboutArgs) -> Result<i32> {
    let paths = Paths::find()?;
    let known = list::all(&paths);
    let count = |fits: fn(State) -> bool| known.iter().filter(|known| fits(known.status.state)).count();
    let running = count(|state| matches!(state, State::Running | State::Restarting));
    let paused = count(|state| state == State::Paused);
    let host = uname()?;
    let value = json!({
        "Containers": known.len(),
        "ContainersRunning": running,
        "ContainersPaused": paused,
        "ContainersStopped": known.len() - running - paused,
        "Images": Store::open(&paths)?.images()?.len(),
        "Driver": "overlay",
        "LoggingDriver": "json-file",
        "KernelVersion": host.release().to_string_lossy(),
        "OperatingSystem": system(),
        "OSType": "linux",
        "Architecture": host.machine().to_string_lossy(),
        "NCPU": std::thread::available_parallelism().map_or(1, usize::from),
        "MemTotal": memory(),
        "Name": host.nodename().to_string_lossy(),
        "DockerRootDir": paths.store.display().to_string(),
        "ServerVersion": VERSION,
        "SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless"],
    });
    table::object(&value, arguments.format.as_deref(), plain)
}

/// Docker's headings, as far as kelp knows the facts.
fn plain(value: &Value) {
    for (heading, field) in [
        ("Containers", "Containers"),
        (" Running", "ContainersRunning"),
        (" Paused", "ContainersPaused"),
        (" Stopped", "ContainersStopped"),
        ("Images", "Images"),
        ("Server Version", "ServerVersion"),
        ("Storage Driver", "Driver"),
        ("Logging Driver", "LoggingDriver"),
        ("Kernel Version", "KernelVersion"),
        ("Operating System", "OperatingSystem"),
        ("OSType", "OSType"),
        ("Architecture", "Architecture"),
        ("CPUs", "NCPU"),
        ("Total Memory", "MemTotal"),
        ("Name", "Name"),
        ("Docker Root Dir", "DockerRootDir"),
    ] {
        let known = &value[field];
        let text = match field {
            "MemTotal" => known.as_u64().map(table::size).unwrap_or_default(),
            _ => known.as_str().map_or_else(|| known.to_string(), str::to_owned),
        };
        println!("{heading}: {text}");
    }
}

/// `PRETTY_NAME` of `os-release(5)`.
fn system() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}

/// Bytes, of the `MemTotal` of `proc_meminfo(5)`.
fn memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}
