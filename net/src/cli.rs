//! The command line of the program `kelp-net`: slirp4netns's, so that podman and others use it unchanged, and our own
//! options. It turns words into a `Config` and opens what the words name.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{ArgAction, Parser, ValueEnum};

use crate::attach::{self, Target};
use crate::config::{self, Config, Published, Rate, Resolver, Subnet};
use crate::engine::{self, Channels};
use crate::policy::{Egress, HostLoopback};
use crate::ports;
use crate::sys::process;

/// Gives a network namespace a way out, without root.
#[derive(Debug, Parser)]
#[command(name = "kelp-net", version, about)]
struct Arguments {
    /// Bring the interface up with addresses and routes (always done; taken for slirp4netns's sake)
    #[arg(short, long)]
    configure: bool,
    /// Write 1 to this descriptor when the network is up
    #[arg(short, long, value_name = "FD")]
    ready_fd: Option<i32>,
    /// End when this descriptor hangs up
    #[arg(short, long, value_name = "FD")]
    exit_fd: Option<i32>,
    /// The interface's MTU
    #[arg(short, long, default_value_t = 65520, value_parser = clap::value_parser!(u32).range(1280..=65521))]
    mtu: u32,
    /// The interface's hardware address
    #[arg(long, value_name = "MAC", value_parser = config::parse_mac)]
    macaddress: Option<[u8; 6]>,
    /// The IPv4 network, as 10.0.2.0/24
    #[arg(long, value_name = "CIDR", value_parser = parse_cidr)]
    cidr: Option<Subnet<Ipv4Addr>>,
    /// Refuse connections to the host's loopback through the gateway address
    #[arg(long)]
    disable_host_loopback: bool,
    /// Allow them to these ports only
    #[arg(long, value_name = "PORT,...", value_delimiter = ',')]
    allow_host_loopback: Vec<u16>,
    /// Offer no name server
    #[arg(long)]
    disable_dns: bool,
    /// Give the namespace IPv6 too
    #[arg(short = '6', long)]
    enable_ipv6: bool,
    /// Listen for requests on this Unix socket
    #[arg(short, long, value_name = "PATH")]
    api_socket: Option<PathBuf>,
    /// The user namespace to join, if the network namespace is named by a path
    #[arg(long, value_name = "PATH")]
    userns_path: Option<PathBuf>,
    /// Whether the first operand is a pid or a path
    #[arg(long, value_enum, default_value = "pid")]
    netns_type: TargetKind,
    /// Publish a port: [IP:][HOST:]CONTAINER[/tcp|udp]
    #[arg(short, long, value_name = "PORT")]
    publish: Vec<Published>,
    /// Reach nothing but these: CIDR[:PORT[-PORT]]
    #[arg(long, value_name = "EGRESS")]
    allow: Vec<Egress>,
    /// Refuse these
    #[arg(long, value_name = "EGRESS")]
    deny: Vec<Egress>,
    /// Let link-local addresses be reached, cloud metadata services among them
    #[arg(long)]
    allow_link_local: bool,
    /// Bytes a second: up=N,down=N, with k, m or g
    #[arg(long, value_name = "LIMITS")]
    rate: Option<Rate>,
    /// Ask these name servers in place of resolv.conf's
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = parse_server)]
    dns: Vec<SocketAddr>,
    /// Follow this file in place of /etc/resolv.conf
    #[arg(long, value_name = "FILE", default_value = "/etc/resolv.conf")]
    resolv_conf: PathBuf,
    /// Record the interface's frames in a new file
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    /// Leave rungs out, for tests: divert, tap
    #[arg(long, value_enum, value_delimiter = ',')]
    without: Vec<Rung>,
    /// Say which rungs were refused, and why
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    ignored: Ignored,
    /// A pid, or the path of a network namespace
    #[arg(value_name = "PID|PATH")]
    target: String,
    /// The interface's name
    #[arg(value_name = "TAPNAME", default_value = "tap0")]
    device: String,
}

