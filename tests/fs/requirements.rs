//! The guarantees of `docs/fuse-overlay.md`, each with the program that would break it. Names are the sentences.
//! They run as root of an ordinary user's namespace; those that need more than one id say so by `many_ids`.

use fs_tests::{Mounted, Stand, attributes, differences, many_ids, meta, program, tree, write};
use rustix::fs::{
    Advice, AtFlags, CWD, FallocateFlags, FlockOperation, Gid, Mode, OFlags, RenameFlags, StatxFlags,
    Timespec, Timestamps, Uid, XattrFlags, chownat, fadvise, fallocate, flock, lgetxattr, lsetxattr, openat,
    renameat_with, statx, utimensat,
};
use rustix::io::{Errno, pread, pwrite};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PAGE: usize = 4096;

fn read(path: impl AsRef<Path>) -> Vec<u8> {
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()))
}

fn read_write(path: &Path) -> fs::File {
    fs::OpenOptions::new().read(true).write(true).open(path).expect("a file can be opened for writing")
}

/// Does our namespace have more than one id? Tests of owners have nothing to say in one that has not.
#[test]
fn a_reader_that_opened_before_the_copy_up_never_sees_or_restores_what_the_lower_held() {
    let stand = Stand::new("coherence");
    write(stand.lower("f"), vec![b'A'; 64 * PAGE]);
    let mounted = stand.mount("");
    let reader = fs::File::open(stand.mnt("f")).expect("the file opens");
    let mut page = vec![0; PAGE];
    reader.read_exact_at(&mut page, 0).expect("a page is read");
    let writer = read_write(&stand.mnt("f"));
    writer.write_all_at(&vec![b'B'; 64 * PAGE], 0).expect("the file is written");
    writer.sync_all().expect("the file is synced");
    for file in [&reader, &writer] {
        fadvise(file, 0, None, Advice::DontNeed).expect("pages are dropped");
    }
    for file in [&reader, &writer] {
        file.read_exact_at(&mut page, 8 * PAGE as u64).expect("a page is read");
        assert!(page.iter().all(|byte| *byte == b'B'), "a stale page of the lower came back");
    }
    writer.write_all_at(&[b'C'; 10], 8 * PAGE as u64).expect("ten bytes are written");
    writer.sync_all().expect("the file is synced");
    drop((reader, writer, mounted));
    let upper = read(stand.upper("f"));
    assert!(!upper.contains(&b'A'), "lower data was written into the upper");
    assert_eq!(upper.iter().filter(|byte| **byte == b'C').count(), 10);
}

#[test]
fn times_before_1970_and_after_2262_do_not_end_the_server() {
    let stand = Stand::new("times");
    let times = [(-315_619_200, 500_000_000), (-1, 999_999_999), (0, 0), (9_300_000_000, 7)];
    for (index, (tv_sec, tv_nsec)) in times.into_iter().enumerate() {
        write(stand.lower(&format!("f{index}")), "x");
        let time = Timespec { tv_sec, tv_nsec };
        let both = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, stand.lower(&format!("f{index}")), &both, AtFlags::empty())
            .expect("the lower's time is set");
    }
    let _mounted = stand.mount("");
    for (index, (tv_sec, tv_nsec)) in times.into_iter().enumerate() {
        let lower = meta(stand.lower(&format!("f{index}")));
        let shown = meta(stand.mnt(&format!("f{index}")));
        assert_eq!((shown.mtime(), shown.mtime_nsec()), (lower.mtime(), lower.mtime_nsec()));
        write(stand.mnt("new"), "x");
        let time = Timespec { tv_sec, tv_nsec };
        let both = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, stand.mnt("new"), &both, AtFlags::empty()).expect("a time is set through the mount");
        let expected = meta(stand.lower(&format!("f{index}")));
        let upper = meta(stand.upper("new"));
        assert_eq!((upper.mtime(), upper.mtime_nsec()), (expected.mtime(), expected.mtime_nsec()));
    }
    for (tv_sec, tv_nsec) in [(i64::MIN, 0), (i64::MIN, 1), (i64::MAX, 999_999_999)] {
        let time = Timespec { tv_sec, tv_nsec };
        let _may_be_refused = utimensat(
            CWD,
            stand.mnt("new"),
            &Timestamps { last_access: time, last_modification: time },
            AtFlags::empty(),
        );
        meta(stand.mnt("new"));
    }
    // Nothing of it is known to the kernel, so the server must answer.
    write(stand.mnt("after"), "x");
}

