//! What of the caller's surroundings comes inside when it is asked for: environment, time zone, the profile of HPC
//! users, and what systemd as the program finds.

use crate::dir::Dir;
use crate::kelp::says;
use crate::needs;
use serde_json::{Value, json};
use std::fs;

#[test]
fn the_callers_environment_comes_first_and_gives_way() {
    needs!(userns);
    let dir = Dir::new();
    let outside = |options: &[&str]| {
        let kelp = dir.run(options, &["/bin/guest"]).env("SEA", "deep").env("SHORE", "far");
        kelp.ok().json()["env"].clone()
    };
    let seen = outside(&["--env-host", "-e", "SHORE=near"]);
    assert_eq!((&seen["SEA"], &seen["SHORE"]), (&json!("deep"), &json!("near")));
    assert_eq!(outside(&[])["SEA"], Value::Null, "the environment leaks");
}

#[test]
fn the_time_zone_is_a_file_of_the_host() {
    needs!(userns);
    let dir = Dir::new();
    let utc = fs::read("/usr/share/zoneinfo/Etc/UTC").unwrap();
    let seen =
        dir.all(&["--tz", "Etc/UTC"], &["stat", "/etc/localtime", ",", "write", "/etc/localtime", "x"]);
    assert_eq!((&seen[0]["size"], &seen[1]), (&json!(utc.len()), &json!({"error": "EROFS"})));
    for bad in ["No/Such", "../../../etc/passwd", "/etc/passwd"] {
        says(&dir.run(&["--tz", bad], &["/bin/guest"]).fails(125), &["no such time zone"]);
    }
}

#[test]
fn the_profile_of_hpc_users_feels_like_their_machine() {
    needs!(userns, ordinary);
    let dir = Dir::new();
    let home = dir.folder("home");
    dir.file("home/project/letter", "text");
    let mut kelp =
        dir.run(&["--profile", "hpc"], &["/bin/guest"]).env("HOME", &home).env("SLURM_JOB_ID", "7");
    kelp.command.current_dir(dir.path("home/project"));
    let seen = kelp.ok().json();
    assert_eq!((&seen["cwd"], &seen["env"]["SLURM_JOB_ID"]), (&json!(dir.text("home/project")), &json!("7")));
    assert_eq!(seen["env"]["HOME"], json!(home));
    let inside = |options: &[&str], command: &[&str]| {
        let mut kelp = dir.run(&[&["--profile", "hpc"], options].concat(), command).env("HOME", &home);
        kelp.command.current_dir(dir.path("home/project"));
        kelp.ok()
    };
    inside(&[], &["/bin/guest", "write", "new", "made inside"]);
    let made = fs::metadata(dir.path("home/project/new")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), crate::sys::uid());
    let namespace = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
    let links = inside(&[], &["/bin/guest"]).json();
    for kind in ["net", "pid"] {
        assert_eq!(links["namespaces"][kind], json!(namespace(kind).to_str().unwrap()), "{kind}");
    }
    let links = inside(&["--network", "none"], &["/bin/guest"]).json();
    assert_ne!(
        links["namespaces"]["net"],
        json!(namespace("net").to_str().unwrap()),
        "the user's word loses"
    );
}

#[test]
fn systemd_finds_its_folders_in_memory() {
    needs!(userns);
    let dir = Dir::new();
    let kinds = |options: &[&str]| {
        let seen = dir.report(options);
        let all = seen["mounts"].as_array().unwrap().clone();
        let of = |target: &str| {
            let found = all.iter().rfind(|mount| mount["target"] == target);
            found.map_or(Value::Null, |mount| mount["type"].clone())
        };
        ["/run", "/run/lock", "/tmp", "/var/log/journal"].map(of)
    };
    assert_eq!(kinds(&["--systemd=always"]), ["tmpfs"; 4].map(Value::from));
    assert_eq!(kinds(&[]), [Value::Null, Value::Null, Value::Null, Value::Null]);
    says(&dir.run(&["--systemd=perhaps"], &["/bin/guest"]).fails(125), &["true, false or always"]);
}
