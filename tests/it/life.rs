//! Containers that live in the background: what each order makes of them, who may be killed without harm, and
//! that nothing is left. Orders are compared with docker's words in `docs/life.md`.

use crate::dir::Dir;
use crate::host::{containers, soon};
use crate::kelp::says;
use crate::{needs, sys};
use serde_json::Value;
use std::fs;

/// A container in the background with these options, running this shell text on the host's userland.
fn started(dir: &Dir, options: &[&str], text: &str) -> String {
    let words = [&["run", "-d"], options, &["@host", "sh", "-c", text]].concat();
    dir.kelp(&words).ok().out.trim().to_owned()
}

fn state(dir: &Dir, name: &str) -> String {
    let filter = dir.kelp(&["ps", "-a", "--format", "{{.Names}} {{.State}} {{.Status}}"]).ok().out;
    filter.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned()
}

#[test]
fn a_container_is_created_started_stopped_started_again_and_removed() {
    needs!(userns);
    let dir = Dir::new();
    dir.kelp(&[
        "create",
        "--name",
        "reef",
        "@host",
        "sh",
        "-c",
        "echo x >>/root/f; cat /root/f; exec sleep 100",
    ])
    .ok();
    assert!(state(&dir, "reef").starts_with("reef created Created"));
    dir.kelp(&["start", "reef"]).ok();
    assert!(state(&dir, "reef").starts_with("reef running Up"));
    assert!(soon(|| dir.kelp(&["logs", "reef"]).ok().out == "x\n"));
    says(&dir.kelp(&["rm", "reef"]).fails(1), &["reef", "running", "stop"]);
    assert!(soon(|| dir.kelp(&["logs", "reef"]).ok().out == "x\n"));
    dir.kelp(&["stop", "-t", "0", "reef"]).ok();
    assert!(state(&dir, "reef").starts_with("reef exited Exited (137)"));
    dir.kelp(&["start", "reef"]).ok();
    let again = soon(|| dir.kelp(&["logs", "reef"]).ok().out == "x\nx\nx\n");
    assert!(again, "the layer of the first start is gone: {}", dir.kelp(&["logs", "reef"]).ok().out);
    dir.kelp(&["rm", "-f", "reef"]).ok();
    assert_eq!(containers(&dir), Vec::<String>::new());
    says(&dir.kelp(&["stop", "reef"]).fails(1), &["no such container", "reef"]);
}

#[test]
fn a_monitor_keeps_nothing_of_the_command_that_started_it() {
    needs!(userns);
    let dir = Dir::new();
    dir.root();
    let lock = dir.path("lock");
    let line = format!(
        "exec 9>{} && flock -n 9 && exec \"$0\" run -d --name reef --label SECRET=1 --rootfs {} /bin/guest sleep 100",
        lock.display(),
        dir.text("root")
    );
    dir.shell(&line).ok();
    fs::File::open(&lock).unwrap().try_lock().expect("what the command's caller had open is open no more");
    let first = dir.kelp(&["inspect", "-f", "{{.State.Pid}}", "reef"]).ok().out.trim().to_owned();
    let stat = fs::read_to_string(format!("/proc/{first}/stat")).unwrap();
    let monitor = stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap();
    let words = || fs::read_to_string(format!("/proc/{monitor}/cmdline")).unwrap();
    assert!(soon(|| words().trim_end_matches('\0') == "kelp-monitor"), "{:?} is seen of it", words());
    dir.kelp(&["rm", "-f", "reef"]).ok();
}

#[test]
fn exec_has_the_containers_view_and_the_programs_status() {
    needs!(userns);
    let dir = Dir::new();
    let id = started(&dir, &["-e", "A=1"], "exec sleep 100");
    let short = &id[..8];
    assert_eq!(
        dir.kelp(&["exec", "-e", "B=2", "-w", "/tmp", short, "sh", "-c", "echo $A$B; pwd"]).ok().out,
        "12\n/tmp\n"
    );
    dir.kelp(&["exec", short, "sh", "-c", "exit 7"]).fails(7);
    says(&dir.kelp(&["exec", short, "nosuch"]).fails(127), &["nosuch", "not found"]);
    dir.kelp(&["exec", short, "/"]).fails(126);
    assert_eq!(dir.kelp(&["exec", "-i", short, "cat"]).input(b"in\0\xff").ok().out.as_bytes()[..3], *b"in\0");
    assert_eq!(dir.kelp(&["exec", short, "cat", "/proc/1/comm"]).ok().out, "sleep\n");
    dir.kelp(&["rm", "-f", short]).ok();
}

