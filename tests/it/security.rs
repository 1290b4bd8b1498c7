//! Attacks that must fail, each tried for real by a hostile program or a hostile root file system. The comment
//! of each test names the guard that it proves: with that guard taken out, the test fails.

use crate::dir::{Dir, picture};
use crate::kelp::says;
use crate::needs::SECRET;
use crate::pty::Person;
use crate::{needs, sys};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

/// What docker gives a container's root.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Docker's masked paths that this kernel has.
fn masked_here() -> impl Iterator<Item = &'static str> {
    let masked = [
        "/proc/acpi",
        "/proc/asound",
        "/proc/interrupts",
        "/proc/keys",
        "/proc/kcore",
        "/proc/latency_stats",
        "/proc/timer_list",
        "/proc/sched_debug",
        "/proc/scsi",
        "/sys/firmware",
        "/sys/devices/virtual/powercap",
    ];
    masked.into_iter().filter(|path| fs::metadata(path).is_ok())
}

/// One that is a file: its mask is the real /dev/null.
fn masked_file() -> &'static str {
    masked_here().find(|path| fs::metadata(path).is_ok_and(|meta| meta.is_file())).unwrap()
}

fn sorted(set: &Value) -> Vec<&str> {
    let mut names: Vec<&str> = set.as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    names.sort_unstable();
    names
}

/// Guard: the old root is detached; left where pivot_root(2) put it, `..` leads onto it.
#[test]
fn the_classic_chroot_escape_ends_in_the_container() {
    needs!(userns);
    let dir = Dir::new();
    let marker = dir.file("marker", "host");
    let seen = dir.all(&["--cap-add", "SYS_CHROOT"], &["chroot-escape", &marker])[0].clone();
    assert_eq!((&seen["chrooted"], &seen["escaped"]), (&json!("ok"), &json!(false)), "{seen}");
    assert!(
        seen["root"].to_string().contains("\"escape\"") || seen["root"].to_string().contains("\"bin\""),
        "{seen}"
    );
}

/// Guard: pivot_root(2); with chroot(2) alone the host's root lies below the container's and shows when that is
/// unmounted.
#[test]
fn below_the_containers_root_lies_nothing() {
    needs!(userns);
    let dir = Dir::new();
    let marker = dir.file("marker", "host");
    let options = ["--cap-add", "ALL", "--security-opt", "seccomp=unconfined"];
    let seen = dir.all(&options, &["unmount-escape", &marker])[0].clone();
    assert_eq!(seen["escaped"], json!(false), "{seen}");
}

/// CVE-2024-21626, CVE-2016-9962. Guard: every descriptor beyond 0 to 2 is closed before the program starts.
#[test]
fn descriptors_of_the_caller_do_not_enter() {
    needs!(userns);
    let dir = Dir::new();
    let marker = dir.file("marker", "host");
    let held = fs::File::open(dir.path(".")).unwrap();
    for options in [&[][..], &["--init"], &["-i"]] {
        let mut kelp = dir.run(options, &["/bin/guest", "walk-descriptors", &marker]);
        (7..13).for_each(|number| sys::inherit(&mut kelp.command, &held, number));
        assert_eq!(kelp.ok().json(), json!({"found": []}), "{options:?}");
    }
}

/// CVE-2024-21626. Guards, each enough: the descriptors are closed before the working folder is entered, and a
/// working folder outside the root is refused.
#[test]
fn the_working_folder_is_no_door_to_a_descriptor() {
    needs!(userns);
    let dir = Dir::new();
    let marker = dir.file("marker", "host");
    let held = fs::File::open(dir.path(".")).unwrap();
    for number in 3..16 {
        for place in ["self", "1", "thread-self"] {
            let cwd = format!("/proc/{place}/fd/{number}");
            let mut kelp = dir.run(&["-w", &cwd], &["/bin/guest", "walk-descriptors", &marker]);
            sys::inherit(&mut kelp.command, &held, 7);
            let outcome = kelp.end();
            assert!(
                outcome.code == 125 || outcome.json() == json!({"found": []}),
                "{cwd}: {}{}",
                outcome.out,
                outcome.err
            );
        }
    }
}

