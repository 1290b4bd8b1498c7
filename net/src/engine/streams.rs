//! TCP connections that the container opens (P1 and P2). The engine sees the SYN first and connects on the host; only when
//! that has succeeded does the container's kernel get the SYN back, so that refused is refused, silence is silence, and the
//! time of `connect()` is the true one. From then on it is two kernel sockets and a pump.
//!
//!   SYN --policy--> HostConnecting --established--> Announced --accepted--> Open --both directions shut--> gone
//!                        \--error: RST or ICMP          \--nobody came: gone
//!
//! A connection on the listener that was not announced is reset: the container can reach nothing that the policy has not
//! seen in a SYN.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::mirror::LINGER;
use super::pump::{Lane, Pause, Source};
use super::rate::REFILL;
use super::table::Key;
use super::{Engine, Room};
use crate::broker::CONGESTION_CONTROL;
use crate::sys::socket;
use crate::wire::build::{self, Unreachable};
use crate::wire::frame::{self, ACK, Ends, Frame, SYN, Tcp};
use crate::wire::rewrite;

/// How long an announced connection may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(10);

/// Edge-triggered: one registration for the life of a connection.
pub(super) const EDGES: i32 = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;

pub(crate) struct Stream {
    /// The ends of a connection that the container opened.
    pub(super) ends: Option<Ends>,
    pub(super) host: OwnedFd,
    pub(super) container: Option<OwnedFd>,
    pub(super) stage: Stage,
    /// The host's side has said something before the container's was there.
    pub(super) heard: bool,
    pub(super) up: Lane,
    pub(super) down: Lane,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    HostConnecting {
        syn: Vec<u8>,
    },
    Announced {
        syn: Vec<u8>,
        since: Instant,
    },
    /// A client of a published port waits for the container's service.
    ContainerConnecting,
    Open,
}

impl Engine {
    /// A TCP segment on the device: a SYN that asks for a connection, or one that only the mirror knows.
    pub(super) fn segment(&mut self, ends: Ends, tcp: &Tcp, plain: bool, frame: &mut [u8]) {
        let own = self.config.address(&ends.source.ip()) == Some(ends.source.ip());
        if !own || !plain {
            self.counters.malformed += 1;
        } else if tcp.flags & (SYN | ACK | frame::RST | frame::FIN) == SYN {
            self.syn(ends, tcp, frame);
        } else if self.reflect(&ends, frame).is_none()
            && let Some(reset) = build::reset(self.facts.mac, &ends, tcp)
        {
            self.write_device(&reset);
        }
    }

    /// Sends a segment of a known connection back: rewritten by the mirror, or as it is where the divert takes it (the
    /// segments of a network nested in the container come this way).
    fn reflect(&mut self, ends: &Ends, frame: &mut [u8]) -> Option<()> {
        if self.is_diverted(ends) {
            self.stream_by_ends.get(ends)?;
            rewrite::readdress(frame, self.facts.mac)?;
        } else {
            let to = self.mirrored(ends)?;
            rewrite::rewrite(frame, self.facts.mac, ends, &to)?;
        }
        self.write_device(frame);
        Some(())
    }

    fn is_diverted(&self, ends: &Ends) -> bool {
        if ends.source.is_ipv4() { self.facts.divert4 } else { self.facts.divert6 }
    }

    fn mirrored(&self, ends: &Ends) -> Option<Ends> {
        let gateway = self.config.gateway(&ends.source.ip())?;
        if ends.source.port() == self.facts.port && ends.destination.ip() == gateway {
            let known = self.mirrors.ends(ends.destination.port())?;
            return Some(Ends { source: known.destination, destination: known.source });
        }
        let port = self.mirrors.port(ends)?;
        let listener = SocketAddr::new(ends.source.ip(), self.facts.port);
        Some(Ends { source: SocketAddr::new(gateway, port), destination: listener })
    }

    fn syn(&mut self, ends: Ends, tcp: &Tcp, frame: &mut [u8]) {
        if let Some(key) = self.stream_by_ends.get(&ends).copied()
            && !self.renew(key, frame)
        {
            return;
        }
        if self.config.is_dns(&ends.destination.ip()) && ends.destination.port() == 53 {
            if self.expect_name_client(ends) {
                self.announce(&ends, frame);
                self.accept_container(ends.source.is_ipv4(), 1);
            }
            return;
        }
        let target = match self.host_target(ends.destination) {
            Ok(target) => target,
            Err(_) => return self.refuse(&ends, frame, Unreachable::Prohibited),
        };
        if !self.has_room(2) {
            if let Some(reset) = build::reset(self.facts.mac, &ends, tcp) {
                self.write_device(&reset);
            }
            return;
        }
        match self.connect_host(ends, &target, frame) {
            Ok(key) => self.host_connected_if_ready(key),
            Err(error) => self.refuse(&ends, frame, Self::meaning(&error)),
        }
    }