/// Guard: the lock of a dead monitor is free, and the next command sees it.
#[test]
fn a_killed_monitor_is_noticed_by_the_next_command() {
    needs!(userns);
    sys::adopt_orphans();
    let dir = Dir::new();
    for (options, left) in
        [(&["--name", "reef"][..], "reef exited Exited (137)"), (&["--rm", "--name", "reef"], "")]
    {
        let id = started(&dir, options, "exec sleep 100");
        let text = fs::read_to_string(dir.path(&format!("store/containers/{id}/lock"))).unwrap();
        let page: Value = serde_json::from_str(text[17..4096].trim()).unwrap();
        let monitor = page["monitor"]["pid"].as_i64().unwrap() as i32;
        sys::kill(monitor, libc::SIGKILL).unwrap();
        let seen = soon(|| {
            sys::reap();
            let state = state(&dir, "reef");
            if left.is_empty() { state.is_empty() } else { state.starts_with(left) }
        });
        assert!(seen, "{}", state(&dir, "reef"));
        dir.kelp(&["rm", "-f", "reef"]).end();
    }
    assert_eq!(containers(&dir), Vec::<String>::new());
}

#[test]
fn a_policy_starts_a_container_again_and_a_stop_overrules_it() {
    needs!(userns);
    let dir = Dir::new();
    started(&dir, &["--name", "reef", "--restart", "on-failure:2"], "echo try; exit 3");
    assert_eq!(dir.kelp(&["wait", "reef"]).ok().out, "3\n");
    assert_eq!(dir.kelp(&["logs", "reef"]).ok().out, "try\ntry\ntry\n");
    started(&dir, &["--name", "shoal", "--restart", "always"], "exit 0");
    dir.kelp(&["stop", "shoal"]).ok();
    assert!(state(&dir, "shoal").starts_with("shoal exited"), "{}", state(&dir, "shoal"));
    dir.kelp(&["rm", "-a"]).ok();
}

#[test]
fn a_policy_can_be_changed_while_a_container_runs() {
    needs!(userns);
    let dir = Dir::new();
    started(&dir, &["--name", "reef"], "until [ -e /tmp/go ]; do sleep 0.02; done; exit 3");
    assert_eq!(dir.kelp(&["update", "--restart", "on-failure:2", "reef"]).ok().out, "reef\n");
    let policy = [
        "inspect",
        "-f",
        "{{.HostConfig.RestartPolicy.Name}} {{.HostConfig.RestartPolicy.MaximumRetryCount}}",
        "reef",
    ];
    assert_eq!(dir.kelp(&policy).ok().out, "on-failure 2\n");
    dir.kelp(&["exec", "reef", "touch", "/tmp/go"]).ok();
    let words = ["inspect", "-f", "{{.State.Status}} {{.RestartCount}}", "reef"];
    assert!(soon(|| dir.kelp(&words).ok().out == "exited 2\n"), "{}", dir.kelp(&words).ok().out);
    // Of one that does not run, too.
    dir.kelp(&["update", "--restart", "no", "reef"]).ok();
    assert_eq!(dir.kelp(&policy).ok().out, "no 0\n");
    started(&dir, &["--rm", "--name", "shoal"], "exec sleep 100");
    says(&dir.kelp(&["update", "--restart", "always", "shoal"]).fails(1), &["AutoRemove"]);
    dir.kelp(&["rm", "-f", "reef", "shoal"]).ok();
}

/// Guard: it was taken for the name of an image.
#[test]
fn a_flag_that_nobody_knows_is_told() {
    let dir = Dir::new();
    for words in [
        &["run", "--pod=x", "@host", "true"][..],
        &["create", "--pod", "x", "@host"],
        &["exec", "--pod", "x"],
    ] {
        says(&dir.kelp(words).fails(125), &["unknown flag: --pod", "--help"]);
    }
}

#[test]
fn fifty_containers_start_and_stop_at_once() {
    needs!(userns);
    let dir = Dir::new();
    let crowd: Vec<_> = (0..50).map(|_| dir.kelp(&["run", "-d", "@host", "sleep", "100"]).start()).collect();
    for child in crowd {
        let ended = child.wait_with_output().unwrap();
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    }
    assert_eq!(dir.kelp(&["ps", "-q"]).ok().out.lines().count(), 50);
    dir.kelp(&["stop", "-t", "0", "-a"]).ok();
    dir.kelp(&["rm", "-a"]).ok();
    assert_eq!(containers(&dir), Vec::<String>::new());
}

