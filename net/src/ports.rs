//! Published ports on the host's side: bound before the container starts, so that a port that is taken is known then.
//! It knows nothing of where they lead.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use anyhow::{Context, Error, Result, anyhow};

use crate::config::{Protocol, Published};
use crate::sys::socket;

/// One bound port of the host.
#[derive(Debug)]
pub struct Bound {
    pub protocol: Protocol,
    pub host: SocketAddr,
    pub container_port: u16,
    pub(crate) socket: OwnedFd,
}

/// Binds every port of `published`. The caller must be in the host's network namespace; no capability is needed but for
/// ports below `net.ipv4.ip_unprivileged_port_start`.
pub fn bind(published: &[Published]) -> Result<Vec<Bound>> {
    crate::sys::process::raise_descriptor_limit().context("cannot raise the limit of descriptors")?;
    bind_within_limit(published)
}

/// The ports as they are bound: one a port, with the host's number where the kernel chose it.
pub fn given(published: &[Published], bound: &[Bound]) -> Vec<Published> {
    let (mut given, mut rest) = (Vec::new(), bound.iter().peekable());
    for one in published {
        for step in 0..one.count {
            let Some(first) = rest.next() else { return given };
            // The other family has the same port.
            let twin = |other: &&Bound| one.host.is_none() && other.host.is_ipv6() && first.host.is_ipv4();
            let _ = rest.next_if(twin);
            let container_port = one.container_port.saturating_add(step);
            given.push(Published { host_port: first.host.port(), container_port, count: 1, ..*one });
        }
    }
    given
}

/// As `bind`, for a process that has raised its limit of descriptors already.
pub(crate) fn bind_within_limit(published: &[Published]) -> Result<Vec<Bound>> {
    let mut bound = Vec::new();
    for one in published {
        for step in 0..one.count {
            bind_one(one, step, &mut bound)?;
        }
    }
    Ok(bound)
}

fn bind_one(published: &Published, step: u16, bound: &mut Vec<Bound>) -> Result<()> {
    let wanted = if published.host_port == 0 { 0 } else { published.host_port.saturating_add(step) };
    let container_port = published.container_port.saturating_add(step);
    let protocol = published.protocol;
    let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    let addresses = published.host.map_or(any.to_vec(), |address| vec![address]);
    let mut port = wanted;
    for address in addresses {
        let host = SocketAddr::new(address, port);
        match open(protocol, &host) {
            Ok(socket) => {
                let host = socket::local_address(&socket)?;
                // The other family gets the port that the kernel chose for the first.
                port = host.port();
                bound.push(Bound { protocol, host, container_port, socket });
            }
            Err(error) if published.host.is_none() && address.is_ipv6() && has_no_v6(&error) => {}
            Err(error) => return Err(refusal(protocol, &host, &error)),
        }
    }
    Ok(())
}

fn has_no_v6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn open(protocol: Protocol, host: &SocketAddr) -> io::Result<OwnedFd> {
    let kind = match protocol {
        Protocol::Tcp => libc::SOCK_STREAM,
        Protocol::Udp => libc::SOCK_DGRAM,
    };
    let made = socket::socket(&host.ip(), kind)?;
    if host.is_ipv6() {
        socket::set_int(&made, libc::SOL_IPV6, libc::IPV6_V6ONLY, 1)?;
    }
    match protocol {
        // For a listener this only admits a port whose last connections are still in TIME_WAIT.
        Protocol::Tcp => socket::set_int(&made, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?,
        Protocol::Udp if host.is_ipv4() => socket::set_int(&made, libc::SOL_IP, libc::IP_PKTINFO, 1)?,
        Protocol::Udp => socket::set_int(&made, libc::SOL_IPV6, libc::IPV6_RECVPKTINFO, 1)?,
    }
    socket::bind(&made, host)?;
    if protocol == Protocol::Tcp {
        socket::listen(&made, 4096)?;
    }
    Ok(made)
}

fn refusal(protocol: Protocol, host: &SocketAddr, error: &io::Error) -> Error {
    let what = format!("cannot publish {host}/{protocol}");
    match error.raw_os_error() {
        Some(libc::EADDRINUSE) => {
            anyhow!("{what}: the port is taken by another program; choose another host port")
        }
        Some(libc::EACCES) => anyhow!(
            "{what}: users may not bind this port; an administrator can lower the sysctl \
             net.ipv4.ip_unprivileged_port_start to {}",
            host.port()
        ),
        Some(libc::EMFILE) => anyhow!(
            "{what}: that is more descriptors than a process may have here (`ulimit -Hn`); a port on every address takes \
             two, one on a single address takes one"
        ),
        Some(libc::EADDRNOTAVAIL) => anyhow!("{what}: the host has no such address"),
        _ => anyhow!("{what}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_the_kernel_chose_are_given_by_number() {
        let asked: Vec<Published> =
            ["80", "80", "127.0.0.1::90-91/udp"].iter().map(|text| text.parse().unwrap()).collect();
        let bound = bind(&asked).unwrap();
        let given = given(&asked, &bound);
        let ports: Vec<u16> = given.iter().map(|one| one.container_port).collect();
        assert_eq!(ports, [80, 80, 90, 91]);
        assert!(given.iter().all(|one| one.host_port != 0 && one.count == 1), "{given:?}");
        for one in &given {
            let is_bound = |bound: &Bound| {
                (bound.host.port(), bound.container_port, bound.protocol)
                    == (one.host_port, one.container_port, one.protocol)
            };
            assert!(bound.iter().any(is_bound), "{one:?}");
        }
        assert_ne!(given[0].host_port, given[1].host_port);
    }
}
