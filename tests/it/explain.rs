//! `kelp run --explain`: the plan as a text, the same for the same request, in the order that the child keeps.
//! What is particular to a host or a container is put in angle brackets before the texts are compared.

use crate::dir::Dir;
use crate::needs;

const GOLDEN: &str = include_str!("explain.txt");

/// The text without what differs between hosts: the folder, the container's id, the id maps, the numbers of the
/// steps, the length of the filter (one id needs calls emulated), and the copy of kelp that is made only where the container's user could write the file.
fn plain(text: &str, dir: &Dir) -> String {
    let here = text.replace(&dir.text(""), "<dir>/");
    let lines = here.lines().filter(|line| !line.contains("copy of kelp")).map(line);
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

fn line(text: &str) -> String {
    if text.starts_with("parent: write ") {
        return "parent: <id map>".into();
    }
    let step = text.strip_prefix("child: step ").and_then(|rest| rest.split_once(", "));
    let text = step.map_or_else(|| text.to_string(), |(_, what)| format!("child: {what}"));
    if text.contains("seccomp filter of") {
        return "child: seccomp filter".into();
    }
    match text.split_once("set the host name to ") {
        Some((before, name)) => {
            let meanwhile = if name.ends_with(" (meanwhile)") { " (meanwhile)" } else { "" };
            format!("{before}set the host name to <id>{meanwhile}")
        }
        None => text,
    }
}

#[test]
fn the_plan_is_the_golden_text() {
    needs!(userns, overlay);
    let dir = Dir::new();
    let explain = dir.run(&["--explain", "-e", "A=1"], &["/bin/guest", "x"]);
    let said = explain.env("KELP_STORAGE_DRIVER", "").ok().out;
    let said = plain(&said, &dir);
    assert!(
        said == GOLDEN,
        "the plan changed; if it was meant to, this is tests/it/explain.txt now:\n{said}"
    );
}

#[test]
fn explain_starts_nothing_and_makes_nothing() {
    needs!(userns);
    let dir = Dir::new();
    let marker = dir.folder("marker");
    let said = dir
        .run(&["--explain", "-v", &format!("{marker}:/m")], &["/bin/guest", "write", "/m/x", "x"])
        .ok()
        .out;
    assert!(said.contains(&marker) && said.contains("/m"), "{said}");
    assert!(std::fs::metadata(dir.path("marker/x")).is_err());
    assert_eq!(crate::host::containers(&dir), Vec::<String>::new());
}

#[test]
fn explain_shows_what_was_asked_for() {
    needs!(userns);
    let dir = Dir::new();
    let options = [
        "--explain",
        "--tmpfs",
        "/t",
        "--hostname",
        "reef",
        "--read-only",
        "--cap-drop",
        "ALL",
        "--security-opt",
        "seccomp=unconfined",
    ];
    let said = dir.run(&options, &["/bin/guest"]).ok().out;
    for word in ["/t", "reef", "read-only", "0x0"] {
        assert!(said.contains(word), "no {word} in\n{said}");
    }
    assert!(!said.contains("seccomp filter of"), "{said}");
}

/// Namespaces first, then the root, then pivot_root, and the filter last before the program.
#[test]
fn the_order_is_the_one_that_keeps_the_host_out() {
    needs!(userns);
    let dir = Dir::new();
    let said = dir.run(&["--explain"], &["/bin/guest"]).ok().out;
    let at = |word: &str| said.find(word).unwrap_or_else(|| panic!("no {word} in\n{said}"));
    assert!(
        at("clone3") < at("become root")
            && at("become root") < at("make the root")
            && at("make the root") < at("pivot")
    );
    assert!(
        at("pivot") < at("no_new_privs") && at("no_new_privs") < at("seccomp") && at("seccomp") < at("exec")
    );
}
