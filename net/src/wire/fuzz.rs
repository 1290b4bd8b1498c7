//! Every parser against inputs that were broken on purpose: samples of each kind, mutated by a generator whose seed is told
//! when something fails. A bounded number in each run of the tests; `KELP_FUZZ_SECONDS=1800 cargo test --release -p
//! kelp-net fuzz` goes on for so long with seeds of its own. What must hold is that nothing panics, and what each target says.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::frame::{self, Ends, Frame};
use super::reassembly::Reassembly;
use super::{build, dhcp, dns, rewrite};

/// xorshift64*: enough to mutate bytes, the same on each machine.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides.max(1)
    }

    fn mutate(&mut self, samples: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = samples[self.roll(samples.len())].clone();
        for _ in 0..=self.roll(6) {
            let at = self.roll(bytes.len());
            match self.roll(7) {
                0 if !bytes.is_empty() => bytes[at] ^= 1 << self.roll(8),
                1 if !bytes.is_empty() => bytes[at] = [0, 1, 0x7f, 0x80, 0xc0, 0xff][self.roll(6)],
                2 if !bytes.is_empty() => bytes[at] = self.roll(256) as u8,
                3 => bytes.truncate(at),
                4 => bytes.insert(at.min(bytes.len()), self.roll(256) as u8),
                5 => bytes.resize(bytes.len() + self.roll(64), self.roll(256) as u8),
                _ => {
                    let other = &samples[self.roll(samples.len())];
                    bytes.truncate(at);
                    bytes.extend_from_slice(&other[self.roll(other.len())..]);
                }
            }
        }
        bytes
    }
}

/// Gives `target` mutated samples: twenty thousand, or for as long as the environment says.
pub(crate) fn fuzz(samples: &[Vec<u8>], mut target: impl FnMut(&[u8], &mut Dice)) {
    let seconds =
        std::env::var("KELP_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).map(Duration::from_secs);
    let start = Instant::now();
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64);
    let first = seconds.map_or(1, |_| clock);
    for seed in (first..).take_while(|seed| match seconds {
        None => *seed <= 20_000,
        Some(limit) => start.elapsed() < limit,
    }) {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let input = dice.mutate(samples);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| target(&input, &mut dice)));
        assert!(outcome.is_ok(), "seed {seed}: {input:02x?}");
    }
}

fn frames() -> Vec<Vec<u8>> {
    frame::tests::samples()
}

#[test]
fn a_frame_never_claims_more_than_there_is() {
    fuzz(&frames(), |bytes, _| {
        let Some(Frame::Packet(packet)) = frame::parse(bytes) else { return };
        assert!(packet.payload.len() <= bytes.len() && packet.quote.len() <= bytes.len());
        if let Some(udp) = frame::udp(packet.payload) {
            assert!(udp.payload.len() + 8 <= packet.payload.len());
        }
        if let Some(tcp) = frame::tcp(packet.payload) {
            assert!(tcp.length as usize <= packet.payload.len());
        }
        let _ = frame::solicited(&packet);
    });
}

/// Of the ten bytes in front only the segment size is believed, and that only of a frame that claims to be of many.
#[test]
fn a_vnet_header_decides_nothing_but_the_size_of_segments() {
    fuzz(&frames(), |bytes, dice| {
        let mut other = bytes.to_vec();
        other.iter_mut().take(super::VNET).for_each(|byte| *byte = dice.roll(256) as u8);
        match (frame::parse(bytes), frame::parse(&other)) {
            (None, None) => {}
            (Some(Frame::Packet(one)), Some(Frame::Packet(two))) => {
                assert_eq!(
                    (one.source, one.destination, one.protocol, one.payload, one.quote),
                    (two.source, two.destination, two.protocol, two.payload, two.quote)
                );
                assert!(two.segment == 0 || other[1] & 0x7f != 0);
            }
            (Some(Frame::ArpRequest { .. }), Some(Frame::ArpRequest { .. })) => {}
            _ => panic!("parsed with one vnet header and not with another"),
        }
    });
}

