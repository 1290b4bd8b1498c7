//! Further programs in a container that runs: what they may do, that they stay when the command leaves, and that
//! their terminal is taken care of.

use crate::dir::Dir;
use crate::host::soon;
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
