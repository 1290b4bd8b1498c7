//! Trying each rung in a network namespace that nobody needs: what the kernel lets the caller do, before a container
//! asks for it.

use serde::{Deserialize, Serialize};

use crate::attach::{Facts, Made, make, open_device};
use crate::config::{Config, Paths};
use crate::netlink::Netlink;
use crate::sys::{socket, tun};

/// What came of each rung: what was seen, or why it was refused.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rungs {
    pub tap: Result<String, String>,
    pub packet: Result<String, String>,
    /// P1.
    pub divert: Result<String, String>,
    /// P2.
    pub mirror: Result<String, String>,
    /// P0.
    pub source: Result<String, String>,
}

/// Tries all in the caller's own network namespace, over which it has CAP_NET_ADMIN, and leaves it as it comes.
pub fn rungs() -> Rungs {
    let tap = tun::open_tap("trial-tap");
    let packet = packet();
    let made = make(&Config::default());
    let of = |seen: fn(&Facts) -> Result<&'static str, String>| match &made {
        Ok(Made { facts, .. }) => seen(facts).map(str::to_owned),
        Err(error) => Err(format!("{error:#}")),
    };
    Rungs {
        tap: tap
            .map(|_| "/dev/net/tun gave a device".to_owned())
            .map_err(|error| format!("/dev/net/tun: {error}")),
        packet,
        divert: of(|facts| match facts.divert4 && facts.divert6 {
            true => Ok("nf_tables marks the SYN and tproxy hands it over, IPv4 and IPv6"),
            false => Err(facts.notes.join("; ")),
        }),
        mirror: of(|_| Ok("a transparent listener is there, and a device that leads to it")),
        source: of(|facts| match facts.keeps_source {
            true => Ok("answers to foreign addresses stay inside, IPv4 and IPv6"),
            false => Err(facts.notes.join("; ")),
        }),
    }
}

/// What it makes it takes away, so that it can be made again.
fn packet() -> Result<String, String> {
    let paths = Paths { tap: false, ..Paths::default() };
    let config = Config { device: "trial-veth".into(), paths, ..Config::default() };
    let tried = || -> anyhow::Result<()> {
        let mut netlink = Netlink::route()?;
        open_device(&config, &mut netlink, &mut Facts::default())?;
        let (index, _) = netlink.link(&config.device)?;
        Ok(netlink.remove_link(index)?)
    };
    let seen = || "a veth pair was made and a packet socket opened on it".to_owned();
    tried().map(|()| seen()).map_err(|error| format!("{error:#}"))
}

/// Whether users of this host may ping: in the network namespace that the engine would be in.
pub fn ping() -> Result<String, String> {
    let opened = socket::socket_raw(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP);
    opened
        .map(|_| "a ping socket was opened".to_owned())
        .map_err(|error| format!("net.ipv4.ping_group_range: {error}"))
}
