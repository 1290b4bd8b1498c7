//! What is told of containers, volumes and their programs: by whom it is written does not show. And the two verbs
//! that wait for more without looking again and again.

use crate::dir::Dir;
use crate::host::soon;
use crate::kelp::{Kelp, says};
use crate::{needs, sys};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Child;

fn told(dir: &Dir, options: &[&str]) -> Vec<String> {
    let words = ["events", "--since", "1h", "--until", "0s", "--format", "{{.Type}} {{.Action}}"];
    let out = dir.kelp(&[&words, options].concat()).ok().out;
    out.lines().map(str::to_owned).collect()
}

#[test]
fn a_containers_life_is_told_in_dockers_words() {
    needs!(userns);
    let dir = Dir::new();
    dir.kelp(&["run", "--rm", "-l", "sea=north", "@host", "sh", "-c", "exit 3"]).fails(3);
    let all = ["create", "start", "die", "destroy"].map(|action| format!("container {action}"));
    assert_eq!(told(&dir, &[]), all);
    let words = ["events", "--since", "1h", "--until", "0s", "-f", "event=die", "--format", "json"];
    let die = dir.kelp(&words).ok().json();
    let attributes = &die["Actor"]["Attributes"];
    assert_eq!(
        (&attributes["exitCode"], &attributes["image"], &attributes["sea"]),
        (&"3".into(), &"@host".into(), &"north".into())
    );
    assert_eq!(
        (&die["Type"], &die["id"], &die["from"]),
        (&"container".into(), &die["Actor"]["ID"], &"@host".into())
    );
    assert!(die["timeNano"].as_i64().unwrap() / 1_000_000_000 == die["time"].as_i64().unwrap());
    dir.kelp(&["run", "-d", "--name", "reef", "@host", "sleep", "100"]).ok();
    for words in [
        &["pause", "reef"][..],
        &["unpause", "reef"],
        &["rename", "reef", "shoal"],
        &["exec", "shoal", "true"],
        &["restart", "-t", "0", "shoal"],
        &["stop", "-t", "0", "shoal"],
        &["start", "shoal"],
        &["kill", "shoal"],
        &["rm", "shoal"],
        &["volume", "create", "tide"],
        &["volume", "rm", "tide"],
    ] {
        dir.kelp(words).ok();
    }
    let seen = told(&dir, &["-f", "container=shoal", "-f", "type=container"]);
    let wanted = [
        "rename",
        "exec_create: true",
        "exec_start: true",
        "exec_die",
        "kill",
        "die",
        "stop",
        "start",
        "restart",
        "kill",
        "die",
        "stop",
        "start",
        "kill",
        "die",
        "destroy",
    ]
    .map(|action| format!("container {action}"));
    assert_eq!(seen, wanted);
    assert_eq!(
        told(&dir, &["-f", "event=pause", "-f", "event=unpause"]),
        ["container pause", "container unpause"]
    );
    assert_eq!(told(&dir, &["-f", "volume=tide"]), ["volume create", "volume destroy"]);
    let line = dir.kelp(&["events", "--since", "1h", "--until", "0s", "-f", "event=rename"]).ok().out;
    says(&line, &[" container rename ", "name=shoal", "oldname=reef", "image=@host"]);
    says(&dir.kelp(&["events", "-f", "sea=north"]).fails(125), &["invalid filter"]);
}

/// Lines of a command that goes on.
fn lines(kelp: Kelp) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = kelp.start();
    let out = BufReader::new(child.stdout.take().unwrap());
    (child, out)
}

/// Whether it has told the kernel what it waits for.
fn watches(pid: u32) -> bool {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    open.filter_map(|entry| fs::read_link(entry.path()).ok())
        .any(|to| to.to_string_lossy().contains("inotify"))
}

fn switches(pid: u32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    text.lines().filter(|line| line.contains("ctxt_switches")).collect()
}

