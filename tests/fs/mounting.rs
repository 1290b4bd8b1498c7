//! A mount as a whole: what is refused, what it may hold and how fast, and what is left when its server is killed or
//! asked by many.

use fs_tests::{Stand, program, read, tree, write};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::io::Errno;
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::{Duration, Instant};

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
