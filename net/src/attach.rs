//! Making the container's half of the network: device, addresses, routes, the rules of the divert, and the listeners that
//! the container's connections end at. All of it happens in a forked child that joins the container's namespaces; the
//! caller gets plain descriptors and never leaves its own. The child stays as the broker.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::broker::{self, PRIORITY_BACK, PRIORITY_OWN, PRIORITY_SYN, TABLE};
use crate::config::{Config, Protocol};
use crate::confine::{self, Role};
pub use crate::namespace::Target;
use crate::netlink::{self, Change, Netlink, Rule, Selector, Which};
use crate::sys::{process, socket, tun};
use crate::wire::ENGINE_MAC;

/// Defaults for the container's namespace: its TCP ends inside it, so it is not paced (decision 0204), and ends of
/// connections that wait for late segments need not keep their ports (`tcp_tw_reuse`, decision 0206).
const DEFAULTS: &[(&str, &str)] =
    &[("net.ipv4.tcp_congestion_control", broker::CONGESTION_CONTROL), ("net.ipv4.tcp_tw_reuse", "1")];

/// The marks of bare SYNs on their way out and of connections on their way back.
const MARK_OUT: u32 = 0x6b65_6c70;
const MARK_BACK: u32 = 0x6b65_6c71;

/// The container's half, as the engine needs it.
#[derive(Debug)]
pub struct Attached {
    pub(crate) device: OwnedFd,
    pub(crate) listener4: Option<OwnedFd>,
    pub(crate) listener6: Option<OwnedFd>,
    pub(crate) broker: OwnedFd,
    pub facts: Facts,
}

/// What came of the set-up.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Facts {
    /// The hardware address of the container's interface.
    pub mac: [u8; 6],
    /// The port of the listeners.
    pub(crate) port: u16,
    /// Connections of each family are diverted (P1); where not, they are mirrored (P2).
    pub divert4: bool,
    pub divert6: bool,
    /// The namespace keeps the answers to foreign addresses, so published ports show the client's address (P0).
    pub keeps_source: bool,
    pub broker_pid: i32,
    /// Each rung that was refused, and why.
    pub notes: Vec<String>,
}

/// Makes device, routes, rules and listeners inside the target's namespaces.
///
/// The caller must have one thread, be in the host's network namespace (where the engine will run), and either be in the
/// target's user namespace with CAP_SYS_ADMIN there or be its owner. It forks; the child joins the namespaces, and lives on
/// as the broker until the engine's end of its channel closes; it calls `settled` before it waits.
pub fn attach(target: &Target, config: &Config, settled: Option<fn()>) -> Result<Attached> {
    let (ours, theirs) = socket::pair(libc::SOCK_SEQPACKET)?;
    match process::fork().context("cannot fork the process that enters the container's network")? {
        process::Fork::Child => {
            drop(ours);
            let status = child(target, config, &theirs, settled);
            process::exit(i32::from(status.is_err()));
        }
        process::Fork::Parent(pid) => {
            drop(theirs);
            receive(ours, pid, config)
        }
    }
}

/// The first message of the child.
#[derive(Serialize, Deserialize)]
enum Outcome {
    Made(Facts),
    Failed(String),
}

fn receive(channel: OwnedFd, pid: i32, config: &Config) -> Result<Attached> {
    let mut buffer = vec![0; 65536];
    let (length, passed) = socket::recv_descriptors(&channel, &mut buffer, 0)?.context("no answer")?;
    if length == 0 {
        process::wait(pid)?;
        bail!("the process that enters the container's network ended early");
    }
    let mut facts = match serde_json::from_slice(buffer.get(..length).unwrap_or(&[]))? {
        Outcome::Made(facts) => facts,
        Outcome::Failed(sentence) => {
            process::wait(pid)?;
            bail!("{sentence}");
        }
    };
    facts.broker_pid = pid;
    let mut passed = passed.into_iter();
    let device = passed.next().context("the device did not arrive")?;
    let listener4 = config.v4.and_then(|_| passed.next());
    let listener6 = config.v6.and_then(|_| passed.next());
    Ok(Attached { device, listener4, listener6, broker: channel, facts })
}

/// Where a parameter of the kernel stands; what it says is of the network namespace of who looks.
fn sysctl(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name.replace('.', "/"))
}

