//! Taking a frame apart: `parse` gives a view whose every length has been checked against the bytes that are there, or
//! nothing. It judges form only; what the addresses mean is the caller's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{ETHERNET, ICMP6, VNET};

/// What a frame carries.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    /// Who asks, from which hardware address, for which address.
    ArpRequest {
        mac: [u8; 6],
        sender: Ipv4Addr,
        target: Ipv4Addr,
    },
    Packet(Packet<'a>),
}

/// An IP packet that is whole.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Packet<'a> {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) fragment: Option<Fragment>,
    /// The IP header and up to 8 bytes more, for an ICMP error to quote.
    pub(crate) quote: &'a [u8],
    pub(crate) payload: &'a [u8],
    /// The segment size if the payload is a super-packet.
    pub(crate) segment: u16,
}

/// The place of a part of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fragment {
    pub(crate) id: u32,
    /// In bytes.
    pub(crate) offset: u16,
    pub(crate) more: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Udp<'a> {
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) payload: &'a [u8],
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tcp {
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) sequence: u32,
    pub(crate) acknowledged: u32,
    pub(crate) flags: u8,
    /// How many bytes of payload follow the header and its options.
    pub(crate) length: u32,
}

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;

/// The two ends of a connection as the container has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ends {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

fn chunk<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// The view of one frame, vnet header included. `None` is for frames that are malformed or none of our kinds.
pub(crate) fn parse(frame: &[u8]) -> Option<Frame<'_>> {
    let (vnet, ethernet) = frame.split_at_checked(VNET)?;
    let body = ethernet.get(ETHERNET..)?;
    let segment = if vnet.get(1).is_some_and(|kind| kind & 0x7f != 0) {
        u16::from_ne_bytes(chunk(vnet, 4)?)
    } else {
        0
    };
    match u16_at(ethernet, 12)? {
        0x0806 => arp(body),
        0x0800 => v4(body, segment).map(Frame::Packet),
        0x86dd => v6(body, segment).map(Frame::Packet),
        _ => None,
    }
}

fn arp(body: &[u8]) -> Option<Frame<'static>> {
    // Ethernet, IPv4, 6 and 4 bytes of address, operation 1.
    if body.get(..8)? != [0, 1, 8, 0, 6, 4, 0, 1] {
        return None;
    }
    Some(Frame::ArpRequest {
        mac: chunk(body, 8)?,
        sender: Ipv4Addr::from(chunk::<4>(body, 14)?),
        target: Ipv4Addr::from(chunk::<4>(body, 24)?),
    })
}

fn v4(body: &[u8], segment: u16) -> Option<Packet<'_>> {
    let first = *body.first()?;
    let header = usize::from(first & 0x0f).checked_mul(4)?;
    let total = usize::from(u16_at(body, 2)?);
    if first >> 4 != 4 || header < 20 || total < header {
        return None;
    }
    let whole = body.get(..total)?;
    let place = u16_at(body, 6)?;
    let (offset, more) = ((place & 0x1fff) << 3, place & 0x2000 != 0);
    let id = u32::from(u16_at(body, 4)?);
    Some(Packet {
        source: Ipv4Addr::from(chunk::<4>(body, 12)?).into(),
        destination: Ipv4Addr::from(chunk::<4>(body, 16)?).into(),
        protocol: *body.get(9)?,
        fragment: (offset != 0 || more).then_some(Fragment { id, offset, more }),
        quote: whole.get(..header.checked_add(8)?.min(total))?,
        payload: whole.get(header..)?,
        segment,
    })
}

fn v6(body: &[u8], segment: u16) -> Option<Packet<'_>> {
    if body.first()? >> 4 != 6 {
        return None;
    }
    let total = usize::from(u16_at(body, 4)?).checked_add(40)?;
    let whole = body.get(..total)?;
    let (mut protocol, mut at, mut fragment) = (*body.get(6)?, 40_usize, None);
    // Hop-by-hop, routing and destination options are skipped; more than eight headers are an attack.
    for _ in 0..8 {
        match protocol {
            0 | 43 | 60 => {
                let length = usize::from(*whole.get(at.checked_add(1)?)?).checked_add(1)?.checked_mul(8)?;
                protocol = *whole.get(at)?;
                at = at.checked_add(length)?;
            }
            44 if fragment.is_none() => {
                let place = u16_at(whole, at.checked_add(2)?)?;
                let id = u32_at(whole, at.checked_add(4)?)?;
                fragment = Some(Fragment { id, offset: place & 0xfff8, more: place & 1 != 0 });
                protocol = *whole.get(at)?;
                at = at.checked_add(8)?;
            }
            _ => break,
        }
    }
    Some(Packet {
        source: Ipv6Addr::from(chunk::<16>(body, 8)?).into(),
        destination: Ipv6Addr::from(chunk::<16>(body, 24)?).into(),
        protocol,
        fragment,
        quote: whole.get(..total.min(at.checked_add(8)?))?,
        payload: whole.get(at..)?,
        segment,
    })
}

