//! What a network is to be: plain data that a caller fills in, prints, or sends to the process that runs the engine.
//! It knows nothing of how any of it is brought about.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::policy::Policy;

/// One container's network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config {
    /// The interface's name inside the container.
    pub device: String,
    /// The interface's hardware address; the kernel chooses one if there is none.
    pub mac: Option<[u8; 6]>,
    pub mtu: u32,
    pub v4: Option<Subnet<Ipv4Addr>>,
    pub v6: Option<Subnet<Ipv6Addr>>,
    pub resolver: Resolver,
    pub policy: Policy,
    pub published: Vec<Published>,
    pub rate: Rate,
    pub paths: Paths,
    /// Frames that cross the device are written here, mode 0600.
    pub pcap: Option<PathBuf>,
    /// Connections and datagram flows at a time, each.
    pub max_flows: usize,
    /// Parameters of the kernel (`net.ipv4.tcp_tw_reuse`) that somebody sets for the namespace, so that its defaults of these stay.
    #[serde(default)]
    pub chosen_sysctls: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            device: "eth0".into(),
            mac: None,
            mtu: 65520,
            v4: Some(Subnet::default_v4()),
            v6: Some(Subnet::default_v6()),
            resolver: Resolver::File("/etc/resolv.conf".into()),
            policy: Policy::default(),
            published: Vec::new(),
            rate: Rate::default(),
            paths: Paths::default(),
            pcap: None,
            max_flows: 16384,
            chosen_sysctls: Vec::new(),
        }
    }
}

/// The container's address, and the two addresses beside it that the engine answers for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet<A> {
    pub address: A,
    pub prefix: u8,
    /// The way out. It stands for the host itself (`host.docker.internal`) where the policy allows that.
    pub gateway: A,
    /// The name server.
    pub dns: A,
}

impl Subnet<Ipv4Addr> {
    pub const fn default_v4() -> Self {
        Self {
            address: Ipv4Addr::new(10, 0, 2, 100),
            prefix: 24,
            gateway: Ipv4Addr::new(10, 0, 2, 2),
            dns: Ipv4Addr::new(10, 0, 2, 3),
        }
    }

    /// The addresses .100, .2 and .3 of a network, as slirp4netns chooses them.
    pub fn in_network(network: Ipv4Addr, prefix: u8) -> Result<Self> {
        if !(8..=25).contains(&prefix) {
            bail!("a prefix of /{prefix} leaves no room for the gateway, the name server and the container");
        }
        let base = u32::from(network) & (u32::MAX << (32 - prefix));
        let at = |host: u32| Ipv4Addr::from(base + host);
        Ok(Self { address: at(100), prefix, gateway: at(2), dns: at(3) })
    }

    /// The network of 256 addresses round the container's own.
    pub fn of_container(address: Ipv4Addr) -> Result<Self> {
        let first = address.octets()[0];
        if matches!(address.octets()[3], 0 | 2 | 3 | 255) {
            bail!("0 and 255 are nobody's, 2 is the gateway, 3 the name server");
        }
        if first == 0 || first == 127 || first >= 224 || address.is_link_local() {
            bail!("no interface can have this address");
        }
        Ok(Self { address, ..Self::in_network(address, 24)? })
    }
}

impl Subnet<Ipv6Addr> {
    pub const fn default_v6() -> Self {
        Self {
            address: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x100),
            prefix: 64,
            gateway: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2),
            dns: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3),
        }
    }
}

impl Config {
    /// The container's address of the same family as `like`.
    pub fn address(&self, like: &IpAddr) -> Option<IpAddr> {
        self.pick(like, |v4| v4.address, |v6| v6.address)
    }

    pub fn gateway(&self, like: &IpAddr) -> Option<IpAddr> {
        self.pick(like, |v4| v4.gateway, |v6| v6.gateway)
    }

    pub fn is_gateway(&self, ip: &IpAddr) -> bool {
        self.gateway(ip) == Some(*ip)
    }

    pub fn is_dns(&self, ip: &IpAddr) -> bool {
        self.pick(ip, |v4| v4.dns, |v6| v6.dns) == Some(*ip)
    }

    /// Whether `ip` is in the container's own network.
    pub fn is_on_link(&self, ip: &IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => self.v4.is_some_and(|net| {
                let shift = 32 - u32::from(net.prefix.min(32));
                (u32::from(net.address) ^ u32::from(*ip)).checked_shr(shift).unwrap_or(0) == 0
            }),
            IpAddr::V6(ip) => self.v6.is_some_and(|net| {
                let shift = 128 - u32::from(net.prefix.min(128));
                (u128::from(net.address) ^ u128::from(*ip)).checked_shr(shift).unwrap_or(0) == 0
            }),
        }
    }

    fn pick(
        &self,
        like: &IpAddr,
        v4: impl Fn(&Subnet<Ipv4Addr>) -> Ipv4Addr,
        v6: impl Fn(&Subnet<Ipv6Addr>) -> Ipv6Addr,
    ) -> Option<IpAddr> {
        match like {
            IpAddr::V4(_) => self.v4.as_ref().map(|net| v4(net).into()),
            IpAddr::V6(_) => self.v6.as_ref().map(|net| v6(net).into()),
        }
    }
}