fn child(target: &Target, config: &Config, channel: &OwnedFd, settled: Option<fn()>) -> Result<()> {
    let wanted =
        DEFAULTS.iter().filter(|(name, _)| !config.chosen_sysctls.iter().any(|chosen| chosen == name));
    let wanted: Vec<_> = wanted.map(|(name, value)| (sysctl(name), value)).collect();
    let hosts: Vec<_> = wanted.iter().map(|(path, _)| fs::read(path).ok()).collect();
    let made = target.join().and_then(|()| {
        for ((path, value), hosts) in wanted.iter().zip(hosts) {
            // Unless somebody has chosen another. It is refused where /proc is read-only, and then it is slower.
            if hosts.is_some() && hosts == fs::read(path).ok() {
                let _ = fs::write(path, value);
            }
        }
        make(config)
    });
    let mut made = match made {
        Ok(made) => made,
        Err(error) => {
            let outcome = serde_json::to_vec(&Outcome::Failed(format!("{error:#}")))?;
            socket::send_descriptors(channel, &outcome, &[])?;
            return Err(error);
        }
    };
    let divert = [(true, made.facts.divert4), (false, made.facts.divert6)];
    let on = [config.v4.is_some(), config.v6.is_some()];
    let families: Vec<(bool, bool)> =
        divert.into_iter().zip(on).filter_map(|(one, on)| on.then_some(one)).collect();
    let outcome = serde_json::to_vec(&Outcome::Made(std::mem::take(&mut made.facts)))?;
    let mut passed = vec![made.device.as_fd()];
    passed.extend(made.listeners.iter().map(AsFd::as_fd));
    socket::send_descriptors(channel, &outcome, &passed)?;
    let Made { device, listeners, mut netlink, index, .. } = made;
    drop((device, listeners));
    let mut sockets = Netlink::sockets().context("cannot open a socket to end connections")?;
    let kept = [channel.as_raw_fd(), netlink.as_raw_fd(), sockets.as_raw_fd()];
    process::close_all_but(&kept).context("cannot close descriptors")?;
    confine::confine(Role::Broker)?;
    settled.into_iter().for_each(|settled| settled());
    let served = broker::serve(channel, &mut netlink);
    for (v4, _) in families.iter().filter(|(_, diverted)| *diverted) {
        divert_rules(*v4).iter().try_for_each(|rule| netlink.rule(Change::Remove, rule))?;
    }
    // What is opened from now on fails at once.
    netlink.remove_link(index)?;
    for (v4, diverted) in families {
        // Diverted connections ended with the engine's sockets, but for those that still wait for their answer. Mirrored ones
        // only miss their segments, for ever.
        sockets.abort_connections(v4, if diverted { Which::Connecting } else { Which::All })?;
    }
    served
}

/// What is made inside.
pub(crate) struct Made {
    device: OwnedFd,
    listeners: Vec<OwnedFd>,
    netlink: Netlink,
    /// The number of the container's interface.
    index: u32,
    pub(crate) facts: Facts,
}

/// The one story of the set-up, inside the namespaces.
pub(crate) fn make(config: &Config) -> Result<Made> {
    let mut netlink = Netlink::route().context("cannot open a netlink socket")?;
    let mut facts = Facts::default();
    let mut changes = Netlink::changes().context("cannot watch for changes of links")?;
    let (device, is_pair) = open_device(config, &mut netlink, &mut facts)?;
    let (lo, _) = netlink.link("lo").context("cannot find the loopback interface")?;
    let (index, mac) =
        netlink.link(&config.device).with_context(|| format!("cannot find {}", config.device))?;
    facts.mac = config.mac.unwrap_or(mac);
    netlink.up(lo).context("cannot bring up the loopback interface")?;
    if let Err(error) = netlink.quiet_v6(index) {
        facts.notes.push(format!("IPv6 of {} is not quiet: {error}", config.device));
    }
    netlink
        .raise_link(index, config.mtu, config.mac)
        .with_context(|| format!("cannot bring up {}", config.device))?;
    if is_pair {
        changes
            .await_operational(index)
            .with_context(|| format!("cannot wait for {} to come up", config.device))?;
    }
    let addresses = config.v4.map(|net| (IpAddr::V4(net.address), net.prefix)).into_iter();
    for (address, prefix) in addresses.chain(config.v6.map(|net| (IpAddr::V6(net.address), net.prefix))) {
        address_family(config, &mut netlink, index, (address, prefix))?;
    }
    let port = choose_port();
    let mut listeners = Vec::new();
    facts.keeps_source = true;
    for like in families(config) {
        let local = netlink.add_local_default(TABLE, lo, config.address(&like).unwrap_or(like));
        let kept = local.context("cannot add the local route").map_err(|error| format!("{error:#}"));
        if let Err(sentence) = &kept {
            facts.keeps_source = false;
            facts.notes.push(sentence.clone());
        }
        let diverted =
            config.paths.divert && kept.is_ok() && divert(&mut netlink, &like, index, port, &mut facts);
        if like.is_ipv4() {
            facts.divert4 = diverted
        } else {
            facts.divert6 = diverted
        }
        listeners.push(listen(config, &like, diverted, port)?);
    }
    facts.port = port;
    if let Some(net) = config.v6
        && let Err(error) = changes.await_local_route(net.address)
    {
        facts.notes.push(format!("{} may not receive yet: {error}", net.address));
    }
    Ok(Made { device, listeners, netlink, index, facts })
}

