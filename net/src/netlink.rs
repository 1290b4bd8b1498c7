//! Netlink, as much of it as one container's network needs: links, addresses, routes, rules, neighbours and one nf_tables
//! batch. Requests are encoded here and acknowledged one by one; nothing is parsed but acknowledgements and link numbers.
//! It knows no addresses plan and no engine.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result};

use crate::sys::{socket, stream};

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const CREATE: u16 = 0x400;
const EXCLUSIVE: u16 = 0x200;
const DUMP: u16 = 0x300;

/// A growing message: fixed headers, then attributes that nest.
#[derive(Default)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    /// A message of `kind` with its family-specific header.
    pub(crate) fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut bytes = vec![0; 16];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(REQUEST | flags).to_ne_bytes());
        bytes.extend_from_slice(header);
        Self(bytes)
    }

    pub(crate) fn put(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn u32(self, kind: u16, value: u32) -> Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// nf_tables counts in network order.
    pub(crate) fn be32(self, kind: u16, value: u32) -> Self {
        self.put(kind, &value.to_be_bytes())
    }

    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        self.put(kind, &[value.as_bytes(), &[0]].concat())
    }

    pub(crate) fn ip(self, kind: u16, value: IpAddr) -> Self {
        match value {
            IpAddr::V4(ip) => self.put(kind, &ip.octets()),
            IpAddr::V6(ip) => self.put(kind, &ip.octets()),
        }
    }

    /// Attributes inside an attribute. `fill` starts from an empty message.
    pub(crate) fn nest(self, kind: u16, fill: impl FnOnce(Message) -> Message) -> Self {
        let filled = fill(Message::default());
        self.put(kind | 0x8000, &filled.0)
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

/// One netlink socket in the network namespace in which it was opened.
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub(crate) fn route() -> io::Result<Self> {
        Self::open(libc::NETLINK_ROUTE)
    }

    pub(crate) fn netfilter() -> io::Result<Self> {
        Self::open(libc::NETLINK_NETFILTER)
    }

    /// Changes of links and IPv6 routes, from now on. A read ends after two seconds without one.
    pub(crate) fn changes() -> io::Result<Self> {
        let changes = Self::route()?;
        socket::bind_netlink(&changes.socket, 0x1 | 0x400 /* RTMGRP_LINK, RTMGRP_IPV6_ROUTE */, 2)?;
        Ok(changes)
    }

    /// Waits until a link that was brought up passes packets: the two ends of a veth pair find each other in the
    /// background, and what is sent before is lost.
    pub(crate) fn await_operational(&mut self, index: u32) -> io::Result<()> {
        self.await_change(|_, body| {
            // IFLA_OPERSTATE is 16, IF_OPER_UP 6.
            let state = body.get(16..).and_then(|attributes| attribute(attributes, 16));
            body.get(4..8) == Some(&index.to_ne_bytes()) && state == Some(&[6])
        })
    }

    /// Waits until an IPv6 address receives: its local route is made in the background, even without duplicate detection,
    /// and what arrives before is dropped.
    pub(crate) fn await_local_route(&mut self, ip: std::net::Ipv6Addr) -> io::Result<()> {
        self.await_change(|kind, body| {
            // RTM_NEWROUTE, table local (255), type local (2), RTA_DST (1).
            let destination = body.get(12..).and_then(|attributes| attribute(attributes, 1));
            let place = (body.get(4), body.get(7));
            kind == 24 && place == (Some(&255), Some(&2)) && destination == Some(&ip.octets())
        })
    }

    fn await_change(&mut self, wanted: impl Fn(u16, &[u8]) -> bool) -> io::Result<()> {
        let mut buffer = vec![0; 65536];
        loop {
            let Some(length) = stream::read(&self.socket, &mut buffer)? else {
                return Err(io::Error::from(io::ErrorKind::TimedOut));
            };
            let mut bytes = buffer.get(..length).unwrap_or(&[]);
            while let Some(header) = bytes.first_chunk::<16>() {
                let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
                let kind = u16::from_ne_bytes([header[4], header[5]]);
                if wanted(kind, bytes.get(16..length).unwrap_or(&[])) {
                    return Ok(());
                }
                bytes = bytes.get(length.max(16).next_multiple_of(4)..).unwrap_or(&[]);
            }
        }
    }

    /// Sockets of this namespace: to list and to end them.
    pub(crate) fn sockets() -> io::Result<Self> {
        Self::open(libc::NETLINK_SOCK_DIAG)
    }

    pub(crate) fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    fn open(protocol: i32) -> io::Result<Self> {
        Ok(Self { socket: socket::socket_raw(libc::AF_NETLINK, libc::SOCK_RAW, protocol)?, sequence: 0 })
    }

    /// Sends one request and waits for its acknowledgement.
    pub(crate) fn request(
        &mut self,
        kind: u16,
        flags: u16,
        header: &[u8],
        fill: impl FnOnce(Message) -> Message,
    ) -> io::Result<()> {
        self.batch(vec![fill(Message::new(kind, flags | ACK, header))], 1)
    }

    /// Sends messages in one go and waits until `acknowledged` of them are answered, or one is refused.
    pub(crate) fn batch(&mut self, messages: Vec<Message>, acknowledged: usize) -> io::Result<()> {
        let mut bytes = Vec::new();
        for message in messages {
            self.sequence += 1;
            bytes.extend(message.finish(self.sequence));
        }
        stream::write(&self.socket, &bytes)?;
        let mut left = acknowledged;
        let mut buffer = [0; 16384];
        while left > 0 {
            let Some(length) = stream::read(&self.socket, &mut buffer)? else { continue };
            left = left.saturating_sub(acknowledgements(&buffer[..length])?);
        }
        Ok(())
    }

    /// Sends a request for a list and returns the answers without their headers.
    fn dump(&mut self, request: Message) -> io::Result<Vec<Vec<u8>>> {
        self.sequence += 1;
        stream::write(&self.socket, &request.finish(self.sequence))?;
        let (mut answers, mut buffer) = (Vec::new(), vec![0; 65536]);
        loop {
            let length = stream::read(&self.socket, &mut buffer)?.unwrap_or(0);
            let mut bytes = buffer.get(..length).unwrap_or(&[]);
            while let Some(header) = bytes.first_chunk::<16>() {
                let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
                let kind = u16::from_ne_bytes([header[4], header[5]]);
                // An error or the end of the list (NLMSG_ERROR is 2, NLMSG_DONE 3).
                let (false, Some(body)) = (kind == 2 || kind == 3, bytes.get(16..length)) else {
                    return Ok(answers);
                };
                answers.push(body.to_vec());
                bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
            }
        }
    }

    /// Ends the TCP connections of this namespace that lead out of it, for when nobody carries them any more.
    pub(crate) fn abort_connections(&mut self, v4: bool, which: Which) -> io::Result<()> {
        let family = if v4 { 2 } else { 10 };
        let states: u32 = match which {
            Which::All => 1 << 1 | 1 << 2 | 1 << 8, // ESTABLISHED, SYN_SENT, CLOSE_WAIT
            Which::Connecting => 1 << 2,
        };
        let request = |id: &[u8]| {
            [&[family, libc::IPPROTO_TCP as u8, 0, 0], states.to_ne_bytes().as_slice(), id].concat()
        };
        let listed = self.dump(Message::new(20 /* SOCK_DIAG_BY_FAMILY */, DUMP, &request(&[0; 48])))?;
        for id in listed.iter().filter_map(|answer| answer.get(4..52)) {
            let (local, remote) = (id.get(4..20), id.get(20..36));
            if local != remote {
                // One that has ended by itself in the meantime is no failure.
                let _ = self.request(21 /* SOCK_DESTROY */, 0, &request(id), |message| message);
            }
        }
        Ok(())
    }

    /// The number of the interface called `name`, and its hardware address.
    pub(crate) fn link(&mut self, name: &str) -> io::Result<(u32, [u8; 6])> {
        self.sequence += 1;
        let message = Message::new(18 /* RTM_GETLINK */, 0, &[0; 16]).text(3 /* IFLA_IFNAME */, name);
        stream::write(&self.socket, &message.finish(self.sequence))?;
        let mut buffer = [0; 16384];
        let length = stream::read(&self.socket, &mut buffer)?.unwrap_or(0);
        let reply = &buffer[..length];
        acknowledgements(reply)?;
        parse_link(reply).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }
}

