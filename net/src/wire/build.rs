//! Putting frames together: answers to ARP and neighbour solicitations, datagrams, resets, ICMP errors and echo replies.
//! Transport checksums of datagrams are left to the kernel by `NEEDS_CSUM`, so payloads are not summed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::frame::{ACK, Ends, FIN, Packet, RST, SYN, Tcp};
use super::{ENGINE_MAC, ETHERNET, ICMP, ICMP6, NEEDS_CSUM, TCP, UDP, VNET, fold, sum};

/// The bytes in front of a datagram's payload, at most.
pub(crate) const HEADROOM: usize = 10 + 14 + 40 + 8;

fn ethernet(frame: &mut Vec<u8>, mac: [u8; 6], kind: u16) {
    frame.extend_from_slice(&mac);
    frame.extend_from_slice(&ENGINE_MAC);
    frame.extend_from_slice(&kind.to_be_bytes());
}

fn vnet(flags: u8, start: usize, offset: u16) -> [u8; VNET] {
    let [a, b] = (start as u16).to_ne_bytes();
    let [c, d] = offset.to_ne_bytes();
    [flags, 0, 0, 0, 0, 0, a, b, c, d]
}

/// The IP header for `length` bytes of `protocol`. `None` if they are more than a packet holds or the families differ.
fn ip(frame: &mut Vec<u8>, from: IpAddr, to: IpAddr, protocol: u8, length: usize) -> Option<()> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let [high, low] = u16::try_from(length.checked_add(20)?).ok()?.to_be_bytes();
            let mut header = [0x45, 0, high, low, 0, 0, 0x40, 0, 64, protocol, 0, 0];
            let total = sum(&header).wrapping_add(sum(&from.octets())).wrapping_add(sum(&to.octets()));
            let [a, b] = (!fold(total)).to_be_bytes();
            let [.., c, d] = &mut header;
            (*c, *d) = (a, b);
            frame.extend_from_slice(&header);
            frame.extend_from_slice(&from.octets());
            frame.extend_from_slice(&to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let [high, low] = u16::try_from(length).ok()?.to_be_bytes();
            frame.extend_from_slice(&[0x60, 0, 0, 0, high, low, protocol, 64]);
            frame.extend_from_slice(&from.octets());
            frame.extend_from_slice(&to.octets());
        }
        _ => return None,
    }
    Some(())
}

/// The sum of the pseudo header.
pub(crate) fn pseudo(from: IpAddr, to: IpAddr, protocol: u8, length: usize) -> u64 {
    let address = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => sum(&ip.octets()),
        IpAddr::V6(ip) => sum(&ip.octets()),
    };
    let length = length as u64;
    address(from).wrapping_add(address(to)).wrapping_add(u64::from(protocol)).wrapping_add(length)
}

fn ether_type(ip: &IpAddr) -> u16 {
    if ip.is_ipv4() { 0x0800 } else { 0x86dd }
}

fn ip_length(ip: &IpAddr) -> usize {
    if ip.is_ipv4() { 20 } else { 40 }
}

/// Has the kernel cut a datagram in fragments that is larger than the device takes (`VIRTIO_NET_HDR_GSO_UDP`). A TAP device
/// takes it whole, a packet socket refuses it.
pub(crate) fn cut(head: &mut [u8], from: &IpAddr, length: usize, mtu: u32) -> Option<()> {
    let header = ip_length(from);
    let mtu = usize::try_from(mtu).ok()?;
    if length.checked_add(8)?.checked_add(header)? <= mtu {
        return Some(());
    }
    // IPv6 has a header of its own for a fragment; what is in one is a multiple of 8.
    let fragment = if from.is_ipv4() { 0 } else { 8 };
    let size = u16::try_from(mtu.checked_sub(header)?.checked_sub(fragment)? & !7).ok()?;
    let headers = u16::try_from(ETHERNET.checked_add(header)?.checked_add(8)?).ok()?;
    *head.get_mut(1)? = 3;
    head.get_mut(2..4)?.copy_from_slice(&headers.to_ne_bytes());
    head.get_mut(4..6)?.copy_from_slice(&size.to_ne_bytes());
    Some(())
}

/// The headers of a datagram with `length` bytes of payload, to be written in front of them.
pub(crate) fn udp_head(mac: [u8; 6], from: SocketAddr, to: SocketAddr, length: usize) -> Option<Vec<u8>> {
    let mut frame = Vec::with_capacity(HEADROOM);
    let start = ETHERNET.checked_add(ip_length(&from.ip()))?;
    let whole = length.checked_add(8)?;
    frame.extend_from_slice(&vnet(NEEDS_CSUM, start, 6));
    ethernet(&mut frame, mac, ether_type(&from.ip()));
    ip(&mut frame, from.ip(), to.ip(), UDP, whole)?;
    frame.extend_from_slice(&from.port().to_be_bytes());
    frame.extend_from_slice(&to.port().to_be_bytes());
    frame.extend_from_slice(&u16::try_from(whole).ok()?.to_be_bytes());
    frame.extend_from_slice(&fold(pseudo(from.ip(), to.ip(), UDP, whole)).to_be_bytes());
    Some(frame)
}

