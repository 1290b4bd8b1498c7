//! Who is who: id maps by the ladder, users and groups by the container's own files, and the numbers that must
//! never become root. One id, subordinate ids and full maps are different kinds of user; `needs!` says which.

use crate::dir::Dir;
use crate::kelp::says;
use crate::needs::SHARED;
use crate::{host, needs, sys};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::MetadataExt;

fn numbers(map: &Value) -> Vec<[u64; 3]> {
    let line = |line: &Value| [0, 1, 2].map(|at| line[at].as_str().unwrap().parse().unwrap());
    map.as_array().unwrap().iter().map(line).collect()
}

#[test]
fn one_id_maps_the_caller_to_root() {
    needs!(userns);
    let dir = Dir::new();
    let seen = dir.report(&["--userns=single"]);
    assert_eq!(numbers(&seen["maps"]["uid"]), [[0, u64::from(sys::uid()), 1]]);
    assert_eq!(numbers(&seen["maps"]["gid"]), [[0, u64::from(sys::gid()), 1]]);
}

#[test]
fn one_id_is_what_a_user_without_ranges_gets() {
    needs!(userns, single);
    assert_eq!(numbers(&Dir::new().report(&[])["maps"]["uid"]), [[0, u64::from(sys::uid()), 1]]);
}

/// CVE-2018-7169: without a range of the administrator's the kernel must refuse setgroups in the namespace.
#[test]
fn one_id_leaves_setgroups_denied() {
    needs!(userns, ordinary);
    assert_eq!(Dir::new().report(&["--userns=single"])["maps"]["setgroups"], json!("deny"));
}

#[test]
fn subordinate_ids_follow_the_callers_own() {
    needs!(subids);
    let seen = Dir::new().report(&[]);
    let (start, count) = host::subordinate("/etc/subuid")[0];
    let wanted = [[0, u64::from(sys::uid()), 1], [1, u64::from(start), u64::from(count)]];
    assert_eq!(numbers(&seen["maps"]["uid"]), wanted);
    let (start, count) = host::subordinate("/etc/subgid")[0];
    assert_eq!(
        numbers(&seen["maps"]["gid"]),
        [[0, u64::from(sys::gid()), 1], [1, u64::from(start), u64::from(count)]]
    );
    assert_eq!(seen["maps"]["setgroups"], json!("allow"));
}

#[test]
fn root_maps_all_the_ids_it_has() {
    needs!(userns, root);
    let seen = Dir::new().report(&[]);
    let own: u64 = fs::read_to_string("/proc/self/uid_map")
        .unwrap()
        .lines()
        .map(|l| l.split_whitespace().last().unwrap().parse::<u64>().unwrap())
        .sum();
    let mapped: u64 = numbers(&seen["maps"]["uid"]).iter().map(|line| line[2]).sum();
    assert_eq!(mapped, own);
}

#[test]
fn keep_id_keeps_the_callers_number() {
    needs!(subids);
    let seen = Dir::new().report(&["--userns=keep-id"]);
    assert_eq!((&seen["ids"]["ruid"], &seen["ids"]["rgid"]), (&json!(sys::uid()), &json!(sys::gid())));
    let seen = Dir::new().report(&["--userns=keep-id:uid=1000,gid=1001"]);
    assert_eq!((&seen["ids"]["ruid"], &seen["ids"]["rgid"]), (&json!(1000), &json!(1001)));
    let mine = numbers(&seen["maps"]["uid"]).into_iter().find(|line| line[0] == 1000).unwrap();
    assert_eq!(mine, [1000, u64::from(sys::uid()), 1]);
}

#[test]
fn what_the_container_makes_belongs_to_the_caller_outside() {
    needs!(userns);
    let dir = Dir::new();
    let out = dir.folder("out");
    dir.run(&["-v", &format!("{out}:/out")], &["/bin/guest", "write", "/out/new", "x"]).ok();
    let meta = fs::metadata(dir.path("out/new")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (sys::uid(), sys::gid()));
}

