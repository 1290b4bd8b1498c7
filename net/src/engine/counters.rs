//! What the engine has done, in numbers. Plain data; whoever does the work counts it.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Connections that the container opened, by how they are carried.
    pub diverted: u64,
    pub mirrored: u64,
    /// Connections and datagram flows to published ports.
    pub published: u64,
    pub datagram_flows: u64,
    pub queries: u64,
    pub bytes_up: u64,
    pub bytes_down: u64,
    /// Destinations that the policy refused.
    pub refused: u64,
    /// Flows turned away because there were too many.
    pub overflowed: u64,
    /// Frames that made no sense.
    pub malformed: u64,
    /// Events that ended in a fault of the engine's own.
    pub faults: u64,
}
