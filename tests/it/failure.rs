//! What kelp says when the host or the root refuses: one sentence that names the object, one hint with the
//! remedy, exit code 125, and nothing left behind. Each refusal is made for real, in a namespace of the test's.

use crate::dir::Dir;
use crate::kelp::says;
use crate::needs;
use crate::nested::{Nested, without};
use std::fs;

#[test]
fn user_namespaces_switched_off_by_their_limit() {
    needs!(userns);
    let dir = Dir::new();
    let said = Nested::new(&dir)
        .shell("echo 0 > /proc/sys/user/max_user_namespaces && exec \"$@\"")
        .run(&dir)
        .fails(125);
    says(&said, &["user namespace", "user.max_user_namespaces", "hint", "sysctl"]);
}

#[test]
fn another_namespace_switched_off_by_its_limit() {
    needs!(userns);
    let dir = Dir::new();
    let said = Nested::new(&dir)
        .shell("echo 0 > /proc/sys/user/max_pid_namespaces && exec \"$@\"")
        .run(&dir)
        .fails(125);
    says(&said, &["max_pid_namespaces", "hint"]);
}

#[test]
fn a_seccomp_filter_of_an_outer_container() {
    needs!(userns);
    let dir = Dir::new();
    let outer = crate::sys::refuse_namespaces;
    let mut kelp = dir.run(&[], &["/bin/guest"]);
    outer(&mut kelp.command);
    says(&kelp.fails(125), &["user namespace", "seccomp", "hint"]);
}

/// Where newuidmap is missing the next rung is taken, and that is said.
#[test]
fn newuidmap_missing_falls_to_one_id_and_says_so() {
    needs!(subids);
    let dir = Dir::new();
    let outcome = dir
        .run(&[], &["/bin/guest", "report", "maps"])
        .env("PATH", &without(&dir, &["newuidmap", "newgidmap"]))
        .ok();
    assert_eq!(outcome.json()["maps"]["uid"].as_array().unwrap().len(), 1);
    says(&outcome.err, &["newuidmap"]);
}

#[test]
fn newuidmap_without_setuid_is_named() {
    needs!(subids);
    let dir = Dir::new();
    let path = without(&dir, &["newuidmap", "newgidmap"]);
    for name in ["newuidmap", "newgidmap"] {
        fs::copy(format!("/usr/bin/{name}"), format!("{path}/{name}")).unwrap();
    }
    let outcome = dir.run(&[], &["/bin/guest", "report", "maps"]).env("PATH", &path).end();
    says(&outcome.err, &["newuidmap", "setuid"]);
}

#[test]
fn ids_that_were_asked_for_and_are_not_there_are_an_error() {
    needs!(userns, single);
    let dir = Dir::new();
    let said = dir.run(&["--uidmap", "0:0:1", "--uidmap", "1:1:65536"], &["/bin/guest"]).fails(125);
    says(&said, &["subuid", "hint"]);
    let said = dir.run(&["-u", "1234"], &["/bin/guest"]).fails(125);
    says(&said, &["1234", "hint"]);
}

#[test]
fn ranges_that_are_too_small_are_named() {
    needs!(subids);
    let dir = Dir::new();
    let said = dir.run(&["--uidmap", "0:0:1", "--uidmap", "1:1:4000000"], &["/bin/guest"]).fails(125);
    says(&said, &["4000000"]);
}

#[test]
fn a_root_without_the_program() {
    needs!(userns);
    let dir = Dir::new();
    let empty = dir.folder("empty");
    let said = dir.kelp(&["run", "--rm", "--rootfs", &empty, "/bin/sh"]).fails(127);
    says(&said, &["/bin/sh"]);
    let said = dir.kelp(&["run", "--rm", "--rootfs", &empty]).fails(125);
    assert!(said.contains("command") || said.contains("program"), "{said}");
}

#[test]
fn a_root_that_cannot_be_read() {
    needs!(userns, ordinary);
    let dir = Dir::new();
    // A folder of the caller's own opens for the container's root whatever its mode; root's home does not.
    let root = "/root/any";
    let said = dir.kelp(&["run", "--rm", "--rootfs", root, "/bin/guest"]).fails(125);
    says(&said, &[root, "permission denied"]);
}

#[test]
fn a_store_that_cannot_be_written() {
    needs!(userns, ordinary);
    let dir = Dir::new();
    let said = dir
        .run(&[], &["/bin/guest"])
        .env("KELP_ROOT", "/proc/kelp")
        .env("KELP_RUNDIR", "/proc/kelp")
        .fails(125);
    says(&said, &["/proc/kelp"]);
}

#[test]
fn a_full_disk_is_an_error_and_the_next_run_works() {
    needs!(userns);
    let dir = Dir::new();
    let script = format!(
        "mount -t tmpfs -o size=256k tmpfs {store} && dd if=/dev/zero of={store}/fill bs=1k 2>/dev/null; \"$@\"; echo first $?; rm {store}/fill; exec \"$@\"",
        store = dir.folder("store")
    );
    let outcome =
        Nested::new(&dir).shell(&script).command(&["/bin/guest", "say", "second run"]).run(&dir).end();
    assert!(outcome.out.contains("second run"), "{}{}", outcome.out, outcome.err);
    assert!(!outcome.err.contains("panicked"), "{}", outcome.err);
}

/// Each sentence: lower case, from intent to cause, no bare errno, no full stop, and a hint on a line of its own.
#[test]
fn sentences_keep_their_grammar() {
    needs!(userns);
    let dir = Dir::new();
    let missing = dir.text("missing");
    let failures = [
        dir.run(&["-v", &format!("{missing}:/m")], &["/bin/guest"]).fails(125),
        dir.run(&[], &["/no/such"]).fails(127),
        dir.kelp(&["run", "--rootfs", &missing, "x"]).fails(125),
        dir.run(&["-u", "nosuch"], &["/bin/guest"]).fails(125),
    ];
    for said in failures {
        let first = said.lines().next().unwrap();
        let sentence = first.strip_prefix("kelp: ").unwrap_or_else(|| panic!("{said}"));
        assert!(sentence.starts_with(|c: char| c.is_lowercase() || !c.is_alphabetic()), "{said}");
        assert!(!sentence.ends_with('.') && !sentence.contains("os error"), "{said}");
        assert!(
            said.lines().skip(1).all(|line| line.starts_with("hint: ") || line.starts_with("kelp: ")),
            "{said}"
        );
    }
}

#[test]
fn a_failed_start_leaves_nothing() {
    needs!(userns);
    crate::sys::adopt_orphans();
    let dir = Dir::new();
    let missing = format!("{}:/m", dir.text("missing"));
    dir.run(&["-v", &missing], &["/bin/guest"]).fails(125);
    dir.run(&["--sysctl", "net.nonsense=1"], &["/bin/guest"]).fails(125);
    dir.run(&["-u", "nosuch"], &["/bin/guest"]).fails(125);
    // The network's broker removes its device after kelp has ended (decision 0202).
    let below = || {
        crate::sys::reap();
        crate::host::below(std::process::id() as i32)
    };
    assert!(crate::host::soon(|| below().is_empty()), "{:?}", below());
    assert_eq!(crate::host::mounts_below(&dir.text("")), Vec::<String>::new());
    assert_eq!(crate::host::containers(&dir), Vec::<String>::new());
}
