//! The files that every container gets from kelp: hosts, hostname, resolv.conf. Text only; the launch puts it
//! into a small file system in memory that ends with the container.

use std::fs;

use crate::network::names;
use crate::spec::request::Backend;
use crate::spec::{Sharing, Spec};

const LOCAL: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// Where each file belongs, and its text.
pub fn texts(spec: &Spec) -> Vec<(&'static str, String)> {
    let hostname = spec.hostname.clone().unwrap_or_default();
    let of_host = || fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let asks_itself = spec.backend != Backend::Kelp && !spec.dns.servers.is_empty();
    let resolv = match (spec.namespaces.network, &spec.addresses) {
        (Sharing::Host, _) => names::resolv_of_host(&spec.dns, &of_host()),
        (Sharing::Private, Some(_)) if asks_itself => names::resolv_of_host(&spec.dns, &of_host()),
        (Sharing::Private, Some(engine)) => names::resolv(engine, &spec.dns, &of_host()),
        (Sharing::Private, None) => names::resolv_of_host(&spec.dns, ""),
    };
    let mut texts = vec![("/etc/hosts", hosts(spec, &hostname)), ("/etc/resolv.conf", resolv)];
    if spec.namespaces.uts == Sharing::Private {
        texts.push(("/etc/hostname", format!("{hostname}\n")));
    }
    texts
}

/// The host's own file where the network is the host's, else localhost and the container's name.
fn hosts(spec: &Spec, hostname: &str) -> String {
    let mut text = match spec.namespaces.network {
        Sharing::Host => fs::read_to_string("/etc/hosts").unwrap_or_else(|_| LOCAL.to_owned()),
        Sharing::Private => LOCAL.to_owned(),
    };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    for (name, address) in &spec.hosts {
        let address = match address.as_str() {
            names::HOST_GATEWAY => names::outside(spec.addresses.as_ref()),
            address => address.to_owned(),
        };
        text.push_str(&format!("{address}\t{name}\n"));
    }
    if let Some(engine) = &spec.addresses {
        text.push_str(&names::hosts(engine));
    }
    if !hostname.is_empty() && spec.namespaces.network == Sharing::Private {
        let address = spec.addresses.as_ref().map_or_else(|| "127.0.0.1".to_owned(), names::own_address);
        text.push_str(&format!("{address}\t{hostname}\n"));
    }
    text
}
