//! Whose files are on a mount, and what that lets whom do: real owners, recorded and squashed ones, the machine's own files,
//! and the bits that a change of owner or content takes away.

use fs_tests::{Stand, attributes, many_ids, meta, read, read_write, write};
use rustix::fs::{AtFlags, CWD, Gid, Uid, chownat};
use rustix::io::Errno;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

#[test]
fn set_user_id_bits_go_on_write_truncate_and_chown() {
    let stand = Stand::new("suid");
    let _mounted = stand.mount("");
    let path = stand.mnt("f");
    let mode = |path: &Path| meta(path).mode() & 0o7777;
    let changes: [(&str, &dyn Fn()); 3] = [
        ("write", &|| read_write(&path).write_all_at(b"x", 0).expect("a write")),
        ("truncate", &|| read_write(&path).set_len(1).expect("a truncation")),
        ("chown", &|| {
            let own = (Some(Uid::from_raw(0)), Some(Gid::from_raw(0)));
            chownat(CWD, &path, own.0, own.1, AtFlags::empty()).expect("a chown");
        }),
    ];
    for (name, change) in changes {
        write(&path, "abc");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o6755)).expect("a chmod");
        assert_eq!(mode(&path), 0o6755);
        change();
        assert_eq!(mode(&path), 0o755, "{name} through the mount");
        assert_eq!(mode(&stand.upper("f")), 0o755, "{name} in the upper");
    }
}

#[test]
fn owners_are_real_where_there_are_ids() {
    if !many_ids() {
        return;
    }
    let stand = Stand::new("owners");
    write(stand.lower("f"), "x");
    symlink("f", stand.lower("s")).expect("a link");
    let _mounted = stand.mount("");
    for name in ["f", "s"] {
        let owner = (Some(Uid::from_raw(7)), Some(Gid::from_raw(8)));
        chownat(CWD, stand.mnt(name), owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW).expect("a chown");
        assert_eq!((meta(stand.mnt(name)).uid(), meta(stand.mnt(name)).gid()), (7, 8));
        assert_eq!((meta(stand.upper(name)).uid(), meta(stand.upper(name)).gid()), (7, 8));
    }
}

#[test]
fn recorded_owners_live_in_the_attribute_and_survive_a_remount() {
    let stand = Stand::new("recorded");
    write(stand.lower("f"), "x");
    let mounted = stand.mount(",xattr_permissions=2");
    let own = |name: &str| (meta(stand.mnt(name)).uid(), meta(stand.mnt(name)).gid());
    symlink("f", stand.mnt("s")).expect("a link");
    if many_ids() {
        for name in ["f", "s"] {
            let owner = (Some(Uid::from_raw(7)), Some(Gid::from_raw(8)));
            chownat(CWD, stand.mnt(name), owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW).expect("a chown");
            assert_eq!(own(name), (7, 8), "{name}");
            assert_eq!(meta(stand.upper(name)).uid(), 0, "the real file stays ours");
        }
    }
    let owner = own("f");
    fs::set_permissions(stand.mnt("f"), fs::Permissions::from_mode(0o640)).expect("a chmod");
    assert_eq!(own("f"), owner, "chmod leaves the owner alone");
    let text =
        attributes(&stand.upper("f")).into_iter().find(|(name, _)| name == b"user.containers.override_stat");
    let expected = format!("{}:{}:0640:file", owner.0, owner.1);
    assert_eq!(text.map(|(_, value)| String::from_utf8_lossy(&value).into_owned()), Some(expected));
    assert!(attributes(&stand.mnt("f")).is_empty(), "the record is hidden");
    let link = own("s");
    drop(mounted);
    let _again = stand.mount(",xattr_permissions=2");
    assert_eq!((own("f"), own("s")), (owner, link));
}

