//! The main job: a program in a container made from a real folder, with docker's options, and nothing of it
//! outside afterwards. Each test is a sentence that a docker or podman user takes for granted.

use crate::dir::{Dir, picture};
use crate::host;
use crate::kelp::says;
use crate::{needs, sys};
use serde_json::json;
use std::fs;

#[test]
fn a_program_prints_on_both_streams_and_exits() {
    needs!(userns);
    let outcome = Dir::new().run(&[], &["/bin/guest", "say", "to out", "to err"]).ok();
    assert_eq!((outcome.out.as_str(), outcome.err.as_str()), ("to out\n", "to err\n"));
}

#[test]
fn the_program_is_root_and_process_one() {
    needs!(userns);
    let seen = Dir::new().report(&[]);
    assert_eq!(
        (&seen["ids"]["ruid"], &seen["ids"]["euid"], &seen["ids"]["egid"]),
        (&json!(0), &json!(0), &json!(0))
    );
    assert_eq!((&seen["process"]["pid"], &seen["process"]["ppid"]), (&json!(1), &json!(0)));
    assert_eq!(seen["processes"], json!(["1"]));
}

#[test]
fn every_namespace_is_its_own() {
    needs!(userns);
    let seen = Dir::new().report(&["--network", "none"]);
    for kind in ["user", "mnt", "pid", "ipc", "uts", "cgroup", "net"] {
        assert_ne!(seen["namespaces"][kind], json!(host::namespace(kind)), "{kind}");
    }
}