/// The reset that refuses `tcp`, or `None` for a segment that is one itself.
pub(crate) fn reset(mac: [u8; 6], ends: &Ends, tcp: &Tcp) -> Option<Vec<u8>> {
    if tcp.flags & RST != 0 {
        return None;
    }
    let (from, to) = (ends.destination, ends.source);
    let mut frame = Vec::with_capacity(HEADROOM.checked_add(12)?);
    let start = ETHERNET.checked_add(ip_length(&from.ip()))?;
    frame.extend_from_slice(&vnet(NEEDS_CSUM, start, 16));
    ethernet(&mut frame, mac, ether_type(&from.ip()));
    ip(&mut frame, from.ip(), to.ip(), TCP, 20)?;
    frame.extend_from_slice(&from.port().to_be_bytes());
    frame.extend_from_slice(&to.port().to_be_bytes());
    let counted = tcp.length.wrapping_add(u32::from(tcp.flags & (SYN | FIN) != 0));
    let (sequence, acknowledged, flags) = if tcp.flags & ACK != 0 {
        (tcp.acknowledged, 0, RST)
    } else {
        (0, tcp.sequence.wrapping_add(counted), RST | ACK)
    };
    frame.extend_from_slice(&sequence.to_be_bytes());
    frame.extend_from_slice(&acknowledged.to_be_bytes());
    frame.extend_from_slice(&[0x50, flags, 0, 0]);
    frame.extend_from_slice(&fold(pseudo(from.ip(), to.ip(), TCP, 20)).to_be_bytes());
    frame.extend_from_slice(&[0, 0]);
    Some(frame)
}

/// Why a packet could not be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreachable {
    Network,
    Host,
    Port,
    Prohibited,
    TooBig(u16),
}

/// The ICMP error from `router` about the packet that `quote` starts.
pub(crate) fn unreachable(
    mac: [u8; 6],
    router: IpAddr,
    to: IpAddr,
    why: Unreachable,
    quote: &[u8],
) -> Option<Vec<u8>> {
    let (kind, code, extra) = match (router, why) {
        (IpAddr::V4(_), Unreachable::Network) => (3, 0, 0),
        (IpAddr::V4(_), Unreachable::Host) => (3, 1, 0),
        (IpAddr::V4(_), Unreachable::Port) => (3, 3, 0),
        (IpAddr::V4(_), Unreachable::Prohibited) => (3, 13, 0),
        (IpAddr::V4(_), Unreachable::TooBig(mtu)) => (3, 4, u32::from(mtu)),
        (IpAddr::V6(_), Unreachable::Network) => (1, 0, 0),
        (IpAddr::V6(_), Unreachable::Host) => (1, 3, 0),
        (IpAddr::V6(_), Unreachable::Port) => (1, 4, 0),
        (IpAddr::V6(_), Unreachable::Prohibited) => (1, 1, 0),
        (IpAddr::V6(_), Unreachable::TooBig(mtu)) => (2, 0, u32::from(mtu)),
    };
    let mut message = vec![kind, code, 0, 0];
    message.extend_from_slice(&extra.to_be_bytes());
    message.extend_from_slice(quote);
    icmp(mac, router, to, message)
}

/// Sums an ICMP message (whose checksum field is zero) and wraps it into a frame.
pub(crate) fn icmp(mac: [u8; 6], from: IpAddr, to: IpAddr, mut message: Vec<u8>) -> Option<Vec<u8>> {
    let protocol = if from.is_ipv4() { ICMP } else { ICMP6 };
    let mut total = sum(&message);
    if from.is_ipv6() {
        total = total.wrapping_add(pseudo(from, to, protocol, message.len()));
    }
    let checksum = (!fold(total)).to_be_bytes();
    message.get_mut(2..4)?.copy_from_slice(&checksum);
    let mut frame = Vec::with_capacity(HEADROOM.checked_add(message.len())?);
    frame.extend_from_slice(&[0; VNET]);
    ethernet(&mut frame, mac, ether_type(&from));
    ip(&mut frame, from, to, protocol, message.len())?;
    frame.extend_from_slice(&message);
    Some(frame)
}

/// The headers of the datagram from `source` to `destination` as an ICMP error quotes them.
pub(crate) fn quoted_udp(source: SocketAddr, destination: SocketAddr) -> Option<Vec<u8>> {
    let mut quote = Vec::with_capacity(48);
    ip(&mut quote, source.ip(), destination.ip(), UDP, 8)?;
    quote.extend_from_slice(&source.port().to_be_bytes());
    quote.extend_from_slice(&destination.port().to_be_bytes());
    quote.extend_from_slice(&[0, 8, 0, 0]);
    Some(quote)
}

