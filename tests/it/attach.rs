//! Sitting down before a container that another process watches: streams, keys, signals, terminals, and that
//! whoever leaves does it no harm.

use crate::dir::Dir;
use crate::host::soon;
use crate::kelp::says;
use crate::pty::Person;
use crate::{needs, sys};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout};

/// A container in the background that answers each line and ends with 7 at the word `end`.
const ECHO: &str = "while read word; do [ $word = end ] && exit 7; echo got-$word; done; exit 3";

fn started(dir: &Dir, options: &[&str], text: &str) {
    dir.kelp(&[&["run", "-d", "--name", "reef"], options, &["@host", "sh", "-c", text]].concat()).ok();
}

fn state(dir: &Dir) -> String {
    dir.kelp(&["inspect", "-f", "{{.State.Status}}", "reef"]).end().out.trim().to_owned()
}

fn monitor(dir: &Dir) -> i32 {
    let id = dir.kelp(&["ps", "-q", "--no-trunc"]).ok().out;
    let text = fs::read_to_string(dir.path(&format!("store/containers/{}/lock", id.trim()))).unwrap();
    let page: Value = serde_json::from_str(text[17..4096].trim()).unwrap();
    page["monitor"]["pid"].as_i64().unwrap() as i32
}

/// The first line that somebody hears who may still be on the way; until then somebody else types `word`.
fn heard(
    mut there: BufReader<ChildStdout>,
    keys: &mut ChildStdin,
    word: &[u8],
) -> (String, BufReader<ChildStdout>) {
    let listening = std::thread::spawn(move || {
        let mut line = String::new();
        there.read_line(&mut line).unwrap();
        (line, there)
    });
    let heard = soon(|| {
        let _ = keys.write_all(word);
        listening.is_finished()
    });
    assert!(heard, "nothing is heard");
    listening.join().unwrap()
}

fn ends(mut child: Child) -> i32 {
    let mut code = None;
    soon(|| {
        code = child.try_wait().unwrap();
        code.is_some()
    });
    let _ = child.kill();
    code.and_then(|status| status.code()).unwrap_or(-1)
}

#[test]
fn two_who_attach_see_the_same_and_have_the_programs_status() {
    needs!(userns);
    let dir = Dir::new();
    started(&dir, &["-i"], ECHO);
    let mut one = dir.kelp(&["attach", "reef"]).input(b"").start();
    let mut two = dir.kelp(&["attach", "--no-stdin", "reef"]).start();
    let mut keys = one.stdin.take().unwrap();
    let (mut here, there) =
        (BufReader::new(one.stdout.take().unwrap()), BufReader::new(two.stdout.take().unwrap()));
    let mut line = String::new();
    keys.write_all(b"a\n").unwrap();
    here.read_line(&mut line).unwrap();
    assert_eq!(line, "got-a\n");
    // The second is there for sure once it has heard something.
    let (line, _there) = heard(there, &mut keys, b"b\n");
    assert!(line.starts_with("got-"), "{line}");
    keys.write_all(b"end\n").unwrap();
    assert_eq!((ends(one), ends(two)), (7, 7));
}