#[test]
fn the_root_holds_the_folder_and_nothing_more() {
    needs!(userns);
    let dir = Dir::new();
    dir.root();
    dir.file("root/only-here", "");
    let seen = dir.report(&[]);
    let root: Vec<&str> =
        seen["root"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert_eq!(root, ["bin", "dev", "etc", "only-here", "proc", "root", "sys", "tmp", "var"]);
}

#[test]
fn the_root_is_made_by_the_driver_that_the_environment_names() {
    needs!(userns);
    let dir = Dir::new();
    let root = dir.root();
    dir.kelp(&["run", "--name", "reef", "--rootfs", &root, "/bin/guest", "say", "x"]).ok();
    let made = dir.kelp(&["inspect", "-f", "{{.GraphDriver.Name}}", "reef"]).ok().out;
    match std::env::var("KELP_STORAGE_DRIVER") {
        Ok(named) if !named.is_empty() => assert_eq!(made.trim_end(), named),
        _ => assert!(["overlay\n", "fuse\n"].contains(&made.as_str()), "{made}"),
    }
}

#[test]
fn writes_go_to_a_layer_that_is_thrown_away() {
    needs!(userns);
    let dir = Dir::new();
    let before = picture(&dir.root());
    let verbs = [
        "write",
        "/etc/marker",
        "upper",
        ",",
        "read",
        "/etc/marker",
        ",",
        "write",
        "/new",
        "x",
        ",",
        "remove",
        "/tmp",
    ];
    let seen = dir.all(&[], &verbs);
    assert_eq!(seen, json!([{"written": true}, {"text": "upper"}, {"written": true}, {"removed": true}]));
    assert_eq!(picture(&dir.text("root")), before);
}

#[test]
fn rootfs_rw_keeps_writes() {
    needs!(userns);
    let dir = Dir::new();
    dir.run(&["--rootfs-rw"], &["/bin/guest", "write", "/etc/marker", "upper"]).ok();
    assert_eq!(fs::read_to_string(dir.path("root/etc/marker")).unwrap(), "upper");
}

#[test]
fn read_only_refuses_writes_but_not_to_tmpfs() {
    needs!(userns);
    let verbs = ["write", "/new", "x", ",", "write", "/scratch/new", "x", ",", "write", "/dev/shm/new", "x"];
    let seen = Dir::new().all(&["--read-only", "--tmpfs", "/scratch"], &verbs);
    assert_eq!(seen, json!([{"error": "EROFS"}, {"written": true}, {"written": true}]));
}

#[test]
fn host_is_the_machines_own_userland_and_writes_stay_inside() {
    needs!(userns);
    let dir = Dir::new();
    let script = "id -u; cat /etc/os-release; echo x > /usr/kelp-was-here && cat /usr/kelp-was-here; pwd";
    let outcome = dir.kelp(&["run", "--rm", "@host", "sh", "-c", script]).ok();
    let release = fs::read_to_string("/etc/os-release").unwrap();
    assert_eq!(outcome.out, format!("0\n{release}x\n/\n"));
    assert!(fs::metadata("/usr/kelp-was-here").is_err());
}

#[test]
fn options_behind_the_command_are_the_commands() {
    needs!(userns);
    let dir = Dir::new();
    let root = dir.root();
    assert_eq!(dir.kelp(&["run", "--rm", "--rootfs", &root, "/bin/guest", "say", "--rm"]).ok().out, "--rm\n");
    assert_eq!(
        dir.kelp(&["run", "--rm", "--rootfs", &root, "--", "/bin/guest", "say", "-e"]).ok().out,
        "-e\n"
    );
}

#[test]
fn programs_are_found_on_the_containers_path() {
    needs!(userns);
    assert_eq!(Dir::new().run(&[], &["guest", "say", "found"]).ok().out, "found\n");
    let dir = Dir::new();
    dir.root();
    fs::create_dir(dir.path("root/opt")).unwrap();
    fs::copy(dir.path("root/bin/guest"), dir.path("root/opt/elsewhere")).unwrap();
    assert_eq!(dir.run(&["-e", "PATH=/opt"], &["elsewhere", "say", "found"]).ok().out, "found\n");
}

#[test]
fn input_reaches_the_program_only_with_interactive() {
    needs!(userns);
    let bytes = "kelp\n".repeat(400_000);
    let dir = Dir::new();
    assert_eq!(dir.run(&["-i"], &["/bin/guest", "copy"]).input(bytes.as_bytes()).ok().out, bytes);
    assert_eq!(dir.run(&[], &["/bin/guest", "copy"]).input(b"unheard").ok().out, "");
}

/// `container` is podman's word, which systemd and its like look for; the rest is docker's.
#[test]
fn the_environment_is_dockers_and_none_of_the_callers() {
    needs!(userns);
    let seen = Dir::new().run(&["--hostname", "reef"], &["/bin/guest"]).env("SECRET", "1").ok().json();
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(seen["env"], json!({"PATH": path, "HOSTNAME": "reef", "HOME": "/root", "container": "kelp"}));
}

#[test]
fn environment_options_add_up() {
    needs!(userns);
    let dir = Dir::new();
    let file = dir.file("env", "# a comment\nA=from file\nB=two=2\nFROM_CALLER\n\nNOT_SET\n");
    let options = ["--env-file", &file, "-e", "A=option", "--env=C=", "-e", "PASSED", "-e", "UNSET"];
    let kelp =
        dir.run(&options, &["/bin/guest", "report", "env"]).env("PASSED", "yes").env("FROM_CALLER", "me");
    let env = kelp.ok().json()["env"].clone();
    for (key, value) in [("A", "option"), ("B", "two=2"), ("C", ""), ("PASSED", "yes"), ("FROM_CALLER", "me")]
    {
        assert_eq!(env[key], json!(value), "{key}");
    }
    assert!(env.get("UNSET").is_none() && env.get("NOT_SET").is_none(), "{env}");
}

#[test]
fn home_is_the_users_own() {
    needs!(userns, many_ids);
    let seen = Dir::new().report(&["-u", "kelpie"]);
    assert_eq!(seen["env"]["HOME"], json!("/var/lib"));
}

#[test]
fn the_working_directory_is_the_asked_one_and_is_made() {
    needs!(userns);
    let dir = Dir::new();
    assert_eq!(dir.report(&[])["cwd"], json!("/"));
    assert_eq!(dir.report(&["-w", "/var/lib"])["cwd"], json!("/var/lib"));
    assert_eq!(dir.report(&["--workdir=/made/for/me"])["cwd"], json!("/made/for/me"));
    let sentence = dir.run(&["-w", "relative"], &["/bin/guest"]).fails(125);
    says(&sentence, &["relative", "absolute"]);
}

#[test]
fn nothing_of_the_callers_process_leaks() {
    needs!(userns);
    let dir = Dir::new();
    let mut kelp = dir.run(&[], &["/bin/guest"]);
    sys::careless(&mut kelp.command);
    let seen = kelp.ok().json();
    assert_eq!(seen["umask"], json!("022"));
    assert_eq!(seen["signals"]["ignored"], json!("0000000000000000"));
    assert_eq!(seen["signals"]["blocked"], json!("0000000000000000"));
    assert_eq!(seen["process"]["sid"], json!(1));
}

#[test]
fn names_of_the_container() {
    needs!(userns);
    let dir = Dir::new();
    let seen = dir.report(&["--hostname", "reef", "--domainname", "sea.test"]);
    assert_eq!((&seen["hostname"], &seen["domainname"]), (&json!("reef"), &json!("sea.test")));
    let files = dir.all(
        &["-h", "reef"],
        &["read", "/etc/hostname", ",", "read", "/etc/hosts", ",", "report", "hostname"],
    );
    assert_eq!(files[0]["text"], json!("reef\n"));
    let hosts = files[1]["text"].as_str().unwrap();
    assert!(hosts.contains("127.0.0.1") && hosts.contains("localhost"), "{hosts}");
    let own = dir.report(&[])["hostname"].as_str().unwrap().to_string();
    assert!(own.len() == 12 && own.bytes().all(|b| b.is_ascii_hexdigit()), "{own} is not a short id");
}

#[test]
fn entrypoint_stands_before_the_command() {
    needs!(userns);
    assert_eq!(Dir::new().run(&["--entrypoint", "/bin/guest"], &["say", "hello"]).ok().out, "hello\n");
}

#[test]
fn limits_are_set_as_asked() {
    needs!(userns);
    let limits = Dir::new().report(&["--ulimit", "nofile=100:200", "--ulimit", "core=0"])["limits"].clone();
    assert_eq!((&limits["NOFILE"], &limits["CORE"]), (&json!([100, 200]), &json!([0, 0])));
}

#[test]
fn sysctls_of_the_containers_namespaces_are_set() {
    needs!(userns);
    let options = [
        "--network",
        "none",
        "--sysctl",
        "net.ipv4.ip_unprivileged_port_start=79",
        "--sysctl",
        "kernel.msgmax=4242",
    ];
    let verbs =
        ["read", "/proc/sys/net/ipv4/ip_unprivileged_port_start", ",", "read", "/proc/sys/kernel/msgmax"];
    let seen = Dir::new().all(&options, &verbs);
    assert_eq!(seen, json!([{"text": "79\n"}, {"text": "4242\n"}]));
}

/// Guard: only sysctls of the container's own namespaces are taken; the caller may be a root who owns the file.
#[test]
fn sysctls_of_the_host_are_refused() {
    needs!(userns);
    let dir = Dir::new();
    for (options, name, file) in [
        (&[][..], "kernel.panic", "/proc/sys/kernel/panic"),
        (&[], "vm.swappiness", "/proc/sys/vm/swappiness"),
        (
            &["--network=host"],
            "net.ipv4.ip_unprivileged_port_start",
            "/proc/sys/net/ipv4/ip_unprivileged_port_start",
        ),
        (&["--ipc=host"], "kernel.msgmax", "/proc/sys/kernel/msgmax"),
    ] {
        // The value that it has, so that a missing guard harms nobody.
        let same = format!("{name}={}", fs::read_to_string(file).unwrap().trim());
        says(&dir.run(&[options, &["--sysctl", &same]].concat(), &["/bin/guest"]).fails(125), &[name]);
    }
}

#[test]
fn namespaces_can_be_the_hosts() {
    needs!(userns);
    let seen = Dir::new().report(&["--uts=host", "--ipc=host"]);
    assert_eq!(seen["hostname"], json!(host::hostname()));
    for kind in ["uts", "ipc"] {
        assert_eq!(seen["namespaces"][kind], json!(host::namespace(kind)), "{kind}");
    }
}

#[test]
fn the_pid_namespace_can_be_the_hosts() {
    needs!(userns);
    let dir = Dir::new();
    let kelp = dir.run(&["--pid=host"], &["/bin/guest"]).ok();
    let seen = kelp.json();
    assert_eq!(seen["namespaces"]["pid"], json!(host::namespace("pid")));
    let own = std::process::id().to_string();
    assert!(
        seen["processes"].as_array().unwrap().iter().any(|pid| pid == &json!(own)),
        "{}",
        seen["processes"]
    );
}

#[test]
fn shared_memory_of_another_ipc_namespace_is_out_of_reach() {
    needs!(userns);
    let key = (std::process::id() as i32 + 0x4b00_0000).to_string();
    let dir = Dir::new();
    let made = std::process::Command::new(crate::dir::guest()).args(["shm", "make", &key]).output().unwrap();
    assert!(String::from_utf8_lossy(&made.stdout).contains("id"));
    assert_eq!(dir.all(&[], &["shm", "find", &key]), json!([{"error": "ENOENT"}]));
    assert!(dir.all(&["--ipc=host"], &["shm", "find", &key])[0]["id"].is_number());
    let _ = std::process::Command::new("ipcrm").args(["-M", &key]).status();
}

#[test]
fn clocks_can_be_moved() {
    needs!(userns);
    let now = fs::read_to_string("/proc/uptime").unwrap().split(' ').next().unwrap().parse::<f64>().unwrap();
    let seen = Dir::new().all(&["--time-offset", "boottime=864000,monotonic=86400"], &["clock"]);
    let ahead = |clock: &str| seen[0][clock].as_f64().unwrap() - now;
    assert!((863_990.0..864_060.0).contains(&ahead("boottime")), "{seen}");
    assert!((86_390.0..86_460.0).contains(&ahead("monotonic")), "{seen}");
}

#[test]
fn a_name_is_taken_while_the_container_runs() {
    needs!(userns);
    let dir = Dir::new();
    let mut first = dir.run(&["--name", "reef", "-i"], &["/bin/guest", "sleep"]).start();
    let mut ready = [0; 6];
    std::io::Read::read_exact(first.stdout.as_mut().unwrap(), &mut ready).unwrap();
    let sentence = dir.run(&["--name", "reef"], &["/bin/guest", "say", "x"]).fails(125);
    says(&sentence, &["reef", "in use"]);
    sys::kill(first.id() as i32, libc::SIGKILL).unwrap();
    first.wait().unwrap();
    assert_eq!(dir.run(&["--name", "reef"], &["/bin/guest", "say", "again"]).ok().out, "again\n");
}

#[test]
fn names_follow_dockers_grammar() {
    let dir = Dir::new();
    for name in ["/abs", "..", "a\nb", "", "-x", "a/b", ".hidden"] {
        let sentence = dir.run(&[&format!("--name={name}")], &["/bin/guest", "exit", "0"]).fails(125);
        says(&sentence, &["name"]);
    }
}

#[test]
fn nothing_is_left_of_a_container_that_was_to_be_removed() {
    needs!(userns);
    let dir = Dir::new();
    dir.run(&["--name", "gone"], &["/bin/guest", "write", "/new", "x"]).ok();
    dir.run(&[], &["/bin/guest", "exit", "9"]).fails(9);
    dir.run(&[], &["/no/such/program"]).fails(127);
    for store in ["store", "run"] {
        let left: Vec<String> =
            picture_if(&dir.text(store)).into_iter().filter(|line| line.contains("containers/")).collect();
        assert!(left.is_empty(), "{left:#?}");
    }
}

fn picture_if(folder: &str) -> Vec<String> {
    if fs::metadata(folder).is_ok() { picture(folder) } else { Vec::new() }
}

#[test]
fn a_container_ends_at_its_timeout() {
    needs!(userns);
    let started = std::time::Instant::now();
    let outcome = Dir::new().run(&["--timeout", "1"], &["/bin/guest", "sleep"]).end();
    assert_ne!(outcome.code, 0);
    assert!(started.elapsed().as_secs() >= 1, "{:?}", started.elapsed());
}

#[test]
fn what_one_container_leaves_in_its_layer_never_reaches_the_next() {
    needs!(userns);
    let dir = Dir::new();
    dir.run(&[], &["/bin/guest", "write", "/etc/empty", ""]).ok();
    dir.run(&[], &["/bin/guest", "write", "/etc/full", "words"]).ok();
    for path in ["/etc/empty", "/etc/full"] {
        let seen = dir.all(&[], &["read", path]);
        assert!(seen[0]["error"] == "ENOENT", "{path}: {seen}");
    }
    assert_eq!(host::containers(&dir), Vec::<String>::new());
}
