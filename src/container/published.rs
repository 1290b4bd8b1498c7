//! Which ports of the host lead into a container: as it was asked, or, where the choice was left to the kernel, as
//! the engine bound them at the last start, kept beside the container's record.

use std::path::Path;

use anyhow::Result;
use kelp_net::config::Published;

use crate::container::folder::Known;
use crate::record::{self, Durability};
use crate::spec::request::Network;

/// The record's name in the container's folder.
const NAME: &str = "ports";

/// Keeps what the engine bound.
pub fn keep(folder: &Path, ports: &[Published]) -> Result<()> {
    record::write(&folder.join(NAME), &ports, Durability::Boot)
}

/// The published ports of a container; a host port of 0 is not chosen yet.
pub fn of(known: &Known) -> Vec<Published> {
    let Network::User(config) = &known.made.request.network else { return Vec::new() };
    let asked = &config.published;
    let left_open = asked.iter().any(|one| one.host_port == 0) && known.status.state.is_live();
    let given = left_open.then(|| record::read(&known.folder.join(NAME)).ok().flatten()).flatten();
    given.unwrap_or_else(|| asked.clone())
}