/// Options of slirp4netns that are always on here, or mean nothing here.
#[derive(Debug, clap::Args)]
struct Ignored {
    #[arg(long, hide = true)]
    enable_sandbox: bool,
    #[arg(long, hide = true)]
    enable_seccomp: bool,
    #[arg(long, hide = true, action = ArgAction::Append)]
    outbound_addr: Vec<String>,
    #[arg(long, hide = true, action = ArgAction::Append)]
    outbound_addr6: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TargetKind {
    Pid,
    Path,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Rung {
    Divert,
    Tap,
}

/// Runs the program: parses its arguments, makes the network, and carries it until it is told to stop.
/// What it has to say goes to `say`, a sentence a call.
pub fn main(say: impl Fn(&str)) -> Result<()> {
    let arguments = Arguments::parse();
    let ready = arguments.ready_fd.map(process::inherited).transpose().context("--ready-fd is not open")?;
    let stop = arguments.exit_fd.map(process::inherited).transpose().context("--exit-fd is not open")?;
    let kept: Vec<i32> = [&ready, &stop].into_iter().flatten().map(|fd| fd.as_fd().as_raw_fd()).collect();
    process::close_all_but(&kept).context("cannot close descriptors")?;
    let config = asked(&arguments)?;
    let target = target(&arguments)?;
    let bound = ports::bind(&config.published)?;
    let api = arguments.api_socket.as_deref().map(listen_api).transpose()?;
    let attached = attach::attach(&target, &config, None)
        .with_context(|| format!("cannot give {} a network", arguments.target))?;
    drop(target);
    if arguments.verbose {
        for note in &attached.facts.notes {
            say(note);
        }
    }
    engine::run(attached, bound, config, Channels { stop, api, ready, ..Channels::default() })
}

fn asked(arguments: &Arguments) -> Result<Config> {
    let mut config = Config {
        device: arguments.device.clone(),
        mac: arguments.macaddress,
        mtu: arguments.mtu,
        published: arguments.publish.clone(),
        rate: arguments.rate.unwrap_or_default(),
        pcap: arguments.pcap.clone(),
        resolver: match arguments.dns.is_empty() {
            _ if arguments.disable_dns => Resolver::Servers(Vec::new()),
            true => Resolver::File(arguments.resolv_conf.clone()),
            false => Resolver::Servers(arguments.dns.clone()),
        },
        ..Config::default()
    };
    config.v4 = arguments.cidr.or(config.v4);
    config.v6 = config.v6.filter(|_| arguments.enable_ipv6);
    config.paths.divert = !arguments.without.contains(&Rung::Divert);
    config.paths.tap = !arguments.without.contains(&Rung::Tap);
    config.policy.allow.clone_from(&arguments.allow);
    config.policy.deny.clone_from(&arguments.deny);
    config.policy.allow_link_local = arguments.allow_link_local;
    // slirp4netns lets the host's loopback be reached unless it is told not to; its callers count on that.
    config.policy.host_loopback = match () {
        () if !arguments.allow_host_loopback.is_empty() => {
            HostLoopback::Ports(arguments.allow_host_loopback.clone())
        }
        () if arguments.disable_host_loopback => HostLoopback::Denied,
        () => HostLoopback::Allowed,
    };
    if config.device.is_empty() || config.device.len() > 15 || config.device.contains('/') {
        bail!("{:?} is no name for an interface", config.device);
    }
    Ok(config)
}

fn target(arguments: &Arguments) -> Result<Target> {
    match arguments.netns_type {
        TargetKind::Path => Target::of_paths(arguments.userns_path.as_deref(), Path::new(&arguments.target)),
        TargetKind::Pid => {
            let pid =
                arguments.target.parse().with_context(|| format!("{:?} is no pid", arguments.target))?;
            Target::of_pid(pid)
        }
    }
}

fn listen_api(path: &Path) -> Result<OwnedFd> {
    // A socket that an earlier run has left is in the way; anything else is kept.
    if path
        .symlink_metadata()
        .is_ok_and(|found| std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()))
    {
        std::fs::remove_file(path).with_context(|| format!("cannot replace {}", path.display()))?;
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    listener.set_nonblocking(true)?;
    Ok(listener.into())
}

fn parse_cidr(text: &str) -> Result<Subnet<Ipv4Addr>> {
    let (network, prefix) = text.split_once('/').context("a network is written as 10.0.2.0/24")?;
    Subnet::in_network(network.parse()?, prefix.parse()?)
}

fn parse_server(text: &str) -> Result<SocketAddr> {
    text.parse().or_else(|_| Ok(SocketAddr::new(text.parse().context("it is no address")?, 53)))
}