/// CVE-2019-5736. Guard: what enters the container is not dumpable, or is a sealed or read-only copy.
#[test]
fn kelps_own_file_cannot_be_opened_for_writing() {
    needs!(userns);
    let dir = Dir::new();
    let root = dir.root();
    let own = dir.text("kelp");
    fs::copy(crate::dir::kelp(), &own).unwrap();
    let before = fs::read(&own).unwrap();
    let run = |options: &[&str], command: &[&str]| {
        let words = [&["run", "--rm"], options, &["--rootfs", &root], command].concat();
        let mut kelp = Command::new(&own);
        kelp.args(words).env("KELP_ROOT", dir.path("store")).env("KELP_RUNDIR", dir.path("run"));
        kelp.output().unwrap()
    };
    for options in [&["--init"][..], &["--init", "--cap-add", "SYS_PTRACE"]] {
        let ended = run(options, &["/bin/guest", "open-exe-write", "/proc/1/exe"]);
        let seen: Value = serde_json::from_slice(&ended.stdout).unwrap_or_else(|_| panic!("{ended:?}"));
        let memory = seen["target"].as_str().is_some_and(|target| target.contains("memfd"));
        let sealed = memory || seen["on_read_only_mount"] == Value::Bool(true);
        for way in ["write", "append", "again"] {
            // ETXTBSY alone is no guard: it ends with the process.
            let refused = ["EACCES", "EPERM", "EROFS"].contains(&seen[way].as_str().unwrap());
            assert!(refused || (sealed && seen[way] != "ok"), "{way}: {seen}");
        }
    }
    fs::write(dir.path("root/entry"), "#!/proc/self/exe\n").unwrap();
    fs::set_permissions(dir.path("root/entry"), fs::Permissions::from_mode(0o755)).unwrap();
    run(&[], &["/entry"]);
    assert!(fs::read(&own).unwrap() == before, "the kelp binary was changed");
}

/// CVE-2021-30465. Guard: targets are opened with RESOLVE_IN_ROOT and mounted by descriptor.
#[test]
fn a_mount_target_swapped_while_kelp_mounts_stays_in_the_root() {
    needs!(userns);
    let dir = Dir::new();
    dir.root();
    dir.folder("root/swap/in");
    let victim = dir.folder("victim/in");
    let victim = victim.trim_end_matches("/in");
    symlink(victim, dir.path("root/other")).unwrap();
    dir.file("source/f", "source");
    let (one, other) = (dir.text("root/swap"), dir.text("root/other"));
    let volume = format!("{}:/swap/in", dir.text("source"));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                sys::exchange(&one, &other).unwrap();
            }
        });
        let faults: Vec<String> = (0..60).filter_map(|_| swapped_run(&dir, &volume)).collect();
        stop.store(true, Ordering::Relaxed);
        assert!(faults.is_empty(), "{faults:#?}");
    });
    assert_eq!(picture(victim).len(), 2, "something was made in the host's folder");
}

/// The volume must be one mount inside the container's root, or kelp must have refused.
fn swapped_run(dir: &Dir, volume: &str) -> Option<String> {
    let outcome = dir.run(&["--rootfs-rw", "-v", volume], &["/bin/guest", "report", "mounts"]).end();
    if outcome.code != 0 {
        return (outcome.code != 125).then(|| format!("ended with {}: {}", outcome.code, outcome.err));
    }
    let seen = outcome.json();
    let mounts = seen["mounts"].as_array().unwrap();
    let ours = mounts.iter().filter(|mount| mount["root"].as_str().unwrap().ends_with("/source")).count();
    (ours != 1).then(|| format!("the volume is {ours} mounts: {mounts:?}"))
}

/// CVE-2019-19921, CVE-2023-27561. Guard: a volume's target must not lie in procfs or sysfs.
#[test]
fn a_mount_target_that_leads_into_proc_is_refused() {
    needs!(userns);
    let dir = Dir::new();
    dir.root();
    dir.file("source/f", "source");
    symlink("/proc", dir.path("root/link")).unwrap();
    symlink("proc/self/attr", dir.path("root/deep")).unwrap();
    let source = dir.text("source");
    for target in ["/link", "/link/self", "/deep", "/proc/self", "/link/sys/kernel"] {
        let outcome =
            dir.run(&["-v", &format!("{source}:{target}")], &["/bin/guest", "report", "mounts"]).end();
        assert_eq!(outcome.code, 125, "{target}: {}", outcome.out);
        says(&outcome.err, &["proc"]);
    }
}

