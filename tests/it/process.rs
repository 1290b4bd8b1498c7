//! The program as a process: exit codes in docker's numbers, signals both ways, the reaper, and a terminal that
//! works like a terminal and is put back on every way out.

use crate::dir::Dir;
use crate::host::{below, soon};
use crate::kelp::says;
use crate::pty::Person;
use crate::{needs, sys};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::process::Child;

/// Reads the child's output up to the line `ready`.
fn ready(child: &mut Child) -> BufReader<std::process::ChildStdout> {
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    let mut complaint = String::new();
    if line != "ready\n" {
        child.stderr.as_mut().unwrap().read_to_string(&mut complaint).unwrap();
    }
    assert_eq!(line, "ready\n", "{complaint}");
    lines
}

#[test]
fn the_exit_code_is_the_programs() {
    needs!(userns);
    let dir = Dir::new();
    for code in [0, 1, 3, 124, 255] {
        assert_eq!(dir.run(&[], &["/bin/guest", "exit", &code.to_string()]).end().code, code);
        assert_eq!(dir.run(&["--init"], &["/bin/guest", "exit", &code.to_string()]).end().code, code);
    }
}

#[test]
fn a_program_that_does_not_exist_is_127() {
    needs!(userns);
    let dir = Dir::new();
    says(&dir.run(&[], &["/no/such"]).fails(127), &["/no/such"]);
    says(&dir.run(&[], &["nosuch"]).fails(127), &["nosuch"]);
    says(&dir.run(&["--init"], &["nosuch"]).fails(127), &["nosuch"]);
}

#[test]
fn a_program_that_cannot_be_run_is_126() {
    needs!(userns);
    let dir = Dir::new();
    dir.root();
    dir.file("root/plain", "text");
    says(&dir.run(&[], &["/plain"]).fails(126), &["/plain"]);
    says(&dir.run(&[], &["/etc"]).fails(126), &["/etc"]);
}

#[test]
fn a_program_of_another_architecture_is_126_and_said_so() {
    needs!(userns);
    let dir = Dir::new();
    dir.root();
    let mut elf = vec![0u8; 120];
    elf[..20].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xb7\0");
    elf[20] = 1;
    fs::write(dir.path("root/foreign"), elf).unwrap();
    fs::set_permissions(dir.path("root/foreign"), fs::Permissions::from_mode(0o755)).unwrap();
    says(&dir.run(&[], &["/foreign"]).fails(126), &["/foreign", "aarch64"]);
}

#[test]
fn a_missing_interpreter_is_127_and_named() {
    needs!(userns);
    let dir = Dir::new();
    dir.root();
    dir.file("root/script", "#!/no/interpreter\n");
    fs::set_permissions(dir.path("root/script"), fs::Permissions::from_mode(0o755)).unwrap();
    says(&dir.run(&[], &["/script"]).fails(127), &["/script", "/no/interpreter"]);
    fs::copy("/bin/true", dir.path("root/dynamic")).unwrap();
    says(&dir.run(&[], &["/dynamic"]).fails(127), &["/dynamic", "ld-linux"]);
}

#[test]
fn a_wrong_command_line_is_125() {
    let dir = Dir::new();
    dir.kelp(&["run", "--no-such-flag", "@host", "true"]).fails(125);
    dir.kelp(&["run"]).fails(125);
    dir.kelp(&["no-such-verb"]).fails(125);
    says(&dir.kelp(&["run", "--rm", "--rootfs", "/no/such/root", "true"]).fails(125), &["/no/such/root"]);
    says(&dir.run(&["--ulimit", "nofile=x"], &["/bin/guest"]).fails(125), &["nofile"]);
    says(&dir.run(&["--cap-add", "CAP_NONSENSE"], &["/bin/guest"]).fails(125), &["nonsense"]);
    says(&dir.run(&["--network", "nonsense"], &["/bin/guest"]).fails(125), &["nonsense"]);
}

#[test]
fn a_program_that_dies_by_a_signal_is_128_and_the_signal() {
    needs!(userns);
    let dir = Dir::new();
    for (name, number) in [("TERM", 15), ("KILL", 9), ("SEGV", 11), ("ABRT", 6)] {
        assert_eq!(dir.run(&["--init"], &["/bin/guest", "raise", name]).end().code, 128 + number, "{name}");
    }
}

#[test]
fn a_container_killed_from_outside_is_137() {
    needs!(userns);
    let dir = Dir::new();
    let mut child = dir.run(&[], &["/bin/guest", "sleep"]).start();
    let _lines = ready(&mut child);
    let inside = below(child.id() as i32).into_iter().find(|(_, name)| name == "guest").unwrap();
    sys::kill(inside.0, libc::SIGKILL).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(137));
}

