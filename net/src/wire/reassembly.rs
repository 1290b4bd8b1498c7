//! Putting fragments of datagrams together. Anything odd - an overlap, a part past the end, a second end - drops the whole
//! datagram, as RFC 5722 asks for. Memory, number and age of what is incomplete are bounded.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::frame::Packet;

const PATIENCE: Duration = Duration::from_secs(15);
const DATAGRAMS: usize = 64;
const BYTES: usize = 1 << 20;
const LONGEST: usize = 65535;

type Name = (IpAddr, IpAddr, u8, u32);

#[derive(Default)]
pub(crate) struct Reassembly {
    partial: HashMap<Name, Partial>,
    bytes: usize,
}

struct Partial {
    since: Instant,
    parts: BTreeMap<usize, Vec<u8>>,
    end: Option<usize>,
}

/// What adding a part to a datagram makes of it.
enum Sum {
    Incomplete,
    Whole(Vec<u8>),
    Odd,
}

impl Reassembly {
    /// Takes a packet that is a fragment; the whole payload if it was the last one missing.
    pub(crate) fn add(&mut self, packet: &Packet<'_>, now: Instant) -> Option<Vec<u8>> {
        let fragment = packet.fragment?;
        let name = (packet.source, packet.destination, packet.protocol, fragment.id);
        self.make_room(&name, packet.payload.len(), now)?;
        let fresh = || Partial { since: now, parts: BTreeMap::new(), end: None };
        let partial = self.partial.entry(name).or_insert_with(fresh);
        let before = partial.size();
        let sum = partial.add(usize::from(fragment.offset), fragment.more, packet.payload);
        self.bytes = self.bytes.saturating_sub(before).saturating_add(partial.size());
        match sum {
            Sum::Incomplete => None,
            Sum::Odd => {
                self.forget(&name);
                None
            }
            Sum::Whole(payload) => {
                self.forget(&name);
                Some(payload)
            }
        }
    }

    /// Drops what is too old; `None` if there is no room even so.
    fn make_room(&mut self, name: &Name, bytes: usize, now: Instant) -> Option<()> {
        let full = |this: &Self| {
            this.bytes.saturating_add(bytes) > BYTES
                || (this.partial.len() >= DATAGRAMS && !this.partial.contains_key(name))
        };
        if full(self) {
            self.partial.retain(|_, partial| now.saturating_duration_since(partial.since) < PATIENCE);
            self.bytes = self.partial.values().map(Partial::size).sum();
        }
        (!full(self)).then_some(())
    }

    /// What holds after each part, for the tests that break it.
    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn check_bounds(&self) {
        let held: usize = self.partial.values().map(Partial::size).sum();
        assert_eq!(held, self.bytes);
        assert!(held <= BYTES && self.partial.len() <= DATAGRAMS);
    }

    fn forget(&mut self, name: &Name) {
        if let Some(partial) = self.partial.remove(name) {
            self.bytes = self.bytes.saturating_sub(partial.size());
        }
    }
}

impl Partial {
    fn size(&self) -> usize {
        self.parts.values().map(Vec::len).sum()
    }

    fn add(&mut self, start: usize, more: bool, bytes: &[u8]) -> Sum {
        let end = start.saturating_add(bytes.len());
        if bytes.is_empty() || end > LONGEST || (more && !bytes.len().is_multiple_of(8)) {
            return Sum::Odd;
        }
        if self.parts.get(&start).is_some_and(|known| known == bytes) {
            return Sum::Incomplete;
        }
        let before = self.parts.range(..start).next_back();
        let overlaps_before = before.is_some_and(|(at, part)| at.saturating_add(part.len()) > start);
        let overlaps_after = self.parts.range(start..).next().is_some_and(|(at, _)| *at < end);
        let past_end = self.end.is_some_and(|known| end > known || !more);
        let last = self.parts.last_key_value().map_or(0, |(at, part)| at.saturating_add(part.len()));
        if overlaps_before || overlaps_after || past_end || (!more && last > end) {
            return Sum::Odd;
        }
        if !more {
            self.end = Some(end);
        }
        self.parts.insert(start, bytes.to_vec());
        if self.end == Some(self.size()) {
            return Sum::Whole(std::mem::take(&mut self.parts).into_values().flatten().collect());
        }
        Sum::Incomplete
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::Fragment;
    use super::*;

    fn add(reassembly: &mut Reassembly, id: u32, offset: u16, more: bool, payload: &[u8]) -> Option<Vec<u8>> {
        let (source, destination) = ("10.0.2.100".parse().unwrap(), "192.0.2.1".parse().unwrap());
        let fragment = Some(Fragment { id, offset, more });
        let packet = Packet { source, destination, protocol: 17, fragment, quote: &[], payload, segment: 0 };
        reassembly.add(&packet, Instant::now())
    }

    #[test]
    fn parts_make_a_whole_in_any_order() {
        let whole: Vec<u8> = (0..100).collect();
        let parts = [(0_u16, true), (40, true), (80, false)];
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut reassembly = Reassembly::default();
            let mut came = None;
            for at in order {
                let (offset, more) = parts[at];
                let start = usize::from(offset);
                came = add(&mut reassembly, 1, offset, more, &whole[start..(start + 40).min(100)]);
            }
            assert_eq!(came.as_deref(), Some(whole.as_slice()), "{order:?}");
            assert_eq!((reassembly.bytes, reassembly.partial.len()), (0, 0));
        }
    }

    #[test]
    fn a_datagram_with_an_odd_part_is_dropped_whole() {
        for odd in [
            (8_u16, true, 16),
            (0, true, 24),
            (16, true, 7),
            (16, false, 0),
            (65528, false, 16),
            (0, false, 8),
        ] {
            let mut reassembly = Reassembly::default();
            assert_eq!(add(&mut reassembly, 1, 0, true, &[1; 16]), None);
            assert_eq!(add(&mut reassembly, 1, odd.0, odd.1, &vec![2; odd.2]), None);
            assert_eq!((reassembly.bytes, reassembly.partial.len()), (0, 0), "{odd:?}");
        }
    }

    #[test]
    fn a_part_that_comes_twice_does_no_harm() {
        let mut reassembly = Reassembly::default();
        assert_eq!(add(&mut reassembly, 1, 0, true, &[1; 8]), None);
        assert_eq!(add(&mut reassembly, 1, 0, true, &[1; 8]), None);
        assert_eq!(add(&mut reassembly, 1, 8, false, &[2; 3]).map(|whole| whole.len()), Some(11));
    }

    #[test]
    fn a_flood_of_first_parts_is_bounded() {
        let mut reassembly = Reassembly::default();
        for id in 0..100_000 {
            add(&mut reassembly, id, 0, true, &[1; 1024]);
        }
        assert!(reassembly.partial.len() <= DATAGRAMS && reassembly.bytes <= BYTES);
    }
}