#[test]
fn squashed_owners_are_shown_as_one() {
    let stand = Stand::new("squash");
    write(stand.lower("f"), "x");
    let _mounted = stand.mount(",squash_to_uid=0,squash_to_gid=0");
    assert_eq!((meta(stand.mnt("f")).uid(), meta(stand.mnt("f")).gid()), (0, 0));
    write(stand.mnt("new"), "x");
    assert_eq!(meta(stand.mnt("new")).uid(), 0);
}

#[test]
fn files_of_the_machine_belong_to_the_containers_root_and_stay_as_they_are() {
    let stand = Stand::new("machine");
    let dir = stand.dir.display();
    let options = format!(
        "lowerdir=/,upperdir={dir}/upper,workdir={dir}/work,squash_unmapped=0:0,xdev,exclude=root:home"
    );
    let (mounted, said) = stand.attempt(&options);
    assert!(mounted, "{said}");
    assert_eq!(meta(stand.mnt("etc/passwd")).uid(), 0);
    assert!(meta("/etc/passwd").uid() != 0, "the namespace cannot name the machine's root");
    assert_eq!(
        fs::read_dir(stand.mnt("proc")).expect("a directory").count(),
        0,
        "other mounts show as empty"
    );
    assert!(!stand.mnt("root").exists() && !stand.mnt("home").exists());
    let shadow = fs::read(stand.mnt("etc/shadow")).err().and_then(|error| error.raw_os_error());
    assert_eq!(shadow, Some(Errno::ACCESS.raw_os_error()), "what we may not read stays unreadable");
    fs::remove_file(stand.mnt("etc/shadow")).expect("it can be replaced");
    write(stand.mnt("etc/shadow"), "root:*:1::::::\n");
    fs::OpenOptions::new()
        .append(true)
        .open(stand.mnt("etc/passwd"))
        .and_then(|mut f| f.write_all(b"x\n"))
        .expect("an edit");
    assert_eq!(meta(stand.mnt("etc/passwd")).uid(), 0);
    let removed = Command::new("rm").arg("-rf").arg(stand.mnt("usr/share/perl")).status().expect("rm starts");
    assert!(removed.success() && !stand.mnt("usr/share/perl").exists());
    assert!(Path::new("/usr/share/perl").exists());
    rustix::mount::unmount(stand.path("mnt"), rustix::mount::UnmountFlags::DETACH).expect("an unmount");
}

#[test]
fn other_users_see_the_same_permissions_before_and_after_a_copy_up() {
    if !many_ids() {
        return;
    }
    let stand = Stand::new("permissions");
    fs::create_dir(stand.lower("private")).expect("a directory");
    write(stand.lower("private/f"), "x");
    write(stand.lower("mine"), "x");
    fs::set_permissions(stand.lower("private"), fs::Permissions::from_mode(0o700)).expect("a chmod");
    fs::set_permissions(stand.lower("mine"), fs::Permissions::from_mode(0o600)).expect("a chmod");
    fs::set_permissions(&stand.dir, fs::Permissions::from_mode(0o755)).expect("a chmod");
    let _mounted = stand.mount("");
    let as_other = |name: &str| {
        let path = stand.mnt(name);
        let arguments = ["--reuid=5", "--regid=5", "--clear-groups", "cat"];
        let status = Command::new("setpriv")
            .args(arguments)
            .arg(path)
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .status();
        status.expect("setpriv starts").success()
    };
    assert_eq!(read(stand.mnt("private/f")), b"x", "the caches are warm");
    assert!(!as_other("private/f") && !as_other("mine"));
    for name in ["private/f", "mine"] {
        fs::OpenOptions::new()
            .append(true)
            .open(stand.mnt(name))
            .and_then(|mut f| f.write_all(b"y"))
            .expect("an append");
    }
    assert!(!as_other("private/f") && !as_other("mine"));
    fs::set_permissions(stand.mnt("mine"), fs::Permissions::from_mode(0o644)).expect("a chmod");
    assert!(as_other("mine"));
}