/// docker's StdinOnce: what `run -d -i` made can be attached to again, what `create -i` made ends with its input.
#[test]
fn the_end_of_input_ends_the_program_of_create_and_not_that_of_run_in_the_background() {
    needs!(userns);
    let dir = Dir::new();
    let bytes: Vec<u8> = (0..1_000_000u32).map(|number| (number % 251) as u8).collect();
    fs::write(dir.path("bytes"), &bytes).unwrap();
    dir.kelp(&["create", "-i", "--name", "shoal", "@host", "md5sum"]).ok();
    let sum = dir.kelp(&["start", "-a", "-i", "shoal"]).input(&bytes).ok().out;
    let same = std::process::Command::new("md5sum").arg(dir.path("bytes")).output().unwrap();
    assert_eq!(sum.split(' ').next(), String::from_utf8_lossy(&same.stdout).split(' ').next());
    started(&dir, &["-i"], ECHO);
    let mut first = dir.kelp(&["attach", "reef"]).input(b"").start();
    drop(first.stdin.take());
    let mut second = dir.kelp(&["attach", "reef"]).input(b"").start();
    let mut keys = second.stdin.take().unwrap();
    // The first one's input has ended, and it still sees what the second one causes, once it is there.
    let (line, _there) = heard(BufReader::new(first.stdout.take().unwrap()), &mut keys, b"a\n");
    assert_eq!(line, "got-a\n");
    keys.write_all(b"end\n").unwrap();
    assert_eq!((ends(first), ends(second)), (7, 7));
    dir.kelp(&["rm", "reef", "shoal"]).ok();
}

#[test]
fn start_attaches_to_one_container_and_gives_its_output_and_status() {
    needs!(userns);
    let dir = Dir::new();
    dir.kelp(&["create", "--name", "reef", "@host", "sh", "-c", "seq 200000; echo err >&2; exit 9"]).ok();
    let ended = dir.kelp(&["start", "-a", "reef"]).end();
    assert_eq!((ended.code, ended.err.as_str()), (9, "err\n"));
    assert_eq!((ended.out.lines().count(), ended.out.lines().last()), (200_000, Some("200000")));
    says(&dir.kelp(&["start", "-a", "reef", "reef"]).fails(1), &["cannot start and attach multiple"]);
    says(&dir.kelp(&["attach", "reef"]).fails(1), &["cannot attach to a stopped container"]);
    dir.kelp(&["rm", "reef"]).ok();
    says(&dir.kelp(&["attach", "reef"]).fails(1), &["no such container"]);
    dir.kelp(&["create", "--name", "reef", "@host", "nosuch"]).ok();
    says(&dir.kelp(&["start", "-a", "reef"]).fails(127), &["nosuch"]);
}

#[test]
fn only_the_chosen_streams_are_attached() {
    needs!(userns);
    let dir = Dir::new();
    let words = ["@host", "sh", "-c", "echo out; echo err >&2; exit 4"];
    let run = |options: &[&str]| dir.kelp(&[&["run", "--name", "reef"], options, &words].concat()).end();
    let ended = run(&["-a", "stdout"]);
    assert_eq!((ended.code, ended.out.as_str(), ended.err.as_str()), (4, "out\n", ""));
    assert_eq!(dir.kelp(&["logs", "reef"]).ok().err, "err\n");
    dir.kelp(&["rm", "reef"]).ok();
    let ended = run(&["-a", "STDERR"]);
    assert_eq!((ended.code, ended.out.as_str(), ended.err.as_str()), (4, "", "err\n"));
    dir.kelp(&["rm", "reef"]).ok();
    let id = dir
        .kelp(&["run", "-i", "-a", "stdin", "--name", "reef", "@host", "cat"])
        .input(b"into the log")
        .ok()
        .out;
    assert_eq!(dir.kelp(&["wait", "reef"]).ok().out, "0\n");
    assert_eq!(dir.kelp(&["logs", id.trim()]).ok().out, "into the log");
    says(&dir.kelp(&["run", "-a", "tide", "@host", "true"]).fails(125), &["valid streams", "stdout"]);
    says(&dir.kelp(&["run", "-d", "-a", "stdin", "@host", "true"]).fails(125), &["--attach", "--detach"]);
}

