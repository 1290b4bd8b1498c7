//! Published ports (P0). A client's connection to the host is continued by a socket in the container's namespace that is
//! bound to the client's own address, so that the service sees who it is; datagrams likewise, one flow a client. Clients
//! whose address can't appear inside (loopback, link-local, the container's own network) come from the gateway.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};

use super::datagrams::{Flow, FlowName, TALK};
use super::pump::Lane;
use super::streams::{EDGES, Stage, Stream};
use super::table::Key;
use super::{Engine, Room};
use crate::config::Protocol;
use crate::ports::Bound;
use crate::sys::socket;

/// Connections or datagrams taken from one port in one go.
const TURN: usize = 64;

pub(crate) struct Port {
    pub(super) bound: Bound,
    /// The number under which the API knows it.
    pub(super) id: u64,
}

/// Container ports in a row that one FIB rule covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Run {
    v4: bool,
    protocol: Protocol,
    first: u16,
    last: u16,
}

impl Run {
    fn of(bound: &Bound) -> Self {
        let (first, last) = (bound.container_port, bound.container_port);
        Self { v4: bound.host.is_ipv4(), protocol: bound.protocol, first, last }
    }

    fn covers(&self, other: &Self) -> bool {
        (self.v4, self.protocol) == (other.v4, other.protocol)
            && (self.first..=self.last).contains(&other.first)
            && (self.first..=self.last).contains(&other.last)
    }
}

fn runs(bound: &[Bound]) -> Vec<Run> {
    let mut single: Vec<Run> = bound.iter().map(Run::of).collect();
    single.sort_unstable();
    let mut joined: Vec<Run> = Vec::new();
    for run in single {
        match joined.last_mut() {
            Some(last)
                if (last.v4, last.protocol) == (run.v4, run.protocol)
                    && run.first <= last.last.saturating_add(1) =>
            {
                last.last = run.last;
            }
            _ => joined.push(run),
        }
    }
    joined
}