#[test]
fn names_of_every_length_and_byte_are_ordinary_names() {
    let stand = Stand::new("names");
    let longest = "n".repeat(255);
    let names: [&[u8]; 6] = [longest.as_bytes(), b"\xff\xfe", b".wh.file", b".wh..wh..opq", b"a\nb", b" "];
    for name in names {
        write(stand.path("lower").join(OsStr::from_bytes(name)), "lower");
    }
    let _mounted = stand.mount(",ociwhiteouts=0");
    for name in names {
        let path = stand.path("mnt").join(OsStr::from_bytes(name));
        assert_eq!(read(&path), b"lower");
        write(&path, "upper");
        assert_eq!(read(&path), b"upper");
        fs::remove_file(&path).expect("a file is removed");
        assert!(!path.exists());
        write(&path, "again");
    }
    let listed: BTreeSet<_> = fs::read_dir(stand.path("mnt"))
        .expect("a directory is read")
        .flatten()
        .collect::<Vec<_>>()
        .iter()
        .map(fs::DirEntry::file_name)
        .collect();
    assert_eq!(listed.len(), names.len());
    let too_long = fs::File::create(stand.mnt(&"n".repeat(256)));
    assert_eq!(
        too_long.err().and_then(|error| error.raw_os_error()),
        Some(Errno::NAMETOOLONG.raw_os_error())
    );
}

fn entry_number(path: &Path) -> u64 {
    use std::os::unix::fs::DirEntryExt;
    let name = path.file_name().expect("a name");
    let entries = fs::read_dir(path.parent().expect("a parent")).expect("a directory is read");
    entries.flatten().find(|entry| entry.file_name() == name).expect("the entry is listed").ino()
}

#[test]
fn inode_numbers_are_equal_everywhere_and_stay_over_copy_up_rename_and_remount() {
    let stand = Stand::new("numbers");
    write(stand.lower("f"), "f");
    write(stand.path("lower2/g"), "g");
    symlink("f", stand.lower("s")).expect("a link is made");
    fs::create_dir_all(stand.lower("d/e")).expect("a directory is made");
    let names = ["f", "g", "s", "d", "d/e"];
    let mounted = stand.mount("");
    let before = names.map(|name| meta(stand.mnt(name)).ino());
    assert_eq!(before.iter().collect::<BTreeSet<_>>().len(), names.len());
    fs::OpenOptions::new()
        .append(true)
        .open(stand.mnt("f"))
        .and_then(|mut f| f.write_all(b"x"))
        .expect("an append");
    fs::set_permissions(stand.mnt("g"), fs::Permissions::from_mode(0o600)).expect("a chmod");
    let time = Timespec { tv_sec: 5, tv_nsec: 0 };
    let both = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, stand.mnt("s"), &both, AtFlags::SYMLINK_NOFOLLOW).expect("a link's time");
    write(stand.mnt("d/e/new"), "x");
    let check = |when: &str| {
        for (name, number) in names.iter().zip(before) {
            assert_eq!(meta(stand.mnt(name)).ino(), number, "{name} {when}");
            assert_eq!(entry_number(&stand.mnt(name)), number, "{name} in its directory {when}");
        }
    };
    check("after the copy-up");
    fs::rename(stand.mnt("f"), stand.mnt("f2")).expect("a rename");
    assert_eq!(meta(stand.mnt("f2")).ino(), before[0]);
    fs::rename(stand.mnt("f2"), stand.mnt("f")).expect("a rename");
    drop(mounted);
    let _again = stand.mount("");
    check("after a remount");
}

