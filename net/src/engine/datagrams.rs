//! Datagrams: UDP that the container sends, ICMP echo, and the answers that published UDP services give. One connected host
//! socket a flow, so that the host's kernel sorts answers and errors; a flow that is silent for long enough is forgotten.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::device::PAYLOAD;
use super::table::Key;
use super::{Engine, Room};
use crate::sys::{socket, stream};
use crate::wire::ICMP;
use crate::wire::build::{self, Unreachable};
use crate::wire::frame::{Ends, Packet, Udp};

/// How long a flow may be silent: after a first datagram, and when both sides have spoken.
const QUESTION: Duration = Duration::from_secs(30);
pub(super) const TALK: Duration = Duration::from_secs(120);
/// Datagrams taken from one flow in one go.
const TURN: usize = 64;

/// What makes two datagrams belong to one flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum FlowName {
    Udp(Ends),
    Echo { source: IpAddr, destination: IpAddr, id: u16 },
    Client { port: Key, peer: SocketAddr, local: IpAddr },
}

pub(crate) struct Flow {
    pub(super) name: FlowName,
    pub(super) socket: OwnedFd,
    pub(super) touched: Instant,
    pub(super) patience: Duration,
}

impl Engine {
    /// A datagram of the container.
    pub(super) fn datagram(&mut self, packet: &Packet<'_>, udp: &Udp<'_>) {
        let source = SocketAddr::new(packet.source, udp.source_port);
        let destination = SocketAddr::new(packet.destination, udp.destination_port);
        let ends = Ends { source, destination };
        if self.config.is_dns(&destination.ip()) && destination.port() == 53 {
            return self.name_datagram(ends, udp.payload);
        }
        let name = FlowName::Udp(ends);
        let key = match self.flow_by_name.get(&name) {
            Some(key) => *key,
            None => match self.open_datagram(name, destination) {
                Ok(key) => key,
                Err(why) => return self.unreachable(source.ip(), destination.ip(), why, packet.quote),
            },
        };
        self.send_up(key, udp.payload, usize::from(packet.segment), packet.quote);
    }

    fn open_datagram(&mut self, name: FlowName, destination: SocketAddr) -> Result<Key, Unreachable> {
        let target = self.host_target(destination).map_err(|_| Unreachable::Prohibited)?;
        if !self.has_room(1) {
            return Err(Unreachable::Host);
        }
        let open = || -> io::Result<OwnedFd> {
            let made = socket::socket(&target.ip(), libc::SOCK_DGRAM)?;
            report_errors(&made, &target.ip())?;
            socket::connect(&made, &target)?;
            Ok(made)
        };
        let socket = open().map_err(|error| Self::meaning(&error))?;
        self.counters.datagram_flows += 1;
        self.add_flow(Flow { name, socket, touched: self.now, patience: QUESTION })
            .map_err(|_| Unreachable::Host)
    }

    pub(super) fn add_flow(&mut self, flow: Flow) -> io::Result<Key> {
        let (name, deadline) = (flow.name, flow.touched + flow.patience);
        let key = self.flows.insert(flow);
        if let Some(flow) = self.flows.get(key) {
            self.epoll.add(&flow.socket, libc::EPOLLIN, Room::Flow.number(key))?;
        }
        self.flow_by_name.insert(name, key);
        self.timers.add(deadline, Room::Flow.number(key));
        Ok(key)
    }

