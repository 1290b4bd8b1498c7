//! Deadlines. A deadline is only ever looked at when it has passed: what it belongs to may by then have a later one and ask
//! again, so that traffic costs no timer work. It knows nothing of what it wakes.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

#[derive(Default)]
pub(crate) struct Timers(BinaryHeap<Reverse<(Instant, u64)>>);

impl Timers {
    pub(crate) fn add(&mut self, at: Instant, number: u64) {
        self.0.push(Reverse((at, number)));
    }

    /// Milliseconds until the first deadline, rounded up; -1 if there is none.
    pub(crate) fn wait(&self, now: Instant) -> i32 {
        self.0.peek().map_or(-1, |Reverse((at, _))| {
            let left = at.saturating_duration_since(now) + Duration::from_micros(999);
            i32::try_from(left.as_millis()).unwrap_or(i32::MAX)
        })
    }

    /// Takes a deadline that has passed.
    pub(crate) fn due(&mut self, now: Instant) -> Option<u64> {
        let Reverse((at, number)) = *self.0.peek()?;
        if at > now {
            return None;
        }
        self.0.pop();
        Some(number)
    }
}