/// Guard: volume targets are resolved inside the root, so a link of the root can't lead out of it.
#[test]
fn a_volume_cannot_be_led_out_by_a_link_of_the_root() {
    needs!(userns);
    let dir = Dir::new();
    dir.root();
    let victim = dir.folder("victim");
    dir.file("source/f", "source");
    symlink(&victim, dir.path("root/absolute")).unwrap();
    symlink("../../../../../../../../../../..", dir.path("root/up")).unwrap();
    symlink(format!("..{victim}"), dir.path("root/relative")).unwrap();
    symlink("../victim", dir.path("root/beside")).unwrap();
    let before = picture(&victim);
    let targets = [
        "/absolute/in".to_string(),
        format!("/up{victim}/in"),
        "/relative/in".into(),
        "/beside/in".into(),
        format!("/../..{victim}/in"),
    ];
    for target in targets {
        let volume = format!("{}:{target}", dir.text("source"));
        for writes in [&["-v", volume.as_str()][..], &["--rootfs-rw", "-v", &volume]] {
            let outcome = dir.run(writes, &["/bin/guest", "read", &format!("{target}/f")]).end();
            assert!(
                outcome.code == 125 || outcome.json() == json!({"text": "source"}),
                "{target}: {}{}",
                outcome.out,
                outcome.err
            );
            assert_eq!(picture(&victim), before, "{target}");
        }
    }
}

/// CVE-2025-31133 and docker's list. Guard: the mask of /dev/null or an empty folder over each path.
#[test]
fn masked_paths_hold_nothing() {
    needs!(userns);
    let dir = Dir::new();
    let mut proven = 0;
    for path in masked_here() {
        let seen = dir.all(&[], &["stat", path, ",", "list", path, ",", "read", path]);
        let hidden = match seen[0]["kind"].as_str().unwrap_or("absent") {
            "character" => seen[0]["device"] == json!([1, 3]),
            "directory" => seen[1] == json!({"names": []}),
            kind => kind == "absent" || seen[2] == json!({"text": ""}),
        };
        assert!(hidden, "{path}: {seen}");
        proven += 1;
    }
    assert!(proven >= 3, "only {proven} of the paths exist here");
}

/// Guard: the read-only remount of /proc/sys and its like. The file would be writable to the namespace's root.
#[test]
fn read_only_paths_refuse_writes() {
    needs!(userns);
    let port = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    let verbs = ["write", port, "1", ",", "write", "/proc/sysrq-trigger", "h", ",", "report", "mounts"];
    let seen = Dir::new().all(&["--network", "none", "--cap-add", "ALL"], &verbs);
    assert_eq!(seen[0], json!({"error": "EROFS"}));
    let trigger = if fs::metadata("/proc/sysrq-trigger").is_ok() { "EROFS" } else { "ENOENT" };
    assert_eq!(seen[1], json!({"error": trigger}));
    let mounts = seen[2]["mounts"].as_array().unwrap();
    for path in
        ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"].iter().filter(|path| fs::metadata(path).is_ok())
    {
        let mount = mounts
            .iter()
            .rfind(|mount| mount["target"] == **path)
            .unwrap_or_else(|| panic!("{path} is not a mount of its own"));
        assert!(mount["options"].to_string().contains("\"ro\""), "{mount}");
    }
}

#[test]
fn masks_are_taken_off_only_on_request() {
    needs!(userns);
    let path = masked_file();
    let seen = Dir::new().all(&["--security-opt", &format!("unmask={path}")], &["stat", path]);
    assert_eq!(seen[0]["kind"], json!("file"));
    let seen = Dir::new().all(&["--security-opt", "mask=/etc/marker"], &["read", "/etc/marker"]);
    assert_eq!(seen, json!([{"text": ""}]));
}

