//! `kelp doctor`: what it says of a host that refuses one thing, where the refusal is made for real, and that its
//! JSON is what scripts can rely on. A row: facility, rung, state (used, works, refused), reason, mend.

use crate::dir::Dir;
use crate::kelp::Outcome;
use crate::needs;
use crate::nested::{Nested, without};
use serde_json::{Value, json};
use std::fs;
use std::process::Command;

/// The row of a facility whose rung has this word in its name.
#[track_caller]
fn row(outcome: &Outcome, facility: &str, rung: &str) -> Value {
    let all: Value = serde_json::from_str(&outcome.out)
        .unwrap_or_else(|error| panic!("{error}: {}{}", outcome.out, outcome.err));
    let rows = all.as_array().unwrap().clone();
    let found = rows
        .into_iter()
        .find(|row| row["facility"] == facility && row["rung"].as_str().unwrap().contains(rung));
    found.unwrap_or_else(|| panic!("no {facility}: {rung} in {all:#}"))
}

/// Refused, with these words in the reason, and a mend with those.
#[track_caller]
fn refused(row: &Value, reason: &[&str], mend: &[&str]) {
    assert_eq!(row["state"], json!("refused"), "{row:#}");
    let said = |key: &str| row[key].as_str().unwrap_or_default().to_lowercase();
    for (key, words) in [("reason", reason), ("mend", mend)] {
        for word in words {
            assert!(said(key).contains(&word.to_lowercase()), "no {word:?} in the {key} of {row:#}");
        }
    }
}

fn doctor(dir: &Dir) -> crate::kelp::Kelp {
    dir.kelp(&["doctor", "--json"])
}

#[test]
fn every_row_has_a_state_and_a_reason_and_refusals_have_a_mend() {
    needs!(userns);
    let dir = Dir::new();
    let all = doctor(&dir).ok();
    for row in serde_json::from_str::<Value>(&all.out).unwrap().as_array().unwrap() {
        assert!(["used", "works", "refused"].contains(&row["state"].as_str().unwrap()), "{row}");
        assert!(
            !row["reason"].as_str().unwrap().is_empty() && !row["rung"].as_str().unwrap().is_empty(),
            "{row}"
        );
        assert!(row["state"] != "refused" || row["mend"].is_string(), "a refusal without a mend: {row}");
    }
    let shown = dir.kelp(&["doctor"]).ok().out;
    for row in serde_json::from_str::<Value>(&all.out).unwrap().as_array().unwrap() {
        assert!(shown.contains(row["rung"].as_str().unwrap()), "{row} is not in\n{shown}");
    }
}

#[test]
fn what_doctor_calls_used_is_what_run_uses() {
    needs!(userns, overlay, fuse);
    let dir = Dir::new();
    for (driver, used, works, kind) in [
        ("fuse", "T2", "T0", "fuse"),
        ("overlay-on-fuse", "T1", "T2", "overlay"),
        ("overlay", "T0", "T2", "overlay"),
        ("", "T0", "T1", "overlay"),
    ] {
        let all = doctor(&dir).env("KELP_STORAGE_DRIVER", driver).ok();
        assert_eq!(row(&all, "root file system", used)["state"], json!("used"), "{driver}");
        assert_eq!(row(&all, "root file system", works)["state"], json!("works"), "{driver}");
        assert_eq!(root_of(dir.run(&[], &["/bin/guest"]).env("KELP_STORAGE_DRIVER", driver)), kind);
    }
    let (all, seen) = (doctor(&dir).ok(), dir.report(&[]));
    let many = row(&all, "id maps", "many ids")["state"] == json!("used");
    assert_eq!(many, seen["maps"]["uid"][0][2] != "1" || seen["maps"]["uid"].as_array().unwrap().len() > 1);
}

/// The file system of the root that this command's guest reports.
fn root_of(kelp: crate::kelp::Kelp) -> String {
    let seen = kelp.ok().json();
    let mounts = seen["mounts"].as_array().unwrap();
    let root = mounts.iter().find(|mount| mount["target"] == "/").unwrap();
    root["type"].as_str().unwrap().split('.').next().unwrap().to_string()
}

#[test]
fn the_environment_names_the_usual_driver_and_a_flag_another() {
    needs!(userns, overlay, fuse);
    let dir = Dir::new();
    let root = dir.root();
    let usual = |kelp: crate::kelp::Kelp| kelp.env("KELP_STORAGE_DRIVER", "fuse");
    assert_eq!(root_of(usual(dir.run(&[], &["/bin/guest"]))), "fuse");
    assert_eq!(root_of(usual(dir.run(&["--storage-driver", "overlay"], &["/bin/guest"]))), "overlay");
    let itself = usual(dir.kelp(&["run", "--rm", "--rootfs-rw", "--rootfs", &root, "/bin/guest"]));
    assert_ne!(root_of(itself), "fuse", "a root that is written through needs no driver");
    let limits = dir.run(&["--storage-opt", "size=64m"], &["/bin/guest"]);
    assert_eq!(root_of(limits.env("KELP_STORAGE_DRIVER", "overlay")), "fuse", "limits need that driver");
    let said = dir.run(&[], &["/bin/guest"]).env("KELP_STORAGE_DRIVER", "aufs").fails(125);
    assert!(
        said.contains("KELP_STORAGE_DRIVER aufs: overlay, overlay-on-fuse, fuse or copy is expected"),
        "{said}"
    );
}

