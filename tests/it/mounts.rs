//! What is where inside: the default mounts and nodes, volumes and their options, the order of mounts, and
//! that no mount of the host is seen.

use crate::dir::Dir;
use crate::kelp::says;
use crate::needs;
use serde_json::{Value, json};
use std::fs;
use std::process::Command;

fn at<'a>(seen: &'a Value, target: &str) -> &'a Value {
    let all = seen["mounts"].as_array().unwrap();
    all.iter()
        .rfind(|mount| mount["target"] == target)
        .unwrap_or_else(|| panic!("no mount on {target} in {all:#?}"))
}

fn has(mount: &Value, option: &str) -> bool {
    mount["options"].as_array().unwrap().iter().any(|word| word == option)
}

#[test]
fn only_the_containers_mounts_are_seen() {
    needs!(userns);
    let seen = Dir::new().report(&[]);
    let known = ["/proc", "/sys", "/dev", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];
    for mount in seen["mounts"].as_array().unwrap() {
        let target = mount["target"].as_str().unwrap();
        let expected =
            target == "/" || known.iter().any(|top| target == *top || target.starts_with(&format!("{top}/")));
        assert!(expected, "{mount}");
    }
    let roots = seen["mounts"].as_array().unwrap().iter().filter(|mount| mount["target"] == "/").count();
    assert_eq!(roots, 1, "the old root is still there");
}

#[test]
fn proc_is_fresh_and_sys_is_read_only() {
    needs!(userns);
    let seen = Dir::new().report(&[]);
    assert_eq!(at(&seen, "/proc")["type"], json!("proc"));
    assert!(has(at(&seen, "/proc"), "nosuid") && has(at(&seen, "/proc"), "noexec"));
    let sys = at(&seen, "/sys");
    assert!(sys["type"] == "sysfs" && has(sys, "ro"), "{sys}");
}

#[test]
fn dev_holds_the_standard_nodes_and_nothing_of_the_host() {
    needs!(userns);
    let seen = Dir::new().all(
        &[],
        &[
            "list",
            "/dev",
            ",",
            "stat",
            "/dev/null",
            ",",
            "stat",
            "/dev/zero",
            ",",
            "stat",
            "/dev/full",
            ",",
            "stat",
            "/dev/random",
            ",",
            "stat",
            "/dev/urandom",
            ",",
            "stat",
            "/dev/tty",
            ",",
            "read",
            "/dev/null",
            ",",
            "write",
            "/dev/null",
            "x",
        ],
    );
    let names: Vec<&str> = seen[0]["names"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let standard = [
        "console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
        "stdout", "tty", "urandom", "zero",
    ];
    for name in &names {
        assert!(standard.contains(name), "/dev/{name}");
    }
    for name in ["fd", "mqueue", "ptmx", "pts", "shm", "stdin"] {
        assert!(names.contains(&name), "no /dev/{name} in {names:?}");
    }
    for (at, device) in [(1, [1, 3]), (2, [1, 5]), (3, [1, 7]), (4, [1, 8]), (5, [1, 9]), (6, [5, 0])] {
        assert_eq!((&seen[at]["kind"], &seen[at]["device"]), (&json!("character"), &json!(device)));
    }
    assert_eq!((&seen[7], &seen[8]), (&json!({"text": ""}), &json!({"written": true})));
}

#[test]
fn a_volume_is_the_hosts_folder() {
    needs!(userns);
    let dir = Dir::new();
    dir.file("shared/in", "from outside");
    let volume = format!("{}:/vol", dir.text("shared"));
    let seen = dir.all(&["-v", &volume], &["read", "/vol/in", ",", "write", "/vol/out", "from inside"]);
    assert_eq!(seen, json!([{"text": "from outside"}, {"written": true}]));
    assert_eq!(fs::read_to_string(dir.path("shared/out")).unwrap(), "from inside");
    assert!(fs::metadata(dir.path("root/vol")).is_err(), "the mount point stayed in the lower folder");
}

#[test]
fn a_volume_can_be_one_file() {
    needs!(userns);
    let dir = Dir::new();
    let file = dir.file("letter", "text");
    let seen = dir.all(
        &["-v", &format!("{file}:/made/for/it:ro")],
        &["read", "/made/for/it", ",", "write", "/made/for/it", "x"],
    );
    assert_eq!(seen, json!([{"text": "text"}, {"error": "EROFS"}]));
}

#[test]
fn volume_options_are_the_kernels() {
    needs!(userns);
    let dir = Dir::new();
    let shared = dir.folder("shared");
    fs::copy(crate::dir::guest(), dir.path("shared/guest")).unwrap();
    let seen =
        dir.report(&["-v", &format!("{shared}:/a:ro,nosuid,nodev,noexec"), "-v", &format!("{shared}:/b")]);
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(has(at(&seen, "/a"), option), "{option}");
    }
    assert!(has(at(&seen, "/b"), "rw") && !has(at(&seen, "/b"), "noexec"));
    assert_eq!(dir.run(&["-v", &format!("{shared}:/b")], &["/b/guest", "say", "runs"]).ok().out, "runs\n");
    dir.run(&["-v", &format!("{shared}:/b:noexec")], &["/b/guest", "say", "runs"]).fails(126);
    says(&dir.run(&["-v", &format!("{shared}:/b:nonsense")], &["/bin/guest"]).fails(125), &["nonsense"]);
}

