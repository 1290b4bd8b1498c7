//! The network of a container's own, which kelp's engine carries: the default. What the engine promises of
//! paths and policy is proved in tests/net; here is what `kelp run` makes of it.

use crate::dir::Dir;
use crate::host::{below, free_port, service, soon};
use crate::kelp::says;
use crate::{host, needs, sys};
use serde_json::json;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Child;

fn ready(child: &mut Child) {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
}

#[test]
fn a_container_has_an_interface_of_its_own_by_default() {
    needs!(userns);
    let seen = Dir::new().report(&[]);
    assert_eq!(seen["links"]["eth0"], json!({"up": true}));
    assert_ne!(seen["routes"]["four"], json!([]));
    assert_ne!(seen["namespaces"]["net"], json!(host::namespace("net")));
}

#[test]
fn the_hosts_loopback_is_reached_only_where_it_was_allowed() {
    needs!(userns);
    let dir = Dir::new();
    let (open, shut) = (service(), service());
    let gateway = |port: u16| format!("10.0.2.2:{port}");
    let own = format!("127.0.0.1:{open}");
    let seen = dir.all(&[], &["connect", &own, ",", "connect", &gateway(open)]);
    assert_eq!(seen[0], json!({"error": "ECONNREFUSED"}));
    assert_eq!(seen[1], json!({"error": "errno 113"}));
    let allowed = format!("--allow-host-loopback={open}");
    let seen = dir.all(&[&allowed], &["connect", &gateway(open), ",", "connect", &gateway(shut)]);
    assert_eq!(seen, json!([{"heard": "host"}, {"error": "errno 113"}]));
}

#[test]
fn a_published_port_leads_inside_and_is_free_again_when_the_container_has_ended() {
    needs!(userns);
    let dir = Dir::new();
    let port = free_port();
    let published = format!("127.0.0.1:{port}:80");
    for _ in 0..2 {
        let mut child =
            dir.run(&["-p", &published], &["/bin/guest", "listen", "0.0.0.0:80", "inside"]).start();
        ready(&mut child);
        let mut said = String::new();
        TcpStream::connect(("127.0.0.1", port)).unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said, "inside");
        assert!(child.wait().unwrap().success());
    }
    let taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let sentence = dir.run(&["-p", &published], &["/bin/guest"]).fails(125);
    says(&sentence, &[&format!("cannot publish 127.0.0.1:{port}/tcp"), "taken"]);
    drop(taken);
}

#[test]
fn a_container_outlives_its_network() {
    needs!(userns);
    sys::adopt_orphans();
    let dir = Dir::new();
    let mut child = dir.run(&[], &["/bin/guest", "sleep"]).start();
    ready(&mut child);
    let engine = below(child.id() as i32).into_iter().find(|(pid, _)| is_engine(*pid));
    sys::kill(engine.expect("the engine runs").0, libc::SIGKILL).unwrap();
    assert!(soon(|| !below(child.id() as i32).into_iter().any(|(pid, _)| is_engine(pid))));
    assert!(child.try_wait().unwrap().is_none(), "kelp ended with the engine");
    child.kill().unwrap();
    child.wait().unwrap();
}

/// The end of what a killed engine carried must not look like the end of the stream.
#[test]
fn a_connection_is_reset_when_its_engine_is_killed() {
    needs!(userns);
    sys::adopt_orphans();
    let dir = Dir::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let gateway = format!("10.0.2.2:{}", listener.local_addr().unwrap().port());
    let mut child = dir.run(&["--allow-host-loopback"], &["/bin/guest", "connect", &gateway]).start();
    let (mut held, _) = listener.accept().unwrap();
    held.write_all(b"half of it").unwrap();
    let engine = below(child.id() as i32).into_iter().find(|(pid, _)| is_engine(*pid));
    sys::kill(engine.expect("the engine runs").0, libc::SIGKILL).unwrap();
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    // ECONNRESET, or ECONNABORTED of one that the container did not have yet.
    assert!(said.contains("\"errno 104\"") || said.contains("\"errno 103\""), "{said}");
    assert!(child.wait().unwrap().success());
    // The far end is told as well.
    assert!(held.read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
}

fn is_engine(pid: i32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|words| words.starts_with(b"kelp-network\0"))
}

#[test]
fn a_container_gets_the_address_the_names_and_the_ports_that_were_asked_for() {
    needs!(userns);
    let dir = Dir::new();
    let options = [
        "--ip",
        "10.77.1.9",
        "--mac-address",
        "02:11:22:33:44:55",
        "--dns-search",
        "reef.example",
        "--dns-option",
        "ndots:3",
        "--add-host",
        "outside:host-gateway",
    ];
    let read = ["/etc/resolv.conf", "/etc/hosts", "/sys/class/net/eth0/address"];
    let verbs = read.map(|path| ["read", path]).join(&",");
    let seen = dir.all(&options, &verbs);
    let text = |at: usize| seen[at]["text"].as_str().unwrap();
    assert!(
        text(0).starts_with("search reef.example\noptions ndots:3\nnameserver 10.77.1.3\n"),
        "{}",
        text(0)
    );
    assert!(text(1).contains("10.77.1.2\toutside\n"), "{}", text(1));
    assert_eq!(text(2), "02:11:22:33:44:55\n");
    says(
        &dir.run(&["--network", "none", "-p", "80:80"], &["/bin/guest"]).fails(125),
        &["-p", "--network none"],
    );
}

/// Guard: the policy is asked for each destination.
#[test]
fn a_container_reaches_nothing_that_was_denied() {
    needs!(userns);
    let dir = Dir::new();
    let port = service();
    let gateway = format!("10.0.2.2:{port}");
    let options = ["--allow-host-loopback", "--network-deny", "10.0.2.2"];
    assert_eq!(dir.all(&options, &["connect", &gateway]), json!([{"error": "errno 113"}]));
    assert_eq!(dir.all(&options[..1], &["connect", &gateway]), json!([{"heard": "host"}]));
}

/// Regression: the engine took a choice that is the host's too for no choice.
#[test]
fn tcp_is_sent_as_the_user_says() {
    needs!(userns);
    let path = "/proc/sys/net/ipv4/tcp_congestion_control";
    let hosts = std::fs::read_to_string(path).unwrap();
    let read = |options: &[&str]| Dir::new().all(options, &["read", path]);
    assert_eq!(read(&[]), json!([{"text": "reno\n"}]));
    let choice = format!("net.ipv4.tcp_congestion_control={}", hosts.trim());
    // Of a race that a start in four lost.
    for _ in 0..12 {
        assert_eq!(read(&["--sysctl", &choice]), json!([{"text": hosts}]));
    }
}
