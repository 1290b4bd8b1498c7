//! The two networks that need no engine: none, where only the container's own loopback is, and host.
//! Services are the test's own, on a port or an abstract name that the kernel chose.

use crate::dir::Dir;
use crate::{host, needs, sys};
use serde_json::json;
use std::io::{BufRead, BufReader, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

/// The address of a service of the host.
fn service() -> String {
    format!("127.0.0.1:{}", host::service())
}

/// An abstract socket of the host that says `host`; its name.
fn abstract_service() -> String {
    let name = format!("kelp-test-{}-{:?}", std::process::id(), std::thread::current().id());
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    std::thread::spawn(move || {
        listener.incoming().flatten().try_for_each(|mut caller| caller.write_all(b"host"))
    });
    format!("@{name}")
}

#[test]
fn none_has_only_its_own_loopback() {
    needs!(userns);
    let seen = Dir::new().report(&["--network", "none"]);
    assert_eq!(seen["links"], json!({"lo": {"up": true}}));
    assert_eq!(seen["routes"]["four"], json!([]));
    assert_ne!(seen["namespaces"]["net"], json!(host::namespace("net")));
}

#[test]
fn none_reaches_no_service_of_the_host() {
    needs!(userns);
    let dir = Dir::new();
    let (tcp, unix) = (service(), abstract_service());
    let seen = dir.all(&["--network", "none"], &["connect", &tcp, ",", "connect", &unix]);
    assert_eq!(seen, json!([{"error": "ECONNREFUSED"}, {"error": "ECONNREFUSED"}]));
}

#[test]
fn none_lets_each_container_have_every_port() {
    needs!(userns);
    let dir = Dir::new();
    let mut both: Vec<_> = (0..2)
        .map(|_| dir.run(&["--network", "none"], &["/bin/guest", "listen", "127.0.0.1:80", "x"]).start())
        .collect();
    for child in &mut both {
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
    }
    for mut child in both {
        sys::kill(child.id() as i32, libc::SIGKILL).unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn host_is_the_hosts_network() {
    needs!(userns);
    let dir = Dir::new();
    let seen = dir.report(&["--network", "host"]);
    assert_eq!(seen["namespaces"]["net"], json!(host::namespace("net")));
    let tcp = service();
    assert_eq!(dir.all(&["--network=host"], &["connect", &tcp]), json!([{"heard": "host"}]));
}

/// CVE-2020-15257. Guard: a Landlock scope where the kernel has one (6.12), else a warning.
#[test]
fn host_does_not_open_abstract_sockets_of_the_host() {
    needs!(userns);
    let unix = abstract_service();
    let outcome = Dir::new().run(&["--network", "host"], &["/bin/guest", "connect", &unix]).ok();
    if sys::landlock() >= 6 {
        assert_eq!(outcome.json(), json!({"error": "EPERM"}));
    } else {
        assert!(outcome.err.contains("abstract"), "no warning: {}", outcome.err);
    }
}

#[test]
fn the_resolver_is_the_hosts_or_nothing() {
    needs!(userns);
    let seen = Dir::new().all(&["--network", "host"], &["read", "/etc/resolv.conf"]);
    let own = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let servers = |text: &str| {
        text.lines().filter(|line| line.starts_with("nameserver")).map(str::to_string).collect::<Vec<_>>()
    };
    assert_eq!(servers(seen[0]["text"].as_str().unwrap()), servers(&own));
}