#[test]
fn hard_links_of_a_lower_stay_linked_over_copy_up_and_remount() {
    let stand = Stand::new("links");
    write(stand.lower("a"), "old");
    fs::hard_link(stand.lower("a"), stand.lower("b")).expect("a link");
    fs::hard_link(stand.lower("a"), stand.lower("c")).expect("a link");
    let mounted = stand.mount("");
    assert_eq!(meta(stand.mnt("a")).nlink(), 3);
    fs::OpenOptions::new()
        .append(true)
        .open(stand.mnt("b"))
        .and_then(|mut f| f.write_all(b" new"))
        .expect("an append");
    for name in ["a", "b", "c"] {
        assert_eq!(read(stand.mnt(name)), b"old new", "{name}");
        assert_eq!(meta(stand.mnt(name)).nlink(), 3, "{name}");
        assert_eq!(meta(stand.mnt(name)).ino(), meta(stand.mnt("a")).ino(), "{name}");
    }
    fs::remove_file(stand.mnt("b")).expect("an unlink");
    assert_eq!(meta(stand.mnt("c")).nlink(), 2);
    drop(mounted);
    let _again = stand.mount("");
    assert_eq!(read(stand.mnt("a")), b"old new");
    assert_eq!(meta(stand.mnt("c")).nlink(), 2);
    fs::rename(stand.mnt("c"), stand.mnt("d")).expect("a rename");
    assert_eq!(meta(stand.mnt("d")).ino(), meta(stand.mnt("a")).ino());
    fs::hard_link(stand.mnt("d"), stand.mnt("e")).expect("a link");
    assert_eq!(meta(stand.mnt("a")).nlink(), 3);
    assert_eq!(read(stand.lower("a")), b"old");
}

#[test]
fn a_file_without_a_name_stays_readable_and_writable() {
    let stand = Stand::new("unlinked");
    write(stand.lower("low"), "lower data");
    write(stand.lower("over"), "replaced");
    let _mounted = stand.mount("");
    write(stand.mnt("up"), "upper data");
    for (name, data) in [("low", "lower data"), ("up", "upper data")] {
        let file = read_write(&stand.mnt(name));
        fs::remove_file(stand.mnt(name)).expect("an unlink");
        let mut seen = vec![0; data.len()];
        file.read_exact_at(&mut seen, 0).expect("an unlinked file is read");
        assert_eq!(seen, data.as_bytes());
        file.write_all_at(b"LATER", 0).expect("an unlinked file is written");
        file.sync_all().expect("an unlinked file is synced");
        fadvise(&file, 0, None, Advice::DontNeed).expect("pages are dropped");
        file.read_exact_at(&mut seen, 0).expect("an unlinked file is read again");
        assert_eq!(&seen[..5], b"LATER");
        let stat = file.metadata().expect("an unlinked file has attributes");
        assert_eq!((stat.nlink(), stat.len()), (0, data.len() as u64), "{name}");
    }
    let replaced = fs::File::open(stand.mnt("over")).expect("the file opens");
    write(stand.mnt("new"), "new");
    fs::rename(stand.mnt("new"), stand.mnt("over")).expect("a rename");
    let mut seen = [0; 8];
    replaced.read_exact_at(&mut seen, 0).expect("a replaced file is read");
    assert_eq!(&seen, b"replaced");
    assert_eq!(read(stand.lower("low")), b"lower data");
}

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
fn a_rename_does_what_its_flags_say_and_a_lower_directory_is_another_device() {
    let stand = Stand::new("rename");
    fs::create_dir_all(stand.lower("dir")).expect("a directory");
    write(stand.lower("dir/x"), "x");
    write(stand.lower("a"), "a");
    write(stand.lower("b"), "b");
    let _mounted = stand.mount("");
    let rename = |from: &str, to: &str, flags| renameat_with(CWD, stand.mnt(from), CWD, stand.mnt(to), flags);
    assert_eq!(rename("a", "b", RenameFlags::NOREPLACE), Err(Errno::EXIST));
    rename("a", "b", RenameFlags::EXCHANGE).expect("an exchange");
    assert_eq!((read(stand.mnt("a")), read(stand.mnt("b"))), (b"b".to_vec(), b"a".to_vec()));
    rename("a", "c", RenameFlags::NOREPLACE).expect("a rename");
    assert!(!stand.mnt("a").exists());
    assert_eq!(rename("dir", "dir2", RenameFlags::empty()), Err(Errno::XDEV));
    assert_eq!(read(stand.mnt("dir/x")), b"x");
    let moved = Command::new("mv").arg(stand.mnt("dir")).arg(stand.mnt("dir2")).status().expect("mv starts");
    assert!(moved.success());
    assert_eq!(read(stand.mnt("dir2/x")), b"x");
    assert!(!stand.mnt("dir").exists());
}

