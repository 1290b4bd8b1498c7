//! How the engine waits. To be put to sleep and woken again costs tens of microseconds where the processor has gone idle
//! meanwhile, at each turn of an exchange. So when something has happened it looks again for a moment before it sleeps, as
//! long as that pays: each look in vain makes looks rarer, and nothing at all is looked for when nothing happens.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use crate::sys::stream::{Epoll, Event};

/// How long it looks: a little more than an answer on the same host takes.
const LOOK: Duration = Duration::from_micros(30);

/// Looks in vain that are counted: at most one wait in 2 to the power of so many is begun with a look then.
const MISSES: u32 = 6;

#[derive(Debug)]
pub(super) struct Vigil {
    /// On the only processor nothing can happen while the engine looks.
    alone: bool,
    /// The last wait has brought something.
    busy: bool,
    misses: u32,
    /// Waits until the next look.
    rest: u32,
}

impl Vigil {
    pub(super) fn new(processors: usize) -> Self {
        Self { alone: processors < 2, busy: false, misses: 0, rest: 0 }
    }

    /// Waits for events, for at most so many milliseconds, and says how many there are.
    pub(super) fn wait(&mut self, epoll: &Epoll, events: &mut [Event], wait: i32) -> io::Result<usize> {
        let mut count = 0;
        if wait != 0 && self.busy && self.is_due() {
            count = look(epoll, events)?;
            self.learn(count > 0);
        }
        if count == 0 {
            count = epoll.wait(events, wait)?;
        }
        self.busy = count > 0;
        Ok(count)
    }

    /// Whether the wait that comes is begun with a look.
    fn is_due(&mut self) -> bool {
        let due = !self.alone && self.rest == 0;
        self.rest = self.rest.saturating_sub(1);
        due
    }

    /// What came of a look.
    fn learn(&mut self, found: bool) {
        self.misses = if found { 0 } else { (self.misses + 1).min(MISSES) };
        self.rest = (1 << self.misses) - 1;
    }
}

fn look(epoll: &Epoll, events: &mut [Event]) -> io::Result<usize> {
    let end = Instant::now() + LOOK;
    let mut count = 0;
    while count == 0 && Instant::now() < end {
        // Whoever else wants this processor may be the one who is waited for.
        thread::yield_now();
        count = epoll.wait(events, 0)?;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of so many waits are begun with a look, if each look ends like this.
    fn looks(vigil: &mut Vigil, waits: u32, found: bool) -> u32 {
        let mut count = 0;
        for _ in 0..waits {
            if vigil.is_due() {
                vigil.learn(found);
                count += 1;
            }
        }
        count
    }

    #[test]
    fn looks_that_are_in_vain_become_rare_and_one_that_is_not_brings_them_back() {
        let mut vigil = Vigil::new(2);
        assert_eq!(looks(&mut vigil, 100, true), 100);
        assert_eq!(looks(&mut vigil, 1 + 2 + 4 + 8 + 16 + 32 + 64 + 64, false), 8);
        while !vigil.is_due() {}
        vigil.learn(true);
        assert_eq!(looks(&mut vigil, 100, true), 100);
    }

    #[test]
    fn on_the_only_processor_nothing_is_looked_for() {
        assert_eq!(looks(&mut Vigil::new(1), 100, true), 0);
    }
}
