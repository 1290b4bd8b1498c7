//! The network's flags of `kelp run`: docker's words, and kelp's own for what may be reached and how fast, to
//! what is asked of a network. It looks at nothing of the machine.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use anyhow::Result;
use clap::Args;
use kelp_net::config::{self, Config, Published, Resolver, Subnet};
use kelp_net::policy::{Egress, HostLoopback};

use crate::error::Error;
use crate::spec::Dns;
use crate::spec::request::{Backend, Network};

#[derive(Debug, Args)]
pub struct NetworkArgs {
    /// user (a network of its own), none, host or container:NAME [default: user]
    #[arg(long, visible_alias = "net", value_name = "MODE")]
    network: Option<String>,
    /// Who carries a network of its own: kelp, slirp4netns or pasta [default: kelp]
    #[arg(long, value_name = "PROGRAM")]
    network_backend: Option<String>,
    /// Publish a port: [IP:][HOST:]CONTAINER[/tcp|udp], ranges too
    #[arg(short = 'p', long, value_name = "PORT")]
    publish: Vec<String>,
    /// Publish each port that the image or --expose names, on free ports of the host
    #[arg(short = 'P', long)]
    publish_all: bool,
    /// Name a port for -P: PORT[-PORT][/tcp|udp]
    #[arg(long, value_name = "PORT")]
    expose: Vec<String>,
    /// Ask this name server
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<String>,
    /// Look names up in this domain too; `.` is none
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// An option of resolv.conf
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION")]
    dns_option: Vec<String>,
    /// The container's IPv4 address; .2 of its network is the gateway, .3 the name server
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<String>,
    /// The hardware address of the container's interface
    #[arg(long, value_name = "ADDRESS")]
    mac_address: Option<String>,
    /// Bytes a second: up=BYTES,down=BYTES, with k, m or g
    #[arg(long, value_name = "LIMITS")]
    network_rate: Option<String>,
    /// Let nothing else be reached: CIDR[:PORT[-PORT]]
    #[arg(long, value_name = "EGRESS")]
    network_allow: Vec<String>,
    /// Let this not be reached: CIDR[:PORT[-PORT]]
    #[arg(long, value_name = "EGRESS")]
    network_deny: Vec<String>,
    /// Let the container reach services on the host's loopback: all, or only PORT,...
    #[arg(long, value_name = "PORT,...", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    allow_host_loopback: Option<String>,
}

impl NetworkArgs {
    /// The network that is asked for, or else the one called `default`; `exposed` is what the image says of its ports.
    pub fn network(&self, exposed: &[String], default: &str) -> Result<Network> {
        let mode = self.network.as_deref().unwrap_or(default);
        match mode {
            "user" | "bridge" => Ok(Network::User(Box::new(self.config(exposed)?))),
            "slirp4netns" | "pasta" if self.network_backend.is_none() => {
                Ok(Network::User(Box::new(self.config(exposed)?)))
            }
            word if word.starts_with("container:") => self.of_container(word),
            "none" => self.without_engine(mode, Network::None),
            "host" => self.without_engine(mode, Network::Host),
            word => Err(refused("--network", word, "none, host, user or container:NAME is expected")),
        }
    }

    /// Who carries a network of its own; podman says it as the network's name.
    pub fn backend(&self) -> Result<Backend> {
        let said = self.network_backend.as_deref();
        let podmans = || self.network.as_deref().filter(|word| ["slirp4netns", "pasta"].contains(word));
        match said.or_else(podmans) {
            None | Some("kelp") => Ok(Backend::Kelp),
            Some("slirp4netns") => Ok(Backend::Slirp4netns),
            Some("pasta") => Ok(Backend::Pasta),
            Some(word) => Err(refused("--network-backend", word, "kelp, slirp4netns or pasta is expected")),
        }
    }

    /// Docker's sentences for what only the container that made the network can say.
    fn of_container(&self, mode: &str) -> Result<Network> {
        let conflicts = [
            (
                !self.dns.is_empty() || !self.dns_search.is_empty() || !self.dns_option.is_empty(),
                "dns and the network mode",
            ),
            (self.mac_address.is_some(), "mac-address and the network mode"),
            (
                !self.publish.is_empty() || self.publish_all,
                "port publishing and the container type network mode",
            ),
            (!self.expose.is_empty(), "port exposing and the container type network mode"),
        ];
        if let Some((_, what)) = conflicts.iter().find(|(said, _)| *said) {
            return Err(Error::usage(format!("conflicting options: {what}")).into());
        }
        let name = mode.trim_start_matches("container:");
        if name.is_empty() {
            return Err(refused("--network", mode, "the name or id of a container is expected"));
        }
        self.without_engine(mode, Network::Container(name.to_owned()))
    }