/// Where names are asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Resolver {
    /// The servers of a resolv.conf, read again when it changes.
    File(PathBuf),
    Servers(Vec<SocketAddr>),
}

/// Bytes a second that the container may send and receive; no limit if there is none.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Rate {
    pub up: Option<u64>,
    pub down: Option<u64>,
}

impl FromStr for Rate {
    type Err = anyhow::Error;

    /// `up=BYTES,down=BYTES`, either alone; k, m and g stand for powers of 1024.
    fn from_str(text: &str) -> Result<Self> {
        let mut rate = Self::default();
        for part in text.split(',') {
            let (which, bytes) =
                part.split_once('=').context("a limit is written as up=BYTES or down=BYTES")?;
            let bytes = Some(parse_bytes(bytes).with_context(|| format!("{bytes:?} is no number of bytes"))?);
            match which {
                "up" => rate.up = bytes,
                "down" => rate.down = bytes,
                other => bail!("{other:?} is neither up nor down"),
            }
        }
        Ok(rate)
    }
}

fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text.get(digits.len()..)?.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" => 10,
        "m" | "mb" => 20,
        "g" | "gb" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift).filter(|bytes| *bytes > 0)
}

/// A hardware address that one interface can have.
pub fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<Vec<u8>, _>>();
    let mac: [u8; 6] =
        bytes.ok().and_then(|bytes| bytes.try_into().ok()).context("it is no hardware address")?;
    if mac[0] & 1 != 0 || mac == [0; 6] {
        bail!("it is the address of a group or of nobody");
    }
    Ok(mac)
}

/// The rungs that may be tried. Tests switch the better ones off to force the others.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Paths {
    /// TCP handed to `lo` by nf_tables and FIB rules.
    pub divert: bool,
    /// A TAP device; without it, or without `/dev/net/tun`, a packet socket on a veth pair.
    pub tap: bool,
}

impl Default for Paths {
    fn default() -> Self {
        Self { divert: true, tap: true }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// Ports of the host that lead into the container: `count` of them in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    pub protocol: Protocol,
    /// The host's address to bind; every address of both families if there is none.
    pub host: Option<IpAddr>,
    /// The first port on the host; 0 leaves the choice to the kernel.
    pub host_port: u16,
    pub container_port: u16,
    pub count: u16,
}

impl FromStr for Published {
    type Err = anyhow::Error;

    /// `[IP:][HOST:]CONTAINER[/tcp|udp]` with `FIRST-LAST` for either port; an IPv6 address stands in brackets.
    fn from_str(text: &str) -> Result<Self> {
        parse_published(text)
            .with_context(|| format!("cannot read the port {text:?} as [IP:][HOST:]CONTAINER[/PROTOCOL]"))
    }
}

fn parse_published(text: &str) -> Result<Published> {
    let (ports, protocol) = match text.rsplit_once('/') {
        None | Some((_, "tcp")) => (text.strip_suffix("/tcp").unwrap_or(text), Protocol::Tcp),
        Some((ports, "udp")) => (ports, Protocol::Udp),
        Some((_, other)) => bail!("the protocol {other:?} is not tcp or udp"),
    };
    let (rest, container) = ports.rsplit_once(':').map_or(("", ports), |(rest, container)| (rest, container));
    let (address, host) = rest.rsplit_once(':').map_or(("", rest), |(address, host)| (address, host));
    let (container_port, count) = parse_range(container)?;
    let (host_port, host_count) = if host.is_empty() { (0, count) } else { parse_range(host)? };
    if host_count != count {
        bail!("the ranges {host} and {container} differ in length");
    }
    let address = address.trim_start_matches('[').trim_end_matches(']');
    let host = match address {
        "" => None,
        text => Some(text.parse().with_context(|| format!("{text:?} is no IP address"))?),
    };
    Ok(Published { protocol, host, host_port, container_port, count })
}

fn parse_range(text: &str) -> Result<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| text.parse::<u16>().with_context(|| format!("{text:?} is no port"));
    let (first, last) = (port(first)?, port(last)?);
    if first == 0 || last < first {
        bail!("the range {text} is empty");
    }
    Ok((first, (last - first).saturating_add(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_read_in_each_of_dockers_forms() {
        let port =
            |text: &str| text.parse::<Published>().map(|p| (p.host, p.host_port, p.container_port, p.count));
        assert_eq!(port("80").unwrap(), (None, 0, 80, 1));
        assert_eq!(port("8080:80").unwrap(), (None, 8080, 80, 1));
        assert_eq!(port("127.0.0.1:8080:80/udp").unwrap(), (Some("127.0.0.1".parse().unwrap()), 8080, 80, 1));
        assert_eq!(port("[::1]:8080:80").unwrap(), (Some("::1".parse().unwrap()), 8080, 80, 1));
        assert_eq!(port("127.0.0.1::80").unwrap(), (Some("127.0.0.1".parse().unwrap()), 0, 80, 1));
        assert_eq!(port("8000-8009:9000-9009").unwrap(), (None, 8000, 9000, 10));
    }

    #[test]
    fn a_port_that_makes_no_sense_is_refused() {
        for text in
            ["", "0", "80/sctp", "80:90:100:110", "8000-8001:9000", "70000", "9-8", "x:1:2", "1-65536"]
        {
            assert!(text.parse::<Published>().is_err(), "{text}");
        }
    }
}
