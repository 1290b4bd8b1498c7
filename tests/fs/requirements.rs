//! The guarantees of `docs/fuse-overlay.md`, each with the program that would break it. Names are the sentences.
//! They run as root of an ordinary user's namespace; those that need more than one id say so by `many_ids`.

use fs_tests::{Mounted, Stand, attributes, differences, meta, read, read_write, tree, write};
use rustix::fs::{
    Advice, AtFlags, CWD, FallocateFlags, FlockOperation, Mode, OFlags, RenameFlags, Timespec, Timestamps,
    XattrFlags, fadvise, fallocate, flock, lgetxattr, lsetxattr, openat, renameat_with, utimensat,
};
use rustix::io::{Errno, pread, pwrite};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

const PAGE: usize = 4096;

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
fn each_test_that_the_guide_names_exists() {
    let guide = include_str!("../../docs/fuse-overlay.md");
    let sources = [
        include_str!("requirements.rs"),
        include_str!("owners.rs"),
        include_str!("mounting.rs"),
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
