//! A token bucket: bytes a second, with a twentieth of a second saved up at most. TCP waits for it; datagrams are dropped.

use std::time::{Duration, Instant};

pub(crate) struct Bucket {
    /// Bytes a second; no limit if there is none.
    rate: Option<u64>,
    level: u64,
    filled: Instant,
}

/// How long a flow that found the bucket empty waits.
pub(crate) const REFILL: Duration = Duration::from_millis(5);

impl Bucket {
    pub(crate) fn new(rate: Option<u64>) -> Self {
        Self { rate, level: 0, filled: Instant::now() }
    }

    /// How many bytes may pass now.
    pub(crate) fn allowance(&mut self, now: Instant) -> usize {
        let Some(rate) = self.rate else { return usize::MAX };
        let elapsed = now.saturating_duration_since(self.filled);
        let gained = u64::try_from(u128::from(rate) * elapsed.as_micros() / 1_000_000).unwrap_or(u64::MAX);
        if gained > 0 {
            self.level = self.level.saturating_add(gained).min((rate / 20).max(2048));
            self.filled = now;
        }
        usize::try_from(self.level).unwrap_or(usize::MAX)
    }

    pub(crate) fn spend(&mut self, bytes: u64) {
        self.level = self.level.saturating_sub(bytes);
    }

    /// Whether a datagram of `bytes` may pass; it is paid for if so.
    pub(crate) fn admit(&mut self, bytes: usize, now: Instant) -> bool {
        let admitted = self.allowance(now) >= bytes;
        if admitted {
            self.spend(bytes as u64);
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_admits_a_seconds_worth() {
        let mut bucket = Bucket::new(Some(1_000_000));
        let start = bucket.filled;
        let mut admitted = 0;
        for millisecond in 0..1000 {
            let now = start + Duration::from_millis(millisecond);
            while bucket.admit(500, now) {
                admitted += 500;
            }
        }
        assert!((950_000..=1_000_000).contains(&admitted), "{admitted}");
    }
}