/// How many acknowledgements a datagram holds; the first refusal is the error.
fn acknowledgements(mut bytes: &[u8]) -> io::Result<usize> {
    let mut count = 0;
    while let Some(header) = bytes.first_chunk::<20>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        if kind == 2 {
            match i32::from_ne_bytes([header[16], header[17], header[18], header[19]]) {
                0 => count += 1,
                errno => return Err(io::Error::from_raw_os_error(-errno)),
            }
        }
        bytes = bytes.get(length.max(16).next_multiple_of(4)..).unwrap_or(&[]);
    }
    Ok(count)
}

fn parse_link(reply: &[u8]) -> Option<(u32, [u8; 6])> {
    let index = u32::from_ne_bytes(reply.get(20..24)?.try_into().ok()?);
    // IFLA_ADDRESS is 1.
    Some((index, attribute(reply.get(32..)?, 1)?.try_into().ok()?))
}

/// The value of one attribute.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let Some(head) = attributes.first_chunk::<4>() {
        let length = u16::from_ne_bytes([head[0], head[1]]) as usize;
        if u16::from_ne_bytes([head[2], head[3]]) == wanted {
            return attributes.get(4..length);
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
    None
}

/// The addresses in one answer about an address.
fn parse_addresses(answer: &[u8]) -> Vec<IpAddr> {
    let mut found = Vec::new();
    let mut attributes = answer.get(8..).unwrap_or(&[]);
    while let Some(head) = attributes.first_chunk::<4>() {
        let size = u16::from_ne_bytes([head[0], head[1]]) as usize;
        let value = attributes.get(4..size).unwrap_or(&[]);
        // IFA_ADDRESS is 1, IFA_LOCAL 2.
        if matches!(head[2], 1 | 2) {
            found.extend(<[u8; 4]>::try_from(value).map(IpAddr::from));
            found.extend(<[u8; 16]>::try_from(value).map(IpAddr::from));
        }
        attributes = attributes.get(size.max(4).next_multiple_of(4)..).unwrap_or(&[]);
    }
    found
}

