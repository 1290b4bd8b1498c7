//! What a container may reach. One function, `Policy::target`, that every path asks before it makes a socket: device,
//! divert, mirror and hairpin. It sees the destination as the packet has it and answers with the host's address to
//! connect to, or not. It knows no sockets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::config::Config;

/// The rules of one container. The default is the safe one.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Policy {
    /// What of the host's loopback is reached through the gateway address.
    pub host_loopback: HostLoopback,
    /// The host's own addresses, which are refused; filled in when the engine starts.
    pub host_addresses: Vec<IpAddr>,
    /// Link-local addresses, the metadata services of clouds among them.
    pub allow_link_local: bool,
    /// If not empty, nothing else is reached.
    pub allow: Vec<Egress>,
    /// Refused even if allowed above.
    pub deny: Vec<Egress>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostLoopback {
    #[default]
    Denied,
    Ports(Vec<u16>),
    Allowed,
}

/// A network and ports: `CIDR[:PORT[-PORT]]`, with brackets round an IPv6 network that has ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Egress {
    pub network: IpAddr,
    pub prefix: u8,
    pub first: u16,
    pub last: u16,
}

/// Why a destination is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    HostLoopback,
    HostAddress,
    LinkLocal,
    /// Unspecified, multicast, broadcast and reserved addresses.
    NotUnicast,
    /// An address of the container's own network that nobody has.
    NoSuchNeighbour,
    List,
}

impl Policy {
    /// The host-side address of `destination`, if the container may reach it.
    pub fn target(&self, config: &Config, destination: SocketAddr) -> Result<SocketAddr, Refusal> {
        let ip = canonical(destination.ip());
        let named = |list: &[Egress]| list.iter().any(|rule| rule.matches(ip, destination.port()));
        if named(&self.deny) {
            return Err(Refusal::List);
        }
        if config.is_gateway(&ip) {
            return self.loopback_target(ip, destination.port());
        }
        if config.is_on_link(&ip) {
            return Err(Refusal::NoSuchNeighbour);
        }
        self.check_class(ip)?;
        if self.host_addresses.contains(&ip) {
            return Err(Refusal::HostAddress);
        }
        if !self.allow.is_empty() && !named(&self.allow) {
            return Err(Refusal::List);
        }
        Ok(SocketAddr::new(ip, destination.port()))
    }

    fn loopback_target(&self, gateway: IpAddr, port: u16) -> Result<SocketAddr, Refusal> {
        let allowed = match &self.host_loopback {
            HostLoopback::Denied => false,
            HostLoopback::Ports(ports) => ports.contains(&port),
            HostLoopback::Allowed => true,
        };
        let loopback = match gateway {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        };
        if allowed { Ok(SocketAddr::new(loopback, port)) } else { Err(Refusal::HostLoopback) }
    }

    fn check_class(&self, ip: IpAddr) -> Result<(), Refusal> {
        let (loopback, link_local, unicast) = match ip {
            IpAddr::V4(v4) => {
                let first = v4.octets()[0];
                (first == 127, v4.is_link_local(), first != 0 && first < 224)
            }
            IpAddr::V6(v6) => {
                let metadata = v6 == Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
                // An IPv4-compatible address or a NAT64 form of a loopback address is no way round the rules either.
                let embedded =
                    v6.segments()[..6] == [0; 6] || v6.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0];
                (v6.is_loopback(), v6.is_unicast_link_local() || metadata, !embedded && !v6.is_multicast())
            }
        };
        match () {
            () if loopback => Err(Refusal::HostLoopback),
            () if link_local && !self.allow_link_local => Err(Refusal::LinkLocal),
            () if !unicast => Err(Refusal::NotUnicast),
            () => Ok(()),
        }
    }
}

/// A v4-mapped address is the IPv4 address that a socket would in truth reach.
fn canonical(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

impl Egress {
    fn matches(&self, ip: IpAddr, port: u16) -> bool {
        let in_network = match (self.network, ip) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => {
                (u32::from(net) ^ u32::from(ip)).checked_shr(32 - u32::from(self.prefix)).unwrap_or(0) == 0
            }
            (IpAddr::V6(net), IpAddr::V6(ip)) => {
                (u128::from(net) ^ u128::from(ip)).checked_shr(128 - u32::from(self.prefix)).unwrap_or(0) == 0
            }
            _ => false,
        };
        in_network && (self.first..=self.last).contains(&port)
    }
}

impl FromStr for Egress {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        parse_egress(text).with_context(|| format!("cannot read {text:?} as CIDR[:PORT[-PORT]]"))
    }
}

