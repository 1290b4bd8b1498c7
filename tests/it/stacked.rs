//! Rung T1, kernel overlay over a read-only mount of ours. Every container test runs on it as well
//! (`KELP_STORAGE_DRIVER=overlay-on-fuse tests/run`); here is what is true of it alone.

use crate::dir::{Dir, picture};
use crate::needs;
use crate::nested::Nested;

const FLAGS: [&str; 2] = ["--storage-driver", "overlay-on-fuse"];

#[test]
fn nothing_of_the_mount_below_is_seen_inside() {
    needs!(userns, overlay, fuse);
    let dir = Dir::new();
    let seen = dir.all(&FLAGS, &["read", "/proc/self/mountinfo"]);
    let text = seen[0]["text"].as_str().unwrap();
    assert!(text.contains(" / / ") && text.contains(" - overlay ") && !text.contains("fuse"), "{text}");
    assert!(!text.contains(dir.text("").trim_end_matches('/')), "{text}");
}

#[test]
fn the_folder_below_is_as_before_and_a_copied_file_keeps_its_number() {
    needs!(userns, overlay, fuse);
    let dir = Dir::new();
    let root = dir.root();
    let before = picture(&root);
    let numbers = "before=$(stat -c %i /etc/profile) && exec 3</etc/profile && echo more >>/etc/profile && \
        [ $before = $(stat -c %i /etc/profile) ] && tail -n 1 /etc/profile";
    let words = [&["run", "--rm"], &FLAGS[..], &["@host", "sh", "-c", numbers]].concat();
    assert_eq!(dir.kelp(&words).ok().out, "more\n");
    dir.run(&FLAGS, &["/bin/guest", "all", "write", "/etc/passwd", "mine", ",", "write", "/etc/new", "new"])
        .ok();
    assert_eq!(picture(&root), before);
}

#[test]
fn what_it_can_not_do_is_said() {
    needs!(userns, overlay, fuse);
    let dir = Dir::new();
    let said = dir.run(&["--rootfs-rw", FLAGS[0], FLAGS[1]], &["/bin/guest"]).fails(125);
    assert!(said.contains("that storage driver can't make this root"), "{said}");
    let said = dir.run(&["--storage-opt", "size=64m", FLAGS[0], FLAGS[1]], &["/bin/guest"]).fails(125);
    assert!(said.contains("only the fuse driver keeps limits"), "{said}");
    let line = "mount -t tmpfs dev /mnt && for n in null zero full random urandom tty; do : > /mnt/$n; mount --bind /dev/$n /mnt/$n; done && mkdir /mnt/pts /mnt/shm && mount --rbind /mnt /dev && exec \"$@\"";
    let root = dir.text("root");
    let words = [&["run", "--rm"], &FLAGS[..], &["--rootfs", &root, "/bin/guest"]].concat();
    let said = Nested::new(&dir).verb(&words).shell(line).run(&dir).fails(125);
    assert!(said.contains("T1 kernel overlay on FUSE: ") && said.contains("open /dev/fuse"), "{said}");
}