    /// A second SYN of a connection that is known. True if it starts a new one with the same ends.
    fn renew(&mut self, key: Key, frame: &mut [u8]) -> bool {
        let Some(stream) = self.streams.entry(key) else { return true };
        match &mut stream.stage {
            Stage::HostConnecting { syn } => {
                *syn = frame.to_vec();
                false
            }
            Stage::Announced { syn, .. } => {
                *syn = frame.to_vec();
                if let Some(ends) = stream.ends {
                    self.announce(&ends, frame);
                }
                false
            }
            Stage::ContainerConnecting | Stage::Open => {
                self.end_stream(key, true);
                true
            }
        }
    }

    fn connect_host(&mut self, ends: Ends, target: &SocketAddr, frame: &[u8]) -> io::Result<Key> {
        let host = socket::socket(&target.ip(), libc::SOCK_STREAM)?;
        socket::carry(&host)?;
        socket::set_int(&host, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
        self.spare_pacing(&host, &target.ip());
        socket::connect(&host, target)?;
        let key = self.streams.insert(Stream {
            ends: Some(ends),
            host,
            container: None,
            stage: Stage::HostConnecting { syn: frame.to_vec() },
            heard: false,
            up: Lane::default(),
            down: Lane::default(),
        });
        self.stream_by_ends.insert(ends, key);
        if let Some(stream) = self.streams.get(key) {
            self.epoll.add(&stream.host, EDGES, Room::StreamHost.number(key))?;
        }
        Ok(key)
    }

    /// A connection with the host itself crosses no network either.
    pub(super) fn spare_pacing(&self, host: &OwnedFd, peer: &IpAddr) {
        if peer.is_loopback() || self.config.policy.host_addresses.contains(peer) {
            let _ = socket::set_congestion_control(host, CONGESTION_CONTROL);
        }
    }

    /// On a loopback or local network a connection is often there at once; that saves a turn of the loop.
    fn host_connected_if_ready(&mut self, key: Key) {
        let Some(stream) = self.streams.entry(key) else { return };
        let connected = socket::is_connected(&stream.host);
        let (Some(ends), Stage::HostConnecting { syn }) = (stream.ends, &mut stream.stage) else { return };
        match connected {
            Ok(false) => {}
            Ok(true) => {
                let mut syn = std::mem::take(syn);
                stream.stage = Stage::Announced { syn: syn.clone(), since: self.now };
                self.timers.add(self.now + ARRIVAL, Room::StreamHost.number(key));
                self.announce(&ends, &mut syn);
                self.accept_container(ends.source.is_ipv4(), 1);
            }
            Err(error) => {
                let syn = std::mem::take(syn);
                self.end_stream(key, false);
                self.refuse(&ends, &syn, Self::meaning(&error));
            }
        }
    }

    /// Hands a SYN to the container's kernel, whose listener answers it.
    fn announce(&mut self, ends: &Ends, frame: &mut [u8]) {
        if self.is_diverted(ends) {
            self.counters.diverted += 1;
            let _ = rewrite::readdress(frame, self.facts.mac);
        } else {
            self.counters.mirrored += 1;
            if !self.mirrors.is_open(ends) {
                self.mirrors.open(*ends);
            }
            let Some(to) = self.mirrored(ends) else { return };
            let _ = rewrite::rewrite(frame, self.facts.mac, ends, &to);
        }
        self.write_device(frame);
    }

    /// Answers a SYN with the error that its host connection met.
    fn refuse(&mut self, ends: &Ends, syn: &[u8], why: Unreachable) {
        let Some(Frame::Packet(packet)) = frame::parse(syn) else { return };
        if why != Unreachable::Port {
            return self.unreachable(ends.source.ip(), ends.destination.ip(), why, packet.quote);
        }
        let reset = frame::tcp(packet.payload).and_then(|tcp| build::reset(self.facts.mac, ends, &tcp));
        if let Some(reset) = reset {
            self.write_device(&reset);
        }
    }

    /// Takes connections that wait at a listener, at most so many; epoll tells of those that are left.
    pub(super) fn accept_container(&mut self, v4: bool, most: usize) {
        for _ in 0..most {
            let listener = if v4 { &self.listener4 } else { &self.listener6 };
            let Some(Ok(Some((accepted, peer)))) = listener.as_ref().map(socket::accept) else { return };
            let Ok(local) = socket::local_address(&accepted) else { continue };
            let diverted = if v4 { self.facts.divert4 } else { self.facts.divert6 };
            let ends = match diverted {
                true => Some(Ends { source: peer, destination: local }),
                false if self.config.is_gateway(&peer.ip()) => self.mirrors.ends(peer.port()),
                false => None,
            };
            // Without ends it is closed, which is a reset.
            if let Some(ends) = ends {
                self.arrived(ends, accepted);
            }
        }
    }

    fn arrived(&mut self, ends: Ends, accepted: OwnedFd) {
        if self.is_expected_name_client(&ends) {
            return self.name_client(ends, accepted);
        }
        let key = self.stream_by_ends.get(&ends).copied();
        let stream = key.and_then(|key| self.streams.entry(key));
        let (Some(key), Some(stream)) = (key, stream.filter(|s| matches!(s.stage, Stage::Announced { .. })))
        else {
            return;
        };
        stream.stage = Stage::Open;
        // What the container has said already comes as the first event.
        let watched = self.epoll.add(&accepted, EDGES, Room::StreamContainer.number(key));
        stream.container = Some(accepted);
        let heard = stream.heard;
        if watched.is_err() {
            self.end_stream(key, true);
        } else if heard {
            self.pump_lanes(key, true, false, true);
        }
    }

    pub(super) fn stream_event(&mut self, key: Key, host: bool, flags: i32) {
        let Some(stream) = self.streams.entry(key) else { return };
        let hung_up = flags & (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) != 0;
        let readable = hung_up || flags & libc::EPOLLIN != 0;
        stream.heard |= host && readable;
        match stream.stage {
            Stage::HostConnecting { .. } if host => self.host_connected_if_ready(key),
            Stage::ContainerConnecting if !host => self.container_connected_if_ready(key),
            Stage::ContainerConnecting if hung_up && flags & libc::EPOLLHUP != 0 => {
                self.end_stream(key, true)
            }
            Stage::Announced { .. } if flags & libc::EPOLLERR != 0 => self.end_stream(key, true),
            Stage::Open => self.pump_side(key, host, readable, hung_up),
            _ => {}
        }
    }

    /// Moves what can be moved in both directions.
    pub(super) fn pump(&mut self, key: Key, hung_up: bool) {
        self.pump_lanes(key, hung_up, true, true);
    }

    /// Moves what an event on one side lets move: what that side has to say, and what waits for it to take.
    fn pump_side(&mut self, key: Key, host: bool, readable: bool, hung_up: bool) {
        let Some(Stream { up, down, .. }) = self.streams.get(key) else { return };
        let (heard, taken) = if host { (down, up) } else { (up, down) };
        let (heard, taken) = (readable || heard.is_waiting(), taken.is_waiting());
        if heard || taken {
            let (up, down) = if host { (taken, heard) } else { (heard, taken) };
            self.pump_lanes(key, hung_up, up, down);
        }
    }

    /// Pumps the lanes that are asked for, and ends the connection when both are shut or one fails.
    fn pump_lanes(&mut self, key: Key, hung_up: bool, up: bool, down: bool) {
        let (up_allowed, down_allowed) = (self.up.allowance(self.now), self.down.allowance(self.now));
        let Some(stream) = self.streams.entry(key) else { return };
        let Some(container) = stream.container.as_ref().filter(|_| stream.stage == Stage::Open) else {
            return;
        };
        let before = (stream.up.moved, stream.down.moved);
        let (pipes, scratch) = (&mut self.pipes, self.messages.as_mut_slice());
        let mut outcomes = [Ok(Pause::Idle), Ok(Pause::Idle)];
        if up {
            let last = stream.down.is_shut();
            let from = Source { socket: container, hung_up, allowance: up_allowed };
            outcomes[0] = stream.up.pump(from, (&stream.host, last), (pipes, scratch));
        }
        if down {
            let last = stream.up.is_shut();
            let from = Source { socket: &stream.host, hung_up, allowance: down_allowed };
            outcomes[1] = stream.down.pump(from, (container, last), (pipes, scratch));
        }
        let over = stream.up.is_shut() && stream.down.is_shut();
        let moved = (stream.up.moved - before.0, stream.down.moved - before.1);
        self.counters.bytes_up += moved.0;
        self.counters.bytes_down += moved.1;
        self.up.spend(moved.0);
        self.down.spend(moved.1);
        if outcomes.iter().any(Result::is_err) || over {
            self.end_stream(key, !over);
        } else if outcomes.iter().any(|outcome| matches!(outcome, Ok(Pause::More))) {
            // Nothing moved although there is more: the rate is used up for now.
            match moved {
                (0, 0) => self.timers.add(self.now + REFILL, Room::StreamContainer.number(key)),
                _ => self.ready.push((key, hung_up)),
            }
        }
    }

    pub(super) fn stream_deadline(&mut self, key: Key) {
        let Some(stream) = self.streams.get(key) else { return };
        if matches!(&stream.stage, Stage::Announced { since, .. } if self.now - *since >= ARRIVAL) {
            self.end_stream(key, true);
        }
    }

    /// Forgets a connection; `abort` sends resets both ways.
    pub(super) fn end_stream(&mut self, key: Key, abort: bool) {
        let Some(mut stream) = self.streams.remove(key) else { return };
        stream.up.release(&mut self.pipes);
        stream.down.release(&mut self.pipes);
        if let Some(ends) = stream.ends {
            self.stream_by_ends.remove(&ends);
            self.close_mirror(&ends);
        }
        if abort {
            let _ = socket::reset_on_close(&stream.host);
            if let Some(container) = &stream.container {
                let _ = socket::reset_on_close(container);
            }
        }
    }

    pub(super) fn close_mirror(&mut self, ends: &Ends) {
        if !self.is_diverted(ends) && self.mirrors.close(ends, self.now) {
            self.timers.add(self.now + LINGER, Room::Device.alone());
        }
    }
}