    pub fn dns(&self) -> Result<Dns> {
        for word in self.dns_search.iter().chain(&self.dns_option) {
            if word.is_empty() || word.contains(|c: char| c.is_whitespace() || c.is_control()) {
                return Err(refused("--dns-search or --dns-option", word, "one word is expected"));
            }
        }
        Ok(Dns {
            servers: self.servers()?.iter().map(SocketAddr::ip).collect(),
            search: self.dns_search.clone(),
            options: self.dns_option.clone(),
        })
    }

    /// What only the engine can keep is refused where there is none.
    fn without_engine(&self, mode: &str, network: Network) -> Result<Network> {
        let asked = [
            ("-p", !self.publish.is_empty()),
            ("-P", self.publish_all),
            ("--network-backend", self.network_backend.is_some()),
            ("--ip", self.ip.is_some()),
            ("--mac-address", self.mac_address.is_some()),
            ("--network-rate", self.network_rate.is_some()),
            ("--network-allow", !self.network_allow.is_empty()),
            ("--network-deny", !self.network_deny.is_empty()),
            ("--allow-host-loopback", self.allow_host_loopback.is_some()),
        ];
        match asked.iter().find(|(_, said)| *said) {
            None => Ok(network),
            Some((flag, _)) => {
                let sentence = format!("{flag}: with --network {mode} there is nothing to carry it out");
                Err(Error::usage(sentence).hint("--network user has an engine").into())
            }
        }
    }

    fn config(&self, exposed: &[String]) -> Result<Config> {
        let mut config = Config { published: each("-p", &self.publish)?, ..Config::default() };
        if self.publish_all {
            config.published.extend(each::<Published>("--expose", exposed)?);
            config.published.extend(each::<Published>("--expose", &self.expose)?);
        }
        let servers = self.servers()?;
        if !servers.is_empty() {
            config.resolver = Resolver::Servers(servers);
        }
        if let Some(word) = &self.ip {
            let address = word.parse().map_err(|_| refused("--ip", word, "an IPv4 address is expected"))?;
            config.v4 = Some(Subnet::of_container(address).map_err(|error| refused("--ip", word, error))?);
        }
        self.adapt(&mut config)?;
        if let Some(word) = &self.mac_address {
            config.mac =
                Some(config::parse_mac(word).map_err(|error| refused("--mac-address", word, error))?);
        }
        if let Some(word) = &self.network_rate {
            config.rate = parsed("--network-rate", word)?;
        }
        config.policy.allow = each::<Egress>("--network-allow", &self.network_allow)?;
        config.policy.deny = each::<Egress>("--network-deny", &self.network_deny)?;
        config.policy.host_loopback = host_loopback(self.allow_host_loopback.as_deref())?;
        Ok(config)
    }

    /// What a peer gives a container is its own affair.
    fn adapt(&self, config: &mut Config) -> Result<()> {
        let backend = self.backend()?;
        let last = config.v4.map_or(0, |net| net.address.octets()[3]);
        if backend == Backend::Slirp4netns && last != 100 {
            let word = self.ip.as_deref().unwrap_or_default();
            return Err(refused(
                "--ip",
                word,
                "slirp4netns gives containers the address .100 of a network only",
            ));
        }
        if backend != Backend::Kelp {
            config.v6 = None;
        }
        Ok(())
    }

    fn servers(&self) -> Result<Vec<SocketAddr>> {
        let server = |word: &String| {
            let address =
                IpAddr::from_str(word).map_err(|_| refused("--dns", word, "an IP address is expected"))?;
            Ok(SocketAddr::new(address, 53))
        };
        self.dns.iter().map(server).collect()
    }
}

fn host_loopback(word: Option<&str>) -> Result<HostLoopback> {
    match word {
        None => Ok(HostLoopback::Denied),
        Some("") => Ok(HostLoopback::Allowed),
        Some(ports) => {
            let port = |text: &str| {
                text.parse().map_err(|_| refused("--allow-host-loopback", ports, "ports are expected"))
            };
            Ok(HostLoopback::Ports(ports.split(',').map(port).collect::<Result<_>>()?))
        }
    }
}

