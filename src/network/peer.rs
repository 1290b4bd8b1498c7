//! `--network-backend`: slirp4netns or pasta in the place of kelp's own engine. The helper that would be the engine
//! starts the program, publishes the ports, and ends it when the container ends or the monitor is gone. What a peer can't
//! keep of what was asked is said.

use std::fs::{self, DirBuilder, File};
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use kelp_net::attach::Target;
use kelp_net::config::{Config, Protocol, Published};
use kelp_net::policy::HostLoopback;
use kelp_net::ports;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use serde_json::{Value, json};

use crate::error::Error;
use crate::network::engine;
use crate::spec::request::{Backend, Network, Request};
use crate::stage;
use crate::sys::clone::{self, Cloned};
use crate::sys::process;
use crate::userns::setuid::search;
use crate::userns::within;

/// How long a peer may take to bring the network up.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long a peer is left running when the container has ended.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// What the helper talks over.
#[derive(Debug)]
pub struct Ends {
    /// Told when the network is up, or why it is not.
    pub word: OwnedFd,
    /// Hangs up when the container has ended.
    pub stop: OwnedFd,
    /// Told the published ports.
    pub ports: Option<OwnedFd>,
}

/// # Errors
/// The program is not there.
pub fn installed(backend: Backend) -> Result<()> {
    let package = match backend {
        Backend::Kelp => return Ok(()),
        Backend::Slirp4netns => "slirp4netns",
        Backend::Pasta => "passt",
    };
    let word = backend.word();
    search(word).map(drop).ok_or_else(|| {
        let hint = format!(
            "an administrator can install it (Debian: apt-get install {package}); kelp's own engine, the default, needs nothing"
        );
        Error::host(format!("--network-backend {word}: {word} is not installed")).hint(hint).into()
    })
}

/// Warns of what the peer can't keep.
///
/// # Errors
/// With `--strict-limits`, that it can't.
pub fn say_unkept(request: &Request, warn: &mut dyn FnMut(&str)) -> Result<()> {
    let Network::User(config) = &request.network else { return Ok(()) };
    let unkept = unkept(request.backend, config);
    if request.backend != Backend::Kelp {
        let word = request.backend.word();
        warn(&format!("{word} lets the container reach the host's own addresses and link-local ones"));
    }
    if request.backend == Backend::Slirp4netns && !has_sandbox() {
        warn("slirp4netns runs without its sandbox, for which root needs CAP_SYS_ADMIN");
    }
    match unkept.first() {
        Some(first) if request.resources.strict => {
            Err(Error::usage(format!("--strict-limits: {first}")).hint("kelp's own engine keeps it").into())
        }
        _ => {
            unkept.iter().for_each(|sentence| warn(sentence));
            Ok(())
        }
    }
}

/// slirp4netns enters the container's user namespace for its sandbox only where it is not root.
fn has_sandbox() -> bool {
    let sys_admin = 1 << 21;
    !nix::unistd::geteuid().is_root() || process::capget().is_ok_and(|sets| sets.effective & sys_admin != 0)
}

/// What of `config` the peer can't keep.
fn unkept(backend: Backend, config: &Config) -> Vec<String> {
    if backend == Backend::Kelp {
        return Vec::new();
    }
    let word = backend.word();
    let policy = &config.policy;
    let on_v6 = |one: &Published| one.host.is_none_or(|host| host.is_ipv6());
    let all = [
        (!policy.allow.is_empty(), format!("nothing enforces --network-allow here: {word} has no such list")),
        (!policy.deny.is_empty(), format!("nothing enforces --network-deny here: {word} has no such list")),
        (
            config.rate.up.is_some() || config.rate.down.is_some(),
            format!("nothing enforces --network-rate here: {word} knows no rates"),
        ),
        (
            matches!(policy.host_loopback, HostLoopback::Ports(_)),
            format!("{word} can't open single ports of the host's loopback: none is open"),
        ),
        (
            backend == Backend::Slirp4netns && config.published.iter().any(on_v6),
            "slirp4netns publishes ports on IPv4 addresses only".to_owned(),
        ),
    ];
    all.into_iter().filter(|(holds, _)| *holds).map(|(_, sentence)| sentence).collect()
}

/// The helper's work.
pub fn serve(backend: Backend, config: &Config, target: Target, ends: Ends) -> Result<()> {
    let Ends { word, stop, ports } = ends;
    let started = Peer::start(backend, config, &target, ports);
    drop(target);
    match started {
        Ok(peer) => {
            stage::tell(word, &Ok(()));
            peer.watch(stop)
        }
        Err(error) => {
            stage::tell(word, &Err(error));
            Ok(())
        }
    }
}

struct Peer {
    backend: Backend,
    pid: i32,
    pidfd: OwnedFd,
    /// slirp4netns ends when it is closed, and so with the helper whatever becomes of that.
    _exit: Option<OwnedFd>,
}