    /// Sends a payload, or each segment of a super-packet.
    fn send_up(&mut self, key: Key, payload: &[u8], segment: usize, quote: &[u8]) {
        let Some(flow) = self.flows.entry(key) else { return };
        flow.touched = self.now;
        let name = flow.name;
        if !self.up.admit(payload.len(), self.now) {
            return;
        }
        self.counters.bytes_up += payload.len() as u64;
        let size = if segment == 0 { payload.len().max(1) } else { segment };
        let mut rest = payload;
        loop {
            let (now, later) = rest.split_at_checked(size).unwrap_or((rest, &[]));
            match stream::send(&flow.socket, now) {
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                    let FlowName::Udp(ends) = name else { return };
                    return self.unreachable(
                        ends.source.ip(),
                        ends.destination.ip(),
                        Unreachable::TooBig(1280),
                        quote,
                    );
                }
                // An earlier datagram's error; its report is in the error queue and goes back from there.
                Err(_) => drop(stream::send(&flow.socket, now)),
                Ok(_) => {}
            }
            if later.is_empty() {
                return;
            }
            rest = later;
        }
    }

    pub(super) fn flow_event(&mut self, key: Key, flags: i32) {
        if flags & libc::EPOLLERR != 0 {
            self.flow_errors(key);
        }
        let mut buffer = std::mem::take(&mut self.scratch);
        for _ in 0..TURN {
            let Some(flow) = self.flows.entry(key) else { break };
            let Some(room) = buffer.get_mut(PAYLOAD..) else { break };
            let Ok(Some(length)) = stream::recv(&flow.socket, room, 0) else { break };
            (flow.touched, flow.patience) = (self.now, TALK);
            let name = flow.name;
            match name {
                FlowName::Udp(ends) => self.send_down(&ends, &mut buffer, length),
                FlowName::Echo { .. } => {
                    self.echo_reply(&name, buffer.get(PAYLOAD..PAYLOAD + length).unwrap_or(&[]))
                }
                FlowName::Client { .. } => {
                    self.answer_client(&name, buffer.get(PAYLOAD..PAYLOAD + length).unwrap_or(&[]))
                }
            }
        }
        self.scratch = buffer;
    }

    /// Puts headers in front of the payload at `PAYLOAD` and writes the frame.
    fn send_down(&mut self, ends: &Ends, buffer: &mut [u8], length: usize) {
        if !self.down.admit(length, self.now) {
            return;
        }
        let Some(mut head) = build::udp_head(self.facts.mac, ends.destination, ends.source, length) else {
            return;
        };
        let _ = build::cut(&mut head, &ends.destination.ip(), length, self.config.mtu);
        let start = PAYLOAD - head.len();
        if let Some(place) = buffer.get_mut(start..PAYLOAD) {
            place.copy_from_slice(&head);
        }
        if let Some(frame) = buffer.get(start..PAYLOAD + length) {
            self.counters.bytes_down += length as u64;
            self.write_device(frame);
        }
    }

    /// Datagrams that did not arrive: the container is told in ICMP's words.
    fn flow_errors(&mut self, key: Key) {
        for _ in 0..TURN {
            let Some(flow) = self.flows.get(key) else { return };
            let name = flow.name;
            let Some(reported) = socket::recv_error(&flow.socket) else { break };
            let FlowName::Udp(ends) = name else { continue };
            let why = match reported.errno {
                libc::EMSGSIZE => Unreachable::TooBig(u16::try_from(reported.extra).unwrap_or(u16::MAX)),
                errno => Self::meaning(&io::Error::from_raw_os_error(errno)),
            };
            if reported.icmp.is_none() && why == Unreachable::Host {
                continue;
            }
            if let Some(quote) = build::quoted_udp(ends.source, ends.destination) {
                self.unreachable(ends.source.ip(), ends.destination.ip(), why, &quote);
            }
        }
        // An error that is pending on the socket itself would wake us for ever.
        if let Some(flow) = self.flows.get(key) {
            let _ = socket::pending_error(&flow.socket);
        }
    }

    pub(super) fn flow_deadline(&mut self, key: Key) {
        let Some(flow) = self.flows.get(key) else { return };
        let deadline = flow.touched + flow.patience;
        if deadline > self.now {
            return self.timers.add(deadline, Room::Flow.number(key));
        }
        self.flow_by_name.remove(&flow.name);
        self.flows.remove(key);
    }

    /// An echo request. The engine answers for its own addresses; the rest goes out by a ping socket if the host lets users
    /// have one, and is refused otherwise: a forged answer would be a lie.
    pub(super) fn echo(&mut self, packet: &Packet<'_>) {
        let request = if packet.protocol == ICMP { 8 } else { 128 };
        let ([kind, 0, _, _, high, low, ..], true) = (packet.payload, true) else { return };
        if *kind != request {
            return;
        }
        let (source, destination) = (packet.source, packet.destination);
        if self.config.is_gateway(&destination) || self.config.is_dns(&destination) {
            return self.echo_back(source, destination, packet.payload);
        }
        let id = u16::from_be_bytes([*high, *low]);
        let name = FlowName::Echo { source, destination, id };
        let key = match self.flow_by_name.get(&name) {
            Some(key) => *key,
            None => match self.open_echo(name, destination) {
                Ok(key) => key,
                Err(why) => return self.unreachable(source, destination, why, packet.quote),
            },
        };
        self.send_up(key, packet.payload, 0, packet.quote);
    }

    fn open_echo(&mut self, name: FlowName, destination: IpAddr) -> Result<Key, Unreachable> {
        let target =
            self.host_target(SocketAddr::new(destination, 0)).map_err(|_| Unreachable::Prohibited)?;
        if !self.has_room(1) {
            return Err(Unreachable::Host);
        }
        let open = || -> io::Result<OwnedFd> {
            let (family, protocol) = match target {
                SocketAddr::V4(_) => (libc::AF_INET, libc::IPPROTO_ICMP),
                SocketAddr::V6(_) => (libc::AF_INET6, libc::IPPROTO_ICMPV6),
            };
            let made = socket::socket_raw(family, libc::SOCK_DGRAM | libc::SOCK_NONBLOCK, protocol)?;
            socket::connect(&made, &target)?;
            Ok(made)
        };
        let socket = open().map_err(|error| Self::meaning(&error))?;
        self.add_flow(Flow { name, socket, touched: self.now, patience: QUESTION })
            .map_err(|_| Unreachable::Host)
    }

    fn echo_back(&mut self, source: IpAddr, destination: IpAddr, request: &[u8]) {
        let mut message = request.to_vec();
        if let Some(head) = message.first_chunk_mut::<4>() {
            *head = if source.is_ipv4() { [0; 4] } else { [129, 0, 0, 0] };
        }
        if let Some(frame) = build::icmp(self.facts.mac, destination, source, message) {
            self.write_device(&frame);
        }
    }

    /// A reply of the world, whose id is the host socket's and becomes the container's again.
    fn echo_reply(&mut self, name: &FlowName, reply: &[u8]) {
        let FlowName::Echo { source, destination, id } = name else { return };
        let mut message = reply.to_vec();
        if let Some([kind, _, a, b, c, d]) = message.first_chunk_mut::<6>() {
            let expected = if source.is_ipv4() { 0 } else { 129 };
            if *kind != expected {
                return;
            }
            (*a, *b) = (0, 0);
            [*c, *d] = id.to_be_bytes();
        }
        if let Some(frame) = build::icmp(self.facts.mac, *destination, *source, message) {
            self.write_device(&frame);
        }
    }
}

fn report_errors(made: &OwnedFd, ip: &IpAddr) -> io::Result<()> {
    match ip {
        IpAddr::V4(_) => socket::set_int(made, libc::SOL_IP, libc::IP_RECVERR, 1),
        IpAddr::V6(_) => socket::set_int(made, libc::SOL_IPV6, libc::IPV6_RECVERR, 1),
    }
}
