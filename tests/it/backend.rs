//! `--network-backend`: the network carried by slirp4netns or by pasta, as Debian ships them. What kelp makes of them is
//! proved, not what they do by themselves.

use crate::dir::Dir;
use crate::host::{below, free_port, service, soon};
use crate::kelp::says;
use crate::nested::without;
use crate::{needs, sys};
use serde_json::json;
use std::io::Read;
use std::net::{TcpListener, TcpStream};

const PEERS: [&str; 2] = ["slirp4netns", "pasta"];

#[test]
fn a_peer_carries_addresses_ports_and_the_hosts_loopback_where_that_is_allowed() {
    needs!(peers);
    let dir = Dir::new();
    dir.root();
    for peer in PEERS {
        let port = free_port();
        let published = format!("127.0.0.1:{port}:80");
        let words = [
            "run",
            "-d",
            "--name",
            "reef",
            "--network-backend",
            peer,
            "-p",
            &published,
            "-p",
            "127.0.0.1::81",
        ];
        let command = ["--rootfs", &dir.text("root"), "/bin/guest", "listen", "0.0.0.0:80", "inside"];
        let begun = dir.kelp(&[&words[..], &command].concat()).ok();
        says(&begun.err, &[peer, "the host's own addresses"]);
        let seen = dir.kelp(&["exec", "reef", "/bin/guest"]).ok().json();
        assert_eq!(seen["links"]["eth0"], json!({"up": true}), "{peer}");
        let given = dir.kelp(&["port", "reef", "81"]).ok().out;
        assert!(given.starts_with("127.0.0.1:") && !given.ends_with(":0\n"), "{peer}: {given}");
        let mode = dir.kelp(&["inspect", "-f", "{{.HostConfig.NetworkMode}}", "reef"]).ok().out;
        assert_eq!(mode.trim(), peer);
        let mut said = String::new();
        TcpStream::connect(("127.0.0.1", port)).unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said, "inside", "{peer}");
        assert_eq!(dir.kelp(&["wait", "reef"]).ok().out, "0\n");
        dir.kelp(&["rm", "reef"]).ok();
        assert!(TcpListener::bind(("127.0.0.1", port)).is_ok(), "{peer} still holds the port");
        let gateway = format!("10.0.2.2:{}", service());
        let options = ["--network-backend", peer, "--allow-host-loopback"];
        assert_eq!(dir.all(&options, &["connect", &gateway]), json!([{"heard": "host"}]), "{peer}");
        // pasta says nothing at all.
        let shut = [&options[..2], &["--timeout", "2"]].concat();
        let shut = dir.run(&shut, &["/bin/guest", "connect", &gateway]).end();
        assert!(!shut.out.contains("heard"), "{peer}: {}", shut.out);
    }
}

#[test]
fn a_peer_is_asked_for_names_and_for_a_fixed_address() {
    needs!(peers);
    let dir = Dir::new();
    let read = ["read", "/etc/resolv.conf", ",", "read", "/etc/hosts"];
    for peer in PEERS {
        let seen = dir.all(&["--network", peer, "--ip", "10.77.1.100"], &read);
        let text = |at: usize| seen[at]["text"].as_str().unwrap().to_owned();
        assert!(text(0).contains("nameserver 10.77.1.3\n"), "{peer}: {}", text(0));
        assert!(text(1).contains("10.77.1.2\thost.docker.internal"), "{peer}: {}", text(1));
        let seen = dir.all(&["--network", peer, "--dns", "192.0.2.9"], &read);
        assert!(seen[0]["text"].as_str().unwrap().contains("nameserver 192.0.2.9\n"), "{peer}: {seen}");
    }
}

#[test]
fn what_a_peer_can_not_keep_is_said_and_refused_where_all_must_be_kept() {
    needs!(peers);
    let dir = Dir::new();
    let options = ["--network-backend", "pasta", "--network-deny", "192.0.2.0/24", "--network-rate", "up=1m"];
    let seen = dir.run(&options, &["/bin/guest", "exit", "0"]).ok();
    says(&seen.err, &["nothing enforces --network-deny", "nothing enforces --network-rate"]);
    let strict = [&options[..], &["--strict-limits"]].concat();
    says(&dir.run(&strict, &["/bin/guest"]).fails(125), &["--strict-limits", "--network-deny"]);
}

#[test]
fn a_peer_that_is_not_installed_is_named_with_its_package() {
    needs!(userns);
    let dir = Dir::new();
    let path = without(&dir, &PEERS);
    for (peer, package) in [("slirp4netns", "slirp4netns"), ("pasta", "passt")] {
        let refused = dir.run(&["--network-backend", peer], &["/bin/guest"]).env("PATH", &path).fails(125);
        says(&refused, &[&format!("{peer} is not installed"), package]);
    }
    says(&dir.run(&["--network-backend", "ferry"], &["/bin/guest"]).fails(125), &["slirp4netns or pasta"]);
}

#[test]
fn a_port_that_is_taken_is_refused_by_a_peer_too() {
    needs!(peers);
    let dir = Dir::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let published = format!("127.0.0.1:{}:80", taken.local_addr().unwrap().port());
    for peer in PEERS {
        let refused = dir.run(&["--network-backend", peer, "-p", &published], &["/bin/guest"]).fails(125);
        says(&refused, &["cannot publish 127.0.0.1:", "taken"]);
    }
}

#[test]
fn a_peer_that_is_killed_is_told_and_one_whose_monitor_is_killed_ends() {
    needs!(peers);
    sys::adopt_orphans();
    let dir = Dir::new();
    dir.root();
    let find = |name: &str| {
        let all = below(std::process::id() as i32);
        // pasta goes on as `passt.avx2` where the processor has that.
        let name = if name == "pasta" { "pas" } else { name };
        all.iter().find(|(_, called)| called.starts_with(name)).map(|(pid, _)| *pid)
    };
    for peer in PEERS {
        let run = [
            "run",
            "-d",
            "--name",
            "reef",
            "--network-backend",
            peer,
            "--rootfs",
            &dir.text("root"),
            "/bin/guest",
            "sleep",
        ];
        dir.kelp(&run).ok();
        sys::kill(find(peer).expect(peer), libc::SIGKILL).unwrap();
        let state = || dir.kelp(&["inspect", "-f", "{{.State.Status}} {{.State.Error}}", "reef"]).ok().out;
        assert!(soon(|| state().starts_with("running its network engine was killed")), "{peer}: {}", state());
        dir.kelp(&["rm", "-f", "reef"]).ok();
        for victim in ["kelp-network", "kelp-monitor"] {
            dir.kelp(&run).ok();
            sys::kill(find(victim).expect(victim), libc::SIGKILL).unwrap();
            assert!(soon(|| find(peer).is_none()), "{peer} outlives {victim}");
            dir.kelp(&["rm", "-f", "reef"]).ok();
        }
    }
}