#[test]
fn a_rename_between_two_names_of_one_file_does_nothing_and_succeeds() {
    let stand = Stand::new("same-file");
    write(stand.lower("a"), "a");
    let mut mounted = Some(stand.mount(""));
    fs::hard_link(stand.mnt("a"), stand.mnt("b")).expect("a link to a lower file");
    for when in ["after the link", "after a remount"] {
        for (from, to) in [("a", "b"), ("b", "a")] {
            for flags in [RenameFlags::empty(), RenameFlags::EXCHANGE] {
                let outcome = renameat_with(CWD, stand.mnt(from), CWD, stand.mnt(to), flags);
                assert_eq!(outcome, Ok(()), "{from} to {to}, {flags:?}, {when}");
            }
        }
        for name in ["a", "b"] {
            assert_eq!(read(stand.mnt(name)), b"a", "{name} {when}");
            assert_eq!(meta(stand.mnt(name)).nlink(), 2, "{name} {when}");
        }
        assert_eq!(meta(stand.mnt("a")).ino(), meta(stand.mnt("b")).ino(), "{when}");
        drop(mounted.take());
        mounted = Some(stand.mount(""));
    }
}

#[test]
fn the_open_flags_mean_what_they_mean_on_a_disk() {
    let stand = Stand::new("flags");
    write(stand.lower("f"), "0123456789");
    let _mounted = stand.mount("");
    let path = stand.mnt("f");
    let open = |flags| openat(CWD, &path, flags, Mode::from_raw_mode(0o644));
    assert_eq!(open(OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY).err(), Some(Errno::EXIST));
    let append = open(OFlags::APPEND | OFlags::WRONLY).expect("the file opens");
    rustix::io::write(&append, b"ab").expect("an append");
    assert_eq!(read(&path), b"0123456789ab");
    drop(open(OFlags::TRUNC | OFlags::WRONLY).expect("the file opens"));
    assert_eq!(read(&path), b"");
    let unnamed = openat(CWD, stand.path("mnt"), OFlags::TMPFILE | OFlags::RDWR, Mode::from_raw_mode(0o600));
    assert_eq!(unnamed.err(), Some(Errno::OPNOTSUPP), "O_TMPFILE is not there yet and says so");
    let (one, two) = (open(OFlags::RDWR).expect("a file"), open(OFlags::RDWR).expect("a file"));
    flock(&one, FlockOperation::NonBlockingLockExclusive).expect("a lock");
    assert_eq!(flock(&two, FlockOperation::NonBlockingLockExclusive), Err(Errno::AGAIN));
    fallocate(&one, FallocateFlags::empty(), 0, 8192).expect("an allocation");
    assert_eq!(meta(&path).len(), 8192);
    pwrite(&one, &[7; 8192], 0).expect("a write");
    fallocate(&one, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 4096).expect("a hole");
    let mut seen = [1; 8192];
    pread(&two, &mut seen, 0).expect("a read");
    assert!(seen[..4096].iter().all(|byte| *byte == 0) && seen[4096..].iter().all(|byte| *byte == 7));
}

#[test]
fn a_sparse_lower_file_is_sparse_in_the_upper() {
    let stand = Stand::new("sparse");
    let file = fs::File::create(stand.lower("f")).expect("a file");
    file.set_len(64 << 20).expect("a size");
    file.write_all_at(b"middle", 32 << 20).expect("a write");
    drop(file);
    let mounted = stand.mount("");
    fs::set_permissions(stand.mnt("f"), fs::Permissions::from_mode(0o600)).expect("a chmod");
    drop(mounted);
    let (upper, lower) = (meta(stand.upper("f")), meta(stand.lower("f")));
    assert_eq!(upper.len(), lower.len());
    assert!(upper.blocks() <= lower.blocks() + 16, "{} blocks from {}", upper.blocks(), lower.blocks());
    assert!(read(stand.upper("f")) == read(stand.lower("f")));
}

