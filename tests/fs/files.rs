//! What a program may do with a file of the mount, beside the same on a disk: permissions, lists of them, times, maps,
//! and what it is told when the layer below is full. Where a disk is the measure, the same commands run in a plain
//! directory and both outcomes are compared.

use fs_tests::{Stand, attributes, is_leased, many_ids, meta, write};
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags, copy_file_range,
    lgetxattr, lsetxattr, openat, utimensat,
};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::time::{ClockId, clock_gettime};
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PAGE: usize = 4096;
const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
const NOBODY: u32 = u32::MAX;

/// A list as `system.posix_acl_*` holds it: tag, permissions, id.
fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        list.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
        list.extend(id.to_le_bytes());
    }
    list
}

/// Owner rw, user `id` as said, group nothing, the mask of the user's, others nothing.
fn list_for(id: u32, permissions: u16) -> Vec<u8> {
    list(&[(1, 6, NOBODY), (2, permissions, id), (4, 0, NOBODY), (16, permissions, NOBODY), (32, 0, NOBODY)])
}

fn attribute(path: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    let mut value = [0; 256];
    lgetxattr(path, name, &mut value).map(|length| value[..length].to_vec())
}

fn succeeds_as(id: u32, arguments: &[&str], path: &Path) -> bool {
    let id = id.to_string();
    let status = Command::new("setpriv")
        .args(["--reuid", &id, "--regid", &id, "--clear-groups"])
        .args(arguments)
        .arg(path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.expect("setpriv starts").success()
}

#[test]
fn an_access_control_list_of_a_lower_holds_and_is_copied_up() {
    let stand = Stand::new("acl");
    let named = if many_ids() { 5 } else { 0 };
    write(stand.lower("f"), "x");
    fs::set_permissions(stand.lower("f"), fs::Permissions::from_mode(0o600)).expect("a chmod");
    lsetxattr(stand.lower("f"), ACCESS, &list_for(named, 4), XattrFlags::empty()).expect("a list");
    fs::set_permissions(&stand.dir, fs::Permissions::from_mode(0o755)).expect("a chmod");
    let _mounted = stand.mount("");
    let path = stand.mnt("f");
    let holds = |when: &str| {
        assert_eq!(attribute(&path, ACCESS), Ok(list_for(named, 4)), "{when}");
        assert_eq!(meta(&path).mode() & 0o777, 0o640, "{when}");
        if many_ids() {
            assert!(succeeds_as(5, &["cat"], &path), "whom the list names may read, {when}");
            assert!(!succeeds_as(6, &["cat"], &path), "another may not, {when}");
            assert!(!succeeds_as(5, &["truncate", "-s", "0"], &path), "nor may it be written, {when}");
        }
    };
    holds("in the lower");
    fs::OpenOptions::new().append(true).open(&path).and_then(|mut f| f.write_all(b"y")).expect("an append");
    holds("in the upper");
    assert_eq!(attribute(&stand.upper("f"), ACCESS), Ok(list_for(named, 4)));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a chmod");
    if many_ids() {
        assert!(!succeeds_as(5, &["cat"], &path), "a chmod changes what the list grants at most");
    }
    rustix::fs::lremovexattr(&path, ACCESS).expect("the list is removed");
    assert_eq!(attribute(&path, ACCESS), Err(Errno::NODATA));
    rustix::fs::lremovexattr(&path, ACCESS).expect("a list that is not there is removed");
}

/// Runs the script in a plain directory and in the mount, each with a folder `d` whose list for new files names `id`,
/// and compares every path's mode and lists.
fn behaves_as_on_a_disk(stand: &Stand, script: &str) {
    let facts = |at: &Path| {
        let listed = Command::new("find").args([".", "-printf", "%P\\n"]).current_dir(at).output();
        let text = String::from_utf8(listed.expect("find starts").stdout).expect("plain names");
        let mut paths: Vec<PathBuf> = text.lines().map(PathBuf::from).collect();
        paths.sort();
        let of = |path: &PathBuf| {
            let real = at.join(path);
            let lists = [ACCESS, DEFAULT].map(|name| attribute(&real, name).unwrap_or_default());
            (path.clone(), format!("{:o} {}", meta(&real).mode(), meta(&real).gid()), lists)
        };
        paths.iter().map(of).collect::<Vec<_>>()
    };
    let outcomes = [stand.path("plain"), stand.path("mnt")].map(|at| {
        let ran =
            Command::new("sh").args(["-eu", "-c", script]).current_dir(&at).output().expect("sh starts");
        assert!(ran.status.success(), "{script}: {}", String::from_utf8_lossy(&ran.stderr));
        facts(&at)
    });
    for (plain, mounted) in outcomes[0].iter().zip(&outcomes[1]) {
        assert_eq!(plain, mounted, "{script}");
    }
    assert_eq!(outcomes[0].len(), outcomes[1].len(), "{script}");
}

#[test]
fn new_files_get_what_the_umask_or_the_folders_list_leaves_them_as_on_a_disk() {
    let stand = Stand::new("umask");
    let named = if many_ids() { 5 } else { 0 };
    let default = list(&[(1, 7, NOBODY), (2, 5, named), (4, 5, NOBODY), (16, 7, NOBODY), (32, 1, NOBODY)]);
    fs::create_dir(stand.path("plain")).expect("a directory");
    for at in ["plain", "lower"].map(|part| stand.path(part)) {
        for folder in ["d", "plain"] {
            fs::create_dir(at.join(folder)).expect("a directory");
            for name in ["gone", "gone-too"] {
                write(at.join(folder).join(name), "x");
            }
            fs::create_dir(at.join(folder).join("was")).expect("a directory");
        }
        lsetxattr(at.join("d"), DEFAULT, &default, XattrFlags::empty()).expect("a list");
    }
    let _mounted = stand.mount("");
    for folder in ["d", "plain"] {
        let script =
            "cd FOLDER; umask 0137; echo x >new; mkdir dir; echo x >dir/inside; mknod pipe p; ln -s new link
            umask 0027; echo x >other; mkdir -m 1777 open; rm -r gone gone-too was
            umask 0077; echo x >gone; mkdir gone-too was; echo x >was/inside; mkdir sub; mkdir sub/sub
            cp -p other kept; chmod 640 new; chmod g+s sub; echo x >sub/file; mkdir sub/more";
        behaves_as_on_a_disk(&stand, &script.replace("FOLDER", folder));
    }
    let mounted = stand.mnt("d");
    rustix::fs::removexattr(&mounted, DEFAULT).expect("the list is removed");
    rustix::fs::removexattr(stand.path("plain").join("d"), DEFAULT).expect("the list is removed");
    behaves_as_on_a_disk(&stand, "cd d; umask 0022; echo x >last; mkdir last-too");
}

#[test]
fn without_access_control_lists_none_is_shown() {
    let stand = Stand::new("noacl");
    write(stand.lower("f"), "x");
    lsetxattr(stand.lower("f"), ACCESS, &list_for(0, 4), XattrFlags::empty()).expect("a list");
    let _mounted = stand.mount(",noacl");
    assert_eq!(attribute(&stand.mnt("f"), ACCESS), Err(Errno::OPNOTSUPP));
    assert!(attributes(&stand.mnt("f")).is_empty());
}

#[test]
fn a_files_capabilities_go_with_its_first_write() {
    let stand = Stand::new("capability");
    // Revision 2, effective, CAP_NET_RAW; the kernel makes it one of this namespace.
    let capability = [1u8, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let name = "security.capability";
    write(stand.lower("low"), "x");
    lsetxattr(stand.lower("low"), name, &capability, XattrFlags::empty()).expect("a capability");
    let _mounted = stand.mount("");
    write(stand.mnt("up"), "x");
    lsetxattr(stand.mnt("up"), name, &capability, XattrFlags::empty()).expect("a capability");
    for file in ["low", "up"] {
        let path = stand.mnt(file);
        assert!(attribute(&path, name).is_ok(), "{file} has its capability");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("a chmod");
        assert!(attribute(&path, name).is_ok(), "a chmod leaves it to {file}");
        fs::OpenOptions::new().append(true).open(&path).and_then(|mut f| f.write_all(b"y")).expect("a write");
        assert_eq!(attribute(&path, name), Err(Errno::NODATA), "{file} through the mount");
        assert_eq!(attribute(&stand.upper(file), name), Err(Errno::NODATA), "{file} in the upper");
    }
}

#[test]
fn a_map_of_a_lower_file_shows_what_is_written_and_what_is_written_to_it_is_kept() {
    let stand = Stand::new("map");
    for name in ["shared", "seen"] {
        write(stand.lower(name), vec![b'A'; 4 * PAGE]);
    }
    let mounted = stand.mount("");
    let script = "
import mmap, os
seen, other = (os.open('seen', os.O_RDONLY), os.open('seen', os.O_RDWR))
view = mmap.mmap(seen, 16384, prot=mmap.PROT_READ)
assert view[4096:4097] == b'A'
os.pwrite(other, b'B' * 4096, 4096)
assert view[4096:4097] == b'B', 'a map shows what was written after it was made'
both = mmap.mmap(os.open('shared', os.O_RDWR), 16384)
both[8192:8193] = b'C'
both.flush()";
    let ran = Command::new("python3").args(["-c", script]).current_dir(stand.path("mnt")).output();
    let ran = ran.expect("python3 starts");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    drop(mounted);
    let upper = fs::read(stand.upper("shared")).expect("the file was copied up");
    assert_eq!((upper.len(), upper[2 * PAGE], upper[0]), (4 * PAGE, b'C', b'A'));
    assert!(fs::read(stand.lower("shared")).expect("a file").iter().all(|byte| *byte == b'A'));
}

#[test]
fn a_program_that_was_replaced_runs_as_what_it_is_now() {
    let stand = Stand::new("exec");
    fs::copy("/bin/true", stand.lower("program")).expect("a program");
    let _mounted = stand.mount("");
    let run = || Command::new(stand.mnt("program")).status().expect("it starts").success();
    assert!(run());
    // In place, by another process: a child that another test starts just now would hold a file of ours open for writing.
    let copied = Command::new("cp").arg("/bin/false").arg(stand.mnt("program")).status();
    assert!(copied.expect("cp starts").success());
    assert!(!run());
}

#[test]
fn direct_reads_and_copies_of_ranges_see_what_was_just_written() {
    let stand = Stand::new("ranges");
    write(stand.lower("f"), vec![b'A'; 4 * PAGE]);
    let _mounted = stand.mount("");
    let open = |name: &str, flags| {
        openat(CWD, stand.mnt(name), flags | OFlags::CREATE, Mode::from_raw_mode(0o600)).expect("it opens")
    };
    let (file, copy) = (open("f", OFlags::RDWR), open("copy", OFlags::RDWR));
    rustix::io::pwrite(&file, &[b'B'; PAGE], 0).expect("a write");
    let copied = copy_file_range(&file, Some(&mut 0), &copy, Some(&mut 0), 2 * PAGE).expect("a copy");
    let mut seen = vec![0; copied];
    rustix::io::pread(&copy, &mut seen, 0).expect("a read");
    assert!(seen[..PAGE.min(copied)].iter().all(|byte| *byte == b'B'), "the copy has what was written");
    let direct = open("f", OFlags::RDONLY | OFlags::DIRECT);
    let mut buffer = vec![0; 2 * PAGE];
    let aligned = buffer.as_ptr().align_offset(PAGE);
    let page = &mut buffer[aligned..aligned + PAGE];
    assert_eq!(rustix::io::pread(&direct, &mut *page, 0), Ok(PAGE));
    assert!(page.iter().all(|byte| *byte == b'B'), "a direct read has what was written");
}

#[test]
fn holes_are_found_without_the_write_back_cache_and_never_invented_with_it() {
    let stand = Stand::new("holes");
    for options in ["", ",writeback=0"] {
        let _mounted = stand.mount(options);
        let mut file = fs::File::create(stand.mnt("f")).expect("a file");
        file.set_len(1 << 20).expect("a size");
        file.write_all_at(b"data", 512 << 10).expect("a write");
        let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0)).expect("there is data");
        assert!(data <= 512 << 10, "data is said to begin at {data}");
        let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(512 << 10)).expect("an end or a hole");
        assert!(hole >= (512 << 10) + 4, "a hole is said to be at {hole}");
        if options.is_empty() {
            continue;
        }
        assert_eq!(data, 512 << 10);
        assert_eq!(file.seek(SeekFrom::End(0)).expect("an end"), 1 << 20);
    }
}

