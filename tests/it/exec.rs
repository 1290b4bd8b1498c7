//! Further programs in a container that runs: what they may do, that they stay when the command leaves, and that
//! their terminal is taken care of.

use crate::dir::Dir;
use crate::host::{below, children_in_containers, soon};
use crate::kelp::says;
use crate::needs;
use crate::pty::Person;
use crate::sys;

fn started(dir: &Dir) {
    dir.kelp(&["run", "-d", "--name", "reef", "@host", "sleep", "100"]).ok();
}

fn inside(dir: &Dir, text: &str) -> String {
    dir.kelp(&["exec", "reef", "sh", "-c", text]).end().out
}

#[test]
fn a_detached_program_goes_on_without_the_command() {
    needs!(userns);
    let dir = Dir::new();
    started(&dir);
    for options in [&["-d"][..], &["-d", "-t"]] {
        let text = "tty -s; echo $? >/root/tty; seq 100000; echo done >/root/done; exec sleep 55";
        assert_eq!(dir.kelp(&[&["exec"], options, &["reef", "sh", "-c", text]].concat()).ok().out, "");
        assert!(soon(|| inside(&dir, "cat /root/done") == "done\n"), "{options:?}");
        assert_eq!(
            inside(&dir, "cat /root/tty; rm /root/done").trim(),
            if options.len() == 2 { "0" } else { "1" }
        );
        assert!(dir.kelp(&["top", "reef"]).ok().out.contains("sleep 55"), "{options:?}");
        dir.kelp(&["exec", "reef", "pkill", "-x", "sleep", "-f", "sleep 55"]).end();
    }
    dir.kelp(&["rm", "-f", "reef"]).ok();
}

#[test]
fn keys_leave_a_program_and_its_terminal_behind() {
    needs!(userns);
    let dir = Dir::new();
    started(&dir);
    let text = "echo ready; read -r word; seq 20000; echo done >/root/done; exec sleep 66";
    let mut person =
        Person::at(dir.kelp(&["exec", "-it", "--detach-keys", "ctrl-x,d", "reef", "sh", "-c", text]));
    let before = sys::fresh_modes();
    person.sees("ready");
    person.types("go\r\u{18}d");
    assert_eq!(person.leaves(), 0);
    assert_eq!(sys::modes(&person.terminal), before);
    assert!(soon(|| inside(&dir, "cat /root/done") == "done\n"), "{}", dir.kelp(&["top", "reef"]).end().out);
    assert!(dir.kelp(&["top", "reef"]).ok().out.contains("sleep 66"));
    dir.kelp(&["rm", "-f", "reef"]).ok();
}

/// Guard: no pid namespace ends them.
#[test]
fn with_the_hosts_pids_a_further_program_ends_with_the_container() {
    needs!(userns);
    let dir = Dir::new();
    let runs = |number: &str| {
        let lists =
            |entry: std::fs::DirEntry| std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let wanted = format!("sleep\0{number}\0");
        std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .map(lists)
            .filter(|line| *line == wanted.as_bytes())
            .count()
    };
    // Of this test and this moment only.
    let (one, two) = (format!("9{}", std::process::id()), format!("8{}", std::process::id()));
    dir.kelp(&["run", "-d", "--name", "reef", "--pid", "host", "@host", "sleep", "100"]).ok();
    let text = format!("sleep {one} & exec sleep {two}");
    dir.kelp(&["exec", "-d", "reef", "sh", "-c", &text]).ok();
    assert_eq!(dir.kelp(&["exec", "reef", "sh", "-c", "echo seen; exit 6"]).fails(6), "");
    assert!(soon(|| runs(&one) == 1 && runs(&two) == 1));
    dir.kelp(&["rm", "-f", "reef"]).ok();
    assert!(soon(|| runs(&one) == 0 && runs(&two) == 0), "{} and {} are left", runs(&one), runs(&two));
}

#[test]
fn only_a_privileged_program_has_all_capabilities() {
    needs!(userns);
    let dir = Dir::new();
    started(&dir);
    let effective = |options: &[&str]| {
        let words = [&["exec"], options, &["reef", "grep", "CapEff", "/proc/self/status"]].concat();
        let line = dir.kelp(&words).ok().out;
        u64::from_str_radix(line.split_whitespace().last().unwrap(), 16).unwrap()
    };
    let (ordinary, privileged) = (effective(&[]), effective(&["--privileged"]));
    assert_eq!(ordinary & 1 << 21, 0, "CAP_SYS_ADMIN in {ordinary:x}");
    assert_ne!(privileged & 1 << 21, 0, "no CAP_SYS_ADMIN in {privileged:x}");
    dir.kelp(&["rm", "-f", "reef"]).ok();
}

