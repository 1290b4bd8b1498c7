//! `kelp doctor`.

use anyhow::Result;
use clap::Args;

/// Show what this host permits, what kelp uses, and the mend for what it refuses
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &DoctorArgs) -> Result<i32> {
    let _ = arguments.json;
    Ok(0)
}