#[test]
fn events_to_come_are_waited_for_without_waking_up() {
    needs!(userns);
    let dir = Dir::new();
    let (mut child, mut out) =
        lines(dir.kelp(&["events", "-f", "type=volume", "--format", "{{.Action}} {{.Actor.ID}}"]));
    assert!(soon(|| watches(child.id())));
    for (words, line) in
        [(["volume", "create", "tide"], "create tide\n"), (["volume", "rm", "tide"], "destroy tide\n")]
    {
        dir.kelp(&words).ok();
        let mut seen = String::new();
        out.read_line(&mut seen).unwrap();
        assert_eq!(seen, line);
    }
    assert!(soon(|| {
        let before = switches(child.id());
        std::thread::sleep(std::time::Duration::from_millis(300));
        switches(child.id()) == before
    }));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_log_is_followed_to_the_containers_end_without_waking_up() {
    needs!(userns);
    let dir = Dir::new();
    let text = "echo one; read -r go; echo two; read -r go; exit 0";
    dir.kelp(&["run", "-d", "-i", "--name", "reef", "@host", "sh", "-c", text]).ok();
    let (mut child, mut out) = lines(dir.kelp(&["logs", "-f", "reef"]));
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "one\n");
    assert!(soon(|| {
        let before = switches(child.id());
        std::thread::sleep(std::time::Duration::from_millis(300));
        switches(child.id()) == before
    }));
    let mut keys = dir.kelp(&["attach", "reef"]).input(b"go\n").start();
    use std::io::Write;
    let mut stdin = keys.stdin.take().unwrap();
    stdin.write_all(b"go\n").unwrap();
    line.clear();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "two\n");
    stdin.write_all(b"go\n").unwrap();
    assert!(soon(|| child.try_wait().unwrap().is_some()), "it follows a container that has ended");
    keys.wait().unwrap();
    // One whose monitor is killed has ended too.
    let id = dir.kelp(&["run", "-d", "@host", "sleep", "100"]).ok().out;
    let (mut child, _out) = lines(dir.kelp(&["logs", "-f", id.trim()]));
    assert!(soon(|| watches(child.id())));
    let text = fs::read_to_string(dir.path(&format!("store/containers/{}/lock", id.trim()))).unwrap();
    let page: Value = serde_json::from_str(text[17..4096].trim()).unwrap();
    sys::kill(page["monitor"]["pid"].as_i64().unwrap() as i32, libc::SIGKILL).unwrap();
    assert!(soon(|| { child.try_wait().unwrap().is_some() }), "it follows a container that has no monitor");
}

/// Guard: a full file is put aside, and what is followed goes on in the next one.
#[test]
fn the_journal_stays_small_and_a_line_that_was_cut_short_is_passed_over() {
    needs!(userns);
    let dir = Dir::new();
    dir.kelp(&["volume", "create", "tide"]).ok();
    let events = dir.path("store/events");
    let line = fs::read_to_string(&events).unwrap();
    fs::write(&events, format!("{}{}", line.repeat((1 << 20) / line.len()), &line[..line.len() / 2]))
        .unwrap();
    dir.kelp(&["volume", "create", "reef"]).ok();
    dir.kelp(&["volume", "create", "shoal"]).ok();
    assert!(dir.path("store/events.1").exists() && fs::metadata(&events).unwrap().len() < 4096);
    assert_eq!(told(&dir, &["-f", "volume=reef"]), ["volume create"]);
    assert_eq!(told(&dir, &["-f", "volume=shoal"]), ["volume create"]);
}

#[test]
fn after_a_reboot_the_policies_say_who_starts() {
    needs!(userns);
    let dir = Dir::new();
    let made = |name: &str, policy: &str, text: &str| {
        dir.kelp(&["run", "-d", "--name", name, "--restart", policy, "@host", "sh", "-c", text]).ok();
    };
    made("always", "always", "exec sleep 100");
    made("stopped", "unless-stopped", "exec sleep 100");
    made("never", "no", "exec sleep 100");
    dir.kelp(&["create", "--name", "fresh", "--restart", "always", "@host", "sleep", "100"]).ok();
    dir.kelp(&["stop", "-t", "0", "always", "stopped", "never"]).ok();
    let id = dir.kelp(&["inspect", "-f", "{{.Id}}", "always"]).ok().out;
    assert_eq!(dir.kelp(&["system", "start-all"]).ok().out, id);
    assert_eq!(dir.kelp(&["ps", "--format", "{{.Names}}"]).ok().out, "always\n");
    assert_eq!(
        dir.kelp(&["start", "--all", "--filter", "restart-policy=unless-stopped"]).ok().out.lines().count(),
        1
    );
    assert_eq!(dir.kelp(&["ps", "--format", "{{.Names}}"]).ok().out.lines().count(), 2);
    dir.kelp(&["rm", "-f", "-a"]).ok();
}