#[test]
fn a_truncation_to_nothing_and_a_removal_copy_nothing() {
    let stand = Stand::new("no-copy");
    for name in ["cut", "gone", "over"] {
        fs::File::create(stand.lower(name))
            .and_then(|file| file.write_all_at(&vec![1; 8 << 20], 0))
            .expect("a big file");
    }
    let stats = stand.path("stats");
    let mounted = stand.mount("");
    let before = fs::metadata("/proc/self/io").is_ok();
    assert!(before, "procfs is mounted");
    drop(fs::OpenOptions::new().write(true).truncate(true).open(stand.mnt("cut")).expect("the file opens"));
    fs::remove_file(stand.mnt("gone")).expect("an unlink");
    write(stand.mnt("new"), "x");
    fs::rename(stand.mnt("new"), stand.mnt("over")).expect("a rename");
    drop(mounted);
    let used: u64 = tree(&stand.path("upper")).values().map(|facts| facts.size).sum();
    assert!(used < 4096, "{used} bytes are in the upper");
    assert!(!stats.exists());
}

#[test]
fn every_entry_is_listed_once_while_others_come_and_go() {
    let stand = Stand::new("listing");
    for i in 0..3000 {
        write(stand.lower(&format!("l{i}")), "");
    }
    let _mounted = stand.mount("");
    let mut seen = Vec::new();
    for (count, entry) in fs::read_dir(stand.path("mnt")).expect("a directory").enumerate() {
        let name = entry.expect("an entry").file_name().into_string().expect("a plain name");
        if count % 3 == 0 {
            write(stand.mnt(&format!("new{count}")), "");
        }
        if name.starts_with('l') && count % 2 == 0 {
            fs::remove_file(stand.mnt(&name)).expect("an unlink");
        }
        seen.push(name);
    }
    let lower: Vec<_> = seen.iter().filter(|name| name.starts_with('l')).collect();
    assert_eq!(lower.len(), 3000, "each file that was there is seen");
    assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), seen.len(), "no name is seen twice");
    let removed = Command::new("rm")
        .arg("-rf")
        .args(fs::read_dir(stand.path("mnt")).expect("a directory").flatten().map(|entry| entry.path()))
        .status()
        .expect("rm starts");
    assert!(removed.success());
    assert_eq!(fs::read_dir(stand.path("mnt")).expect("a directory").count(), 0);
}

#[test]
fn a_hundred_thousand_entries_are_listed() {
    let stand = Stand::new("many");
    fs::create_dir(stand.lower("d")).expect("a directory");
    write(stand.lower("seed"), "");
    // ext4 allows 65,000 links to one file; two seeds make the names cheaply.
    write(stand.lower("seed2"), "");
    for i in 0..100_000 {
        let seed = if i < 50_000 { "seed" } else { "seed2" };
        fs::hard_link(stand.lower(seed), stand.lower(&format!("d/{i}"))).expect("a link");
    }
    let _mounted = stand.mount("");
    let names: BTreeSet<_> =
        fs::read_dir(stand.mnt("d")).expect("a directory").flatten().map(|e| e.file_name()).collect();
    assert_eq!(names.len(), 100_000);
}

