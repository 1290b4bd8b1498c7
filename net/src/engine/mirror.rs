//! The mirror (P2): which virtual port stands for which connection. What the container sends to `D:p` comes back to it
//! from `G:n`, addressed to the engine's listener, and the other way round, so that the container's kernel talks TCP to
//! itself. It knows no sockets and no timers.
//!
//!   C:s -> D:p   becomes   G:n -> C:l
//!   C:l -> G:n   becomes   D:p -> C:s

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::wire::frame::Ends;

/// A closed connection's last segments and its TIME_WAIT still pass for this long.
pub(crate) const LINGER: Duration = Duration::from_secs(65);

struct Mirror {
    ends: Ends,
    closed: Option<Instant>,
}

#[derive(Default)]
pub(crate) struct Mirrors {
    by_ends: HashMap<Ends, u16>,
    by_port: HashMap<u16, Mirror>,
    last: u16,
}

impl Mirrors {
    /// A virtual port for a new connection; `None` if all are in use. Ports are used in turn, so that one comes back as late
    /// as possible.
    pub(crate) fn open(&mut self, ends: Ends) -> Option<u16> {
        if let Some(old) = self.by_ends.remove(&ends) {
            self.by_port.remove(&old);
        }
        for _ in 0..u16::MAX {
            self.last = self.last.checked_add(1).unwrap_or(1);
            if !self.by_port.contains_key(&self.last) {
                self.by_ends.insert(ends, self.last);
                self.by_port.insert(self.last, Mirror { ends, closed: None });
                return Some(self.last);
            }
        }
        None
    }

    pub(crate) fn port(&self, ends: &Ends) -> Option<u16> {
        self.by_ends.get(ends).copied()
    }

    pub(crate) fn ends(&self, port: u16) -> Option<Ends> {
        self.by_port.get(&port).map(|mirror| mirror.ends)
    }

    /// Whether a connection has a port and is not over.
    pub(crate) fn is_open(&self, ends: &Ends) -> bool {
        let mirror = self.by_ends.get(ends).and_then(|port| self.by_port.get(port));
        mirror.is_some_and(|mirror| mirror.closed.is_none())
    }

    /// Marks a connection as over. True if `forget_closed` should be called after `LINGER`.
    pub(crate) fn close(&mut self, ends: &Ends, now: Instant) -> bool {
        let mirror = self.by_ends.get(ends).and_then(|port| self.by_port.get_mut(port));
        mirror.is_some_and(|mirror| mirror.closed.replace(now).is_none())
    }

    pub(crate) fn forget_closed(&mut self, now: Instant) {
        let by_ends = &mut self.by_ends;
        self.by_port.retain(|_, mirror| {
            let over = mirror.closed.is_some_and(|at| now.saturating_duration_since(at) >= LINGER);
            if over {
                by_ends.remove(&mirror.ends);
            }
            !over
        });
    }

    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn begin_at(&mut self, port: u16) {
        self.last = port;
    }

    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn is_empty(&self) -> bool {
        self.by_ends.is_empty() && self.by_port.is_empty()
    }

    /// What holds after each step, for those who break it.
    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn check_pairs(&self) {
        assert_eq!(self.by_ends.len(), self.by_port.len());
        assert!(self.by_ends.iter().all(|(ends, port)| self.ends(*port) == Some(*ends)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(port: u16) -> Ends {
        Ends { source: ([10, 0, 2, 100], port).into(), destination: ([192, 0, 2, 1], 80).into() }
    }

    #[test]
    fn a_connection_that_is_opened_again_gets_a_new_port_and_the_old_one_is_free() {
        let mut mirrors = Mirrors::default();
        let first = mirrors.open(ends(1)).unwrap();
        let second = mirrors.open(ends(1)).unwrap();
        assert_ne!(first, second);
        assert_eq!(mirrors.ends(first), None);
        assert_eq!(mirrors.ends(second), Some(ends(1)));
    }

    #[test]
    fn a_closed_connection_is_forgotten_only_after_its_last_segments() {
        let mut mirrors = Mirrors::default();
        let port = mirrors.open(ends(1)).unwrap();
        let now = Instant::now();
        assert!(mirrors.close(&ends(1), now));
        assert!(!mirrors.close(&ends(1), now));
        mirrors.forget_closed(now);
        assert_eq!(mirrors.port(&ends(1)), Some(port));
        mirrors.forget_closed(now + LINGER);
        assert_eq!(mirrors.port(&ends(1)), None);
    }

    #[test]
    fn when_all_ports_are_taken_there_is_none() {
        let mut mirrors = Mirrors::default();
        for port in 1..=u16::MAX {
            assert!(mirrors.open(ends(port)).is_some());
        }
        assert_eq!(mirrors.open(ends(0)), None);
    }
}