/// The mirror's half of a TCP connection: whatever is parsed as a segment is rewritten in place or refused, is as long as
/// before, and parses to the new ends.
#[test]
fn a_segment_that_was_rewritten_has_the_new_ends() {
    let to = Ends { source: ([10, 0, 2, 2], 7).into(), destination: ([10, 0, 2, 100], 61000).into() };
    fuzz(&frames(), |bytes, _| {
        let Some(Frame::Packet(packet)) = frame::parse(bytes) else { return };
        let Some(tcp) = frame::tcp(packet.payload).filter(|_| packet.protocol == super::TCP) else { return };
        let from = Ends {
            source: (packet.source, tcp.source_port).into(),
            destination: (packet.destination, tcp.destination_port).into(),
        };
        let plain =
            packet.quote.len() == if packet.source.is_ipv4() { 28 } else { 48 } && packet.fragment.is_none();
        let mut changed = bytes.to_vec();
        let rewritten = rewrite::rewrite(&mut changed, [2; 6], &from, &to);
        assert_eq!(changed.len(), bytes.len());
        if rewritten.is_some() && plain && from.source.is_ipv4() {
            let Some(Frame::Packet(packet)) = frame::parse(&changed) else { panic!("not parsed any more") };
            let tcp = frame::tcp(packet.payload).unwrap();
            assert_eq!((packet.source, tcp.source_port), (to.source.ip(), to.source.port()));
            assert_eq!(
                (packet.destination, tcp.destination_port),
                (to.destination.ip(), to.destination.port())
            );
        }
        let _ = build::reset([2; 6], &from, &tcp);
    });
}

#[test]
fn reassembly_keeps_its_bounds_and_forgets_what_it_gave() {
    let mut reassembly = Reassembly::default();
    let now = Instant::now();
    let mut step = 0_u64;
    fuzz(&frames(), |bytes, dice| {
        let Some(Frame::Packet(mut packet)) = frame::parse(bytes) else { return };
        let more = dice.roll(2) == 0;
        let offset = (dice.roll(64) * 8) as u16;
        packet.fragment = Some(frame::Fragment { id: dice.roll(4) as u32, offset, more });
        step += 1;
        if let Some(whole) = reassembly.add(&packet, now + Duration::from_millis(step)) {
            assert!(whole.len() <= 65535);
        }
        reassembly.check_bounds();
    });
}

#[test]
fn names_are_read_or_refused() {
    let query =
        b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x07example\x00\x00\x01\x00\x01".to_vec();
    let question = dns::question(&query).unwrap();
    let answer = dns::answer(&query, &question, &["10.0.2.2".parse().unwrap()]).unwrap();
    let pointers = [&answer[..12], &[0xc0, 12, 0xc0, 12, 0, 1, 0, 1][..]].concat();
    fuzz(&[query, answer, pointers], |bytes, dice| {
        if let Some(question) = dns::question(bytes) {
            assert!(question.end <= bytes.len() && question.name.len() <= 512);
            let answer =
                dns::answer(bytes, &question, &["10.0.2.2".parse().unwrap(), "fd00::2".parse().unwrap()]);
            assert!(answer.is_some_and(|answer| answer[..2] == bytes[..2] && answer[2] & 0x80 != 0));
        }
        if let Some((_, places)) = dns::lifetimes(bytes) {
            let mut aged = bytes.to_vec();
            dns::age(&mut aged, &places, dice.roll(100) as u32);
            assert_eq!(aged.len(), bytes.len());
        }
        let _ = dns::failure(bytes);
    });
}

#[test]
fn leases_are_of_one_address_whatever_is_asked() {
    let lease = dhcp::tests::lease();
    let samples = [1, 3, 8].map(|kind| dhcp::tests::message(kind, Some(lease.address)));
    fuzz(&samples, |bytes, _| {
        if let Some(message) = dhcp::parse(bytes) {
            let answer = message.answer(&lease);
            assert!(answer[16..20] == lease.address.octets() || answer[16..20] == [0; 4]);
            assert!(answer.len() < 576);
        }
    });
}