#[test]
fn times_are_set_exactly_and_a_copy_up_touches_none() {
    let stand = Stand::new("exact-times");
    fs::create_dir(stand.lower("d")).expect("a directory");
    for name in ["d/f", "d/g"] {
        write(stand.lower(name), "x");
    }
    symlink("f", stand.lower("d/s")).expect("a link");
    let at = |sec, nsec| Timespec { tv_sec: sec, tv_nsec: nsec };
    let (old, older) = (at(1_000_000_000, 123_456_789), at(999_999_999, 987_654_321));
    let both = Timestamps { last_access: old, last_modification: older };
    for name in ["d/f", "d/g", "d/s", "d"] {
        utimensat(CWD, stand.lower(name), &both, AtFlags::SYMLINK_NOFOLLOW).expect("times");
    }
    let _mounted = stand.mount("");
    let times = |name: &str| {
        let seen = meta(stand.mnt(name));
        ((seen.atime(), seen.atime_nsec()), (seen.mtime(), seen.mtime_nsec()))
    };
    let (was_old, was_older) = ((1_000_000_000, 123_456_789), (999_999_999, 987_654_321));
    fs::set_permissions(stand.mnt("d/f"), fs::Permissions::from_mode(0o640)).expect("a chmod copies it up");
    for name in ["d/f", "d/s", "d"] {
        assert_eq!(times(name), (was_old, was_older), "{name} after a copy-up");
    }
    let only_mtime = Timestamps { last_access: at(0, UTIME_OMIT), last_modification: at(7, 7) };
    utimensat(CWD, stand.mnt("d/s"), &only_mtime, AtFlags::SYMLINK_NOFOLLOW).expect("times of a link");
    assert_eq!(times("d/s"), (was_old, (7, 7)));
    assert_eq!(times("d/f"), (was_old, was_older), "the link's target has its own");
    let now = Timestamps { last_access: at(9, 9), last_modification: at(0, UTIME_NOW) };
    utimensat(CWD, stand.mnt("d/g"), &now, AtFlags::empty()).expect("times");
    assert_eq!(times("d/g").0, (9, 9));
    assert!(times("d/g").1.0 > 1_700_000_000);
    let changes: [&dyn Fn(); 4] = [
        &|| write(stand.mnt("d/new"), "x"),
        &|| fs::rename(stand.mnt("d/new"), stand.mnt("d/newer")).expect("a rename"),
        &|| fs::hard_link(stand.mnt("d/newer"), stand.mnt("d/link")).expect("a link"),
        &|| fs::remove_file(stand.mnt("d/f")).expect("an unlink"),
    ];
    for change in changes {
        utimensat(CWD, stand.mnt("d"), &both, AtFlags::empty()).expect("times");
        let before = meta(stand.mnt("d")).ctime_nsec();
        // Before Linux 6.13 two changes within one tick of the clock have the same time.
        let tick = || clock_gettime(ClockId::RealtimeCoarse).tv_nsec;
        let now = tick();
        while tick() == now {
            std::thread::yield_now();
        }
        change();
        assert!(times("d").1.0 > 1_700_000_000, "a change of a directory is its time");
        assert_ne!(meta(stand.mnt("d")).ctime_nsec(), before);
    }
}

