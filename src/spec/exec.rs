//! What `exec` and a health check run beside a container's own program: plain data, so that it can be handed to
//! another process.

use std::ffi::OsString;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::ids::ContainerName;

/// What to run and how.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Exec {
    #[serde(with = "crate::raw::words")]
    pub command: Vec<OsString>,
    #[serde(with = "crate::raw::variables")]
    pub environment: Vec<(OsString, OsString)>,
    #[serde(with = "crate::raw::maybe_path")]
    pub cwd: Option<PathBuf>,
    pub user: Option<String>,
    pub interactive: bool,
    pub terminal: bool,
    pub detach: bool,
    pub privileged: bool,
    pub detach_keys: Option<String>,
    /// What events call it by; none for a health check.
    pub number: Option<ContainerName>,
}
