//! Namespaces of the container: named by a pid, a path or a descriptor, and joined by a process that has just been forked.
//! It knows nothing of what happens inside them.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

/// The namespaces in which the device is made.
#[derive(Debug)]
pub struct Target {
    /// The user namespace that owns the network namespace; `None` if the caller is in it already.
    pub user: Option<OwnedFd>,
    pub network: OwnedFd,
}

impl Target {
    /// The namespaces of a process.
    pub fn of_pid(pid: i32) -> Result<Self> {
        let path = |name: &str| PathBuf::from(format!("/proc/{pid}/ns/{name}"));
        Self::of_paths(Some(&path("user")), &path("net"))
    }

    /// Namespaces that are named by files, as under `/run/user/1000/netns`.
    pub fn of_paths(user: Option<&Path>, network: &Path) -> Result<Self> {
        let open = |path: &Path| {
            File::open(path).with_context(|| format!("cannot open the namespace {}", path.display()))
        };
        let user = match user.map(open).transpose()? {
            Some(file) if !is_ours(&file)? => Some(file.into()),
            _ => None,
        };
        Ok(Self { user, network: open(network)?.into() })
    }

    /// Moves the calling process into both. It must have one thread.
    pub fn join(&self) -> Result<()> {
        if let Some(user) = &self.user {
            setns(user.as_fd(), CloneFlags::CLONE_NEWUSER)
                .context("cannot join the container's user namespace")?;
        }
        setns(self.network.as_fd(), CloneFlags::CLONE_NEWNET)
            .context("cannot join the container's network namespace")
    }
}

/// Joining the user namespace that one is in is an error (setns(2)), so it is recognised here.
fn is_ours(file: &File) -> Result<bool> {
    let (ours, theirs) = (std::fs::metadata("/proc/self/ns/user")?, file.metadata()?);
    Ok((ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()))
}