#[test]
fn marks_of_the_overlay_are_hidden_and_a_users_own_are_kept() {
    let stand = Stand::new("xattr");
    write(stand.lower("f"), "x");
    lsetxattr(stand.lower("f"), "user.low", b"1", XattrFlags::empty()).expect("an attribute");
    let mounted = stand.mount("");
    let path = stand.mnt("f");
    let set = |name: &str, value: &[u8], flags| lsetxattr(&path, name, value, flags);
    set("user.overlay.opaque", b"mine", XattrFlags::empty()).expect("an attribute of an inner overlay");
    set("user.big", &vec![b'v'; 2000], XattrFlags::CREATE).expect("a big attribute");
    assert_eq!(set("user.big", b"", XattrFlags::CREATE), Err(Errno::EXIST));
    assert_eq!(set("user.none", b"", XattrFlags::REPLACE), Err(Errno::NODATA));
    assert_eq!(lgetxattr(&path, "user.big", &mut [0u8; 10]), Err(Errno::RANGE));
    assert_eq!(lgetxattr(&path, "user.none", &mut [0u8; 10]), Err(Errno::NODATA));
    let names: Vec<_> =
        attributes(&path).into_iter().map(|(name, _)| String::from_utf8_lossy(&name).into_owned()).collect();
    assert_eq!(names, ["user.big", "user.low", "user.overlay.opaque"]);
    rustix::fs::lremovexattr(&path, "user.low").expect("a removal");
    drop(mounted);
    let stored: Vec<_> = attributes(&stand.upper("f")).into_iter().map(|(name, _)| name).collect();
    assert!(stored.contains(&b"user.overlay.overlay.opaque".to_vec()));
    assert!(!stored.contains(&b"user.overlay.opaque".to_vec()));
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

#[test]
fn a_quota_is_enforced_and_seen_and_gives_space_back() {
    let stand = Stand::new("quota");
    write(stand.lower("f"), "x");
    let _mounted = stand.mount(",size=4194304,inodes=20");
    let stat = rustix::fs::statvfs(stand.path("mnt")).expect("a statvfs");
    assert_eq!(stat.f_blocks * stat.f_frsize, 4 << 20);
    let file = fs::File::create(stand.mnt("big")).expect("a file");
    let written = (0..16).map_while(|i| file.write_all_at(&vec![1; 1 << 20], i << 20).ok()).count();
    assert!((2..=4).contains(&written), "{written} MiB fit into 4");
    let full = file.write_all_at(&vec![1; 1 << 20], 8 << 20).err().and_then(|error| error.raw_os_error());
    assert_eq!(full, Some(Errno::DQUOT.raw_os_error()));
    drop(file);
    fs::remove_file(stand.mnt("big")).expect("an unlink");
    write(stand.mnt("big"), vec![2; 2 << 20]);
    let made = (0..100).map_while(|i| fs::create_dir(stand.mnt(&format!("d{i}"))).ok()).count();
    assert!(made < 20, "{made} directories fit into 20 inodes");
}

#[test]
fn a_throttled_mount_answers_metadata_at_once() {
    let stand = Stand::new("throttle");
    write(stand.lower("slow"), vec![1; 4 << 20]);
    write(stand.lower("other"), "x");
    let _mounted = stand.mount(",read_bps=2000000");
    let slow = stand.mnt("slow");
    let started = Instant::now();
    let reader = std::thread::spawn(move || read(slow).len());
    let mut longest = Duration::ZERO;
    while !reader.is_finished() {
        let asked = Instant::now();
        let _missing = stand.mnt(&format!("no{}", asked.duration_since(started).as_nanos())).exists();
        longest = longest.max(asked.elapsed());
        std::thread::yield_now();
    }
    assert_eq!(reader.join().expect("the reader ends"), 4 << 20);
    assert!(started.elapsed() > Duration::from_millis(1500), "4 MiB at 2 MB/s took {:?}", started.elapsed());
    assert!(longest < Duration::from_millis(900), "a lookup waited {longest:?} for somebody's data");
}

#[test]
fn a_second_mount_of_the_same_upper_is_refused_with_a_sentence() {
    let stand = Stand::new("second");
    let _mounted = stand.mount("");
    let other = stand.path("mnt2");
    fs::create_dir(&other).expect("a directory");
    let output = Command::new(program())
        .args(["-o", &stand.layers()])
        .arg(&other)
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("in use by another mount"), "{said}");
}

