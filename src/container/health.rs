//! What a container's health check has found, in docker's words: a file in the container's folder with the last
//! entries, written whole by the monitor and read by everybody. What a result means is decided here; pure.

use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::container::folder::Healthiness;
use crate::record::{self, Durability};

/// The file's name in the container's folder.
const NAME: &str = "health";

/// How many entries are kept, and how much of an output: docker's numbers.
const ENTRIES: usize = 5;
pub const LONGEST: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    pub status: Healthiness,
    /// How many checks in a row have failed.
    pub failing: u32,
    /// The last ones, the latest last.
    pub log: Vec<Entry>,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Nanoseconds since 1970.
    pub start: i64,
    pub end: i64,
    /// -1 if it did not end in time.
    pub exit: i32,
    pub output: String,
}

/// Whether a failure counts: not before a container had the time to come up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    ComingUp,
    Up,
}

impl Findings {
    /// Nothing was found yet.
    pub fn none() -> Self {
        Self { status: Healthiness::Starting, failing: 0, log: Vec::new() }
    }

    pub fn read(folder: &Path) -> Result<Option<Self>> {
        record::read(&folder.join(NAME))
    }

    pub fn keep(&self, folder: &Path) -> Result<()> {
        record::write(&folder.join(NAME), self, Durability::Boot)
    }

    /// Takes a result in.
    pub fn add(&mut self, entry: Entry, retries: u32, phase: Phase) {
        let failed = entry.exit != 0;
        self.log.push(entry);
        let over = self.log.len().saturating_sub(ENTRIES);
        self.log.drain(..over);
        if !failed {
            self.failing = 0;
            self.status = Healthiness::Healthy;
        } else if self.status != Healthiness::Starting || phase == Phase::Up {
            self.failing += 1;
            if self.failing >= retries {
                self.status = Healthiness::Unhealthy;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(exit: i32) -> Entry {
        Entry { start: 0, end: 1, exit, output: String::new() }
    }

    #[test]
    fn a_container_is_unhealthy_after_so_many_failures_in_a_row() {
        let mut found = Findings::none();
        let mut add = |exit, phase| {
            found.add(entry(exit), 2, phase);
            (found.status, found.failing)
        };
        assert_eq!(add(1, Phase::ComingUp), (Healthiness::Starting, 0));
        assert_eq!(add(1, Phase::Up), (Healthiness::Starting, 1));
        assert_eq!(add(0, Phase::Up), (Healthiness::Healthy, 0));
        // Once it was healthy, it has come up.
        assert_eq!(add(-1, Phase::ComingUp), (Healthiness::Healthy, 1));
        assert_eq!(add(1, Phase::ComingUp), (Healthiness::Unhealthy, 2));
        assert_eq!(add(0, Phase::Up), (Healthiness::Healthy, 0));
        assert_eq!(found.log.len(), ENTRIES);
    }
}