#[test]
fn signals_to_kelp_reach_the_program() {
    needs!(userns);
    let dir = Dir::new();
    for (options, name, number) in [
        (&[][..], "TERM", libc::SIGTERM),
        (&[], "HUP", libc::SIGHUP),
        (&[], "USR1", libc::SIGUSR1),
        (&["--init"], "INT", libc::SIGINT),
    ] {
        let mut child = dir.run(options, &["/bin/guest", "await-signal", name]).start();
        let mut lines = ready(&mut child);
        sys::kill(child.id() as i32, number).unwrap();
        let mut seen = String::new();
        lines.read_line(&mut seen).unwrap();
        assert_eq!((seen.trim(), child.wait().unwrap().code()), (name, Some(7)));
    }
}

#[test]
fn the_reaper_reaps_and_is_not_the_program() {
    needs!(userns);
    let dir = Dir::new();
    let seen = dir.report(&["--init"]);
    assert_ne!(seen["process"]["pid"], json!(1));
    assert_eq!(seen["process"]["ppid"], json!(1));
    assert_eq!(dir.all(&["--init"], &["reap-orphan"])[0]["reaped"], json!(true));
}

#[test]
fn orphans_end_with_the_container() {
    needs!(userns);
    sys::adopt_orphans();
    let dir = Dir::new();
    for options in [&[][..], &["--init"]] {
        dir.run(options, &["/bin/guest", "spawn-orphan"]).ok();
        let gone = soon(|| {
            sys::reap();
            below(std::process::id() as i32).is_empty()
        });
        assert!(gone, "{:?}", below(std::process::id() as i32));
    }
}

/// Guard: the container dies with its monitor (a parent-death signal or the monitor as the namespace's parent).
#[test]
fn the_container_dies_with_kelp() {
    needs!(userns);
    sys::adopt_orphans();
    let dir = Dir::new();
    for options in [&[][..], &["--init"]] {
        let mut child = dir.run(options, &["/bin/guest", "sleep"]).start();
        let _lines = ready(&mut child);
        sys::kill(child.id() as i32, libc::SIGKILL).unwrap();
        child.wait().unwrap();
        let gone = soon(|| {
            sys::reap();
            below(std::process::id() as i32).is_empty()
        });
        assert!(gone, "{:?}", below(std::process::id() as i32));
    }
}

#[test]
fn the_program_has_three_descriptors() {
    needs!(userns);
    for options in [&[][..], &["-i"], &["--init"]] {
        let fds = Dir::new().report(options)["fds"].clone();
        // The fourth is the folder of `/proc/self/fd` itself while the guest reads it.
        let others: Vec<&Value> = fds
            .as_object()
            .unwrap()
            .iter()
            .filter(|(fd, _)| !["0", "1", "2"].contains(&fd.as_str()))
            .map(|(_, at)| at)
            .collect();
        assert!(
            others.iter().all(|at| at.as_str().unwrap().starts_with("/proc/")) && others.len() <= 1,
            "{fds}"
        );
    }
    assert_eq!(Dir::new().report(&[])["fds"]["0"], json!("/dev/null"));
}

#[test]
fn a_closed_standard_input_is_no_hole() {
    needs!(userns);
    let dir = Dir::new();
    let words = format!(
        "exec {} run --rm -i --rootfs {} /bin/guest report fds <&-",
        crate::dir::kelp().display(),
        dir.root()
    );
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &words]).env("KELP_ROOT", dir.path("store")).env("KELP_RUNDIR", dir.path("run"));
    let ended = shell.output().unwrap();
    let seen: Value = serde_json::from_slice(&ended.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&ended.stderr)));
    let zero = seen["fds"]["0"].as_str().unwrap_or("/dev/null");
    assert!(["/dev/null", "pipe"].iter().any(|at| zero.starts_with(at)), "{zero}");
}

#[test]
fn a_terminal_is_one_for_the_program() {
    needs!(userns);
    let dir = Dir::new();
    let mut person = Person::at(dir.run(&["-it"], &["/bin/guest", "report", "tty", "env"]));
    person.sees("\"TERM\"");
    assert_eq!(person.leaves(), 0);
    let seen: Value = serde_json::from_str(person.screen().trim()).unwrap();
    assert_eq!(seen["tty"]["isatty"], json!([true, true, true]));
    assert_eq!((&seen["tty"]["controlling"], &seen["tty"]["window"]), (&json!(true), &json!([33, 99])));
}

