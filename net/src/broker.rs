//! The broker: a small process that stays inside the container's network namespace, because sockets belong to the
//! namespace that their maker is in. It hands out transparent sockets, and changes the FIB rules of published ports.
//! It keeps CAP_NET_ADMIN over that namespace, which the container's own root has too, and nothing else.
//!
//! One SOCK_SEQPACKET pair. The engine sends a `Request` as JSON; the broker answers with an error sentence, or with an
//! empty one and the sockets. It ends when the engine's end is closed.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::config::Protocol;
use crate::netlink::{Change, Netlink, Rule, Selector};
use crate::sys::socket;

/// The routing table in which everything is local, and the priorities of the rules that lead to it.
pub(crate) const TABLE: u8 = 107;
pub(crate) const PRIORITY_SYN: u32 = 10700;
pub(crate) const PRIORITY_BACK: u32 = 10701;
pub(crate) const PRIORITY_OWN: u32 = 10702;
const PRIORITY_PORT: u32 = 10703;

/// How TCP that never leaves the namespace is sent. One that paces, such as the host's may be, arms a timer for what crosses
/// no network (decision 0204). The kernel has this one always, and lets every user choose it.
pub(crate) const CONGESTION_CONTROL: &str = "reno";

/// Sockets fetched at a time: enough to make the exchange cheap, few enough to leave descriptors for flows.
const BATCH: usize = 16;

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Sockets { v4: bool, protocol: Protocol },
    Ports { add: bool, v4: bool, protocol: Protocol, first: u16, last: u16 },
}

/// Serves requests until the engine is gone.
pub(crate) fn serve(channel: &OwnedFd, netlink: &mut Netlink) -> Result<()> {
    let mut buffer = [0; 512];
    loop {
        let Some((length, _)) = socket::recv_descriptors(channel, &mut buffer, 0)? else { continue };
        if length == 0 {
            return Ok(());
        }
        let request = serde_json::from_slice(buffer.get(..length).unwrap_or(&[]))?;
        let (sentence, sockets) = match answer(netlink, &request) {
            Ok(sockets) => (String::new(), sockets),
            Err(error) => (format!("{error:#}"), Vec::new()),
        };
        let passed: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
        // A sequenced packet of no bytes would read as the end, so a sentence starts with a blank.
        socket::send_descriptors(channel, format!(" {sentence}").as_bytes(), &passed)?;
    }
}

fn answer(netlink: &mut Netlink, request: &Request) -> Result<Vec<OwnedFd>> {
    match request {
        Request::Sockets { v4, protocol } => (0..BATCH)
            .map(|_| transparent(*v4, *protocol))
            .collect::<io::Result<_>>()
            .context("cannot make a socket"),
        Request::Ports { add, v4, protocol, first, last } => {
            let number = protocol_number(*protocol);
            let selector = Selector::Own { protocol: number, source_ports: Some((*first, *last)) };
            let change = if *add { Change::Add } else { Change::Remove };
            let rule = Rule { v4: *v4, priority: PRIORITY_PORT, table: TABLE, selector };
            netlink.rule(change, &rule).context("cannot change the rule of a published port")?;
            Ok(Vec::new())
        }
    }
}

pub(crate) fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => libc::IPPROTO_TCP as u8,
        Protocol::Udp => libc::IPPROTO_UDP as u8,
    }
}

/// A socket that may be bound to an address that is not this namespace's.
pub(crate) fn transparent(v4: bool, protocol: Protocol) -> io::Result<OwnedFd> {
    let family = if v4 { libc::AF_INET } else { libc::AF_INET6 };
    let kind = match protocol {
        Protocol::Tcp => libc::SOCK_STREAM,
        Protocol::Udp => libc::SOCK_DGRAM,
    };
    let made = socket::socket_raw(family, kind | libc::SOCK_NONBLOCK, 0)?;
    if protocol == Protocol::Tcp {
        socket::carry(&made)?;
        // A port that nobody names is chosen by the connection that it is for, which may share it with others.
        socket::set_int(&made, libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
        // Where it is refused the host's holds, which costs speed only.
        let _ = socket::set_congestion_control(&made, CONGESTION_CONTROL);
    }
    socket::set_int(&made, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    if v4 {
        socket::set_int(&made, libc::SOL_IP, libc::IP_TRANSPARENT, 1)?;
    } else {
        socket::set_int(&made, libc::SOL_IPV6, libc::IPV6_V6ONLY, 1)?;
        socket::set_int(&made, libc::SOL_IPV6, libc::IPV6_TRANSPARENT, 1)?;
    }
    Ok(made)
}

/// The engine's end, with sockets fetched in advance.
pub(crate) struct Broker {
    channel: OwnedFd,
    stock: [VecDeque<OwnedFd>; 4],
}

impl Broker {
    pub(crate) fn new(channel: OwnedFd) -> Self {
        Self { channel, stock: Default::default() }
    }

    /// A transparent socket of the container's namespace, of the family of `like`.
    pub(crate) fn socket(&mut self, like: &IpAddr, protocol: Protocol) -> Result<OwnedFd> {
        let v4 = like.is_ipv4();
        let shelf = usize::from(v4) * 2 + usize::from(protocol == Protocol::Tcp);
        if let Some(made) = self.stock[shelf].pop_front() {
            return Ok(made);
        }
        self.stock[shelf] = self.ask(&Request::Sockets { v4, protocol })?.into();
        self.stock[shelf].pop_front().context("the broker sent no socket")
    }

    /// Keeps the answers of a service on these ports inside the namespace, or stops doing so.
    pub(crate) fn port_rule(
        &mut self,
        add: bool,
        v4: bool,
        protocol: Protocol,
        ports: (u16, u16),
    ) -> Result<()> {
        self.ask(&Request::Ports { add, v4, protocol, first: ports.0, last: ports.1 })?;
        Ok(())
    }

    fn ask(&mut self, request: &Request) -> Result<Vec<OwnedFd>> {
        socket::send_descriptors(&self.channel, &serde_json::to_vec(request)?, &[])?;
        let mut buffer = [0; 512];
        let answer = socket::recv_descriptors(&self.channel, &mut buffer, 0)?;
        let (length, sockets) = answer.context("the broker sent nothing")?;
        if length == 0 {
            bail!("the broker in the container's namespace is gone");
        }
        match buffer.get(1..length) {
            None | Some([]) => Ok(sockets),
            Some(sentence) => bail!("{}", String::from_utf8_lossy(sentence)),
        }
    }
}