/// One unspecified address for each family that is on.
fn families(config: &Config) -> Vec<IpAddr> {
    let v4 = config.v4.map(|_| IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let v6 = config.v6.map(|_| IpAddr::V6(Ipv6Addr::UNSPECIFIED));
    v4.into_iter().chain(v6).collect()
}

pub(crate) fn open_device(
    config: &Config,
    netlink: &mut Netlink,
    facts: &mut Facts,
) -> Result<(OwnedFd, bool)> {
    if config.paths.tap {
        match tun::open_tap(&config.device) {
            Ok(device) => return Ok((device, false)),
            Err(error) => facts.notes.push(format!("no TAP device: {error}")),
        }
    }
    let peer = "kelp-peer";
    netlink
        .add_veth(&config.device, peer)
        .with_context(|| format!("cannot make a veth pair ({})", facts.notes.join("; ")))?;
    let (index, _) = netlink.link(peer)?;
    netlink.quiet_v6(index).ok();
    netlink
        .raise_link(index, config.mtu, None)
        .context("cannot bring up the engine's end of the veth pair")?;
    Ok((tun::open_packet(index).context("cannot open a packet socket on the veth pair")?, true))
}

fn address_family(
    config: &Config,
    netlink: &mut Netlink,
    index: u32,
    (address, prefix): (IpAddr, u8),
) -> Result<()> {
    let gateway = config.gateway(&address).unwrap_or(address);
    netlink
        .add_address(index, address, prefix)
        .with_context(|| format!("cannot give {} the address {address}", config.device))?;
    let dns = match address {
        IpAddr::V4(_) => config.v4.map(|net| IpAddr::V4(net.dns)),
        IpAddr::V6(_) => config.v6.map(|net| IpAddr::V6(net.dns)),
    };
    for neighbour in [Some(gateway), dns].into_iter().flatten() {
        netlink
            .add_neighbour(index, neighbour, ENGINE_MAC)
            .with_context(|| format!("cannot make {neighbour} known on {}", config.device))?;
    }
    netlink.add_default_route(index, gateway).with_context(|| format!("cannot route through {gateway}"))
}

/// Tries the divert for one family. A refusal is noted and leaves the mirror.
fn divert(netlink: &mut Netlink, like: &IpAddr, device: u32, port: u16, facts: &mut Facts) -> bool {
    let v4 = like.is_ipv4();
    let rules = divert_rules(v4);
    let outcome = Netlink::netfilter()
        .context("cannot open an nf_tables socket")
        .and_then(|mut nft| netlink::divert_syns(&mut nft, v4, device, port, MARK_OUT, MARK_BACK))
        .and_then(|()| {
            rules
                .iter()
                .try_for_each(|rule| netlink.rule(Change::Add, rule))
                .context("cannot add the FIB rules that divert connections")
        });
    if let Err(error) = &outcome {
        facts.notes.push(format!("no divert: {error:#}"));
    }
    outcome.is_ok()
}

/// Bare SYNs go out by the main table; what comes back, and all other TCP of the container's own, stays inside.
fn divert_rules(v4: bool) -> [Rule; 3] {
    let own = Selector::Own { protocol: broker::protocol_number(Protocol::Tcp), source_ports: None };
    [
        Rule { v4, priority: PRIORITY_SYN, table: 254, selector: Selector::Mark(MARK_OUT) },
        Rule { v4, priority: PRIORITY_BACK, table: TABLE, selector: Selector::Mark(MARK_BACK) },
        Rule { v4, priority: PRIORITY_OWN, table: TABLE, selector: own },
    ]
}

/// A port above the range from which the kernel takes ports by itself, so that no program meets it by chance.
fn choose_port() -> u16 {
    let mut bytes = [0; 2];
    process::random(&mut bytes);
    61000 + u16::from_ne_bytes(bytes) % 4000
}

fn listen(config: &Config, like: &IpAddr, diverted: bool, port: u16) -> Result<OwnedFd> {
    let address = match (diverted, like) {
        (true, IpAddr::V4(_)) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        (true, IpAddr::V6(_)) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        (false, like) => config.address(like).unwrap_or(*like),
    };
    let listener =
        broker::transparent(like.is_ipv4(), Protocol::Tcp).context("cannot make a transparent socket")?;
    let address = SocketAddr::new(address, port);
    socket::bind(&listener, &address)
        .with_context(|| format!("cannot listen on {address} in the container"))?;
    socket::listen(&listener, 4096)?;
    Ok(listener)
}