/// CVE-2025-31133, -52565, -52881. Guard: what kelp mounts on is opened inside the root and verified; masks too.
#[test]
fn links_in_the_place_of_mount_points_lead_nowhere() {
    needs!(userns);
    let dir = Dir::new();
    let victim = dir.folder("victim");
    for file in ["hosts", "hostname", "resolv.conf", "null", "console", "kcore"] {
        dir.file(&format!("victim/{file}"), "host");
    }
    for folder in ["shm", "pts", "mqueue", "sys", "self"] {
        dir.folder(&format!("victim/{folder}"));
    }
    let before = picture(&victim);
    let places = [
        "proc",
        "sys",
        "dev",
        "etc",
        "etc/hosts",
        "etc/hostname",
        "etc/resolv.conf",
        "dev/null",
        "dev/console",
        "dev/shm",
        "dev/pts",
    ];
    for (at, place) in places.iter().enumerate() {
        for (kind, to) in [
            ("absolute", victim.clone()),
            ("up", format!("../../../../../../../../../../..{victim}")),
            ("proc", "/proc/1/root".into()),
        ] {
            let name = format!("root{at}{kind}");
            hostile_root(&dir, &name, place, &to);
            let root = dir.text(&name);
            for writes in [&[][..], &["--rootfs-rw"]] {
                let words = [
                    &["run", "--rm"],
                    writes,
                    &["--rootfs", &root, "/bin/guest", "all", "report", "mounts", ",", "stat", masked_file()],
                    &[",", "read", "/etc/hosts"],
                ]
                .concat();
                let outcome = dir.kelp(&words).end();
                assert_eq!(picture(&victim), before, "{place} -> {to}");
                assert!([0, 125].contains(&outcome.code), "{place} -> {to}: {}", outcome.err);
                if outcome.code == 0 {
                    let seen = outcome.json();
                    let proc = seen[0]["mounts"]
                        .as_array()
                        .unwrap()
                        .iter()
                        .any(|mount| mount["target"] == "/proc" && mount["type"] == "proc");
                    assert!(proc && seen[1]["device"] == json!([1, 3]), "{place} -> {to}: {seen}");
                    // Completed inside the root, so that it is there: outside, nobody inside could read it.
                    let hosts = seen[2]["text"].as_str().unwrap_or_default().contains("localhost");
                    assert!(hosts || kind == "proc", "{place} -> {to}: {seen}");
                }
            }
        }
    }
}

/// A root whose `place` is a link.
fn hostile_root(dir: &Dir, name: &str, place: &str, to: &str) {
    let root = dir.root_named(name);
    let at = format!("{root}/{place}");
    let _ = fs::remove_file(&at).or_else(|_| fs::remove_dir_all(&at));
    let file = std::path::Path::new(place).file_name().unwrap().to_str().unwrap();
    let to = if place.contains('/') { format!("{to}/{file}") } else { to.to_string() };
    symlink(to, at).unwrap();
}

/// CVE-2022-29162. Guard: inheritable and ambient sets are emptied, the bounding set is docker's.
#[test]
fn capabilities_are_dockers_and_none_is_inherited() {
    needs!(userns);
    let dir = Dir::new();
    for options in [&[][..], &["--init"]] {
        let sets = dir.report(options)["capabilities"].clone();
        for set in ["bounding", "permitted", "effective"] {
            assert_eq!(sorted(&sets[set]), DEFAULT_CAPABILITIES, "{set}");
        }
        assert_eq!((&sets["inheritable"], &sets["ambient"]), (&json!([]), &json!([])));
    }
}

/// Guard: nothing is raised into the ambient set for a user who is not root, so that exec(2) empties the others.
#[test]
fn a_user_who_is_not_root_has_no_capabilities() {
    needs!(userns, many_ids);
    let sets = Dir::new().report(&["-u", "1234", "--cap-add", "SYS_ADMIN"])["capabilities"].clone();
    for set in ["permitted", "effective", "inheritable", "ambient"] {
        assert_eq!(sets[set], json!([]), "{set}");
    }
    assert!(sorted(&sets["bounding"]).contains(&"CAP_SYS_ADMIN"));
}

