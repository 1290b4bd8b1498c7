//! The container's interface from the other side: frames are read, sorted by what they carry, and answered. It decides
//! nothing about flows; streams and datagrams do.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::{Engine, Room};
use crate::sys::stream;
use crate::wire::build::{self, Unreachable};
use crate::wire::frame::{self, Ends, Frame, Packet};
use crate::wire::{self, ICMP, ICMP6, TCP, UDP, dhcp};

/// When an ICMP error is repeated, and how many wait for that at most.
const AGAIN: Duration = Duration::from_millis(3);
const REPEATED: usize = 64;

/// Frames taken in one go, so that a flood on the device does not starve the sockets.
const TURN: usize = 128;

impl Engine {
    pub(super) fn read_device(&mut self) {
        let mut buffer = std::mem::take(&mut self.scratch);
        for _ in 0..TURN {
            match stream::read(&self.device, &mut buffer) {
                Ok(Some(length)) => {
                    let Some(frame) = buffer.get_mut(..length) else { break };
                    if let Some(pcap) = &mut self.pcap {
                        pcap.record(frame);
                    }
                    self.frame(frame);
                }
                // A device that is down or gone has nothing to say until epoll says otherwise.
                Ok(None) | Err(_) => break,
            }
        }
        self.scratch = buffer;
    }

    /// Writes a frame. A full or vanished device drops it, as a wire would.
    pub(super) fn write_device(&mut self, frame: &[u8]) {
        if let Some(pcap) = &mut self.pcap {
            pcap.record(frame);
        }
        let _ = stream::write(&self.device, frame);
    }

    fn frame(&mut self, bytes: &mut [u8]) {
        match frame::parse(bytes) {
            None => self.counters.malformed += 1,
            Some(Frame::ArpRequest { mac, sender, target }) => {
                let ours = self.config.address(&target.into()) == Some(target.into());
                if !ours && self.config.is_on_link(&target.into()) {
                    self.write_device(&build::arp_reply(mac, target, sender));
                }
            }
            Some(Frame::Packet(packet)) => {
                let tcp = frame::tcp(packet.payload)
                    .filter(|_| packet.protocol == TCP && packet.fragment.is_none());
                let Some(tcp) = tcp else { return self.packet(&packet) };
                let source = (packet.source, tcp.source_port).into();
                let destination = (packet.destination, tcp.destination_port).into();
                // Only headers without options in between can be rewritten in place.
                let plain = packet.quote.len() == if packet.source.is_ipv4() { 28 } else { 48 };
                self.segment(Ends { source, destination }, &tcp, plain, bytes);
            }
        }
    }

    fn packet(&mut self, packet: &Packet<'_>) {
        if packet.fragment.is_some() {
            if let Some(payload) = self.fragments.add(packet, self.now) {
                self.packet(&Packet { fragment: None, payload: &payload, ..*packet });
            }
            return;
        }
        if let Some(asked) = frame::solicited(packet) {
            return self.solicitation(packet, asked.into());
        }
        if self.lease(packet) || self.route(packet) {
            return;
        }
        if Some(packet.source) != self.config.address(&packet.source) {
            self.counters.malformed += 1;
            return;
        }
        match packet.protocol {
            UDP => match frame::udp(packet.payload) {
                Some(udp) => self.datagram(packet, &udp),
                None => self.counters.malformed += 1,
            },
            ICMP | ICMP6 => self.echo(packet),
            _ => self.unreachable(packet.source, packet.destination, Unreachable::Prohibited, packet.quote),
        }
    }