impl Peer {
    fn start(backend: Backend, config: &Config, target: &Target, told: Option<OwnedFd>) -> Result<Self> {
        let ports = free_ports(config)?;
        let holder = Holder::new(target)?;
        let folder = Folder::new()?;
        let peer = match backend {
            Backend::Pasta => pasta(config, &ports, &holder, &folder)?,
            _ => slirp4netns(config, &holder, &folder)?,
        };
        if backend != Backend::Pasta {
            peer.publish(&folder, config, &ports)?;
        }
        told.map_or(Ok(()), |told| engine::tell(told, &ports))?;
        Ok(peer)
    }

    /// Starts the program, which writes to `ready` when the network is up.
    fn run(
        backend: Backend,
        mut command: Command,
        (ready, exit): (OwnedFd, Option<OwnedFd>),
        folder: &Folder,
    ) -> Result<Self> {
        let said = folder.0.join("said");
        // A terminal's signals are for the container.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&said)?);
        let word = backend.word();
        let peer = match clone::clone(0, None).with_context(|| format!("cannot start {word}"))? {
            Cloned::Child => {
                let _ = process::parent_death_signal(libc::SIGKILL);
                let _ = command.exec();
                clone::exit(127)
            }
            Cloned::Parent { pid, pidfd } => Self { backend, pid, pidfd, _exit: exit },
        };
        if wait(&[ready.as_fd(), peer.pidfd.as_fd()], Some(PATIENCE))? != Some(0) {
            peer.end()?;
            let words = fs::read_to_string(&said).unwrap_or_default();
            let words: Vec<&str> = words.lines().filter(|line| !line.contains("syslog")).collect();
            let words = if words.is_empty() { "it said nothing".to_owned() } else { words.join("; ") };
            bail!("{word} does not bring the network up: {words}");
        }
        Ok(peer)
    }

    /// By slirp4netns's API socket, one request a connection.
    fn publish(&self, folder: &Folder, config: &Config, ports: &[Published]) -> Result<()> {
        let guest = config.v4.context("slirp4netns carries IPv4")?.address;
        for one in ports.iter().filter(|one| one.host.is_none_or(|host| host.is_ipv4())) {
            let host = one.host.unwrap_or(IpAddr::from([0, 0, 0, 0]));
            let request = json!({"execute": "add_hostfwd", "arguments": {
                "proto": one.protocol, "host_addr": host, "host_port": one.host_port,
                "guest_addr": guest, "guest_port": one.container_port,
            }});
            let mut api =
                UnixStream::connect(folder.0.join("api")).context("cannot ask slirp4netns for a port")?;
            api.write_all(request.to_string().as_bytes())?;
            api.shutdown(Shutdown::Write)?;
            let mut answer = String::new();
            api.read_to_string(&mut answer)?;
            let answer: Value = serde_json::from_str(&answer).context("slirp4netns's answer is no JSON")?;
            if let Some(error) = answer.get("error") {
                let why = error.get("desc").and_then(Value::as_str).unwrap_or("no reason was given");
                bail!("slirp4netns cannot publish {host}:{}/{}: {why}", one.host_port, one.protocol);
            }
        }
        Ok(())
    }

    /// Until the container ends, or the program does, which is an error.
    fn watch(self, stop: OwnedFd) -> Result<()> {
        let stopped = wait(&[stop.as_fd(), self.pidfd.as_fd()], None)? == Some(0);
        if stopped {
            // What the container said last is on its way; a peer does not tell when it is carried.
            let _ = wait(&[self.pidfd.as_fd()], Some(LAST_WORDS));
        }
        let status = self.end()?;
        if stopped { Ok(()) } else { Err(anyhow!("{} ended with {status}", self.backend.word())) }
    }

    fn end(&self) -> Result<i32> {
        let _ = process::pidfd_send_signal(self.pidfd.as_fd(), libc::SIGKILL);
        within::wait(self.pid)
    }
}

fn slirp4netns(config: &Config, holder: &Holder, folder: &Folder) -> Result<Peer> {
    let net = config.v4.context("slirp4netns carries IPv4")?;
    let (ready, tell) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let (hang_up, exit) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let mut command = Command::new("slirp4netns");
    command.args(["--configure", "--enable-ipv6", "--enable-seccomp"]);
    if has_sandbox() {
        command.arg("--enable-sandbox");
    }
    command.arg(format!("--mtu={}", config.mtu));
    command.arg(format!("--cidr={}/{}", base(net.gateway, net.prefix), net.prefix));
    command.arg(format!("--api-socket={}", folder.0.join("api").display()));
    for (flag, fd) in [("--ready-fd", &tell), ("--exit-fd", &hang_up)] {
        process::keep_over_exec(fd.as_fd())?;
        command.arg(format!("{flag}={}", std::os::fd::AsRawFd::as_raw_fd(fd)));
    }
    if config.policy.host_loopback != HostLoopback::Allowed {
        command.arg("--disable-host-loopback");
    }
    if let Some(mac) = config.mac {
        command.arg(format!("--macaddress={}", hardware(mac)));
    }
    command.arg(holder.pid.to_string()).arg(&config.device);
    let peer = Peer::run(Backend::Slirp4netns, command, (ready, Some(exit)), folder);
    drop((tell, hang_up));
    peer
}