#[test]
fn propagation_is_private_unless_asked() {
    needs!(userns);
    let dir = Dir::new();
    let shared = dir.folder("shared");
    let seen = dir.report(&[
        "-v",
        &format!("{shared}:/p"),
        "-v",
        &format!("{shared}:/s:rshared"),
        "-v",
        &format!("{shared}:/l:rslave"),
    ]);
    assert_eq!(at(&seen, "/p")["propagation"], json!([]));
    let shared = at(&seen, "/s")["propagation"].to_string();
    assert!(shared.contains("shared:"), "{shared}");
    let slave = at(&seen, "/l")["propagation"].to_string();
    assert!(!slave.contains("shared:"), "{slave}");
}

/// Guard: read-only goes down the whole tree by mount_setattr(2), so a mount below the source is no hole.
#[test]
fn read_only_reaches_mounts_below_the_source() {
    needs!(userns);
    let dir = Dir::new();
    let (root, source) = (dir.root(), dir.folder("source/below"));
    let source = source.trim_end_matches("/below");
    let script = format!(
        "mount -t tmpfs below {source}/below && exec {} run --rm -v {source}:/src:ro --rootfs {root} /bin/guest all write /src/below/x x , write /src/x x",
        crate::dir::kelp().display()
    );
    let mut outer = Command::new("unshare");
    outer.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]);
    outer.env("KELP_ROOT", dir.path("store")).env("KELP_RUNDIR", dir.path("run"));
    let ended = outer.output().unwrap();
    let said = String::from_utf8_lossy(&ended.stdout).into_owned() + &String::from_utf8_lossy(&ended.stderr);
    assert!(said.contains(r#"[{"error":"EROFS"},{"error":"EROFS"}]"#), "{said}");
}

#[test]
fn mount_takes_dockers_fields() {
    needs!(userns);
    let dir = Dir::new();
    let shared = dir.folder("shared");
    let bind = format!("type=bind,source={shared},target=/b,readonly");
    let seen = dir.report(&["--mount", &bind, "--mount", "type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=0700"]);
    assert!(has(at(&seen, "/b"), "ro"));
    assert_eq!(at(&seen, "/t")["type"], json!("tmpfs"));
    assert!(at(&seen, "/t")["super"].to_string().contains("size=1024k"), "{}", at(&seen, "/t"));
    let spelled = format!("type=bind,src={shared},destination=/b");
    assert!(has(at(&dir.report(&["--mount", &spelled]), "/b"), "rw"));
    says(&dir.run(&["--mount", "type=bind,src=/x"], &["/bin/guest"]).fails(125), &["--mount"]);
    says(&dir.run(&["--mount", "type=nfs,dst=/x"], &["/bin/guest"]).fails(125), &["nfs"]);
}

#[test]
fn a_named_volume_outlives_its_container() {
    needs!(userns);
    let dir = Dir::new();
    let options = ["--mount", "type=volume,source=pearls,target=/v"];
    dir.run(&options, &["/bin/guest", "write", "/v/one", "1"]).ok();
    assert_eq!(dir.all(&options, &["read", "/v/one"]), json!([{"text": "1"}]));
    assert_eq!(dir.all(&["-v", "pearls:/w"], &["read", "/w/one"]), json!([{"text": "1"}]));
}

#[test]
fn tmpfs_has_a_size_and_a_mode() {
    needs!(userns);
    let dir = Dir::new();
    let seen = dir.report(&["--tmpfs", "/t:size=1m,mode=0700,noexec", "--shm-size", "2m"]);
    assert!(at(&seen, "/t")["super"].to_string().contains("size=1024k") && has(at(&seen, "/t"), "noexec"));
    assert!(at(&seen, "/dev/shm")["super"].to_string().contains("size=2048k"), "{}", at(&seen, "/dev/shm"));
    assert_eq!(dir.all(&["--tmpfs", "/t:mode=0700"], &["stat", "/t"])[0]["mode"], json!("0700"));
}

#[test]
fn a_mount_inside_another_is_seen_in_whatever_order_they_were_given() {
    needs!(userns);
    let dir = Dir::new();
    let outer = dir.folder("outer");
    dir.file("inner/f", "inner");
    let inner = format!("{}:/m/inner", dir.text("inner"));
    let seen = dir.all(&["-v", &format!("{outer}:/m"), "-v", &inner], &["read", "/m/inner/f"]);
    assert_eq!(seen, json!([{"text": "inner"}]));
    let seen = dir.all(&["--tmpfs", "/m", "-v", &inner], &["read", "/m/inner/f"]);
    assert_eq!(seen, json!([{"text": "inner"}]));
    let seen = dir.report(&["-v", &format!("{outer}:/m"), "--tmpfs", "/m/t"]);
    assert_eq!(at(&seen, "/m/t")["type"], json!("tmpfs"));
    assert_eq!(
        dir.all(&["-v", &format!("{outer}:/m"), "--tmpfs", "/m/t"], &["write", "/m/t/x", "x"]),
        json!([{"written": true}])
    );
    assert!(fs::metadata(dir.path("outer/t/x")).is_err(), "the tmpfs lay below the volume");
}

#[test]
fn a_target_taken_twice_is_refused() {
    needs!(userns);
    let dir = Dir::new();
    let shared = dir.folder("shared");
    let sentence = dir.run(&["-v", &format!("{shared}:/m"), "--tmpfs", "/m"], &["/bin/guest"]).fails(125);
    says(&sentence, &["/m", "duplicate"]);
}

#[test]
fn a_missing_source_is_named() {
    needs!(userns);
    let dir = Dir::new();
    let missing = dir.text("missing");
    says(
        &dir.run(&["-v", &format!("{missing}:/m")], &["/bin/guest"]).fails(125),
        &[&missing, "does not exist"],
    );
    assert!(fs::metadata(&missing).is_err(), "the source was made");
}

#[test]
fn a_device_is_given_only_when_asked() {
    needs!(userns, fuse);
    let dir = Dir::new();
    assert_eq!(dir.all(&[], &["stat", "/dev/fuse"]), json!([{"error": "ENOENT"}]));
    let seen = dir.all(&["--device", "/dev/fuse"], &["stat", "/dev/fuse"]);
    assert_eq!(seen[0]["device"], json!([10, 229]));
    let seen = dir.all(&["--device", "/dev/fuse:/dev/renamed"], &["stat", "/dev/renamed"]);
    assert_eq!(seen[0]["device"], json!([10, 229]));
}

#[test]
fn a_target_through_links_of_the_root_stays_in_the_root() {
    needs!(userns);
    let dir = Dir::new();
    dir.root();
    std::os::unix::fs::symlink("/var/lib", dir.path("root/link")).unwrap();
    dir.file("shared/f", "here");
    let volume = format!("{}:/link/vol", dir.text("shared"));
    assert_eq!(dir.all(&["-v", &volume], &["read", "/var/lib/vol/f"]), json!([{"text": "here"}]));
}

#[test]
fn temporary_folders_inside_are_usable() {
    needs!(userns);
    let seen = Dir::new()
        .all(&[], &["write", "/tmp/x", "1", ",", "write", "/dev/shm/x", "1", ",", "umask-file", "/tmp/y"]);
    assert_eq!(seen, json!([{"written": true}, {"written": true}, "644"]));
}

#[test]
fn a_folder_can_be_mounted_over_dev() {
    needs!(userns);
    let dir = Dir::new();
    dir.file("devices/only", "here");
    let volume = format!("{}:/dev", dir.text("devices"));
    for options in [&["-v", &volume][..], &["-t", "-v", &volume], &["--ipc", "host", "-v", &volume]] {
        let seen = dir.all(options, &["list", "/dev", ",", "read", "/dev/only"]);
        assert_eq!(seen, json!([{"names": ["only"]}, {"text": "here"}]), "{options:?}");
    }
    let left: Vec<_> = fs::read_dir(dir.path("devices")).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(left, ["only"], "mount points stayed in the folder");
}

#[test]
fn the_options_of_the_roots_mount_name_no_path_of_the_host() {
    needs!(userns, overlay);
    let dir = Dir::new();
    let seen = dir.all(&["--storage-driver", "overlay"], &["read", "/proc/self/mountinfo"]);
    let text = seen[0]["text"].as_str().unwrap();
    assert!(text.contains("overlay"), "{text}");
    let folder = dir.text("");
    assert!(!text.contains(folder.trim_end_matches('/')), "{text}");
}

#[test]
fn a_file_can_be_bound_time_and_again_where_the_root_has_none() {
    needs!(userns);
    let dir = Dir::new();
    let bind = format!("{}:/letter:ro", dir.file("letter", "text"));
    for round in 0..3 {
        let seen = dir.all(&["-v", &bind], &["read", "/letter"]);
        assert_eq!(seen[0]["text"], "text", "{round}: {seen}");
    }
}

/// A separate /home is as much the machine's userland as the rest.
#[test]
fn other_file_systems_of_the_host_are_seen_on_the_user_space_overlay() {
    needs!(userns, fuse);
    let dir = Dir::new();
    let other = dir.folder("other");
    let run = format!(
        "mount -t tmpfs none {other} && echo text > {other}/letter && exec {} run --rm --storage-driver fuse --network none @host cat {other}/letter",
        crate::dir::kelp().display()
    );
    let ended = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-ec", &run])
        .env("KELP_ROOT", dir.path("store"))
        .env("KELP_RUNDIR", dir.path("run"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ended.stdout);
    assert_eq!(said, "text\n", "{}", String::from_utf8_lossy(&ended.stderr));
}