pub(crate) fn udp(payload: &[u8]) -> Option<Udp<'_>> {
    let length = usize::from(u16_at(payload, 4)?);
    // A super-packet's length field may be 0; the IP length then says it all.
    let end = if length == 0 { payload.len() } else { length };
    Some(Udp {
        source_port: u16_at(payload, 0)?,
        destination_port: u16_at(payload, 2)?,
        payload: payload.get(8..end)?,
    })
}

pub(crate) fn tcp(payload: &[u8]) -> Option<Tcp> {
    let header = usize::from(*payload.get(12)? >> 4).checked_mul(4)?;
    if header < 20 {
        return None;
    }
    Some(Tcp {
        source_port: u16_at(payload, 0)?,
        destination_port: u16_at(payload, 2)?,
        sequence: u32_at(payload, 4)?,
        acknowledged: u32_at(payload, 8)?,
        flags: *payload.get(13)?,
        length: u32::try_from(payload.len().checked_sub(header)?).ok()?,
    })
}

/// The address that a neighbour solicitation asks for.
pub(crate) fn solicited(packet: &Packet<'_>) -> Option<Ipv6Addr> {
    if packet.protocol != ICMP6 || packet.payload.get(..2)? != [135, 0] {
        return None;
    }
    chunk::<16>(packet.payload, 8).map(Ipv6Addr::from)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A frame with an Ethernet header round `body`.
    pub(crate) fn frame(kind: u16, body: &[u8]) -> Vec<u8> {
        [&[0; VNET + 12][..], &kind.to_be_bytes(), body].concat()
    }

    pub(crate) fn v4_packet(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let total = (20 + payload.len()) as u16;
        let [high, low] = total.to_be_bytes();
        [&[0x45, 0, high, low, 0, 7, 0, 0, 64, protocol, 0, 0, 10, 0, 2, 100, 192, 0, 2, 1][..], payload]
            .concat()
    }

    pub(crate) fn v6_packet(next: u8, payload: &[u8]) -> Vec<u8> {
        let [high, low] = (payload.len() as u16).to_be_bytes();
        let mut packet = vec![0x60, 0, 0, 0, high, low, next, 64];
        packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        packet.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        packet.extend(payload);
        packet
    }

    pub(crate) fn samples() -> Vec<Vec<u8>> {
        let udp = [0x10, 0, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4];
        let tcp = [0x10, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 2, 255, 255, 0, 0, 0, 0];
        let solicitation = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &[0xfd; 16]].concat();
        let fragmented = [&[17, 0, 0, 9, 0, 0, 0, 5][..], &udp].concat();
        let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
        arp.extend([2; 20]);
        vec![
            frame(0x0806, &arp),
            frame(0x0800, &v4_packet(17, &udp)),
            frame(0x0800, &v4_packet(6, &tcp)),
            frame(0x86dd, &v6_packet(17, &udp)),
            frame(0x86dd, &v6_packet(6, &tcp)),
            frame(0x86dd, &v6_packet(58, &solicitation)),
            frame(0x86dd, &v6_packet(44, &fragmented)),
            frame(0x86dd, &v6_packet(0, &[[17, 0, 1, 4, 0, 0, 0, 0].as_slice(), &udp].concat())),
        ]
    }

    #[test]
    fn a_frame_cut_off_at_any_byte_is_refused_or_parsed_but_never_read_past() {
        for sample in samples() {
            assert!(parse(&sample).is_some(), "{sample:?}");
            for length in 0..sample.len() {
                let cut = sample.get(..length).unwrap();
                assert!(parse(cut).is_none(), "{length} bytes of {sample:?}");
            }
        }
    }

    #[test]
    fn a_frame_with_any_one_byte_changed_makes_nothing_panic() {
        for sample in samples() {
            for at in 0..sample.len() {
                for value in [0, 1, 0x0f, 0x45, 0x4f, 0x60, 0x7f, 0x80, 0xff] {
                    let mut changed = sample.clone();
                    *changed.get_mut(at).unwrap() = value;
                    if let Some(Frame::Packet(packet)) = parse(&changed) {
                        let _ = (udp(packet.payload), tcp(packet.payload), solicited(&packet));
                    }
                }
            }
        }
    }

    #[test]
    fn a_datagram_shorter_than_it_claims_is_refused() {
        assert_eq!(udp(&[0, 1, 0, 2, 0, 9, 0, 0]), None);
        assert_eq!(udp(&[0, 1, 0, 2, 0, 7, 0, 0]), None);
        assert_eq!(udp(&[0, 1, 0, 2, 0, 8, 0, 0]).map(|udp| udp.payload.len()), Some(0));
    }
}