#[test]
fn users_are_found_in_the_containers_own_files() {
    needs!(userns, many_ids);
    let dir = Dir::new();
    let ids = |user: &str| dir.report(&["-u", user])["ids"].clone();
    let seen = ids("kelpie");
    assert_eq!((&seen["ruid"], &seen["suid"], &seen["rgid"]), (&json!(1234), &json!(1234), &json!(1235)));
    let groups: Vec<u64> = seen["groups"].as_array().unwrap().iter().filter_map(Value::as_u64).collect();
    assert!(groups.contains(&4242) && groups.iter().all(|id| [1235, 4242].contains(id)), "{groups:?}");
    let seen = ids("kelpie:extra");
    assert_eq!((&seen["ruid"], &seen["rgid"]), (&json!(1234), &json!(4242)));
    let seen = ids("5555:6666");
    assert_eq!((&seen["ruid"], &seen["rgid"]), (&json!(5555), &json!(6666)));
    assert_eq!(ids("1234")["rgid"], json!(1235));
    assert_eq!(ids("7777")["rgid"], json!(0));
}

#[test]
fn groups_can_be_added() {
    needs!(userns, many_ids);
    let groups = Dir::new().report(&["--group-add", "extra", "--group-add", "77"])["ids"]["groups"].clone();
    let groups: Vec<u64> = groups.as_array().unwrap().iter().filter_map(Value::as_u64).collect();
    assert!(groups.contains(&4242) && groups.contains(&77), "{groups:?}");
}

/// Guard: the container drops the caller's supplementary groups before the program starts.
#[test]
fn the_callers_groups_are_dropped() {
    needs!(subids, shared_group);
    let dir = Dir::new();
    let volume = format!("{SHARED}:/letter");
    assert_eq!(dir.all(&["-v", &volume], &["read", "/letter"]), json!([{"error": "EACCES"}]));
}

#[test]
fn keep_groups_keeps_them() {
    needs!(userns, shared_group);
    let dir = Dir::new();
    let volume = format!("{SHARED}:/letter");
    let seen = dir.all(&["--group-add", "keep-groups", "-v", &volume], &["read", "/letter"]);
    assert_eq!(seen, json!([{"text": "letter\n"}]));
}

#[test]
fn an_unknown_user_or_group_is_named() {
    needs!(userns);
    let dir = Dir::new();
    says(&dir.run(&["-u", "nosuch"], &["/bin/guest"]).fails(125), &["nosuch", "passwd"]);
    says(&dir.run(&["-u", "0:nogroup-here"], &["/bin/guest"]).fails(125), &["nogroup-here", "group"]);
}

/// podman 5.8 lets `-u 4294967295` become root: it is the id that means "leave it" to setresuid(2).
#[test]
fn numbers_that_are_no_ids_are_refused() {
    needs!(userns);
    let dir = Dir::new();
    for user in
        ["4294967295", "4294967296", "-1", "0x0", "18446744073709551616", "0:4294967295", "+0", "1 2", ":"]
    {
        let kelp = dir.run(&[&format!("--user={user}")], &["/bin/guest", "report", "ids"]);
        let outcome = kelp.end();
        assert_eq!(outcome.code, 125, "{user}: {}{}", outcome.out, outcome.err);
        assert!(outcome.out.is_empty(), "{user}: {}", outcome.out);
    }
}

#[test]
fn a_numeric_user_is_never_looked_up_as_a_name() {
    needs!(userns, many_ids);
    let dir = Dir::new();
    dir.root();
    dir.file("root/etc/passwd", "root:x:0:0::/:\n1000:x:0:0::/:\n");
    assert_eq!(dir.report(&["-u", "1000"])["ids"]["ruid"], json!(1000));
}

#[test]
fn an_id_outside_the_map_is_refused_with_its_number() {
    needs!(userns);
    let dir = Dir::new();
    says(&dir.run(&["--userns=single", "-u", "1234"], &["/bin/guest"]).fails(125), &["1234"]);
    says(&dir.run(&["-u", "3000000000"], &["/bin/guest"]).fails(125), &["3000000000"]);
}