impl Engine {
    /// Opens bound ports to the world, with one rule for each run of container ports.
    pub(super) fn publish(&mut self, bound: Vec<Bound>) -> Result<Vec<u64>> {
        for rule in runs(&bound) {
            self.keep_answers(rule)?;
        }
        let mut ids = Vec::new();
        for bound in bound {
            let id = self.control.next_id();
            let key = self.ports.insert(Port { bound, id });
            if let Some(port) = self.ports.get(key) {
                if port.bound.protocol == Protocol::Tcp {
                    socket::carry(&port.bound.socket).context("cannot prepare the port")?;
                    socket::set_int(&port.bound.socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
                }
                let number = Room::Port.number(key);
                self.epoll.add(&port.bound.socket, libc::EPOLLIN, number).context("cannot watch the port")?;
            }
            ids.push(id);
        }
        Ok(ids)
    }

    /// Closes a port. Connections that it has brought go on, and so does the rule of a port that others share.
    pub(super) fn unpublish(&mut self, key: Key) -> Result<()> {
        let Some(Port { bound, .. }) = self.ports.remove(key) else { return Ok(()) };
        let rule = Run::of(&bound);
        let shared = self.ports.iter().any(|(_, port)| Run::of(&port.bound) == rule);
        if !shared && self.port_rules.remove(&rule) {
            self.broker.port_rule(false, rule.v4, rule.protocol, (rule.first, rule.last))?;
        }
        Ok(())
    }

    /// Sees to it that what services on these ports answer stays inside. The rule of the divert does so for all TCP.
    fn keep_answers(&mut self, rule: Run) -> Result<()> {
        let diverted = if rule.v4 { self.facts.divert4 } else { self.facts.divert6 };
        let covered = self.port_rules.iter().any(|known| known.covers(&rule));
        if covered || !self.facts.keeps_source || (diverted && rule.protocol == Protocol::Tcp) {
            return Ok(());
        }
        self.broker.port_rule(true, rule.v4, rule.protocol, (rule.first, rule.last))?;
        self.port_rules.insert(rule);
        Ok(())
    }

    pub(super) fn port_event(&mut self, key: Key) {
        match self.ports.get(key).map(|port| port.bound.protocol) {
            Some(Protocol::Tcp) => self.accept_clients(key),
            Some(Protocol::Udp) => self.take_datagrams(key),
            None => {}
        }
    }

    fn accept_clients(&mut self, key: Key) {
        for _ in 0..TURN {
            let Some(port) = self.ports.get(key) else { return };
            let container_port = port.bound.container_port;
            let Ok(Some((client, peer))) = socket::accept(&port.bound.socket) else { return };
            let continued = if self.has_room(2) {
                self.connect_container(&peer, container_port, Protocol::Tcp).ok()
            } else {
                None
            };
            match continued {
                Some(container) => {
                    self.spare_pacing(&client, &peer.ip());
                    self.add_client(client, container);
                }
                // Its close is a reset.
                None => drop(client),
            }
        }
    }

    fn add_client(&mut self, client: OwnedFd, container: OwnedFd) {
        self.counters.published += 1;
        let key = self.streams.insert(Stream {
            ends: None,
            host: client,
            container: Some(container),
            stage: Stage::ContainerConnecting,
            heard: false,
            up: Lane::default(),
            down: Lane::default(),
        });
        let Some(stream) = self.streams.get(key) else { return };
        let watched = self.epoll.add(&stream.host, EDGES, Room::StreamHost.number(key)).and_then(|()| {
            stream
                .container
                .as_ref()
                .map_or(Ok(()), |end| self.epoll.add(end, EDGES, Room::StreamContainer.number(key)))
        });
        match watched {
            Ok(()) => self.container_connected_if_ready(key),
            Err(_) => self.end_stream(key, true),
        }
    }

    pub(super) fn container_connected_if_ready(&mut self, key: Key) {
        let Some(stream) = self.streams.entry(key) else { return };
        let Some(container) = &stream.container else { return };
        match socket::is_connected(container) {
            Ok(false) => {}
            Ok(true) => {
                stream.stage = Stage::Open;
                self.pump(key, true);
            }
            Err(_) => self.end_stream(key, true),
        }
    }

    /// A socket inside that comes from the client's address, or from the gateway's if that can't be.
    fn connect_container(&mut self, peer: &SocketAddr, port: u16, protocol: Protocol) -> Result<OwnedFd> {
        let address =
            self.config.address(&peer.ip()).context("the container has no address of this family")?;
        let target = SocketAddr::new(address, port);
        if !self.facts.keeps_source {
            let made = self.broker.socket(&address, protocol)?;
            socket::connect(&made, &target)?;
            return Ok(made);
        }
        let gateway = self.config.gateway(&address).unwrap_or(address);
        let anyone = SocketAddr::new(gateway, 0);
        let client = match protocol {
            _ if self.may_appear_inside(&peer.ip()) => *peer,
            // Nobody else has the client's port towards this service, and a search for a free one is long once many are used.
            // Of UDP the kernel would not say that two clients of different addresses have the same.
            Protocol::Tcp => SocketAddr::new(gateway, peer.port()),
            Protocol::Udp => anyone,
        };
        match self.connect_from(&client, &target, protocol) {
            Err(_) if client != anyone => self.connect_from(&anyone, &target, protocol),
            outcome => outcome,
        }
    }

    fn connect_from(&mut self, from: &SocketAddr, to: &SocketAddr, protocol: Protocol) -> Result<OwnedFd> {
        let made = self.broker.socket(&to.ip(), protocol)?;
        let connect = || -> io::Result<()> {
            socket::bind(&made, &SocketAddr::new(from.ip(), from.port()))?;
            socket::connect(&made, to)
        };
        connect()?;
        Ok(made)
    }

    fn may_appear_inside(&self, ip: &IpAddr) -> bool {
        let link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        !ip.is_loopback() && !ip.is_unspecified() && !link_local && !self.config.is_on_link(ip)
    }

    fn take_datagrams(&mut self, key: Key) {
        let mut buffer = std::mem::take(&mut self.scratch);
        for _ in 0..TURN {
            let Some(port) = self.ports.get(key) else { break };
            let container_port = port.bound.container_port;
            let Ok(Some(datagram)) = socket::recv_datagram(&port.bound.socket, &mut buffer) else { break };
            let name = FlowName::Client { port: key, peer: datagram.peer, local: datagram.local };
            let Some(flow) = self.client_flow(name, &datagram.peer, container_port) else { continue };
            if let Some(flow) = self.flows.entry(flow)
                && let Some(payload) = buffer.get(..datagram.length)
                && self.down.admit(payload.len(), self.now)
            {
                flow.touched = self.now;
                self.counters.bytes_down += payload.len() as u64;
                let _ = crate::sys::stream::send(&flow.socket, payload);
            }
        }
        self.scratch = buffer;
    }

    fn client_flow(&mut self, name: FlowName, peer: &SocketAddr, container_port: u16) -> Option<Key> {
        if let Some(key) = self.flow_by_name.get(&name) {
            return Some(*key);
        }
        if !self.has_room(1) {
            return None;
        }
        let socket = self.connect_container(peer, container_port, Protocol::Udp).ok()?;
        self.counters.published += 1;
        self.add_flow(Flow { name, socket, touched: self.now, patience: TALK }).ok()
    }

    /// What a port's service answers goes back to the client from the address that the client wrote to.
    pub(super) fn answer_client(&mut self, name: &FlowName, payload: &[u8]) {
        let FlowName::Client { port, peer, local } = name else { return };
        if let Some(port) = self.ports.get(*port)
            && self.up.admit(payload.len(), self.now)
        {
            self.counters.bytes_up += payload.len() as u64;
            let _ = socket::send_datagram(&port.bound.socket, payload, peer, local);
        }
    }

    /// The ports that are open, for the API: id, protocol, host end, container port.
    pub(super) fn published(&self) -> Vec<(u64, Protocol, SocketAddr, u16)> {
        let listed = self
            .ports
            .iter()
            .map(|(_, port)| (port.id, port.bound.protocol, port.bound.host, port.bound.container_port));
        let mut sorted: HashMap<u64, _> = listed.map(|port| (port.0, port)).collect();
        let mut ids: Vec<u64> = sorted.keys().copied().collect();
        ids.sort_unstable();
        ids.into_iter().filter_map(|id| sorted.remove(&id)).collect()
    }
}
