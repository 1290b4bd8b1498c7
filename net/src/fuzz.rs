//! What the parsers and tables that meet a container's bytes promise, each as a target that takes any bytes and panics
//! where a promise is broken. libFuzzer runs them (`net/fuzz`); the unit tests give them its corpus and mutations of that.
//! Built for those two only.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use crate::engine::control;
use crate::engine::mirror::Mirrors;
use crate::engine::ordeal;
use crate::wire::frame::{self, Ends, Fragment, Frame, Packet};
use crate::wire::reassembly::Reassembly;
use crate::wire::{TCP, VNET, build, dhcp, dns, rewrite};

pub type Target = fn(&[u8]);

pub const TARGETS: [(&str, Target); 9] = [
    ("frame", frame),
    ("vnet", vnet),
    ("segment", segment),
    ("reassembly", reassembly),
    ("mirror", mirror),
    ("names", names),
    ("leases", leases),
    ("requests", requests),
    ("engine", engine),
];

/// Gives `bytes` to the target of that name.
pub fn run(name: &str, bytes: &[u8]) {
    for (_, target) in TARGETS.iter().filter(|(known, _)| *known == name) {
        target(bytes);
    }
}

/// A frame never claims more than there is.
fn frame(bytes: &[u8]) {
    let Some(Frame::Packet(packet)) = frame::parse(bytes) else { return };
    assert!(packet.payload.len() <= bytes.len() && packet.quote.len() <= bytes.len());
    if let Some(udp) = frame::udp(packet.payload) {
        assert!(udp.payload.len() + 8 <= packet.payload.len());
    }
    if let Some(tcp) = frame::tcp(packet.payload) {
        assert!(tcp.length as usize <= packet.payload.len());
    }
    let _ = frame::solicited(&packet);
}

/// Of a vnet header only the segment size is believed, and that only of a frame that claims to be of many. The first bytes
/// are a second header for the frame that follows.
fn vnet(bytes: &[u8]) {
    let Some((header, bytes)) = bytes.split_at_checked(VNET) else { return };
    let Some(rest) = bytes.get(VNET..) else { return };
    let other = [header, rest].concat();
    match (frame::parse(bytes), frame::parse(&other)) {
        (None, None) => {}
        (Some(Frame::Packet(one)), Some(Frame::Packet(two))) => {
            let parts = |packet: &Packet<'_>| (packet.source, packet.destination, packet.protocol);
            assert_eq!(parts(&one), parts(&two));
            assert_eq!((one.payload, one.quote), (two.payload, two.quote));
            assert!(two.segment == 0 || header[1] & 0x7f != 0);
        }
        (Some(Frame::ArpRequest { .. }), Some(Frame::ArpRequest { .. })) => {}
        _ => panic!("parsed with one vnet header and not with another"),
    }
}

/// Whatever is parsed as a segment is rewritten in place or refused, is as long as before, and parses to the new ends.
fn segment(bytes: &[u8]) {
    let Some(Frame::Packet(packet)) = frame::parse(bytes) else { return };
    let Some(tcp) = frame::tcp(packet.payload).filter(|_| packet.protocol == TCP) else { return };
    let from = Ends {
        source: (packet.source, tcp.source_port).into(),
        destination: (packet.destination, tcp.destination_port).into(),
    };
    let to = match packet.source {
        IpAddr::V4(_) => {
            Ends { source: ([10, 0, 2, 2], 7).into(), destination: ([10, 0, 2, 100], 61000).into() }
        }
        IpAddr::V6(_) => {
            Ends { source: (Ipv6Addr::from(2), 7).into(), destination: (Ipv6Addr::from(3), 61000).into() }
        }
    };
    let headers = if packet.source.is_ipv4() { 28 } else { 48 };
    let plain = packet.quote.len() == headers && packet.fragment.is_none();
    let mut changed = bytes.to_vec();
    let rewritten = rewrite::rewrite(&mut changed, [2; 6], &from, &to);
    assert_eq!(changed.len(), bytes.len());
    if rewritten.is_some() && plain {
        let Some(Frame::Packet(packet)) = frame::parse(&changed) else { panic!("not parsed any more") };
        let Some(tcp) = frame::tcp(packet.payload) else { panic!("no segment any more") };
        assert_eq!((packet.source, tcp.source_port), (to.source.ip(), to.source.port()));
        assert_eq!((packet.destination, tcp.destination_port), (to.destination.ip(), to.destination.port()));
    }
    let _ = build::reset([2; 6], &from, &tcp);
}