#[test]
fn a_full_disk_below_is_said_and_the_mount_lives_on() {
    let stand = Stand::new("full");
    fs::create_dir(stand.lower("d")).expect("a directory");
    write(stand.lower("d/big"), vec![b'x'; 3 << 20]);
    let disk = stand.path("disk");
    fs::create_dir(&disk).expect("a directory");
    let options = c"size=2m,nr_inodes=200";
    mount("none", &disk, "tmpfs", MountFlags::empty(), options).expect("a small disk");
    for part in ["upper", "work"] {
        fs::create_dir(disk.join(part)).expect("a directory");
    }
    let at = disk.display();
    let lower = stand.path("lower");
    let (mounted, said) = stand
        .attempt(&format!("lowerdir={},upperdir={at}/upper,workdir={at}/work,writeback=0", lower.display()));
    assert!(mounted, "{said}");
    let full = |outcome: std::io::Result<()>| outcome.err().and_then(|error| error.raw_os_error());
    let no_space = Some(Errno::NOSPC.raw_os_error());
    let append = || fs::OpenOptions::new().append(true).open(stand.mnt("d/big"))?.write_all(b"y");
    assert_eq!(full(append()), no_space, "a copy-up that does not fit");
    assert_eq!(meta(stand.mnt("d/big")).len(), 3 << 20, "the file is what it was");
    assert_eq!(full(fs::write(stand.mnt("new"), vec![1; 3 << 20])), no_space, "a write that does not fit");
    fs::remove_file(stand.mnt("new")).expect("a removal makes room");
    // The room comes back when the kernel has forgotten the file, which it says after the removal was answered.
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(error) = fs::write(stand.mnt("new"), vec![1; 1 << 20]) {
        assert_eq!(error.raw_os_error(), no_space);
        assert!(Instant::now() < deadline, "the removal makes no room");
    }
    let made = (0..300).map_while(|i| fs::create_dir(stand.mnt(&format!("n{i}"))).ok()).count();
    assert!((50..200).contains(&made), "{made} directories fit into 200 inodes");
    assert_eq!(full(fs::create_dir(stand.mnt("one-more"))), no_space);
    let removed = Command::new("rm")
        .args(["-rf"])
        .arg(stand.mnt("d"))
        .stderr(Stdio::null())
        .status()
        .expect("rm starts");
    assert!(!removed.success() || !stand.mnt("d").exists());
    assert_eq!(fs::read(stand.mnt("new")).expect("a file").len(), 1 << 20);
    unmount(stand.path("mnt"), UnmountFlags::DETACH).expect("an unmount");
    let deadline = Instant::now() + Duration::from_secs(10);
    while is_leased(&disk.join("work")) {
        assert!(Instant::now() < deadline, "the server stays");
        std::thread::yield_now();
    }
    unmount(&disk, UnmountFlags::DETACH).expect("an unmount");
}

#[test]
fn a_mount_that_was_detached_serves_whoever_has_a_file_open_and_ends_with_them() {
    let stand = Stand::new("lazy");
    write(stand.lower("f"), vec![b'x'; 4 * PAGE]);
    let mounted = stand.mount("");
    let file = fs::OpenOptions::new().read(true).write(true).open(stand.mnt("f")).expect("the file opens");
    unmount(stand.path("mnt"), UnmountFlags::DETACH).expect("a lazy unmount");
    file.write_all_at(b"later", 0).expect("a write");
    file.sync_all().expect("a sync");
    let mut seen = [0; 5];
    file.read_exact_at(&mut seen, 0).expect("a read");
    assert_eq!(&seen, b"later");
    assert!(is_leased(&stand.path("work")), "the server still serves");
    drop(file);
    let deadline = Instant::now() + Duration::from_secs(10);
    while is_leased(&stand.path("work")) {
        assert!(Instant::now() < deadline, "the server stays without anybody to serve");
        std::thread::yield_now();
    }
    drop(mounted);
    assert_eq!(&fs::read(stand.upper("f")).expect("a file")[..5], b"later");
}
