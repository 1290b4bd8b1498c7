//! Real input: an unmodified Debian root made by mmdebstrap, and the machine's own userland, doing what people do
//! in them. No network is used: the package lies ready.

use crate::dir::Dir;
use crate::kelp::Outcome;
use crate::needs;
use crate::needs::{debian, package};

/// A shell line in the Debian root.
#[track_caller]
fn sh(dir: &Dir, options: &[&str], line: &str) -> Outcome {
    let root = debian().unwrap();
    dir.kelp(&[&["run", "--rm"], options, &["--rootfs", &root, "sh", "-ec", line]].concat()).ok()
}

#[test]
fn a_package_can_be_installed_and_runs() {
    needs!(userns, overlay, debian, package);
    let dir = Dir::new();
    let volume = format!("{}:/hello.deb:ro", package().unwrap());
    let said = sh(&dir, &["-v", &volume], "dpkg -i /hello.deb >&2 && hello && dpkg -s hello | grep Status");
    assert_eq!(said.out, "Hello, world!\nStatus: install ok installed\n");
    assert!(std::fs::metadata(format!("{}/usr/bin/hello", debian().unwrap())).is_err());
}

#[test]
fn python_runs() {
    needs!(userns, overlay, debian);
    let line = "python3 -c 'import os, sys, subprocess; print(os.getuid(), subprocess.check_output([\"echo\", \"child\"]).decode().strip())'";
    assert_eq!(sh(&Dir::new(), &[], line).out, "0 child\n");
}

#[test]
fn a_repository_can_be_made_and_committed_to() {
    needs!(userns, overlay, debian);
    let line = "git init -q /src && cd /src && echo x > f && git add f && git -c user.name=k -c user.email=k@k commit -qm one && git log --format=%s";
    assert_eq!(sh(&Dir::new(), &[], line).out, "one\n");
}

#[test]
fn a_program_can_be_compiled_in_the_hosts_userland() {
    needs!(userns, overlay, compiler);
    let dir = Dir::new();
    let line = "cd /tmp && printf '#include <stdio.h>\\nint main(void) { puts(\"compiled\"); }\\n' > a.c && cc a.c -o a && ./a";
    assert_eq!(dir.kelp(&["run", "--rm", "@host", "sh", "-ec", line]).ok().out, "compiled\n");
}

#[test]
fn another_user_can_be_become() {
    needs!(many_ids, userns, overlay, debian);
    let said = sh(&Dir::new(), &[], "su nobody -s /bin/sh -c 'id -u; id -gn'");
    assert_eq!(said.out, "65534\nnogroup\n");
}

#[test]
fn users_and_their_files_are_real() {
    needs!(many_ids, userns, overlay, debian);
    let line = "useradd -m fisher && su fisher -c 'echo x > ~/f && stat -c %U:%G ~/f' && chown 1:1 /home/fisher/f && stat -c %u:%g /home/fisher/f";
    assert_eq!(sh(&Dir::new(), &[], line).out, "fisher:fisher\n1:1\n");
}

/// With one id chown to another can't work, but what only wants to see root must.
#[test]
fn one_id_is_enough_for_plain_work() {
    needs!(userns, overlay, debian);
    let line = "id -u; id -un; mkdir /x && touch /x/y && chown root:root /x/y && stat -c %U /x/y; tar -c -C /etc . | tar -t | head -n 1";
    assert_eq!(sh(&Dir::new(), &["--userns=single"], line).out, "0\nroot\nroot\n./\n");
}

#[test]
fn package_lists_can_be_queried_and_packages_removed() {
    needs!(many_ids, userns, overlay, debian);
    let said = sh(
        &Dir::new(),
        &[],
        "dpkg -l | grep -c '^ii' && dpkg --purge --force-depends git >/dev/null 2>&1 && ! command -v git",
    );
    assert!(said.out.trim().parse::<u32>().unwrap() > 50, "{}", said.out);
}

#[test]
fn many_files_can_be_written_and_removed() {
    needs!(userns, overlay, debian);
    let line = "mkdir /many && cd /many && seq 1 3000 | xargs touch && ls | wc -l && rm -rf /many /usr/share/doc && ls /usr/share | grep -c '^doc$' || true";
    assert_eq!(sh(&Dir::new(), &[], line).out, "3000\n0\n");
}

#[test]
fn the_hosts_userland_runs_its_own_programs() {
    needs!(userns, overlay);
    let dir = Dir::new();
    let line = "id -un; git --version | cut -d' ' -f1,2; echo x > /etc/kelp-test && cat /etc/kelp-test; ls /proc/1/exe >/dev/null && echo proc";
    assert_eq!(
        dir.kelp(&["run", "--rm", "@host", "sh", "-ec", line]).ok().out,
        "root\ngit version\nx\nproc\n"
    );
    assert!(std::fs::metadata("/etc/kelp-test").is_err());
}