/// What `attach` and the broker ask of rtnetlink, one sentence each.
impl Netlink {
    /// Gives a link an MTU, a queue, a hardware address and brings it up. `accept_local` and no reverse path filter let
    /// a SYN return through the device that it left by.
    pub(crate) fn raise_link(&mut self, index: u32, mtu: u32, mac: Option<[u8; 6]>) -> io::Result<()> {
        let header = link_header(index, 1, 1);
        self.request(19, 0, &header, |message| {
            let message = match mac {
                Some(mac) => message.put(1, &mac),
                None => message,
            };
            message.u32(4, mtu).u32(13, 10000).nest(26 /* IFLA_AF_SPEC */, |families| {
                // IPV4_DEVCONF_RP_FILTER is 8, IPV4_DEVCONF_ACCEPT_LOCAL 23.
                families.nest(2, |inet| inet.nest(1, |conf| conf.u32(8, 0).u32(23, 1)))
            })
        })
    }

    /// The addresses of all interfaces of this namespace.
    pub(crate) fn addresses(&mut self) -> io::Result<Vec<IpAddr>> {
        let answers = self.dump(Message::new(22 /* RTM_GETADDR */, DUMP, &[0; 8]))?;
        Ok(answers.iter().flat_map(|answer| parse_addresses(answer)).collect())
    }

    /// No link-local address, router solicitation or duplicate detection of the kernel's own.
    pub(crate) fn quiet_v6(&mut self, index: u32) -> io::Result<()> {
        self.request(19, 0, &link_header(index, 0, 0), |message| {
            message
                .nest(26, |families| families.nest(10, |inet6| inet6.put(8 /* ADDR_GEN_MODE */, &[1])))
        })
    }

    pub(crate) fn up(&mut self, index: u32) -> io::Result<()> {
        self.request(19, 0, &link_header(index, 1, 1), |message| message)
    }