#[test]
fn inspect_describes_a_container_as_docker_does() {
    needs!(userns);
    let dir = Dir::new();
    let words = ["inspect", "--format", "{{.State.Status}} {{.State.Pid}}", "reef"];
    dir.kelp(&[
        "create",
        "--name",
        "reef",
        "-l",
        "sea=north",
        "-e",
        "A=1",
        "-w",
        "/tmp",
        "@host",
        "sleep",
        "99",
    ])
    .ok();
    assert_eq!(dir.kelp(&words).ok().out, "created 0\n");
    dir.kelp(&["start", "reef"]).ok();
    let text = dir.kelp(&["inspect", "reef"]).ok().out;
    let list: Value = serde_json::from_str(&text).unwrap();
    let seen = &list[0];
    assert_eq!(
        (&seen["Path"], &seen["Args"][0], &seen["Name"]),
        (&"sleep".into(), &"99".into(), &"/reef".into())
    );
    assert_eq!((&seen["State"]["Running"], &seen["State"]["ExitCode"]), (&true.into(), &0.into()));
    assert_eq!(
        (&seen["Config"]["Labels"]["sea"], &seen["Config"]["WorkingDir"]),
        (&"north".into(), &"/tmp".into())
    );
    assert!(seen["Config"]["Env"].as_array().unwrap().contains(&"A=1".into()), "{text}");
    let pid = &seen["State"]["Pid"];
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/comm")).unwrap(), "sleep\n");
    let kinds = seen["Namespaces"].as_array().unwrap();
    let user = kinds.iter().find(|kind| kind["Kind"] == "user").unwrap();
    let link = fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
    assert_eq!(
        (format!("user:[{}]", user["Inode"]), &user["Shared"]),
        (link.display().to_string(), &false.into())
    );
    let named = dir.kelp(&["container", "inspect", "-f", "{{.Name}}", &seen["Id"].as_str().unwrap()[..12]]);
    assert_eq!(named.ok().out, "/reef\n");
    says(&dir.kelp(&["inspect", "shoal"]).fails(1), &["no such object", "shoal"]);
    dir.kelp(&["rm", "-f", "reef"]).ok();
}

#[test]
fn prune_removes_what_has_ended_and_leaves_the_rest() {
    needs!(userns);
    let dir = Dir::new();
    started(&dir, &["--name", "reef"], "exec sleep 100");
    dir.kelp(&["create", "--name", "shoal", "-l", "keep", "@host", "true"]).ok();
    let gone = dir.kelp(&["container", "run", "--name", "tide", "@host", "true"]).ok();
    assert_eq!(gone.out, "");
    let said = dir.kelp(&["container", "prune", "-f", "--filter", "label!=keep"]).ok().out;
    assert!(said.starts_with("Deleted Containers:\n") && said.contains("Total reclaimed space"), "{said}");
    dir.kelp(&["container", "exists", "tide"]).fails(1);
    dir.kelp(&["container", "exists", "shoal"]).ok();
    dir.kelp(&["container", "prune", "-f"]).ok();
    assert_eq!(dir.kelp(&["container", "ls", "-a", "--format", "{{.Names}}"]).ok().out, "reef\n");
    dir.kelp(&["rm", "-f", "reef"]).ok();
}

#[test]
fn top_shows_the_containers_processes_by_the_hosts_numbers() {
    needs!(userns);
    let dir = Dir::new();
    started(&dir, &["--name", "reef", "--network", "none"], "sleep 100 & exec sleep 101");
    let shows = |words: &[&str]| {
        let out = dir.kelp(&[&["top", "reef"], words].concat()).ok().out;
        let all = ["sleep 100", "sleep 101"].iter().all(|word| out.contains(word));
        all && out.lines().count() == 3 && out.starts_with("UID") | out.trim_start().starts_with("PID")
    };
    assert!(soon(|| shows(&[])), "{}", dir.kelp(&["top", "reef"]).ok().out);
    assert!(shows(&["-o", "pid,args"]), "{}", dir.kelp(&["top", "reef", "-o", "pid,args"]).ok().out);
    says(&dir.kelp(&["top", "reef", "-o", "args"]).fails(1), &["PID"]);
    dir.kelp(&["rm", "-f", "reef"]).ok();
    says(&dir.kelp(&["top", "reef"]).fails(1), &["no such container", "reef"]);
}

#[test]
fn port_says_where_a_published_port_listens() {
    needs!(userns);
    let dir = Dir::new();
    started(&dir, &["--name", "reef", "-p", "127.0.0.1:48080:80", "-p", "48053:53/udp"], "exec sleep 100");
    let all = dir.kelp(&["port", "reef"]).ok().out;
    says(&all, &["80/tcp -> 127.0.0.1:48080", "53/udp -> 0.0.0.0:48053", "53/udp -> [::]:48053"]);
    assert_eq!(dir.kelp(&["port", "reef", "80"]).ok().out, "127.0.0.1:48080\n");
    says(&dir.kelp(&["port", "reef", "81"]).fails(1), &["no public port", "81/tcp", "reef"]);
    dir.kelp(&["rm", "-f", "reef"]).ok();
}

#[test]
fn version_and_info_have_dockers_shape() {
    needs!(userns);
    let dir = Dir::new();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(dir.kelp(&["version", "-f", "{{.Client.Version}}"]).ok().out.trim(), version);
    started(&dir, &["--name", "reef", "--network", "none"], "exec sleep 100");
    let counted = |verb: &[&str]| {
        dir.kelp(&[verb, &["-f", "{{.Containers}} {{.ContainersRunning}}"]].concat()).ok().out
    };
    assert_eq!((counted(&["info"]), counted(&["system", "info"])), ("1 1\n".into(), "1 1\n".into()));
    dir.kelp(&["rm", "-f", "reef"]).ok();
}
