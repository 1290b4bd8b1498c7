//! Named volumes: folders of the store that outlive containers, made on first use. A volume is a plain folder
//! of files, so that its owner can read and remove it without kelp.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::ids::Name;
use crate::paths::Paths;

/// Where the files of the volume lie.
pub fn folder(paths: &Paths, name: &Name) -> PathBuf {
    paths.store.join("volumes").join(name.as_str()).join("_data")
}

/// Makes the volume unless it is there.
pub fn ensure(paths: &Paths, name: &Name) -> Result<PathBuf> {
    let folder = folder(paths, name);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make volume {name}"))?;
    Ok(folder)
}
