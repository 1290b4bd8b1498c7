//! Flags of `run` that take something of the caller's surroundings inside: environment, time zone, and
//! the profile of people on HPC clusters; and what a container's systemd expects to find.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;

use crate::error::Error;
use crate::spec::mount::{self, Mount, MountFlags, MountKind, Propagation};
use crate::spec::request::Request;

#[derive(Clone, Debug, Default, Args)]
pub struct SurroundingsArgs {
    /// Keep the caller's environment; the image's and -e win
    #[arg(long, help_heading = "Process")]
    pub env_host: bool,
    /// Time zone: AREA/CITY, or local for the host's
    #[arg(long, value_name = "ZONE", help_heading = "Process")]
    pub tz: Option<String>,
    /// What systemd as the program expects: true (if it is the program), false, always [default: true]
    #[arg(long, value_name = "WHEN", help_heading = "Process")]
    pub systemd: Option<String>,
    /// hpc: the host's network and processes, your own ids, your home and working folder, your environment
    #[arg(long, value_name = "NAME", help_heading = "Container")]
    pub profile: Option<Profile>,
}

/// Defaults that go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Profile {
    Hpc,
}

/// Defaults that a profile changes; what the user says wins.
#[derive(Clone, Copy, Debug)]
pub struct Defaults {
    pub network: &'static str,
    pub pid: &'static str,
    pub userns: &'static str,
}

impl SurroundingsArgs {
    pub fn defaults(&self) -> Defaults {
        match self.profile {
            Some(Profile::Hpc) => Defaults { network: "host", pid: "host", userns: "keep-id" },
            None => Defaults { network: "user", pid: "private", userns: "auto" },
        }
    }
}

/// Adds what the flags ask for to `request`.
pub fn add(request: &mut Request, arguments: &SurroundingsArgs) -> Result<()> {
    if arguments.env_host || arguments.profile == Some(Profile::Hpc) {
        let image = std::mem::take(&mut request.image.environment);
        request.image.environment = std::env::vars_os().chain(image).collect();
    }
    if arguments.profile == Some(Profile::Hpc) {
        at_home(request)?;
    }
    if let Some(zone) = &arguments.tz {
        add_first(request, read_only(zone_file(zone)?, "/etc/localtime"));
    }
    if is_systemd(request, arguments.systemd.as_deref().unwrap_or("true"))? {
        systemd(request)?;
    }
    Ok(())
}

fn bind(source: PathBuf) -> MountKind {
    MountKind::Bind { source, recursive: true, propagation: Propagation::Private }
}

fn read_only(source: PathBuf, target: &str) -> Mount {
    let flags = MountFlags { read_only: true, nosuid: true, nodev: true, ..MountFlags::default() };
    Mount { kind: bind(source), target: PathBuf::from(target), flags }
}

/// Before the user's own mounts, unless one of them has the place.
fn add_first(request: &mut Request, mount: Mount) {
    if !request.mounts.iter().any(|asked| asked.target == mount.target) {
        request.mounts.insert(0, mount);
    }
}

/// Home and working folder where they are outside.
fn at_home(request: &mut Request) -> Result<()> {
    let here = std::env::current_dir()
        .map_err(|error| Error::host(format!("cannot find the working folder: {error}")))?;
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute() && home.is_dir());
    let covered = home.as_ref().is_some_and(|home| here.starts_with(home));
    let outside = (!covered && here != Path::new("/")).then(|| here.clone());
    for folder in outside.into_iter().chain(home) {
        add_first(
            request,
            Mount { kind: bind(folder.clone()), target: folder, flags: MountFlags::default() },
        );
    }
    request.cwd.get_or_insert(here);
    Ok(())
}

/// The zone's file on the host, whose names no link leads out of.
fn zone_file(zone: &str) -> Result<PathBuf> {
    let file = match zone {
        "local" => PathBuf::from("/etc/localtime"),
        _ => Path::new("/usr/share/zoneinfo").join(zone),
    };
    let plain = !zone.starts_with('/') && !zone.split('/').any(|part| part == "..");
    match file.canonicalize() {
        Ok(found) if plain && found.is_file() => Ok(found),
        _ => {
            Err(Error::usage(format!("--tz {zone}: there is no such time zone in /usr/share/zoneinfo"))
                .into())
        }
    }
}

fn is_systemd(request: &Request, word: &str) -> Result<bool> {
    let program = request.entrypoint.as_ref().or(request.image.entrypoint.first());
    let program = program.or(request.command.first()).or(request.image.command.first());
    match word {
        "always" => Ok(true),
        "false" => Ok(false),
        "true" => Ok(program.is_some_and(|program| {
            let path = Path::new(program);
            let is_init = ["/sbin/init", "/usr/sbin/init", "/usr/local/sbin/init"]
                .iter()
                .any(|init| path == Path::new(init));
            is_init || path.file_name().is_some_and(|name| name == "systemd")
        })),
        _ => Err(Error::usage(format!("--systemd {word}: true, false or always is expected")).into()),
    }
}

/// systemd's container interface: file systems in memory where it writes, and the signal that means shut down.
fn systemd(request: &mut Request) -> Result<()> {
    const SIGRTMIN_PLUS_3: i32 = 37;
    for target in ["/var/log/journal", "/tmp", "/run/lock", "/run"] {
        add_first(request, mount::parse_tmpfs(&format!("{target}:exec,mode=1777"))?);
    }
    for mount in request.mounts.iter_mut().filter(|mount| mount.target == Path::new("/run")) {
        if let MountKind::Tmpfs { mode, .. } = &mut mount.kind {
            *mode = Some(0o755);
        }
    }
    request.stop_signal.get_or_insert(SIGRTMIN_PLUS_3);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_zone_stays_in_its_folder() {
        for bad in ["../../etc/passwd", "/etc/passwd", "No/Such", ""] {
            assert!(zone_file(bad).is_err(), "{bad}");
        }
    }
}