/// Guard: `--cap-drop` reaches every set.
#[test]
fn capabilities_are_added_and_dropped_by_name() {
    needs!(userns);
    let dir = Dir::new();
    let sets = dir.report(&["--cap-drop", "ALL"])["capabilities"].clone();
    assert!(sets.as_object().unwrap().values().all(|set| set == &json!([])), "{sets}");
    let sets = dir.report(&["--cap-drop", "all", "--cap-add", "net_bind_service", "--cap-add", "CAP_CHOWN"])
        ["capabilities"]
        .clone();
    assert_eq!(sorted(&sets["effective"]), ["CAP_CHOWN", "CAP_NET_BIND_SERVICE"]);
    let sets = dir.report(&["--cap-drop", "MKNOD"])["capabilities"].clone();
    assert!(
        !sorted(&sets["bounding"]).contains(&"CAP_MKNOD") && sorted(&sets["bounding"]).len() == 13,
        "{sets}"
    );
}

/// CVE-2017-5226. Guards: the container is a session of its own, so the caller's terminal is not its to type
/// into; and a pipe stands between, so that no descriptor of that terminal goes inside.
#[test]
fn nothing_can_be_typed_into_the_callers_terminal() {
    needs!(userns);
    let dir = Dir::new();
    for options in [&[][..], &["-i"], &["--init", "-i"]] {
        let mut person = Person::at(dir.run(options, &["/bin/guest", "tiocsti"]));
        person.sees("/dev/tty");
        person.leaves();
        let screen = person.screen();
        assert!(!screen.contains("\"ok\""), "{screen}");
        assert!(
            screen.contains("\"/dev/tty\":\"ENXIO\""),
            "the caller's terminal controls the container: {screen}"
        );
        for number in 0..3 {
            assert!(screen.contains(&format!("\"{number}\":\"ENOTTY\"")), "{number} is a terminal: {screen}");
        }
    }
}

/// Guard: with `-t` the terminal inside is a pty of the container's own, which controls it; a terminal controls one
/// session, and the caller's controls the caller's. Names alone don't tell: both may be /dev/pts/0.
#[test]
fn the_terminal_inside_is_not_the_callers() {
    needs!(userns);
    let dir = Dir::new();
    let mut person =
        Person::at(dir.run(&["-it"], &["/bin/guest", "all", "report", "tty", ",", "list", "/dev/pts"]));
    person.sees("names");
    person.leaves();
    let seen: Value = serde_json::from_str(person.screen().trim()).unwrap();
    let name = seen[0]["tty"]["name"].as_str().unwrap();
    assert!(["/dev/pts/0", "/dev/console"].contains(&name), "{name}");
    assert_eq!(seen[0]["tty"]["controlling"], json!(true), "the terminal is another session's: {seen}");
    let names = sorted(&seen[1]["names"]);
    assert!(names.iter().all(|name| ["0", "ptmx"].contains(name)), "terminals of the host: {names:?}");
}

/// Guard: the seccomp profile; keyrings know no namespaces. The same calls succeed without the profile.
#[test]
fn keyring_calls_are_refused() {
    needs!(userns);
    let dir = Dir::new();
    let refused = json!([{"add_key": "EPERM", "keyctl": "EPERM", "request_key": "EPERM"}]);
    assert_eq!(dir.all(&[], &["keyctl"]), refused);
    let open = dir.all(&["--security-opt", "seccomp=unconfined"], &["keyctl"]);
    assert_ne!(open[0]["keyctl"], json!("EPERM"));
}

/// Guard: the seccomp profile. Each call answers otherwise without it, so an EPERM is the profile's.
#[test]
fn calls_outside_dockers_profile_are_refused() {
    needs!(userns);
    let calls = [
        "bpf",
        "fsopen",
        "kcmp",
        "move_pages",
        "open_by_handle_at",
        "open_tree",
        "perf_event_open",
        "setns",
        "clone-user",
        "userfaultfd",
        "io_uring_setup",
        "sysfs",
        "ustat",
        "mount",
        "umount2",
        "pivot_root",
        "quotactl",
        "acct",
        "reboot",
        "unshare-user",
    ];
    // The last: a process in a new namespace without a map may make no other.
    let verbs = [&["syscalls"], &calls[..]].concat();
    let dir = Dir::new();
    let seen = dir.all(&[], &verbs);
    for call in calls {
        assert!(["EPERM", "ENOSYS"].contains(&seen[0][call].as_str().unwrap()), "{call}: {}", seen[0][call]);
    }
    let open = dir.all(&["--security-opt", "seccomp=unconfined"], &verbs);
    for call in ["clone-user", "kcmp", "unshare-user"] {
        assert_eq!(open[0][call], json!("ok"), "{call}");
    }
    assert_eq!(
        dir.all(&[], &["syscalls", "getpid", "clone3"])[0],
        json!({"getpid": "ok", "clone3": "ENOSYS"})
    );
}