/// The parents of further programs, by what they are called.
fn parents() -> Vec<i32> {
    let own = below(std::process::id() as i32).into_iter();
    own.filter(|(_, name)| name == "kelp-exec").map(|(pid, _)| pid).collect()
}

/// Guard: a container does not end before each of its processes is reaped, and this test reaps nobody.
#[test]
fn a_machine_that_reaps_nobody_does_not_keep_a_container() {
    needs!(userns);
    sys::adopt_orphans();
    let dir = Dir::new();
    started(&dir);
    // A program in the background, and one whose command is killed.
    dir.kelp(&["exec", "-d", "reef", "sleep", "77"]).ok();
    let mut command = dir.kelp(&["exec", "reef", "sleep", "88"]).start();
    assert!(soon(|| dir.kelp(&["top", "reef"]).ok().out.contains("sleep 88")));
    command.kill().unwrap();
    command.wait().unwrap();
    assert_eq!(dir.kelp(&["rm", "-f", "reef"]).ok().err, "");
    // Their parents are killed, too.
    started(&dir);
    dir.kelp(&["exec", "-d", "reef", "sleep", "99"]).ok();
    assert_eq!(parents().len(), 1);
    sys::kill(parents()[0], libc::SIGKILL).unwrap();
    assert!(soon(|| children_in_containers(std::process::id() as i32).len() == 1));
    let left = children_in_containers(std::process::id() as i32)[0];
    let ended = dir.kelp(&["rm", "-f", "reef"]).ok();
    says(&ended.err, &[&format!("process {left} "), "does not reap it"]);
    assert_eq!(dir.kelp(&["ps", "-aq"]).ok().out, "");
    let none_is_left = || {
        sys::reap();
        children_in_containers(std::process::id() as i32).is_empty()
    };
    assert!(soon(none_is_left));
    // One that ends by itself.
    let text = "until [ -e /tmp/go ]; do sleep 0.02; done; exit 7";
    dir.kelp(&["run", "-d", "--name", "reef", "@host", "sh", "-c", text]).ok();
    dir.kelp(&["exec", "-d", "reef", "sleep", "99"]).ok();
    sys::kill(parents()[0], libc::SIGKILL).unwrap();
    assert!(soon(|| children_in_containers(std::process::id() as i32).len() == 1));
    dir.kelp(&["exec", "reef", "touch", "/tmp/go"]).ok();
    assert_eq!(dir.kelp(&["wait", "reef"]).ok().out, "7\n");
    let error = dir.kelp(&["inspect", "-f", "{{.State.Error}}", "reef"]).ok().out;
    says(&error, &["does not reap it"]);
    dir.kelp(&["rm", "reef"]).ok();
    assert!(soon(none_is_left));
}

#[test]
fn the_end_of_a_detached_program_is_told() {
    needs!(userns);
    let dir = Dir::new();
    started(&dir);
    dir.kelp(&["exec", "-d", "reef", "sh", "-c", "exit 6"]).ok();
    let words = ["events", "--since", "1h", "--until", "0s", "-f", "event=exec_die", "--format", "json"];
    assert!(soon(|| !dir.kelp(&words).ok().out.is_empty()));
    let told = dir.kelp(&words).ok().json();
    assert_eq!(told["Actor"]["Attributes"]["exitCode"], "6");
    dir.kelp(&["rm", "-f", "reef"]).ok();
}

/// Guard: a datagram has room for less. With the host's pids the words go to the monitor.
#[test]
fn words_may_be_as_long_as_the_kernel_allows() {
    needs!(userns);
    let dir = Dir::new();
    let word = "x".repeat(130_000);
    for options in [&[][..], &["--pid", "host"]] {
        dir.kelp(&[&["run", "-d", "--name", "reef"], options, &["@host", "sleep", "100"]].concat()).ok();
        let out = dir.kelp(&["exec", "reef", "sh", "-c", "echo ${#1}", "_", &word]).ok().out;
        assert_eq!(out, "130000\n", "{options:?}");
        std::fs::write(dir.path("long"), format!("A={word}{word}\n")).unwrap();
        let refused = dir.kelp(&["exec", "--env-file", &dir.text("long"), "reef", "true"]).fails(126);
        says(&refused, &["exec ", "argument list too long"]);
        dir.kelp(&["rm", "-f", "reef"]).ok();
    }
}