fn base(address: std::net::Ipv4Addr, prefix: u8) -> std::net::Ipv4Addr {
    (u32::from(address) & (u32::MAX << (32 - u32::from(prefix)))).into()
}

fn hardware(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn pasta(config: &Config, ports: &[Published], holder: &Holder, folder: &Folder) -> Result<Peer> {
    let net = config.v4.context("the container has no IPv4 address")?;
    // It writes its pid there when everything is set up.
    let fifo = folder.0.join("pid");
    nix::unistd::mkfifo(&fifo, Mode::from_bits_truncate(0o600))?;
    let ready = File::options().read(true).write(true).open(&fifo)?;
    let mut command = Command::new("pasta");
    command.args(["--foreground", "--quiet", "--config-net", "--no-netns-quit"]);
    // Without these the loopback of the host is reached through that of the container.
    command.args(["--tcp-ns", "none", "--udp-ns", "none"]);
    command.args(["--ns-ifname", &config.device, "--mtu", &config.mtu.to_string()]);
    command.args(["--address", &net.address.to_string(), "--netmask", &net.prefix.to_string()]);
    command.args(["--gateway", &net.gateway.to_string(), "--dns-forward", &net.dns.to_string()]);
    command.arg("--pid").arg(&fifo);
    if config.policy.host_loopback != HostLoopback::Allowed {
        command.arg("--no-map-gw");
    }
    if let Some(mac) = config.mac {
        command.args(["--ns-mac-addr", &hardware(mac)]);
    }
    for (flag, protocol) in [("--tcp-ports", Protocol::Tcp), ("--udp-ports", Protocol::Udp)] {
        let mut any = false;
        for one in ports.iter().filter(|one| one.protocol == protocol) {
            let host = one.host.map(|host| format!("{host}/")).unwrap_or_default();
            command.args([flag, &format!("{host}{}:{}", one.host_port, one.container_port)]);
            any = true;
        }
        if !any {
            command.args([flag, "none"]);
        }
    }
    let space = |name: &str| PathBuf::from(format!("/proc/{}/ns/{name}", holder.pid));
    command.arg("--userns").arg(space("user")).arg("--netns").arg(space("net"));
    Peer::run(Backend::Pasta, command, (ready.into(), None), folder)
}

/// The ports by number: those that are left open are chosen now. They are free for whoever comes first until the peer
/// binds them, which says so if it can't.
fn free_ports(config: &Config) -> Result<Vec<Published>> {
    let bound = ports::bind(&config.published)?;
    Ok(ports::given(&config.published, &bound))
}

/// Waits until one can be read or has hung up: which one; `None` if that takes too long.
fn wait(fds: &[BorrowedFd<'_>], most: Option<Duration>) -> Result<Option<usize>> {
    let timeout = most.map_or(Ok(PollTimeout::NONE), PollTimeout::try_from)?;
    let mut polled: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    loop {
        match poll(&mut polled, timeout) {
            Ok(_) => break,
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(polled.iter().position(|fd| fd.any().unwrap_or(false)))
}

/// A process in the container's namespaces by which a peer finds them, while the container's own can't be looked at. It
/// is gone before the container's program runs, which might reach it with `--pid host`.
struct Holder {
    pid: i32,
    pidfd: OwnedFd,
}

impl Holder {
    fn new(target: &Target) -> Result<Self> {
        let (hear, word) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        match clone::clone(0, None)? {
            Cloned::Child => {
                let joined = target.join();
                let _ = process::parent_death_signal(libc::SIGKILL);
                stage::tell(word, &joined);
                let _ = process::close_others(&[]);
                loop {
                    nix::unistd::pause();
                }
            }
            Cloned::Parent { pid, pidfd } => {
                drop(word);
                let holder = Self { pid, pidfd };
                stage::hear(hear)?;
                Ok(holder)
            }
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = process::pidfd_send_signal(self.pidfd.as_fd(), libc::SIGKILL);
        let _ = within::wait(self.pid);
    }
}

/// A folder of the helper's own, gone when the peer runs.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let parent = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|folder| folder.is_dir());
        let parent = parent.unwrap_or_else(std::env::temp_dir);
        let folder = parent.join(format!("kelp-network-{}", std::process::id()));
        DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .with_context(|| format!("make {}", folder.display()))?;
        Ok(Self(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_can_not_keep_is_said() {
        let mut config = Config::default();
        assert!(unkept(Backend::Kelp, &config).is_empty());
        assert!(unkept(Backend::Pasta, &config).is_empty());
        config.policy.deny = vec!["10.0.0.0/8".parse().unwrap()];
        config.policy.host_loopback = HostLoopback::Ports(vec![80]);
        config.published = vec!["80:80".parse().unwrap()];
        let said = unkept(Backend::Slirp4netns, &config).join("\n");
        for word in ["--network-deny", "loopback", "IPv4"] {
            assert!(said.contains(word), "{said}");
        }
    }
}