/// podman hangs on a FIFO at /etc/passwd inside the image.
#[test]
fn hostile_passwd_files_are_refused_not_waited_for() {
    needs!(userns);
    let dir = Dir::new();
    dir.root();
    let passwd = dir.path("root/etc/passwd");
    fs::remove_file(&passwd).unwrap();
    sys::fifo(passwd.to_str().unwrap());
    says(&dir.run(&["-u", "kelpie"], &["/bin/guest"]).fails(125), &["passwd"]);
    fs::remove_file(&passwd).unwrap();
    fs::File::create(&passwd).unwrap().set_len(1 << 30).unwrap();
    says(&dir.run(&["-u", "kelpie"], &["/bin/guest"]).fails(125), &["passwd"]);
}

/// Guard: passwd is opened inside the container's root, so a link in it can't name the host's file.
#[test]
fn a_passwd_that_is_a_link_stays_in_the_root() {
    needs!(userns, many_ids);
    let dir = Dir::new();
    dir.root();
    let outside = dir.file("outside", "kelpie:x:4321:4321::/:\n");
    fs::remove_file(dir.path("root/etc/passwd")).unwrap();
    std::os::unix::fs::symlink(&outside, dir.path("root/etc/passwd")).unwrap();
    let outcome = dir.run(&["-u", "kelpie"], &["/bin/guest", "report", "ids"]).end();
    assert!(!outcome.out.contains("4321"), "{}", outcome.out);
    assert_eq!(outcome.code, 125, "{}", outcome.err);
}

#[test]
fn explicit_maps_are_used_as_given() {
    needs!(subids);
    let seen = Dir::new().report(&["--uidmap", "0:1:100", "--uidmap", "100:0:1", "--gidmap", "0:0:10"]);
    let (start, _) = host::subordinate("/etc/subuid")[0];
    assert_eq!(numbers(&seen["maps"]["uid"]), [[0, u64::from(start), 100], [100, u64::from(sys::uid()), 1]]);
}

#[test]
fn a_map_of_ids_that_are_not_ours_is_refused() {
    needs!(userns, ordinary);
    let sentence =
        Dir::new().run(&["--uidmap", "0:0:1", "--uidmap", "1:70000:5"], &["/bin/guest"]).fails(125);
    assert!(!sentence.is_empty());
}

#[test]
fn numbers_need_no_passwd_file() {
    needs!(userns);
    let dir = Dir::new();
    let root = dir.root();
    let passwd = std::path::Path::new(&root).join("etc/passwd");
    let group = std::path::Path::new(&root).join("etc/group");
    let make_fifo = |path: &std::path::Path| {
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    std::fs::remove_file(&group).unwrap();
    make_fifo(&group);
    for kind in ["a loop of links", "a FIFO"] {
        std::fs::remove_file(&passwd).unwrap();
        match kind {
            "a FIFO" => make_fifo(&passwd),
            _ => std::os::unix::fs::symlink("passwd", &passwd).unwrap(),
        }
        assert_eq!(dir.run(&[], &["/bin/guest", "say", "x"]).ok().out, "x\n", "{kind}");
        assert_eq!(dir.run(&["-u", "0:0"], &["/bin/guest", "say", "x"]).ok().out, "x\n", "{kind}");
        let said = dir.run(&["-u", "kelpie"], &["/bin/guest", "say", "x"]).fails(125);
        crate::kelp::says(&said, &["/etc/passwd"]);
    }
}

#[test]
fn a_group_that_cannot_be_added_is_said() {
    needs!(userns, ordinary);
    let dir = Dir::new();
    let said = dir.run(&["--userns=single", "--group-add", "4242"], &["/bin/guest", "say", "x"]).ok();
    assert_eq!(said.out, "x\n");
    crate::kelp::says(&said.err, &["group 4242 is not added", "one id"]);
    let said = dir.run(&["--userns=single"], &["/bin/guest", "say", "x"]).ok();
    assert!(!said.err.contains("group"), "{}", said.err);
}