    /// Answers a DHCP client. False if the packet is none of its messages.
    fn lease(&mut self, packet: &Packet<'_>) -> bool {
        let Some(net) = self.config.v4.filter(|_| packet.protocol == UDP && packet.source.is_ipv4()) else {
            return false;
        };
        let Some(udp) = frame::udp(packet.payload).filter(|udp| udp.destination_port == 67) else {
            return false;
        };
        let Some(message) = dhcp::parse(udp.payload) else { return false };
        let mtu = u16::try_from(self.config.mtu).unwrap_or(u16::MAX);
        let lease =
            dhcp::Lease { address: net.address, prefix: net.prefix, gateway: net.gateway, dns: net.dns, mtu };
        let answer = message.answer(&lease);
        // A client that has no address yet hears what is for everybody.
        let to = if packet.source.is_unspecified() { Ipv4Addr::BROADCAST.into() } else { packet.source };
        let (from, to) = (SocketAddr::new(net.gateway.into(), 67), SocketAddr::new(to, 68));
        if let Some(head) = build::udp_head(self.facts.mac, from, to, answer.len()) {
            self.write_device(&[head, answer].concat());
        }
        true
    }

    /// Answers a router solicitation. False if the packet is none.
    fn route(&mut self, packet: &Packet<'_>) -> bool {
        let Some(net) = self.config.v6.filter(|_| packet.protocol == ICMP6) else { return false };
        if packet.payload.first_chunk() != Some(&[133, 0]) {
            return false;
        }
        let shift = 128_u32.saturating_sub(net.prefix.into());
        let network = u128::from(net.address) & u128::MAX.checked_shl(shift).unwrap_or(0);
        let network = (Ipv6Addr::from(network), net.prefix);
        let answer =
            build::router_advertisement(self.facts.mac, packet.source, network, net.dns, self.config.mtu);
        if let Some(frame) = answer {
            self.write_device(&frame);
        }
        true
    }

    fn solicitation(&mut self, packet: &Packet<'_>, asked: IpAddr) {
        let IpAddr::V6(target) = asked else { return };
        let ours = self.config.address(&asked) == Some(asked) || packet.source.is_unspecified();
        let link_local = target.is_unicast_link_local();
        if !ours
            && (link_local || self.config.is_on_link(&asked))
            && let Some(frame) = build::neighbour_advertisement(self.facts.mac, target, packet)
        {
            self.write_device(&frame);
        }
    }

    /// Tells the container that a packet of its did not get through. Multicast and broadcast are never answered.
    pub(super) fn unreachable(
        &mut self,
        source: IpAddr,
        destination: IpAddr,
        why: Unreachable,
        quote: &[u8],
    ) {
        let broadcast = matches!(destination, IpAddr::V4(ip) if ip.is_broadcast());
        if destination.is_multicast() || broadcast || Some(source) != self.config.address(&source) {
            return;
        }
        let Some(router) = self.config.gateway(&source) else { return };
        if let Some(frame) = build::unreachable(self.facts.mac, router, source, why, quote) {
            self.write_device(&frame);
            if self.again.len() < REPEATED {
                self.again.push_back((self.now + AGAIN, frame));
                self.timers.add(self.now + AGAIN, Room::Device.alone());
            }
        }
    }

    /// Says again what was said before. A kernel drops an ICMP error that comes while `connect` still holds the socket, and
    /// we are often that fast; without a second one the container would wait a second for its next SYN.
    pub(super) fn repeat_due(&mut self) {
        while let Some((at, _)) = self.again.front()
            && *at <= self.now
            && let Some((_, frame)) = self.again.pop_front()
        {
            self.write_device(&frame);
        }
    }

    /// What an error of a host socket means to the container.
    pub(super) fn meaning(error: &std::io::Error) -> Unreachable {
        match error.raw_os_error() {
            Some(libc::ENETUNREACH | libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL) => Unreachable::Network,
            Some(libc::ECONNREFUSED) => Unreachable::Port,
            Some(libc::EACCES | libc::EPERM) => Unreachable::Prohibited,
            _ => Unreachable::Host,
        }
    }
}

/// Where the payload of a datagram is put in the scratch buffer, so that its headers fit in front.
pub(super) const PAYLOAD: usize = wire::build::HEADROOM;
