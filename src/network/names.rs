//! What a container is told of names: the name server, the search list and options, and the names that stand
//! for the host. Pure.

use kelp_net::config::Config;

use crate::spec::Dns;

/// Docker's and podman's names for the machine outside.
const OUTSIDE: &str = "host.docker.internal host.containers.internal";

/// Docker's word for the address of the machine outside, in `--add-host`.
pub const HOST_GATEWAY: &str = "host-gateway";

/// Lines of /etc/hosts for the host itself.
pub fn hosts(config: &Config) -> String {
    let gateway = config.v4.map(|subnet| subnet.gateway);
    gateway.map(|gateway| format!("{gateway}\t{OUTSIDE}\n")).unwrap_or_default()
}

/// The address under which the container reaches the host.
pub fn outside(config: Option<&Config>) -> String {
    let gateway = config.and_then(|config| config.v4).map(|subnet| subnet.gateway.to_string());
    gateway.unwrap_or_else(|| "127.0.0.1".to_owned())
}

/// The container's resolv.conf: the engine's name server, and the host's search list and options where the user
/// said none.
pub fn resolv(config: &Config, dns: &Dns, of_host: &str) -> String {
    let servers = [config.v4.map(|net| net.dns.to_string()), config.v6.map(|net| net.dns.to_string())];
    let servers: Vec<String> = servers.into_iter().flatten().collect();
    lines("search", &dns.search, of_host)
        + &lines("options", &dns.options, of_host)
        + &lines("nameserver", &servers, "")
}

/// The host's resolv.conf with what the user said in place of what it says.
pub fn resolv_of_host(dns: &Dns, of_host: &str) -> String {
    let servers: Vec<String> = dns.servers.iter().map(ToString::to_string).collect();
    if servers.is_empty() && dns.search.is_empty() && dns.options.is_empty() {
        return of_host.to_owned();
    }
    lines("search", &dns.search, of_host)
        + &lines("options", &dns.options, of_host)
        + &lines("nameserver", &servers, of_host)
}

/// The lines of one keyword: what was said, or else the host's. A search list of `.` alone is none.
fn lines(keyword: &str, said: &[String], of_host: &str) -> String {
    if said.is_empty() {
        let kept = of_host.lines().filter(|line| line.split_whitespace().next() == Some(keyword));
        return kept.map(|line| format!("{line}\n")).collect();
    }
    match keyword {
        "nameserver" => said.iter().map(|server| format!("nameserver {server}\n")).collect(),
        _ if said == ["."] => String::new(),
        _ => format!("{keyword} {}\n", said.join(" ")),
    }
}

/// The address of the container's own name in /etc/hosts.
pub fn own_address(config: &Config) -> String {
    config.v4.map_or_else(|| "127.0.0.1".to_owned(), |subnet| subnet.address.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF_HOST: &str = "search a.example\nnameserver 192.0.2.1\noptions ndots:2\n";

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn the_engine_is_asked_for_names_and_the_hosts_search_list_is_kept() {
        let text = resolv(&Config::default(), &Dns::default(), OF_HOST);
        assert_eq!(text, "search a.example\noptions ndots:2\nnameserver 10.0.2.3\nnameserver fd00::3\n");
        assert!(hosts(&Config::default()).starts_with("10.0.2.2\thost.docker.internal"));
    }

    #[test]
    fn what_the_user_says_takes_the_place_of_the_hosts() {
        let dns =
            Dns { search: words(&["b.example", "c.example"]), options: words(&["edns0"]), ..Dns::default() };
        let text = resolv(&Config::default(), &dns, OF_HOST);
        assert!(
            text.starts_with("search b.example c.example\noptions edns0\nnameserver 10.0.2.3\n"),
            "{text}"
        );
        let none = Dns { search: words(&["."]), ..Dns::default() };
        assert!(resolv(&Config::default(), &none, OF_HOST).starts_with("options ndots:2\n"));
    }

    #[test]
    fn the_hosts_file_is_kept_whole_unless_something_was_said() {
        assert_eq!(resolv_of_host(&Dns::default(), OF_HOST), OF_HOST);
        let dns = Dns { servers: vec!["192.0.2.9".parse().unwrap()], ..Dns::default() };
        assert_eq!(
            resolv_of_host(&dns, OF_HOST),
            "search a.example\noptions ndots:2\nnameserver 192.0.2.9\n"
        );
    }
}