#[test]
fn what_cannot_be_mounted_is_said_in_a_sentence_and_nothing_is_touched() {
    let stand = Stand::new("refused");
    let dir = stand.dir.display();
    let cases = [
        (
            format!("lowerdir={dir}/none,upperdir={dir}/upper,workdir={dir}/work"),
            "cannot open the lower layer",
        ),
        (format!("lowerdir={dir}/lower,upperdir={dir}/upper"), "workdir= is missing"),
        (format!("lowerdir={dir}/lower,upperdir={dir}/upper,workdir={dir}/upper"), "cannot be both"),
        (format!("lowerdir={dir}/lower,upperdir={dir}/upper,workdir=/dev/shm"), "another file system"),
        (format!("lowerdir={dir}/lower,upperdri={dir}/upper"), "upperdri is not known"),
        (format!("upperdir={dir}/upper,workdir={dir}/work"), "no lower layer"),
    ];
    for (options, sentence) in cases {
        let (mounted, said) = stand.attempt(&options);
        assert!(!mounted && said.contains(sentence), "{options}: {said}");
        for part in ["upper", "work"] {
            assert_eq!(
                fs::read_dir(stand.path(part)).expect("a directory").count(),
                0,
                "{options} wrote into {part}"
            );
        }
    }
}

#[test]
fn a_killed_server_leaves_a_mount_that_fails_fast_and_an_upper_that_mounts_again() {
    let stand = Stand::new("killed");
    write(stand.lower("f"), "x");
    let mounted = stand.mount("");
    write(stand.mnt("new"), "kept");
    fs::File::open(stand.mnt("new")).and_then(|file| file.sync_all()).expect("a sync");
    stand.signal(Signal::KILL);
    let deadline = Instant::now() + Duration::from_secs(10);
    while statx(CWD, stand.mnt("g"), AtFlags::empty(), StatxFlags::BASIC_STATS).err() != Some(Errno::NOTCONN)
    {
        assert!(Instant::now() < deadline, "the mount hangs");
    }
    drop(mounted);
    let _again = stand.mount("");
    assert_eq!(read(stand.mnt("new")), b"kept");
}

#[test]
fn descriptors_and_memory_stay_bounded_however_many_files_are_touched() {
    let stand = Stand::new("bounds");
    for d in 0..60 {
        fs::create_dir(stand.lower(&format!("d{d}"))).expect("a directory");
        (0..200).for_each(|f| write(stand.lower(&format!("d{d}/f{f}")), vec![1; 5000]));
    }
    let _mounted = stand.mount("");
    for facts in tree(&stand.path("mnt")).values() {
        assert!(facts.size <= 5000);
    }
    let server = stand.servers().pop().expect("a server runs");
    let open = fs::read_dir(format!("/proc/{server}/fd")).expect("procfs").count();
    assert!(open < 9000, "{open} descriptors are open after 12,000 files");
}

#[test]
fn a_volatile_mount_leaves_the_kernels_mark_and_is_not_taken_for_a_whole_one() {
    let stand = Stand::new("volatile");
    drop(stand.mount(",volatile"));
    assert!(stand.path("work/work/incompat/volatile").is_dir());
    let (mounted, said) = stand.attempt(&stand.layers());
    assert!(!mounted && said.contains("volatile"), "{said}");
    drop(stand.mount(",volatile"));
}

#[test]
fn a_raw_layers_whiteouts_hide_and_its_marks_are_not_shown() {
    let stand = Stand::new("raw");
    for part in ["lower", "lower2"] {
        fs::create_dir(stand.path(part).join("d")).expect("a directory");
    }
    write(stand.path("lower2/gone"), "x");
    write(stand.path("lower2/d/old"), "x");
    write(stand.lower(".wh.gone"), "");
    write(stand.lower("d/.wh..wh..opq"), "");
    write(stand.lower("d/new"), "x");
    let _mounted = stand.mount("");
    let names: Vec<_> = tree(&stand.path("mnt")).into_keys().map(|path| path.display().to_string()).collect();
    assert_eq!(names, ["", "d", "d/new"]);
}

#[test]
fn a_symlink_of_a_layer_leads_nowhere_but_where_the_caller_stands() {
    let stand = Stand::new("escape");
    symlink("/etc", stand.lower("etc")).expect("a link");
    symlink("../../..", stand.lower("up")).expect("a link");
    fs::create_dir(stand.path("lower2/up")).expect("a directory");
    let _mounted = stand.mount("");
    assert!(meta(stand.mnt("etc")).is_symlink() && meta(stand.mnt("up")).is_symlink());
    assert_eq!(fs::read_link(stand.mnt("up")).expect("a link"), Path::new("../../.."));
}