/// As in docker: the monitor is not the command that waits. The program is told, and may be attached to again.
#[test]
fn a_container_outlives_its_terminal() {
    needs!(userns);
    let dir = Dir::new();
    let mut person = Person::at(dir.run(&["-it", "--name", "reef"], &["/bin/guest", "window"]));
    person.sees("33");
    sys::kill(person.child.id() as i32, libc::SIGHUP).unwrap();
    assert_eq!(person.leaves(), 129);
    assert_eq!(dir.kelp(&["ps", "--format", "{{.Names}} {{.State}}"]).ok().out, "reef running\n");
    dir.kelp(&["kill", "reef"]).ok();
    assert_eq!(dir.kelp(&["ps", "-aq"]).ok().out, "");
}

#[test]
fn a_terminal_follows_its_window() {
    needs!(userns);
    let dir = Dir::new();
    let mut person = Person::at(dir.run(&["-it"], &["/bin/guest", "window"]));
    person.sees("[33,99]");
    person.resizes(40, 100);
    person.sees("[40,100]");
    dir.kelp(&["kill", "--all"]).ok();
    assert_eq!(person.leaves(), 137);
}

#[test]
fn keys_of_the_terminal_signal_the_program() {
    needs!(userns);
    let dir = Dir::new();
    for (key, name) in [("\u{3}", "INT"), ("\u{1c}", "QUIT")] {
        let mut person = Person::at(dir.run(&["-it"], &["/bin/guest", "await-signal", name]));
        person.sees("ready");
        person.types(key);
        person.sees(name);
        assert_eq!(person.leaves(), 7);
    }
}

#[test]
fn typed_text_reaches_the_program_and_comes_back() {
    needs!(userns);
    let dir = Dir::new();
    let mut person = Person::at(dir.run(&["-it"], &["/bin/guest", "copy"]));
    soon(|| below(person.child.id() as i32).iter().any(|(_, name)| name == "guest"));
    person.types("kelp\r");
    person.sees("kelp\r\nkelp\r\n");
    person.types("\u{4}");
    assert_eq!(person.leaves(), 0);
}

/// What happens to the program before the terminal is looked at.
type Leave = fn(&mut Person);

#[test]
fn the_terminal_is_put_back_on_every_way_out() {
    needs!(userns);
    let dir = Dir::new();
    let ways: [(&[&str], Leave); 5] = [
        (&["/bin/guest", "exit", "3"], |_| ()),
        (&["/no/such/program"], |_| ()),
        (&["/bin/guest", "await-signal", "TERM"], |person| {
            person.sees("ready");
            sys::kill(person.child.id() as i32, libc::SIGTERM).unwrap();
        }),
        (&["/bin/guest", "sleep"], |person| {
            person.sees("ready");
            let inside =
                below(person.child.id() as i32).into_iter().find(|(_, name)| name == "guest").unwrap();
            sys::kill(inside.0, libc::SIGKILL).unwrap();
        }),
        (&["/bin/guest", "await-signal", "INT"], |person| {
            person.sees("ready");
            person.types("\u{3}");
        }),
    ];
    for (command, leave) in ways {
        let mut person = Person::at(dir.run(&["-it"], command));
        let before = sys::fresh_modes();
        leave(&mut person);
        assert!(person.leaves() >= 0, "{command:?}\n{}", person.screen());
        assert_eq!(sys::modes(&person.terminal), before, "{command:?}");
    }
}

#[test]
fn a_shell_has_job_control() {
    needs!(userns);
    let dir = Dir::new();
    let mut person =
        Person::at(dir.kelp(&["run", "--rm", "-it", "-e", "PS1=$ ", "@host", "bash", "--norc", "-i"]));
    person.sees("$ ");
    person.types("sleep 1000\r");
    soon(|| below(person.child.id() as i32).iter().any(|(_, name)| name == "sleep"));
    person.types("\u{1a}");
    person.sees("Stopped");
    // bash leaves a shell whose job it has not seen end only at the second `exit`.
    person.types("kill %1; wait %1; echo still-$((40 + 2))\r");
    person.sees("still-42");
    person.types("exit 5\r");
    assert_eq!(person.leaves(), 5);
    assert!(!person.screen().contains("no job control"), "{}", person.screen());
}

#[test]
fn a_terminal_can_be_had_without_one() {
    needs!(userns);
    let outcome = Dir::new().run(&["-t"], &["/bin/guest", "isatty"]).ok();
    assert_eq!(outcome.out.trim(), "[true,true,true]");
}

#[test]
fn all_that_a_program_wrote_to_its_terminal_arrives() {
    needs!(userns);
    let dir = Dir::new();
    let outcome = dir.kelp(&["run", "--rm", "-t", "@host", "seq", "1", "20000"]).ok();
    assert_eq!(outcome.out.lines().count(), 20000);
    assert_eq!(outcome.out.lines().last().unwrap().trim(), "20000");
}
