//! The files that every container gets from kelp: hosts, hostname, resolv.conf.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::spec::{Sharing, Spec};

const LOCAL: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// Writes them into the container's folder.
pub fn write(folder: &Path, spec: &Spec) -> Result<()> {
    let hostname = spec.hostname.clone().unwrap_or_default();
    let resolv = match spec.namespaces.network {
        Sharing::Host => fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
        Sharing::Private => String::new(),
    };
    let files =
        [("hosts", hosts(spec, &hostname)), ("hostname", format!("{hostname}\n")), ("resolv.conf", resolv)];
    for (name, text) in files {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
    }
    Ok(())
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
        text.push_str(&format!("{address}\t{name}\n"));
    }
    if !hostname.is_empty() && spec.namespaces.network == Sharing::Private {
        text.push_str(&format!("127.0.0.1\t{hostname}\n"));
    }
    text
}