    pub(crate) fn remove_link(&mut self, index: u32) -> io::Result<()> {
        self.request(17, 0, &link_header(index, 0, 0), |message| message)
    }

    pub(crate) fn add_address(&mut self, index: u32, ip: IpAddr, prefix: u8) -> io::Result<()> {
        let [a, b, c, d] = index.to_ne_bytes();
        // IFA_F_NODAD is 2.
        let header = [family(&ip), prefix, 2, 0, a, b, c, d];
        self.request(20, CREATE | EXCLUSIVE, &header, |message| message.ip(2, ip).ip(1, ip))
    }

    pub(crate) fn add_neighbour(&mut self, index: u32, ip: IpAddr, mac: [u8; 6]) -> io::Result<()> {
        let [a, b, c, d] = index.to_ne_bytes();
        // NUD_PERMANENT is 0x80.
        let header = [family(&ip), 0, 0, 0, a, b, c, d, 0x80, 0, 0, 0];
        self.request(28, CREATE, &header, |message| message.ip(1, ip).put(2, &mac))
    }

    pub(crate) fn add_default_route(&mut self, index: u32, gateway: IpAddr) -> io::Result<()> {
        // Table main (254), protocol static (4), scope universe, type unicast.
        let header = [family(&gateway), 0, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0];
        self.request(24, CREATE | EXCLUSIVE, &header, |message| message.ip(5, gateway).u32(4, index))
    }

    /// Everything that is looked up in `table` is delivered here, with `source` as the address of our own.
    pub(crate) fn add_local_default(&mut self, table: u8, lo: u32, source: IpAddr) -> io::Result<()> {
        let scope = if source.is_ipv4() { 254 } else { 0 };
        let header = [family(&source), 0, 0, 0, table, 4, scope, 2, 0, 0, 0, 0];
        self.request(24, CREATE | EXCLUSIVE, &header, |message| message.u32(4, lo).ip(7, source))
    }

    pub(crate) fn rule(&mut self, change: Change, rule: &Rule) -> io::Result<()> {
        let header = [if rule.v4 { 2 } else { 10 }, 0, 0, 0, rule.table, 0, 0, 1, 0, 0, 0, 0];
        let (kind, flags) = match change {
            Change::Add => (32, CREATE | EXCLUSIVE),
            Change::Remove => (33, 0),
        };
        self.request(kind, flags, &header, |mut message| {
            message = message.u32(6, rule.priority);
            message = match rule.selector {
                Selector::Mark(mark) => message.u32(10, mark),
                Selector::Own { protocol, .. } => message.text(3, "lo").put(22, &[protocol]),
            };
            match rule.selector {
                Selector::Own { source_ports: Some((first, last)), .. } => {
                    message.put(23, &[first.to_ne_bytes(), last.to_ne_bytes()].concat())
                }
                _ => message,
            }
        })
    }

    /// A veth pair in this namespace.
    pub(crate) fn add_veth(&mut self, name: &str, peer: &str) -> io::Result<()> {
        self.request(16, CREATE | EXCLUSIVE, &[0; 16], |message| {
            message.text(3, name).nest(18, |link| {
                link.text(1, "veth").nest(2, |veth| veth.put(1, &Message(vec![0; 16]).text(3, peer).0))
            })
        })
    }
}

#[derive(Clone, Copy)]
pub(crate) enum Which {
    All,
    Connecting,
}

pub(crate) enum Change {
    Add,
    Remove,
}

/// A FIB rule that leads to `table`.
pub(crate) struct Rule {
    pub(crate) v4: bool,
    pub(crate) priority: u32,
    pub(crate) table: u8,
    pub(crate) selector: Selector,
}

pub(crate) enum Selector {
    Mark(u32),
    /// Packets that this namespace originates.
    Own {
        protocol: u8,
        source_ports: Option<(u16, u16)>,
    },
}

fn family(ip: &IpAddr) -> u8 {
    if ip.is_ipv4() { 2 } else { 10 }
}

