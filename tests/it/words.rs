//! Flags of `run` that are about the container itself: who makes room for it, who is told its number, what goes
//! with it, what it is labelled with; and the hint for those who look for another verb.

use crate::dir::Dir;
use crate::host::soon;
use crate::kelp::says;
use crate::needs;
use serde_json::Value;
use std::fs;
use std::process::Command;

fn inspected(dir: &Dir, name: &str) -> Value {
    let list: Value = serde_json::from_str(&dir.kelp(&["inspect", name]).ok().out).unwrap();
    list[0].clone()
}

/// The small root as an image called `reef`.
fn image(dir: &Dir) {
    let (root, archive) = (dir.root(), dir.text("root.tar"));
    assert!(Command::new("tar").args(["-C", &root, "-cf", &archive, "."]).status().unwrap().success());
    dir.kelp(&["import", &archive, "reef"]).ok();
}

#[test]
fn replace_makes_room_for_a_container_of_the_same_name() {
    needs!(userns);
    let dir = Dir::new();
    let run = |options: &[&str]| {
        let words = [&["run", "-d", "--name", "web"], options, &["@host", "sleep", "100"]].concat();
        dir.kelp(&words)
    };
    let first = run(&[]).ok().out;
    says(&run(&[]).fails(125), &["web", "already in use", first.trim()]);
    let second = run(&["--replace"]).ok().out;
    assert_ne!(first, second);
    assert_eq!(dir.kelp(&["ps", "-a", "-q", "--no-trunc"]).ok().out, second);
    dir.kelp(&["create", "--replace", "--name", "web", "@host", "true"]).ok();
    assert_eq!(dir.kelp(&["ps", "-a", "--format", "{{.Names}} {{.State}}"]).ok().out, "web created\n");
    dir.kelp(&["run", "--replace", "--name", "new", "@host", "true"]).ok();
    says(&dir.kelp(&["run", "--replace", "@host", "true"]).fails(125), &["--name"]);
}

#[test]
fn a_pid_file_names_the_program_at_each_start() {
    needs!(userns);
    let dir = Dir::new();
    let file = dir.text("pid");
    dir.kelp(&["create", "--name", "web", "--pidfile", &file, "@host", "sleep", "100"]).ok();
    assert!(!dir.path("pid").exists());
    let mut seen = Vec::new();
    for _ in 0..2 {
        dir.kelp(&["start", "web"]).ok();
        let pid = fs::read_to_string(&file).unwrap();
        assert_eq!(fs::read_to_string(format!("/proc/{pid}/comm")).unwrap(), "sleep\n");
        seen.push(pid);
        dir.kelp(&["stop", "-t", "0", "web"]).ok();
    }
    assert_ne!(seen[0], seen[1]);
    assert_eq!(inspected(&dir, "web")["PidFile"], file);
    let nowhere = dir.text("none/pid");
    let sentence = dir.kelp(&["run", "-d", "--name", "lost", "--pidfile", &nowhere, "@host", "sleep", "100"]);
    says(&sentence.fails(125), &["pid file", &nowhere]);
    assert_eq!(dir.kelp(&["ps", "-q"]).ok().out, "");
}

#[test]
fn an_image_goes_with_its_last_container_where_that_is_asked() {
    needs!(userns);
    let dir = Dir::new();
    let run = |options: &[&str]| {
        dir.kelp(&[&["run", "--rmi"], options, &["reef", "/bin/guest", "say", "x"]].concat())
    };
    let images = || dir.kelp(&["images", "-q"]).ok().out;
    image(&dir);
    dir.kelp(&["create", "--name", "other", "reef", "/bin/guest"]).ok();
    run(&[]).ok();
    assert_ne!(images(), "", "the image of another container is gone");
    dir.kelp(&["rm", "other"]).ok();
    run(&[]).ok();
    assert_eq!((images(), dir.kelp(&["ps", "-a", "-q"]).ok().out), (String::new(), String::new()));
    image(&dir);
    run(&["-d"]).ok();
    assert!(soon(|| images().is_empty()));
}

#[test]
fn labels_come_from_files_and_annotations_are_shown() {
    needs!(userns);
    let dir = Dir::new();
    let file = dir.file("labels", "# sea\nteam=sea\n\nempty\n");
    let options =
        ["create", "--name", "web", "--label-file", &file, "-l", "team=land", "--annotation", "a.b=c=d"];
    dir.kelp(&[&options[..], &["@host", "true"]].concat()).ok();
    let seen = inspected(&dir, "web");
    assert_eq!(seen["Config"]["Labels"], serde_json::json!({"team": "land", "empty": ""}));
    assert_eq!(seen["HostConfig"]["Annotations"], serde_json::json!({"a.b": "c=d"}));
}

#[test]
fn exec_in_an_image_is_answered_by_a_hint() {
    needs!(userns);
    let dir = Dir::new();
    image(&dir);
    for word in ["reef", "@host"] {
        let sentence = dir.kelp(&["exec", word, "true"]).fails(1);
        says(&sentence, &["no such container", &format!("kelp run {word}")]);
    }
    let sentence = dir.kelp(&["exec", "shoal", "true"]).fails(1);
    assert!(!sentence.contains("hint"), "{sentence}");
}