#[test]
fn signals_go_to_the_program_or_to_the_command_only() {
    needs!(userns);
    let dir = Dir::new();
    let text = "trap 'echo told; exit 5' TERM; echo ready; while :; do sleep 0.05; done";
    let mut command =
        dir.kelp(&["run", "--sig-proxy=false", "--name", "reef", "@host", "sh", "-c", text]).start();
    let mut line = String::new();
    BufReader::new(command.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    sys::kill(command.id() as i32, libc::SIGTERM).unwrap();
    assert_eq!(ends(command), 143);
    assert_eq!(state(&dir), "running");
    let mut command = dir.kelp(&["attach", "reef"]).start();
    let mut out = BufReader::new(command.stdout.take().unwrap());
    // The signal is blocked from the command's first moments on; before, it would end it by itself.
    assert!(soon(|| status(command.id(), "SigBlk") != "0000000000000000"));
    sys::kill(command.id() as i32, libc::SIGTERM).unwrap();
    assert_eq!(ends(command), 5);
    line.clear();
    let _ = out.read_line(&mut line);
    assert!(line.is_empty() || line == "told\n", "{line}");
    assert_eq!(dir.kelp(&["logs", "reef"]).ok().out, "ready\ntold\n");
}

fn status(pid: u32, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}

/// Guard: an output pipe that nobody reads fills up, and then the program would wait for ever.
#[test]
fn a_reader_that_goes_away_does_not_stop_the_program() {
    needs!(userns);
    let dir = Dir::new();
    started(&dir, &["-i"], "read go; seq 300000; echo done >/root/done; exec sleep 100");
    let mut command = dir.kelp(&["attach", "reef"]).input(b"").start();
    command.stdin.take().unwrap().write_all(b"go\n").unwrap();
    drop(command.stdout.take());
    assert_eq!(ends(command), 141);
    assert!(soon(|| dir.kelp(&["exec", "reef", "cat", "/root/done"]).end().out == "done\n"));
    let mut command = dir.kelp(&["attach", "reef"]).start();
    command.kill().unwrap();
    command.wait().unwrap();
    assert_eq!(state(&dir), "running");
    dir.kelp(&["rm", "-f", "reef"]).ok();
}

#[test]
fn a_terminal_is_left_by_keys_and_sat_down_at_again() {
    needs!(userns);
    let dir = Dir::new();
    let mut person = Person::at(dir.run(&["-it", "--name", "reef"], &["/bin/guest", "window"]));
    person.sees("[33,99]");
    let before = sys::fresh_modes();
    person.types("\u{10}\u{11}");
    assert_eq!(person.leaves(), 0);
    assert_eq!(sys::modes(&person.terminal), before);
    let mut person = Person::at(dir.kelp(&["attach", "--detach-keys", "ctrl-x,d", "reef"]));
    assert!(soon(|| sys::modes(&person.terminal) != before), "the terminal is not raw");
    person.resizes(44, 111);
    person.sees("[44,111]");
    person.types("\u{18}d");
    assert_eq!(person.leaves(), 0);
    assert_eq!(sys::modes(&person.terminal), before);
    // A terminal that goes away takes nothing with it.
    let mut person = Person::at(dir.kelp(&["attach", "reef"]));
    assert!(soon(|| sys::modes(&person.terminal) != before), "the terminal is not raw");
    sys::kill(person.child.id() as i32, libc::SIGHUP).unwrap();
    assert_eq!(person.leaves(), 129);
    assert_eq!(sys::modes(&person.terminal), before);
    assert_eq!(dir.kelp(&["ps", "--format", "{{.Names}} {{.State}}"]).ok().out, "reef running\n");
    dir.kelp(&["kill", "reef"]).ok();
}

#[test]
fn a_killed_monitor_gives_the_terminal_back() {
    needs!(userns);
    sys::adopt_orphans();
    let dir = Dir::new();
    let person = Person::at(dir.run(&["-it", "--name", "reef"], &["/bin/guest", "window"]));
    person.sees("[33,99]");
    let before = sys::fresh_modes();
    assert_ne!(sys::modes(&person.terminal), before);
    sys::kill(monitor(&dir), libc::SIGKILL).unwrap();
    assert!(soon(|| {
        sys::reap();
        matches!(sys::modes(&person.terminal), modes if modes == before)
    }));
    person.sees("monitor was killed");
}
