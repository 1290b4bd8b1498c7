//! Where kelp keeps things: the store (data that lasts) and the runtime folder (gone at reboot). Works with no
//! login session: from cron, su, ssh and a Slurm prolog. It knows what the folders are called, not what the
//! rooms put in them.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::error::Error;

/// The two folders of one user, made on first use with mode 0700.
#[derive(Clone, Debug)]
pub struct Paths {
    /// `$KELP_ROOT`, `$XDG_DATA_HOME/kelp` or `~/.local/share/kelp`.
    pub store: PathBuf,
    /// `$KELP_RUNDIR`, `$XDG_RUNTIME_DIR/kelp` if that is ours, `/run/user/UID/kelp`, `kelp-UID` in `$TMPDIR`, /tmp or /dev/shm.
    pub runtime: PathBuf,
}

impl Paths {
    /// Finds both folders and makes sure that they exist and are ours.
    ///
    /// # Errors
    /// No home folder, or a folder that can't be made or belongs to somebody else.
    pub fn find() -> Result<Self> {
        let store = store_folder()?;
        private_folder(&store)
            .with_context(|| format!("cannot use {} as the store", store.display()))
            .map_err(|error| hinted(&error, "set KELP_ROOT to a folder of yours on a local disk"))?;
        Ok(Self { store, runtime: runtime_folder()? })
    }

    /// One folder a container.
    pub fn containers(&self) -> PathBuf {
        self.store.join("containers")
    }
}

fn hinted(error: &anyhow::Error, hint: &str) -> anyhow::Error {
    Error::host(format!("{error:#}")).hint(hint).into()
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn store_folder() -> Result<PathBuf> {
    if let Some(root) = variable("KELP_ROOT") {
        return absolute(root);
    }
    if let Some(data) = variable("XDG_DATA_HOME").filter(|path| path.is_absolute()) {
        return Ok(data.join("kelp"));
    }
    let home = variable("HOME").filter(|path| path.is_absolute()).or_else(home_of_user);
    let home = home.ok_or_else(|| {
        Error::host("cannot find the store: HOME is not set and /etc/passwd has no entry for you")
            .hint("set KELP_ROOT to a folder of yours")
    })?;
    Ok(home.join(".local/share/kelp"))
}

fn absolute(path: PathBuf) -> Result<PathBuf> {
    std::path::absolute(&path).with_context(|| format!("cannot make {} absolute", path.display()))
}

fn home_of_user() -> Option<PathBuf> {
    let uid = nix::unistd::getuid().as_raw().to_string();
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    let line = passwd.lines().find(|line| line.split(':').nth(2) == Some(&uid))?;
    line.split(':').nth(5).filter(|home| home.starts_with('/')).map(PathBuf::from)
}

fn runtime_folder() -> Result<PathBuf> {
    let uid = nix::unistd::getuid().as_raw();
    if let Some(folder) = variable("KELP_RUNDIR") {
        let folder = absolute(folder)?;
        private_folder(&folder).with_context(|| format!("cannot use KELP_RUNDIR {}", folder.display()))?;
        return Ok(folder);
    }
    let mut refusals = Vec::new();
    let candidates = [
        variable("XDG_RUNTIME_DIR").filter(|path| is_ours(path)).map(|path| path.join("kelp")),
        Some(PathBuf::from(format!("/run/user/{uid}"))).filter(|path| is_ours(path)).map(|p| p.join("kelp")),
        variable("TMPDIR").map(|path| path.join(format!("kelp-{uid}"))),
        Some(PathBuf::from(format!("/tmp/kelp-{uid}"))),
        Some(PathBuf::from(format!("/dev/shm/kelp-{uid}"))),
    ];
    for folder in candidates.into_iter().flatten() {
        match private_folder(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) => refusals.push(format!("{}: {error}", folder.display())),
        }
    }
    Err(Error::host(format!("cannot make a runtime folder ({})", refusals.join("; ")))
        .hint("set KELP_RUNDIR to a folder of yours on a local disk")
        .into())
}

fn is_ours(folder: &Path) -> bool {
    fs::metadata(folder).is_ok_and(|found| found.is_dir() && found.uid() == nix::unistd::getuid().as_raw())
}

/// Makes `folder` with mode 0700 (and what leads to it), or checks that the one there is a folder of ours.
pub fn private_folder(folder: &Path) -> io::Result<()> {
    match fs::symlink_metadata(folder) {
        Ok(found) if found.is_dir() && found.uid() == nix::unistd::getuid().as_raw() => return Ok(()),
        Ok(found) if found.is_symlink() && is_ours(folder) => return Ok(()),
        Ok(_) => return Err(io::Error::other("it is not a folder of yours")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// `/proc/sys/kernel/random/boot_id`: two records with different ones are from different boots.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}
