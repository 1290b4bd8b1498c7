//! Changing the ends of a TCP frame in place, for the mirror: addresses, ports, hardware addresses and what the checksums
//! say about them. The payload is not touched, not even read.

use std::net::{IpAddr, SocketAddr};

use super::frame::Ends;
use super::{ENGINE_MAC, ETHERNET, NEEDS_CSUM, VNET, fold, sum};

/// Gives the TCP frame the ends `to`, addressed to `mac`. The frame must have been parsed as whole, with ends `from`.
pub(crate) fn rewrite(frame: &mut [u8], mac: [u8; 6], from: &Ends, to: &Ends) -> Option<()> {
    let partial = frame.first()? & NEEDS_CSUM != 0;
    readdress(frame, mac)?;
    let body = frame.get_mut(VNET.checked_add(ETHERNET)?..)?;
    let header = match (to.source, to.destination) {
        (SocketAddr::V4(source), SocketAddr::V4(destination)) => {
            let change = difference(&address_bytes(from), &address_bytes(to));
            apply(body.get_mut(10..12)?, change, false)?;
            body.get_mut(12..16)?.copy_from_slice(&source.ip().octets());
            body.get_mut(16..20)?.copy_from_slice(&destination.ip().octets());
            usize::from(body.first()? & 0x0f).checked_mul(4)?
        }
        (SocketAddr::V6(source), SocketAddr::V6(destination)) => {
            body.get_mut(8..24)?.copy_from_slice(&source.ip().octets());
            body.get_mut(24..40)?.copy_from_slice(&destination.ip().octets());
            40
        }
        _ => return None,
    };
    let segment = body.get_mut(header..)?;
    // A partial checksum covers the pseudo header only, which has no ports.
    let mut change = difference(&address_bytes(from), &address_bytes(to));
    if !partial {
        change = change.wrapping_add(difference(&port_bytes(from), &port_bytes(to)));
    }
    apply(segment.get_mut(16..18)?, change, partial)?;
    segment.get_mut(..4)?.copy_from_slice(&port_bytes(to));
    Some(())
}

/// Turns a frame that the container sent round, so that it arrives there.
pub(crate) fn readdress(frame: &mut [u8], mac: [u8; 6]) -> Option<()> {
    let ethernet = frame.get_mut(VNET..)?;
    ethernet.get_mut(..6)?.copy_from_slice(&mac);
    ethernet.get_mut(6..12)?.copy_from_slice(&ENGINE_MAC);
    // Only the checksum flag may go back: the others are the kernel's word to us.
    let flags = frame.first_mut()?;
    *flags &= NEEDS_CSUM;
    Some(())
}

fn address_bytes(ends: &Ends) -> Vec<u8> {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    [octets(ends.source.ip()), octets(ends.destination.ip())].concat()
}

fn port_bytes(ends: &Ends) -> [u8; 4] {
    let ([a, b], [c, d]) = (ends.source.port().to_be_bytes(), ends.destination.port().to_be_bytes());
    [a, b, c, d]
}

/// What replacing `old` by `new` adds to a ones' complement sum (RFC 1624).
fn difference(old: &[u8], new: &[u8]) -> u64 {
    u64::from(!fold(sum(old))).wrapping_add(sum(new))
}

fn apply(field: &mut [u8], change: u64, partial: bool) -> Option<()> {
    let value = u16::from_be_bytes(*field.first_chunk()?);
    let before = if partial { value } else { !value };
    let after = fold(u64::from(before).wrapping_add(change));
    field.copy_from_slice(&if partial { after } else { !after }.to_be_bytes());
    Some(())
}

#[cfg(test)]
mod tests {
    use super::super::frame::tests::{frame, v4_packet, v6_packet};
    use super::super::{TCP, build::pseudo};
    use super::*;

    fn ends(source: &str, destination: &str) -> Ends {
        Ends { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    fn segment(source: u16, destination: u16) -> Vec<u8> {
        let ([a, b], [c, d]) = (source.to_be_bytes(), destination.to_be_bytes());
        vec![a, b, c, d, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 255, 255, 0, 0, 0, 0, 0xde, 0xad, 0xbe]
    }

    fn checksum(ends: &Ends, segment: &[u8]) -> u16 {
        let whole = pseudo(ends.source.ip(), ends.destination.ip(), TCP, segment.len());
        fold(whole.wrapping_add(sum(segment)))
    }

    #[test]
    fn a_rewritten_frame_has_right_checksums() {
        let cases = [
            (ends("10.0.2.100:4096", "192.0.2.1:80"), ends("10.0.2.2:7", "10.0.2.100:61000"), 0x0800, 20),
            (
                ends("[fd00::100]:4096", "[2001:db8::1]:80"),
                ends("[fd00::2]:7", "[fd00::100]:61000"),
                0x86dd,
                40,
            ),
        ];
        for (from, to, kind, header) in cases {
            let mut tcp = segment(4096, 80);
            let sum_of = |ends: &Ends, tcp: &[u8]| (!checksum(ends, tcp)).to_be_bytes();
            let (addressed, unsummed) = (from, tcp.clone());
            tcp[16..18].copy_from_slice(&sum_of(&addressed, &unsummed));
            let mut bytes = match kind {
                0x0800 => frame(kind, &v4_packet(TCP, &tcp)),
                _ => frame(kind, &v6_packet(TCP, &tcp)),
            };
            rewrite(&mut bytes, [2; 6], &from, &to).unwrap();
            assert_eq!(checksum(&to, &bytes[VNET + ETHERNET + header..]), 0xffff);
        }
    }

    #[test]
    fn a_partial_checksum_stays_the_sum_of_the_pseudo_header() {
        let (from, to) = (ends("10.0.2.100:4096", "192.0.2.1:80"), ends("10.0.2.2:7", "10.0.2.100:61000"));
        let mut tcp = segment(4096, 80);
        let before = fold(pseudo(from.source.ip(), from.destination.ip(), TCP, tcp.len()));
        tcp[16..18].copy_from_slice(&before.to_be_bytes());
        let mut bytes = frame(0x0800, &v4_packet(TCP, &tcp));
        bytes[0] = NEEDS_CSUM;
        rewrite(&mut bytes, [2; 6], &from, &to).unwrap();
        let after = fold(pseudo(to.source.ip(), to.destination.ip(), TCP, tcp.len()));
        assert_eq!(bytes[VNET + ETHERNET + 20 + 16..][..2], after.to_be_bytes());
    }
}