fn parsed<T: FromStr<Err = anyhow::Error>>(flag: &str, word: &str) -> Result<T> {
    word.parse().map_err(|error| Error::usage(format!("{flag} {word}: {error:#}")).into())
}

fn each<T: FromStr<Err = anyhow::Error>>(flag: &str, words: &[String]) -> Result<Vec<T>> {
    words.iter().map(|word| parsed(flag, word)).collect()
}

fn refused(flag: &str, word: &str, why: impl Display) -> anyhow::Error {
    Error::usage(format!("{flag} {word}: {why:#}")).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        network: NetworkArgs,
    }

    fn asked(words: &[&str]) -> Result<Network> {
        let line = Line::parse_from([&["run"], words].concat());
        line.network.network(&["80/tcp".into(), "53/udp".into()], "user")
    }

    fn config(words: &[&str]) -> Config {
        match asked(words).unwrap() {
            Network::User(config) => *config,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn all_ports_of_the_image_are_published_when_that_is_asked() {
        assert!(config(&[]).published.is_empty());
        let published = config(&["-P", "--expose", "90-91", "-p", "8080:80"]).published;
        let ports: Vec<_> =
            published.iter().map(|one| (one.host_port, one.container_port, one.count)).collect();
        assert_eq!(ports, [(8080, 80, 1), (0, 80, 1), (0, 53, 1), (0, 90, 2)]);
    }

    #[test]
    fn an_address_brings_its_network_along() {
        let v4 = config(&["--ip", "192.168.7.9"]).v4.unwrap();
        assert_eq!(
            (v4.gateway.to_string(), v4.dns.to_string()),
            ("192.168.7.2".into(), "192.168.7.3".into())
        );
        for taken in ["192.168.7.0", "192.168.7.2", "192.168.7.3", "192.168.7.255", "127.0.0.9", "x"] {
            assert!(asked(&["--ip", taken]).is_err(), "{taken}");
        }
    }

    #[test]
    fn what_needs_the_engine_is_refused_without_it() {
        for words in [&["-p", "80:80"][..], &["-P"], &["--ip", "10.1.1.9"], &["--network-rate", "up=1"]] {
            for mode in ["none", "host"] {
                assert!(asked(&[words, &["--network", mode]].concat()).is_err(), "{words:?} {mode}");
            }
        }
    }

    #[test]
    fn a_network_of_another_container_takes_nothing_that_that_one_says() {
        assert!(
            matches!(asked(&["--network", "container:reef"]).unwrap(), Network::Container(name) if name == "reef")
        );
        for words in
            [&["-p", "80:80"][..], &["--dns", "192.0.2.1"], &["--expose", "80"], &["--network-rate", "up=1"]]
        {
            assert!(asked(&[words, &["--network", "container:reef"]].concat()).is_err(), "{words:?}");
        }
        assert!(asked(&["--network", "container:"]).is_err());
    }

    #[test]
    fn a_peer_carries_what_it_can() {
        let backend = |words: &[&str]| Line::parse_from([&["run"], words].concat()).network.backend();
        assert_eq!(backend(&[]).unwrap(), Backend::Kelp);
        assert_eq!(backend(&["--network", "pasta"]).unwrap(), Backend::Pasta);
        assert_eq!(backend(&["--network-backend", "slirp4netns"]).unwrap(), Backend::Slirp4netns);
        assert!(backend(&["--network-backend", "x"]).is_err());
        assert!(config(&["--network-backend", "pasta", "--ip", "10.3.3.7"]).v6.is_none());
        assert!(asked(&["--network-backend", "slirp4netns", "--ip", "10.3.3.7"]).is_err());
        assert!(asked(&["--network-backend", "slirp4netns", "--ip", "10.3.3.100"]).is_ok());
    }

    #[test]
    fn rates_and_lists_are_read() {
        let config = config(&["--network-rate", "up=1m,down=2k", "--network-deny", "10.0.0.0/8:22"]);
        assert_eq!((config.rate.up, config.rate.down), (Some(1 << 20), Some(2048)));
        assert_eq!(config.policy.deny.len(), 1);
        assert!(asked(&["--network-rate", "sideways=1"]).is_err());
        assert!(asked(&["--mac-address", "02:00"]).is_err());
        assert!(asked(&["--mac-address", "03:00:00:00:00:01"]).is_err());
    }
}
