//! `--network container:NAME`: two containers in one network. What the second shares, what it keeps for itself, and what
//! becomes of it when the first ends.

use crate::dir::Dir;
use crate::kelp::says;
use crate::needs;
use serde_json::{Value, json};

/// A container called reef, whose guest sleeps, made with these options.
fn reef(dir: &Dir, options: &[&str]) {
    let root = if dir.path("root").exists() { dir.text("root") } else { dir.root() };
    let words = [&["run", "-d", "--name", "reef"], options, &["--rootfs", &root, "/bin/guest", "sleep"]];
    dir.kelp(&words.concat()).ok();
}

fn inside(dir: &Dir, name: &str) -> Value {
    dir.kelp(&["exec", name, "/bin/guest"]).ok().json()
}

fn end(dir: &Dir) {
    dir.kelp(&["rm", "-f", "reef"]).ok();
}

const BESIDE: [&str; 2] = ["--network", "container:reef"];

#[test]
fn a_container_beside_another_has_its_network_and_its_names() {
    needs!(userns);
    let dir = Dir::new();
    for options in [
        &["--ip", "10.9.8.7", "--dns-search", "sea.example", "--add-host", "shoal:192.0.2.7"][..],
        &["--network", "none"],
    ] {
        reef(&dir, options);
        let (first, second) = (inside(&dir, "reef"), dir.report(&BESIDE));
        for same in ["links", "routes"] {
            assert_eq!(first[same], second[same], "{same}");
        }
        for (kind, shared) in [("net", true), ("user", true), ("mnt", false), ("pid", false), ("ipc", false)]
        {
            let same = first["namespaces"][kind] == second["namespaces"][kind];
            assert_eq!(same, shared, "{kind}: {} {}", first["namespaces"], second["namespaces"]);
        }
        let read =
            ["read", "/etc/hosts", ",", "read", "/etc/resolv.conf", ",", "read", "/proc/sys/kernel/hostname"];
        let theirs = dir.kelp(&[&["exec", "reef", "/bin/guest", "all"], &read[..]].concat()).ok().json();
        assert_eq!(theirs, dir.all(&BESIDE, &read));
        end(&dir);
    }
}

#[test]
fn containers_beside_each_other_talk_over_loopback() {
    needs!(userns);
    let dir = Dir::new();
    reef(&dir, &[]);
    let listen = ["--name", "shoal", "-d", BESIDE[0], BESIDE[1]];
    dir.kelp(
        &[
            &["run"],
            &listen[..],
            &["--rootfs", &dir.text("root"), "/bin/guest", "listen", "127.0.0.1:80", "tide"],
        ]
        .concat(),
    )
    .ok();
    assert!(crate::host::soon(|| dir.kelp(&["logs", "shoal"]).ok().out.starts_with("ready")));
    let seen = dir.kelp(&["exec", "reef", "/bin/guest", "connect", "127.0.0.1:80"]).ok().json();
    assert_eq!(seen, json!({"heard": "tide"}));
    assert_eq!(dir.kelp(&["wait", "shoal"]).ok().out, "0\n");
    // The network is the first one's, and goes on when the second ends.
    dir.kelp(&["rm", "shoal"]).ok();
    assert_eq!(inside(&dir, "reef")["links"]["eth0"], json!({"up": true}));
    end(&dir);
}

#[test]
fn a_third_container_beside_the_second_is_beside_the_first() {
    needs!(userns);
    let dir = Dir::new();
    reef(&dir, &[]);
    dir.kelp(&[
        "run",
        "-d",
        "--name",
        "shoal",
        BESIDE[0],
        BESIDE[1],
        "--rootfs",
        &dir.text("root"),
        "/bin/guest",
        "sleep",
    ])
    .ok();
    let third = dir.report(&["--network", "container:shoal", "--init"]);
    assert_eq!(third["namespaces"]["net"], inside(&dir, "reef")["namespaces"]["net"]);
    let mode = dir.kelp(&["inspect", "-f", "{{.HostConfig.NetworkMode}} {{.Id}}", "shoal"]).ok().out;
    let id = dir.kelp(&["inspect", "-f", "{{.Id}}", "reef"]).ok().out;
    assert!(mode.starts_with(&format!("container:{}", id.trim())), "{mode}");
    // The first may go: what it leaves has a network for as long as it runs, though nothing carries it any more.
    end(&dir);
    assert_eq!(inside(&dir, "shoal")["links"]["lo"], json!({"up": true}));
    dir.kelp(&["stop", "-t", "0", "shoal"]).ok();
    says(&dir.kelp(&["start", "shoal"]).fails(1), &["No such container"]);
    dir.kelp(&["rm", "shoal"]).ok();
}

#[test]
fn the_hosts_network_is_shared_as_the_hosts() {
    needs!(userns);
    let dir = Dir::new();
    reef(&dir, &["--network", "host"]);
    let seen = dir.report(&BESIDE);
    assert_eq!(seen["namespaces"]["net"], json!(crate::host::namespace("net")));
    end(&dir);
}

#[test]
fn the_ids_are_those_of_the_other_container() {
    needs!(userns);
    let dir = Dir::new();
    for userns in ["auto", "keep-id"] {
        reef(&dir, &["--userns", userns]);
        let (first, second) = (inside(&dir, "reef"), dir.report(&BESIDE));
        for same in ["maps", "ids"] {
            assert_eq!(first[same], second[same], "{userns}: {same}");
        }
        end(&dir);
    }
    reef(&dir, &[]);
    says(&dir.run(&[BESIDE[0], BESIDE[1], "--userns", "keep-id"], &["/bin/guest"]).fails(125), &["--userns"]);
    end(&dir);
}

#[test]
fn every_rung_and_option_works_beside_another_container() {
    needs!(userns, fuse);
    let dir = Dir::new();
    reef(&dir, &[]);
    let theirs = inside(&dir, "reef")["namespaces"]["net"].clone();
    for options in [
        &["--storage-driver", "fuse"][..],
        &["--pid", "host"],
        &["--ipc", "host", "--uts", "host"],
        &["-m", "100m"],
        &["--oom-score-adj", "700"],
        &["--sysctl", "net.ipv4.ip_default_ttl=50"],
    ] {
        let seen = dir.report(&[&BESIDE, options].concat());
        assert_eq!(seen["namespaces"]["net"], theirs, "{options:?}");
    }
    end(&dir);
}

#[test]
fn what_the_first_container_says_can_not_be_said_again() {
    needs!(userns);
    let dir = Dir::new();
    reef(&dir, &[]);
    for (options, words) in [
        (&["-p", "80:80"][..], "conflicting options: port publishing and the container type network mode"),
        (&["--hostname", "x"], "conflicting options: hostname and the network mode"),
        (
            &["--add-host", "x:192.0.2.1"],
            "conflicting options: custom host-to-IP mapping and the network mode",
        ),
        (&["--dns", "192.0.2.1"], "conflicting options: dns and the network mode"),
    ] {
        says(&dir.run(&[&BESIDE, options].concat(), &["/bin/guest"]).fails(125), &[words]);
    }
    says(
        &dir.run(&[&BESIDE[..], &["--time-offset", "boottime=1000"]].concat(), &["/bin/guest"]).fails(125),
        &["--time-offset"],
    );
    dir.kelp(&["stop", "-t", "0", "reef"]).ok();
    says(&dir.run(&BESIDE, &["/bin/guest"]).fails(125), &["cannot join network of a non running container"]);
    end(&dir);
    says(&dir.run(&BESIDE, &["/bin/guest"]).fails(125), &["No such container: reef"]);
}