/// Guard: seccomp in filter mode and no_new_privs are on for every program, `--init` or not.
#[test]
fn the_profile_and_no_new_privileges_are_on() {
    needs!(userns);
    let dir = Dir::new();
    for options in [&[][..], &["--init"], &["--cap-add", "ALL"]] {
        let seen = dir.report(options);
        assert_eq!((&seen["seccomp"], &seen["no_new_privs"]), (&json!(2), &json!(true)), "{options:?}");
    }
    let seen =
        dir.report(&["--security-opt", "seccomp=unconfined", "--security-opt", "no-new-privileges=false"]);
    assert_eq!(seen["no_new_privs"], json!(false));
}

#[test]
fn a_profile_of_ones_own_is_used() {
    needs!(userns);
    let dir = Dir::new();
    let profile = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["sysfs"],"action":"SCMP_ACT_ERRNO","errnoRet":5}]}"#;
    let option = format!("seccomp={}", dir.file("profile.json", profile));
    let seen = dir.all(&["--security-opt", &option], &["syscalls", "sysfs", "unshare-user"]);
    assert_eq!(seen[0], json!({"sysfs": "EIO", "unshare-user": "ok"}));
    let broken = format!("seccomp={}", dir.file("broken.json", "{"));
    says(&dir.run(&["--security-opt", &broken], &["/bin/guest"]).fails(125), &["broken.json"]);
}

/// Guard: no_new_privs; the setuid bit works again when it is switched off.
#[test]
fn setuid_programs_give_nothing() {
    needs!(userns, many_ids);
    let dir = Dir::new();
    dir.root();
    fs::set_permissions(dir.path("root/bin/guest"), fs::Permissions::from_mode(0o4755)).unwrap();
    assert_eq!(dir.report(&["-u", "1234"])["ids"]["euid"], json!(1234));
    let seen = dir.report(&["-u", "1234", "--security-opt", "no-new-privileges=false"]);
    assert_eq!(seen["ids"]["euid"], json!(0));
}

/// Guard: the user namespace; root inside is this user outside.
#[test]
fn root_inside_cannot_read_what_this_user_cannot() {
    needs!(userns, secret);
    let dir = Dir::new();
    let volume = format!("{SECRET}:/secret");
    assert_eq!(
        dir.all(&["-v", &volume, "--cap-add", "ALL"], &["read", "/secret"]),
        json!([{"error": "EACCES"}])
    );
    // The container's root has a shadow of its own, with every password locked; the machine's it can't read.
    let outcome = dir.kelp(&["run", "--rm", "@host", "cat", "/etc/shadow"]).end();
    let locked = |line: &str| line.split(':').nth(1) == Some("*") && line.ends_with("*:::::::");
    assert!(outcome.out.lines().all(locked), "{}", outcome.out);
    let kernel = ["run", "--rm", "--storage-driver", "overlay", "@host", "cat", "/etc/shadow"];
    let outcome = dir.kelp(&kernel).end();
    assert!(outcome.code != 0 && outcome.out.is_empty(), "{}", outcome.out);
}