fn link_header(index: u32, flags: u32, change: u32) -> Vec<u8> {
    [[0; 4], index.to_ne_bytes(), flags.to_ne_bytes(), change.to_ne_bytes()].concat()
}

/// The nf_tables half of the divert for one family: bare SYNs that leave are marked `out`, so that a FIB rule sends them to
/// the device; TCP that arrives on the device goes to the listener on `port` of the loopback address, marked `back`.
pub(crate) fn divert_syns(
    netlink: &mut Netlink,
    v4: bool,
    device: u32,
    port: u16,
    out: u32,
    back: u32,
) -> Result<()> {
    let family = if v4 { 2 } else { 10 };
    let message = |kind: u16, flags: u16| Message::new((10 << 8) | kind, flags, &[family, 0, 0, 0]);
    let chain = |name: &str, kind: &str, hook: u32| {
        message(3, CREATE | ACK)
            .text(1, TABLE)
            .text(3, name)
            .text(7, kind)
            .nest(4, |at| at.be32(1, hook).be32(2, (-150_i32) as u32))
    };
    let begin = |kind: u16| Message::new(kind, 0, &[0, 0, 0, 10]);
    let syns = |list: Message| mark(is_bare_syn(is_tcp(list)), out);
    let arrivals = |list: Message| tproxy(mark(is_tcp(arrived_on(list, device)), back), v4, port);
    let batch = vec![
        begin(16),
        message(0, CREATE | ACK).text(1, TABLE),
        chain("leaving", "route", 3),
        chain("arriving", "filter", 0),
        message(6, CREATE | ACK | 0x800).text(1, TABLE).text(2, "leaving").nest(4, syns),
        message(6, CREATE | ACK | 0x800).text(1, TABLE).text(2, "arriving").nest(4, arrivals),
        begin(17),
    ];
    netlink.batch(batch, 5).context("cannot set the nf_tables rules that divert connections")
}

const TABLE: &str = "kelp_net";

fn expression(list: Message, name: &str, fill: impl FnOnce(Message) -> Message) -> Message {
    list.nest(1, |element| element.text(1, name).nest(2, fill))
}

/// Continues only if register 1 holds `value`.
fn equals(list: Message, value: &[u8]) -> Message {
    expression(list, "cmp", |cmp| cmp.be32(1, 1).be32(2, 0).nest(3, |data| data.put(1, value)))
}

fn is_tcp(list: Message) -> Message {
    // NFT_META_L4PROTO is 16.
    equals(expression(list, "meta", |meta| meta.be32(1, 1).be32(2, 16)), &[libc::IPPROTO_TCP as u8])
}

fn arrived_on(list: Message, device: u32) -> Message {
    // NFT_META_IIF is 4.
    equals(expression(list, "meta", |meta| meta.be32(1, 1).be32(2, 4)), &device.to_ne_bytes())
}

fn is_bare_syn(list: Message) -> Message {
    let loaded = expression(list, "payload", |payload| payload.be32(1, 1).be32(2, 2).be32(3, 13).be32(4, 1));
    let masked = expression(loaded, "bitwise", |bitwise| {
        let bitwise = bitwise.be32(1, 1).be32(2, 1).be32(3, 1);
        bitwise.nest(4, |mask| mask.put(1, &[0x17])).nest(5, |xor| xor.put(1, &[0]))
    });
    equals(masked, &[0x02])
}

fn load(list: Message, register: u32, value: &[u8]) -> Message {
    expression(list, "immediate", |immediate| immediate.be32(1, register).nest(2, |data| data.put(1, value)))
}

fn mark(list: Message, value: u32) -> Message {
    // NFT_META_MARK is 3, set from register 1.
    expression(load(list, 1, &value.to_ne_bytes()), "meta", |meta| meta.be32(2, 3).be32(3, 1))
}

fn tproxy(list: Message, v4: bool, port: u16) -> Message {
    let loopback: IpAddr = if v4 { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() };
    let address = match loopback {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let list = load(load(list, 1, &address), 2, &port.to_be_bytes());
    expression(list, "tproxy", |tproxy| tproxy.be32(1, if v4 { 2 } else { 10 }).be32(2, 1).be32(3, 2))
}
