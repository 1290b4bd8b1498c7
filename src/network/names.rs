//! What a container with a network of its own is told: the name server, the search list of the host, and the
//! names that stand for the host. Pure.

use kelp_net::config::Config;

/// Docker's and podman's names for the machine outside.
const OUTSIDE: &str = "host.docker.internal host.containers.internal";

/// Lines of /etc/hosts for the host itself.
pub fn hosts(config: &Config) -> String {
    let gateway = config.v4.map(|subnet| subnet.gateway);
    gateway.map(|gateway| format!("{gateway}\t{OUTSIDE}\n")).unwrap_or_default()
}

/// The container's resolv.conf: the engine's name server, and the host's search list and options.
pub fn resolv(config: &Config, of_host: &str) -> String {
    let kept = of_host.lines().filter(|line| line.starts_with("search") || line.starts_with("options"));
    let servers = [config.v4.map(|net| net.dns.to_string()), config.v6.map(|net| net.dns.to_string())];
    let servers = servers.into_iter().flatten().map(|server| format!("nameserver {server}"));
    kept.map(str::to_owned).chain(servers).map(|line| line + "\n").collect()
}

/// The address of the container's own name in /etc/hosts.
pub fn own_address(config: &Config) -> String {
    config.v4.map_or_else(|| "127.0.0.1".to_owned(), |subnet| subnet.address.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_is_asked_for_names_and_the_hosts_search_list_is_kept() {
        let text = resolv(&Config::default(), "search a.example\nnameserver 192.0.2.1\noptions ndots:2\n");
        assert_eq!(text, "search a.example\noptions ndots:2\nnameserver 10.0.2.3\nnameserver fd00::3\n");
        assert!(hosts(&Config::default()).starts_with("10.0.2.2\thost.docker.internal"));
    }
}