pub(crate) fn arp_reply(mac: [u8; 6], asked: Ipv4Addr, asker: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0; VNET];
    ethernet(&mut frame, mac, 0x0806);
    frame.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0, 2]);
    frame.extend_from_slice(&ENGINE_MAC);
    frame.extend_from_slice(&asked.octets());
    frame.extend_from_slice(&mac);
    frame.extend_from_slice(&asker.octets());
    frame
}

/// The advertisement that answers the solicitation `packet` for `asked`.
pub(crate) fn neighbour_advertisement(mac: [u8; 6], asked: Ipv6Addr, packet: &Packet<'_>) -> Option<Vec<u8>> {
    // Solicited and override, then the target and our link-layer address.
    let mut message = vec![136, 0, 0, 0, 0x60, 0, 0, 0];
    message.extend_from_slice(&asked.octets());
    message.extend_from_slice(&[2, 1]);
    message.extend_from_slice(&ENGINE_MAC);
    let mut frame = icmp(mac, asked.into(), packet.source, message)?;
    // Neighbour discovery is taken from the link alone, which a hop limit of 255 proves.
    *frame.get_mut(VNET.checked_add(ETHERNET)?.checked_add(7)?)? = 255;
    Some(frame)
}

/// The advertisement that answers a router solicitation: the way out, the network, its MTU and the name server. Nobody is
/// asked to choose an address, for the container has one.
pub(crate) fn router_advertisement(
    mac: [u8; 6],
    to: IpAddr,
    (network, prefix): (Ipv6Addr, u8),
    dns: Ipv6Addr,
    mtu: u32,
) -> Option<Vec<u8>> {
    // Hop limit 64, no flags, a router for 9000 seconds.
    let mut message = vec![134, 0, 0, 0, 64, 0, 0x23, 0x28, 0, 0, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(&[1, 1]);
    message.extend_from_slice(&ENGINE_MAC);
    message.extend_from_slice(&[5, 1, 0, 0]);
    message.extend_from_slice(&mtu.to_be_bytes());
    // On this link, for ever.
    message.extend_from_slice(&[3, 4, prefix, 0x80]);
    message.extend_from_slice(&[0xff; 8]);
    message.extend_from_slice(&[0; 4]);
    message.extend_from_slice(&network.octets());
    message.extend_from_slice(&[25, 3, 0, 0, 0, 0, 0x23, 0x28]);
    message.extend_from_slice(&dns.octets());
    let to = if to.is_unspecified() { Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).into() } else { to };
    let mut frame = icmp(mac, ROUTER.into(), to, message)?;
    *frame.get_mut(VNET.checked_add(ETHERNET)?.checked_add(7)?)? = 255;
    Some(frame)
}

/// The engine's link-local address, as a router has to have one.
const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

#[cfg(test)]
mod tests {
    use super::super::frame::{self, Frame};
    use super::*;

    #[test]
    fn a_datagram_that_was_built_is_parsed_to_what_it_was_built_from() {
        for (from, to) in [("192.0.2.1:53", "10.0.2.100:4096"), ("[2001:db8::1]:53", "[fd00::100]:4096")] {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            let mut bytes = udp_head([2; 6], from, to, 3).unwrap();
            bytes.extend([1, 2, 3]);
            let Some(Frame::Packet(packet)) = frame::parse(&bytes) else { panic!("not parsed") };
            let udp = frame::udp(packet.payload).unwrap();
            assert_eq!((packet.source, udp.source_port), (from.ip(), from.port()));
            assert_eq!((packet.destination, udp.destination_port), (to.ip(), to.port()));
            assert_eq!(udp.payload, [1, 2, 3]);
        }
    }

    #[test]
    fn a_datagram_too_long_for_a_packet_is_not_built() {
        let (from, to) = ("192.0.2.1:53".parse().unwrap(), "10.0.2.100:4096".parse().unwrap());
        assert!(udp_head([2; 6], from, to, 65507).is_some());
        assert!(udp_head([2; 6], from, to, 65508).is_none());
    }

    #[test]
    fn a_reset_is_never_answered_with_a_reset() {
        let ends =
            Ends { source: "10.0.2.100:1".parse().unwrap(), destination: "192.0.2.1:2".parse().unwrap() };
        let mut tcp =
            Tcp { source_port: 1, destination_port: 2, sequence: 7, acknowledged: 9, flags: SYN, length: 0 };
        assert!(reset([2; 6], &ends, &tcp).is_some());
        tcp.flags = RST | ACK;
        assert_eq!(reset([2; 6], &ends, &tcp), None);
    }
}