/// Fragments in any order keep the bounds, and a datagram is only ever made of what was sent for it. Each fragment is three
/// bytes of name, place and length, and its payload.
fn reassembly(mut bytes: &[u8]) {
    let (mut reassembly, now) = (Reassembly::default(), Instant::now());
    let mut step = 0_u64;
    while let [name, place, length, rest @ ..] = bytes {
        let payload;
        (payload, bytes) = rest.split_at(usize::from(*length).min(rest.len()));
        // Some are as large as they come.
        let payload = if *length == 255 { payload.repeat(257) } else { payload.to_vec() };
        let scale = if name & 0x80 == 0 { 8 } else { 512 };
        let fragment = Fragment {
            id: u32::from(name & 0x3f),
            offset: u16::from(place >> 1) * scale,
            more: place & 1 != 0,
        };
        let packet = Packet {
            source: Ipv4Addr::new(10, 0, 2, 100).into(),
            destination: Ipv4Addr::new(192, 0, 2, 1).into(),
            protocol: name & 0x40,
            fragment: Some(fragment),
            quote: &[],
            payload: &payload,
            segment: 0,
        };
        step += 1;
        if let Some(whole) = reassembly.add(&packet, now + Duration::from_secs(step / 16)) {
            assert!(whole.len() <= 65535);
            assert!(whole.windows(payload.len()).any(|part| part == payload));
        }
        reassembly.check_bounds();
    }
}

/// The state of mirrored connections: opened, closed and forgotten in any order, a port stands for one connection, and one
/// that is open keeps its port. Each step is two bytes.
fn mirror(bytes: &[u8]) {
    let (mut mirrors, mut now) = (Mirrors::default(), Instant::now());
    let mut open = HashMap::new();
    for step in bytes.chunks_exact(2) {
        let [what, which] = *step else { continue };
        let ends = Ends {
            source: ([10, 0, 2, 100], u16::from(which & 0x3f)).into(),
            destination: ([192, 0, 2, 1], 80).into(),
        };
        match what % 4 {
            0 => {
                let Some(port) = mirrors.open(ends) else { panic!("no port is free") };
                open.insert(ends, port);
            }
            1 => {
                mirrors.close(&ends, now);
                open.remove(&ends);
            }
            2 => now += Duration::from_secs(u64::from(which)),
            _ => mirrors.forget_closed(now),
        }
        mirrors.check_pairs();
        assert!(open.iter().all(|(ends, port)| mirrors.port(ends) == Some(*port)));
    }
}

/// Questions and answers of name servers are read or refused; what is answered is an answer to what was asked.
fn names(bytes: &[u8]) {
    if let Some(question) = dns::question(bytes) {
        assert!(question.end <= bytes.len() && question.name.len() <= 512);
        let addresses = [IpAddr::from([10, 0, 2, 2]), IpAddr::from(Ipv6Addr::from(2))];
        let answer = dns::answer(bytes, &question, &addresses);
        assert!(answer.is_some_and(|answer| answer[..2] == bytes[..2] && answer[2] & 0x80 != 0));
    }
    if let Some((least, places)) = dns::lifetimes(bytes) {
        let mut aged = bytes.to_vec();
        dns::age(&mut aged, &places, least);
        assert_eq!(aged.len(), bytes.len());
    }
    let _ = dns::failure(bytes);
}

/// Every lease is of the container's own address, whatever is asked.
fn leases(bytes: &[u8]) {
    let ip = |last| Ipv4Addr::new(10, 0, 2, last);
    let lease = dhcp::Lease { address: ip(100), prefix: 24, gateway: ip(2), dns: ip(3), mtu: 1500 };
    if let Some(message) = dhcp::parse(bytes) {
        let answer = message.answer(&lease);
        assert!(answer[16..20] == lease.address.octets() || answer[16..20] == [0; 4]);
        assert!(answer.len() < 576);
    }
}

/// What is asked on the API socket is a request or an error, in one piece or in two; the bytes are used up.
fn requests(bytes: &[u8]) {
    control::read_requests(bytes);
}

/// A whole engine between sockets of the loopback's, whatever happens at its ends.
fn engine(bytes: &[u8]) {
    ordeal::endure(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::panic::catch_unwind;

    /// xorshift64*: enough to mutate bytes, the same on each machine.
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, sides: usize) -> usize {
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

    fn corpus(name: &str) -> Vec<Vec<u8>> {
        let folder = format!("{}/fuzz/corpus/{name}", env!("CARGO_MANIFEST_DIR"));
        let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths.iter().map(|path| fs::read(path).unwrap()).collect()
    }

    #[test]
    fn every_target_keeps_its_promise_with_its_corpus_and_with_what_mutations_make_of_it() {
        for (name, target) in TARGETS {
            let samples = corpus(name);
            assert!(samples.len() > 3, "{name} has no corpus");
            let holds = |input: &[u8], what: &dyn Fn() -> String| {
                assert!(catch_unwind(|| target(input)).is_ok(), "{name}, {}: {input:02x?}", what());
            };
            for input in &samples {
                holds(input, &|| "corpus".into());
            }
            for seed in 1..=20_000_u64 {
                let input = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1).mutate(&samples);
                holds(&input, &|| format!("seed {seed}"));
            }
        }
    }
}