fn parse_egress(text: &str) -> Result<Egress> {
    let (network, ports) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((network, ports)) => (network, ports.strip_prefix(':')),
        None if text.matches(':').count() == 1 => {
            let (network, ports) = text.split_once(':').unwrap_or((text, ""));
            (network, Some(ports))
        }
        None => (text, None),
    };
    let (address, prefix) = network.split_once('/').map_or((network, None), |(a, p)| (a, Some(p)));
    let network: IpAddr = address.parse().with_context(|| format!("{address:?} is no IP address"))?;
    let longest = if network.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.map_or(Ok(longest), str::parse).context("the prefix is no number")?;
    if prefix > longest {
        bail!("a prefix of /{prefix} is longer than the address");
    }
    let (first, last) = match ports {
        None => ("0", "65535"),
        Some(ports) => ports.split_once('-').unwrap_or((ports, ports)),
    };
    let port = |text: &str| text.parse::<u16>().with_context(|| format!("{text:?} is no port"));
    Ok(Egress { network, prefix, first: port(first)?, last: port(last)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(policy: &Policy, destination: &str) -> Result<SocketAddr, Refusal> {
        policy.target(&Config::default(), destination.parse().unwrap())
    }

    #[test]
    fn a_destination_that_is_the_host_or_nobody_is_refused_by_default() {
        let policy = Policy { host_addresses: vec!["192.0.2.2".parse().unwrap()], ..Policy::default() };
        for (destination, refusal) in [
            ("127.0.0.1:80", Refusal::HostLoopback),
            ("127.255.0.9:80", Refusal::HostLoopback),
            ("[::1]:80", Refusal::HostLoopback),
            ("[::ffff:127.0.0.1]:80", Refusal::HostLoopback),
            ("[::127.0.0.1]:80", Refusal::NotUnicast),
            ("[64:ff9b::7f00:1]:80", Refusal::NotUnicast),
            ("10.0.2.2:80", Refusal::HostLoopback),
            ("[fd00::2]:80", Refusal::HostLoopback),
            ("192.0.2.2:80", Refusal::HostAddress),
            ("[::ffff:192.0.2.2]:80", Refusal::HostAddress),
            ("169.254.169.254:80", Refusal::LinkLocal),
            ("[fd00:ec2::254]:80", Refusal::LinkLocal),
            ("[fe80::1]:80", Refusal::LinkLocal),
            ("0.0.0.0:80", Refusal::NotUnicast),
            ("0.1.2.3:80", Refusal::NotUnicast),
            ("[::]:80", Refusal::NotUnicast),
            ("224.0.0.251:5353", Refusal::NotUnicast),
            ("255.255.255.255:67", Refusal::NotUnicast),
            ("[ff02::fb]:5353", Refusal::NotUnicast),
            ("10.0.2.50:80", Refusal::NoSuchNeighbour),
        ] {
            assert_eq!(ask(&policy, destination), Err(refusal), "{destination}");
        }
        assert_eq!(ask(&policy, "203.0.113.7:80"), Ok("203.0.113.7:80".parse().unwrap()));
        assert_eq!(ask(&policy, "[2001:db8::7]:80"), Ok("[2001:db8::7]:80".parse().unwrap()));
    }

    #[test]
    fn the_gateway_leads_to_the_hosts_loopback_only_where_it_was_allowed() {
        let some = Policy { host_loopback: HostLoopback::Ports(vec![5432]), ..Policy::default() };
        assert_eq!(ask(&some, "10.0.2.2:5432"), Ok("127.0.0.1:5432".parse().unwrap()));
        assert_eq!(ask(&some, "10.0.2.2:5433"), Err(Refusal::HostLoopback));
        let all = Policy { host_loopback: HostLoopback::Allowed, ..Policy::default() };
        assert_eq!(ask(&all, "[fd00::2]:1"), Ok("[::1]:1".parse().unwrap()));
        assert_eq!(ask(&all, "127.0.0.1:1"), Err(Refusal::HostLoopback));
        let but = Policy { deny: vec!["10.0.2.2:22".parse().unwrap()], ..all };
        assert_eq!(ask(&but, "10.0.2.2:22"), Err(Refusal::List));
    }

    #[test]
    fn the_lists_decide_by_network_and_port() {
        let policy = Policy {
            allow: vec!["203.0.113.0/24:80-81".parse().unwrap(), "[2001:db8::/32]:443".parse().unwrap()],
            deny: vec!["203.0.113.9".parse().unwrap()],
            ..Policy::default()
        };
        assert!(ask(&policy, "203.0.113.8:81").is_ok());
        assert!(ask(&policy, "[2001:db8::1]:443").is_ok());
        for denied in ["203.0.113.8:82", "203.0.113.9:80", "198.51.100.1:80", "[2001:db8::1]:80"] {
            assert_eq!(ask(&policy, denied), Err(Refusal::List), "{denied}");
        }
    }
}