fn shell(stand: &Stand, script: &str) {
    let output = Command::new("sh")
        .args(["-eu", "-c", script])
        .current_dir(stand.path("mnt"))
        .output()
        .expect("sh starts");
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_build_like_load_leaves_the_lower_as_it_was() {
    let stand = Stand::new("load");
    let copied =
        Command::new("cp").args(["-r", "/usr/share/perl", "/usr/bin/env"]).arg(stand.path("lower")).status();
    assert!(copied.expect("cp starts").success());
    let before = tree(&stand.path("lower"));
    let mounted: Mounted = stand.mount("");
    shell(
        &stand,
        "chmod -R u+w . && tar cf - perl | (mkdir copy && cd copy && tar xf -) && diff -r perl copy/perl",
    );
    shell(
        &stand,
        "find perl -name '*.pm' -exec sed -i 's/use strict/use STRICT/' {} + && rm -rf copy && cp -r perl p2",
    );
    shell(
        &stand,
        "cp env env2 && ./env2 true && mv p2 p3 && rm -rf perl && mkdir perl && ls -A perl | wc -l | grep -qx 0",
    );
    drop(mounted);
    let touched = differences(&before, &tree(&stand.path("lower")));
    assert!(touched.is_empty(), "{touched:?}");
}

#[test]
fn a_lower_tree_is_removed_while_earlier_removals_are_settled() {
    let stand = Stand::new("settling");
    for d in 0..400 {
        fs::create_dir_all(stand.lower(&format!("t{}/d{d}/x", d % 4))).expect("a directory");
        ["a", "b"].iter().for_each(|f| write(stand.lower(&format!("t{}/d{d}/x/{f}", d % 4)), "x"));
    }
    let mounted = stand.mount("");
    // A removal half done when the settling thread runs: the pause lets it run between the two.
    for t in 0..4 {
        let half = format!("rm -rf t{t}/d{t}/x/a t{t}/d1* && sleep 0.45 && rm -rf t{t}");
        shell(&stand, &half);
    }
    assert_eq!(fs::read_dir(stand.path("mnt")).expect("a directory").count(), 0);
    drop(mounted);
    let _again = stand.mount("");
    assert_eq!(
        fs::read_dir(stand.path("mnt")).expect("a directory").count(),
        0,
        "the removals reached the upper"
    );
}

#[test]
fn a_near_mount_serves_one_program_and_then_several_and_ends_with_the_mount() {
    let stand = Stand::new("near");
    let mounted = stand.mount(",near,threads=2");
    let create = |prefix: &str| {
        (0..2000).for_each(|i| write(stand.mnt(&format!("{prefix}{i}")), b"x"));
    };
    create("alone");
    std::thread::scope(|scope| {
        for prefix in ["a", "b", "c", "d"] {
            scope.spawn(move || create(prefix));
        }
    });
    create("again");
    assert_eq!(fs::read_dir(stand.mnt("")).expect("the root is read").count(), 12_000);
    drop(mounted);
    assert!(!fs_tests::is_leased(&stand.path("work")), "the server still holds the upper");
}

#[test]
fn each_test_that_the_guide_names_exists() {
    let guide = include_str!("../../docs/fuse-overlay.md");
    let sources = [
        include_str!("requirements.rs"),
        include_str!("files.rs"),
        include_str!("moves.rs"),
        include_str!("faults.rs"),
        include_str!("below.rs"),
        include_str!("../../fuse-overlay/src/transport/translate.rs"),
        include_str!("../../fuse-overlay/src/listing.rs"),
        include_str!("../../fuse-overlay/src/number.rs"),
        include_str!("../../fuse-overlay/src/xattr.rs"),
    ];
    let sentences =
        guide.split('`').filter(|word| word.matches('_').count() > 3 && !word.contains([' ', '/', '=']));
    let mut count = 0;
    for sentence in sentences {
        let line = format!("fn {sentence}()");
        assert!(sources.iter().any(|source| source.contains(&line)), "{sentence} is no test");
        count += 1;
    }
    assert!(count >= 40, "{count} are named");
}