/// Guard: init is not dumpable or is started with a clean slate; its arguments and environment name the host.
#[test]
fn process_one_tells_nothing_of_the_caller() {
    needs!(userns);
    let dir = Dir::new();
    let verbs =
        ["all", "read", "/proc/1/environ", ",", "read", "/proc/1/cmdline", ",", "read", "/proc/self/cgroup"];
    for options in [&[][..], &["--init"], &["--init", "--cap-add", "SYS_PTRACE"]] {
        let seen =
            dir.run(options, &[&["/bin/guest"], &verbs[..]].concat()).env("SECRET_WORD", "pearl").ok().json();
        assert!(!seen[0].to_string().contains("pearl"), "{options:?}: {}", seen[0]);
        assert!(!seen[1].to_string().contains(&dir.text("")), "{options:?}: {}", seen[1]);
        assert_eq!(seen[2]["text"].as_str().unwrap().lines().last(), Some("0::/"), "{seen}");
    }
}

/// Guard: FIFOs, loops and endless names in the root are refused or passed over, never waited for or followed.
#[test]
fn a_hostile_root_is_an_error_or_a_container_and_never_a_hang() {
    needs!(userns);
    let dir = Dir::new();
    dir.root();
    for file in ["etc/passwd", "etc/group", "etc/hosts", "etc/hostname", "etc/resolv.conf"] {
        let _ = fs::remove_file(dir.path("root").join(file));
        sys::fifo(&dir.text(&format!("root/{file}")));
    }
    symlink("loop-b", dir.path("root/loop-a")).unwrap();
    symlink("loop-a", dir.path("root/loop-b")).unwrap();
    for at in 0..100 {
        symlink(format!("chain{}", at + 1), dir.path(&format!("root/chain{at}"))).unwrap();
    }
    let long = format!("/{}", "n".repeat(4096));
    let deep = "/d".repeat(2100);
    let source = dir.folder("source");
    for target in ["/loop-a", "/loop-a/x", "/chain0", &long, &deep] {
        for options in [vec!["-w", target], vec!["-v"], vec!["--tmpfs", target]] {
            let volume = format!("{source}:{target}");
            let options = if options == ["-v"] { vec!["-v", &volume] } else { options };
            let outcome = dir.run(&options, &["/bin/guest", "exit", "0"]).end();
            assert!([0, 125, 126, 127].contains(&outcome.code), "{}: {}", outcome.code, outcome.err);
            assert!(!outcome.err.contains("panicked"), "{}", outcome.err);
        }
        let outcome = dir.run(&[], &[target]).end();
        assert!(
            [125, 126, 127].contains(&outcome.code) && !outcome.err.contains("panicked"),
            "{target}: {}",
            outcome.err
        );
    }
    assert!([0, 125].contains(&dir.run(&["-u", "kelpie"], &["/bin/guest", "exit", "0"]).end().code));
}

/// Guard: the user namespace, in which no device node can be made and those of a root are inert (nodev). ENXIO
/// would come from a node that works, of a device that this machine lacks.
#[test]
fn device_nodes_of_the_root_do_not_work() {
    needs!(userns);
    let dir = Dir::new();
    let seen = dir.all(
        &["--cap-add", "ALL", "--security-opt", "seccomp=unconfined"],
        &["mknod", "/disk", "254", "0", ",", "mknod", "/dev/disk", "254", "0"],
    );
    for node in [&seen[0], &seen[1]] {
        assert!(["ENOENT", "EACCES"].contains(&node["opened"].as_str().unwrap()), "{seen}");
    }
}

#[test]
fn roots_that_are_no_folder_are_refused() {
    let dir = Dir::new();
    sys::fifo(&dir.text("fifo"));
    dir.file("file", "");
    symlink("ring", dir.path("ring")).unwrap();
    for root in ["fifo", "file", "ring", "missing"] {
        let path = dir.text(root);
        says(&dir.kelp(&["run", "--rm", "--rootfs", &path, "true"]).fails(125), &[&path]);
    }
}

/// Guard: folders of the store are made 0700 whatever the caller's umask is.
#[test]
fn the_store_is_the_callers_alone() {
    needs!(userns);
    let dir = Dir::new();
    let mut kelp = dir.run(&["--name", "reef"], &["/bin/guest", "exit", "0"]);
    sys::careless_umask(&mut kelp.command);
    kelp.ok();
    for top in ["store", "run"] {
        let Ok(meta) = fs::metadata(dir.path(top)) else { continue };
        assert_eq!(meta.permissions().mode() & 0o077, 0, "{top}: {:o}", meta.permissions().mode());
    }
}
