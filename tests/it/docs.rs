//! What is made from the tables of verbs and flags: the reference in docs/reference is current, man pages and
//! completions come out and are read by the programs that they are for, and docs/flags.md tells the truth.

use crate::dir::{self, Dir};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

fn checkout(path: &str) -> PathBuf {
    PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").unwrap()).join(path)
}

fn pages(folder: PathBuf) -> BTreeMap<String, String> {
    let entries = fs::read_dir(folder).unwrap().flatten();
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read_to_string(e.path()).unwrap())).collect()
}

#[test]
fn the_reference_is_current() {
    let dir = Dir::new();
    dir.kelp(&["generate", "docs", &dir.text("reference")]).ok();
    let (made, kept) = (pages(dir.path("reference")), pages(checkout("docs/reference")));
    let names: Vec<_> =
        made.keys().chain(kept.keys()).filter(|name| made.get(*name) != kept.get(*name)).collect();
    assert!(names.is_empty(), "{names:?} of docs/reference: run `cargo run -- generate docs docs/reference`");
}

#[test]
fn man_pages_are_made_for_each_verb() {
    let dir = Dir::new();
    dir.kelp(&["generate", "man", &dir.text("man")]).ok();
    let made = pages(dir.path("man"));
    for name in ["kelp.1", "kelp-run.1", "kelp-volume.1", "kelp-volume-create.1"] {
        let page = made.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", made.keys()));
        assert!(page.contains(".SH NAME") && page.contains(".TH"), "{page}");
    }
    assert!(!made.contains_key("kelp-generate.1"), "a hidden verb has a page");
}

#[test]
fn completions_are_read_by_their_shells() {
    let dir = Dir::new();
    dir.kelp(&["generate", "completions", &dir.text("completions")]).ok();
    let made = pages(dir.path("completions"));
    assert_eq!(made.keys().collect::<Vec<_>>(), ["_kelp", "kelp.bash", "kelp.fish"]);
    let script = dir.kelp(&["completion", "bash"]).ok().out;
    assert_eq!(script, made["kelp.bash"]);
    dir.kelp(&["volume", "create", "apples"]).ok();
    dir.kelp(&["volume", "create", "pears"]).ok();
    dir.kelp(&["create", "--name", "walnut", "@host", "true"]).ok();
    let offered = |words: &[&str]| {
        let last = words.last().unwrap();
        let ask = format!(
            "source {}; kelp() {{ {} \"$@\"; }}; COMP_WORDS=({}); COMP_CWORD={}; _clap_complete_kelp kelp '{last}' x; echo \"${{COMPREPLY[@]}}\"",
            dir.text("completions/kelp.bash"),
            dir::kelp().display(),
            words.join(" "),
            words.len() - 1,
        );
        let mut bash = Command::new("bash");
        bash.args(["--norc", "-c", &ask]).env("KELP_ROOT", dir.path("store")).stdin(Stdio::null());
        let bash = bash.output();
        String::from_utf8_lossy(&bash.unwrap().stdout).trim_end().to_owned()
    };
    assert_eq!(offered(&["kelp", "vol"]), "volume");
    assert_eq!(offered(&["kelp", "volume", "rm", "a"]), "apples");
    assert_eq!(offered(&["kelp", "stop", "wa"]), "walnut");
    assert_eq!(offered(&["kelp", "container", "rm", "--fo"]), "--force");
    assert_eq!(offered(&["kelp", "rmi", "nothing"]), "");
}

/// The rows of docs/flags.md: the flag, and what the table says of it.
fn rows() -> BTreeMap<String, String> {
    let text = fs::read_to_string(checkout("docs/flags.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| `--")).map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        (cells[1].trim_matches('`').to_owned(), cells[4].to_owned())
    });
    rows.collect()
}

/// The long flags in a program's help.
fn flags(help: &str) -> Vec<String> {
    let of_line = |line: &str| {
        let line = line.trim_start();
        let line =
            line.get(4..).filter(|_| line.starts_with('-') && line[2..].starts_with(", ")).unwrap_or(line);
        let name = line.split([' ', '=', '[', ',']).next()?;
        name.starts_with("--").then(|| name.to_owned())
    };
    help.lines().filter(|line| line.starts_with("  ")).filter_map(of_line).collect()
}

#[test]
fn the_table_of_flags_is_true() {
    let dir = Dir::new();
    let rows = rows();
    let ours = flags(&dir.kelp(&["run", "--help"]).ok().out);
    assert!(ours.len() > 40, "{ours:?}");
    let mut faults = Vec::new();
    for flag in &ours {
        match rows.get(flag).map(String::as_str) {
            Some("done") => {}
            Some(other) => faults.push(format!("{flag} is {other:?} in the table, and kelp has it")),
            None => faults.push(format!("{flag} is not in the table")),
        }
    }
    for (flag, state) in &rows {
        match state.as_str() {
            "done" if !ours.contains(flag) => {
                faults.push(format!("{flag} is done in the table, and kelp lacks it"))
            }
            "done" | "later" | "no" => {}
            other => faults.push(format!("{flag}: {other:?} is not done, later or no")),
        }
    }
    for peer in ["docker", "podman"] {
        let Ok(help) = Command::new(peer).args(["run", "--help"]).stdin(Stdio::null()).output() else {
            continue;
        };
        let theirs = flags(&String::from_utf8_lossy(&help.stdout));
        faults.extend(
            theirs
                .iter()
                .filter(|flag| !rows.contains_key(*flag))
                .map(|flag| format!("{flag} of {peer} is missing")),
        );
    }
    assert!(faults.is_empty(), "docs/flags.md:\n  {}", faults.join("\n  "));
}