#[test]
fn user_namespaces_at_their_limit() {
    needs!(userns);
    let dir = Dir::new();
    let line = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$@\"";
    let all = Nested::new(&dir).verb(&["doctor", "--json"]).shell(line).run(&dir).end();
    refused(&row(&all, "user namespaces", ""), &["max_user_namespaces"], &["sysctl", "max_user_namespaces"]);
}

#[test]
fn newuidmap_missing() {
    needs!(subids);
    let dir = Dir::new();
    let all = doctor(&dir).env("PATH", &without(&dir, &["newuidmap", "newgidmap"])).end();
    refused(&row(&all, "id maps", "many ids"), &["newuidmap"], &["uidmap"]);
    assert_eq!(row(&all, "id maps", "one id")["state"], json!("used"));
}

#[test]
fn newuidmap_without_setuid() {
    needs!(subids);
    let dir = Dir::new();
    let path = without(&dir, &["newuidmap", "newgidmap"]);
    for name in ["newuidmap", "newgidmap"] {
        fs::copy(format!("/usr/bin/{name}"), format!("{path}/{name}")).unwrap();
    }
    let all = doctor(&dir).env("PATH", &path).end();
    refused(&row(&all, "id maps", "many ids"), &["newuidmap", "setuid"], &["chmod", "u+s"]);
}

#[test]
fn no_subordinate_ids() {
    needs!(userns, single);
    let all = doctor(&Dir::new()).end();
    refused(
        &row(&all, "id maps", "many ids"),
        &["subordinate", "/etc/subuid"],
        &["usermod", "--add-subuids"],
    );
}

#[test]
fn the_fuse_device_missing() {
    needs!(userns, fuse);
    let dir = Dir::new();
    // A /dev of the test's own, with everything but the one node.
    let line = "mount -t tmpfs dev /mnt && for n in null zero full random urandom tty; do : > /mnt/$n; mount --bind /dev/$n /mnt/$n; done && mkdir /mnt/pts /mnt/shm && mount --rbind /mnt /dev && exec \"$@\"";
    let all = Nested::new(&dir).verb(&["doctor", "--json"]).shell(line).run(&dir).end();
    refused(&row(&all, "root file system", "FUSE"), &["/dev/fuse"], &["fuse"]);
}

#[test]
fn every_path_of_the_network_has_its_row() {
    needs!(userns);
    let all = doctor(&Dir::new()).ok();
    for (facility, rung) in [
        ("network device", "TAP"),
        ("network device", "packet socket"),
        ("outbound TCP", "P1"),
        ("outbound TCP", "P2"),
        ("published ports", "P0"),
        ("ping", "ping sockets"),
    ] {
        let row = row(&all, facility, rung);
        let ping = std::fs::read_to_string("/proc/sys/net/ipv4/ping_group_range").unwrap();
        let refused = facility == "ping" && ping.split_whitespace().next() == Some("1");
        assert_eq!(row["state"] == json!("refused"), refused, "{row:#}");
    }
}

#[test]
fn the_tun_device_missing_leaves_the_packet_socket() {
    needs!(userns);
    let dir = Dir::new();
    let hidden = "mount -t tmpfs none /dev/net && exec \"$@\"";
    let all = Nested::new(&dir).verb(&["doctor", "--json"]).shell(hidden).run(&dir).end();
    refused(&row(&all, "network device", "TAP"), &["/dev/net/tun"], &["modprobe tun"]);
    assert_eq!(row(&all, "network device", "packet socket")["state"], json!("used"));
    let seen = Nested::new(&dir).shell(hidden).run(&dir).ok().json();
    assert_eq!(seen["links"]["eth0"], json!({"up": true}));
}

#[test]
fn network_namespaces_at_their_limit() {
    needs!(userns);
    let dir = Dir::new();
    let line = "echo 0 > /proc/sys/user/max_net_namespaces && exec \"$@\"";
    let all = Nested::new(&dir).verb(&["doctor", "--json"]).shell(line).run(&dir).end();
    refused(&row(&all, "network device", ""), &["max_net_namespaces"], &["sysctl", "max_net_namespaces"]);
}

#[test]
fn kernel_overlay_refused() {
    needs!(userns);
    let dir = Dir::new();
    // An overlay can't be the upper layer of an overlay.
    let [lower, upper, work, store] = ["lower", "upper", "work", "store"].map(|name| dir.folder(name));
    let line = format!(
        "mount -t overlay overlay -o userxattr,lowerdir={lower},upperdir={upper},workdir={work} {store} && exec \"$@\""
    );
    let all = Nested::new(&dir).verb(&["doctor", "--json"]).shell(&line).run(&dir).end();
    refused(&row(&all, "root file system", "kernel overlay"), &[&store], &[]);
    let _ = Command::new("chmod").args(["-R", "u+rwx", &work]).status();
}

#[test]
fn doctor_changes_nothing() {
    needs!(userns);
    let dir = Dir::new();
    doctor(&dir).ok();
    let left: Vec<_> =
        fs::read_dir(dir.path("store")).into_iter().flatten().flatten().map(|e| e.file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("trial")), "{left:?}");
    assert_eq!(crate::host::mounts_below(&dir.text("")), Vec::<String>::new());
}
