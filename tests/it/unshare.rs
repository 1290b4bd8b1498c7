//! `kelp unshare`: the lines of the texts that explain containers, typed as they stand there, by a user without
//! root. Each line is one that the user's own shell refuses.

use crate::dir::Dir;
use crate::needs;
use crate::needs::debian;
use std::process::Command;

/// What a shell line prints below `kelp unshare` with these options.
#[track_caller]
fn types(options: &[&str], line: &str) -> String {
    let dir = Dir::new();
    let words = [&["unshare"], options, &["sh", "-ec", line]].concat();
    dir.kelp(&words).ok().out
}

#[test]
fn one_is_root_there() {
    needs!(userns);
    assert_eq!(types(&[], "id -u; id -g"), "0\n0\n");
}

#[test]
fn a_tmpfs_can_be_mounted_and_the_host_does_not_see_it() {
    needs!(userns);
    let dir = Dir::new();
    let place = dir.folder("place");
    let line =
        format!("mount -t tmpfs none {place} && echo x > {place}/x && grep -c ' {place} ' /proc/self/mounts");
    assert_eq!(types(&[], &line), "1\n");
    assert_eq!(crate::host::mounts_below(&place), Vec::<String>::new());
    assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0);
}

#[test]
fn the_host_name_is_its_own() {
    needs!(userns);
    let before = crate::host::hostname();
    assert_eq!(types(&["-u"], "hostname testunshare1; hostname"), "testunshare1\n");
    assert_eq!(types(&[], "unshare -u sh -c 'hostname testunshare2; hostname'"), "testunshare2\n");
    assert_eq!(crate::host::hostname(), before);
}

#[test]
fn the_one_liner_of_the_texts_runs_as_typed() {
    needs!(userns, debian);
    let root = debian().unwrap();
    let line =
        format!("unshare -fmuipn --mount-proc chroot {root} /bin/sh -c 'echo inside; ls /bin/sh; id -u'");
    assert_eq!(types(&[], &line), "inside\n/bin/sh\n0\n");
}

#[test]
fn chroot_runs_as_typed() {
    needs!(userns, debian);
    let root = debian().unwrap();
    assert_eq!(
        types(&[], &format!("cd {root} && chroot $PWD /bin/sh -c 'cat /etc/debian_version | wc -l'")),
        "1\n"
    );
}

#[test]
fn a_pair_of_veths_can_be_made() {
    needs!(userns);
    let line = "ip link add veth0 type veth peer name veth1 && ip addr add 10.1.1.1/24 dev veth0 && ip link set veth0 up && ip -o link show | grep -c veth";
    assert_eq!(types(&["-n"], line), "2\n");
}

#[test]
fn named_network_namespaces_can_be_made() {
    needs!(userns);
    let line = "ip netns add blue && ip netns exec blue ip -o link show | grep -c lo && ip netns list";
    let said = types(&["-n"], line);
    assert!(said.starts_with("1\nblue"), "{said}");
    assert!(std::fs::metadata("/run/netns/blue").is_err());
}

#[test]
fn a_pid_namespace_shows_its_own_processes() {
    needs!(userns);
    let said = types(&["-p"], "echo $$; ls -d /proc/[0-9]* | wc -l");
    let lines: Vec<u32> = said.lines().map(|line| line.trim().parse().unwrap()).collect();
    assert!(lines[0] <= 2 && lines[1] <= 4, "{said}");
}

#[test]
fn an_overlay_can_be_mounted() {
    needs!(userns, overlay);
    let dir = Dir::new();
    dir.file("lower/log", "lower");
    let [lower, upper, work, target] = ["lower", "upper", "work", "target"].map(|name| dir.folder(name));
    let line = format!(
        "mount -t overlay overlay -o lowerdir={lower},upperdir={upper},workdir={work} {target} && cat {target}/log && rm {target}/log && ls {target} | wc -l"
    );
    assert_eq!(types(&[], &line), "lower0\n");
    assert_eq!(std::fs::read_to_string(dir.path("lower/log")).unwrap(), "lower");
    let _ = Command::new("chmod").args(["-R", "u+rwx", &work]).status();
}

#[test]
fn the_exit_code_is_the_commands() {
    needs!(userns);
    let dir = Dir::new();
    assert_eq!(dir.kelp(&["unshare", "sh", "-c", "exit 7"]).end().code, 7);
    assert_eq!(dir.kelp(&["unshare", "/no/such"]).end().code, 127);
    assert_eq!(dir.kelp(&["unshare", "sh", "-c", "kill -TERM $$"]).end().code, 143);
}
