//! What is left when the server is killed in the middle of a change, what programs see while it is frozen, and what it
//! gives back when the kernel forgets files. `strace` kills the server before one chosen system call after another.

use fs_tests::{Facts, Stand, Tracer, differences, is_leased, many_ids, meta, tree, until, write};
use rustix::fs::{AtFlags, CWD, Gid, Mode, RenameFlags, Timespec, Timestamps, Uid, chownat, utimensat};
use rustix::fs::{FileType, XattrFlags, lsetxattr, mknodat, renameat_with};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount_remount};
use rustix::process::{Pid, Signal};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The calls by which the server changes what lies on the disk.
const STEPS: &str = "linkat,renameat2,renameat,mknodat,mkdirat,unlinkat,symlinkat,setxattr,lsetxattr,fsetxattr,\
    lremovexattr,removexattr,fremovexattr,fchmod,fchmodat,chmod,fchown,fchownat,utimensat,ftruncate,write,pwrite64,\
    copy_file_range,sync_file_range,fdatasync,fsync";

struct Change {
    sentence: &'static str,
    /// Before the mount that is killed.
    prepare: fn(&Stand),
    act: fn(&Stand) -> std::io::Result<()>,
}

const OLD: Timespec = Timespec { tv_sec: 1_000_000_000, tv_nsec: 7 };

/// A small lower of every kind, with old times, of which nothing has been copied up.
fn furnish(stand: &Stand) {
    fs::create_dir_all(stand.lower("d/e")).expect("a directory");
    for name in ["d/f", "d/g", "d/e/h", "d/one"] {
        write(stand.lower(name), name.repeat(3000));
    }
    fs::hard_link(stand.lower("d/one"), stand.lower("d/two")).expect("a link");
    symlink("f", stand.lower("d/s")).expect("a link");
    lsetxattr(stand.lower("d/f"), "user.kept", b"yes", XattrFlags::empty()).expect("an attribute");
    fs::set_permissions(stand.lower("d/f"), fs::Permissions::from_mode(0o640)).expect("a chmod");
    let both = Timestamps { last_access: OLD, last_modification: OLD };
    for name in ["d/f", "d/g", "d/e/h", "d/one", "d/s", "d/e", "d"] {
        utimensat(CWD, stand.lower(name), &both, AtFlags::SYMLINK_NOFOLLOW).expect("an old time");
    }
}

fn append(path: PathBuf) -> std::io::Result<()> {
    let mut file = fs::OpenOptions::new().append(true).open(path)?;
    file.write_all(b"appended")?;
    file.sync_all()
}

fn rename(stand: &Stand, from: &str, to: &str, flags: RenameFlags) -> std::io::Result<()> {
    Ok(renameat_with(CWD, stand.mnt(from), CWD, stand.mnt(to), flags)?)
}

fn nothing(_: &Stand) {}

const CHANGES: [Change; 8] = [
    Change { sentence: "an append to a lower file", prepare: nothing, act: |stand| append(stand.mnt("d/f")) },
    Change {
        sentence: "an append through one of two names",
        prepare: nothing,
        act: |stand| append(stand.mnt("d/two")),
    },
    Change {
        sentence: "a chmod of a directory",
        prepare: nothing,
        act: |stand| fs::set_permissions(stand.mnt("d/e"), fs::Permissions::from_mode(0o700)),
    },
    Change {
        sentence: "the time of a symbolic link",
        prepare: nothing,
        act: |stand| {
            let time = Timespec { tv_sec: 5, tv_nsec: 5 };
            let both = Timestamps { last_access: time, last_modification: time };
            Ok(utimensat(CWD, stand.mnt("d/s"), &both, AtFlags::SYMLINK_NOFOLLOW)?)
        },
    },
    Change {
        sentence: "a rename over another lower file",
        prepare: nothing,
        act: |stand| rename(stand, "d/f", "d/e/h", RenameFlags::empty()),
    },
    Change {
        sentence: "an exchange of two lower files",
        prepare: nothing,
        act: |stand| rename(stand, "d/f", "d/e/h", RenameFlags::EXCHANGE),
    },
    Change {
        sentence: "a link to a lower file",
        prepare: nothing,
        act: |stand| fs::hard_link(stand.mnt("d/f"), stand.mnt("d/e/linked")),
    },
    Change {
        sentence: "a removed directory that is made again",
        prepare: |stand| {
            let _mounted = stand.mount("");
            fs::remove_dir_all(stand.mnt("d/e")).expect("a removal");
        },
        act: |stand| fs::create_dir(stand.mnt("d/e")),
    },
];

/// Folders whose changes are new have the time of today in one tree and the old one in the other.
fn ageless(root: &Path) -> BTreeMap<PathBuf, Facts> {
    let mut facts = tree(root);
    facts
        .values_mut()
        .filter(|facts| facts.mode & 0o170_000 == 0o040_000)
        .for_each(|facts| facts.old_mtime = None);
    facts
}

/// The steps of a change, in order, and the trees before and after it.
fn observe(change: &Change) -> (Vec<String>, [BTreeMap<PathBuf, Facts>; 2]) {
    let stand = Stand::new("steps");
    furnish(&stand);
    (change.prepare)(&stand);
    let mounted = stand.mount(",threads=1");
    let before = ageless(&stand.path("mnt"));
    let log = stand.path("log");
    let words = ["-qq", "-e", "signal=none", "-o"].map(str::to_owned);
    let trace = format!("trace={STEPS}");
    let log_name = log.display().to_string();
    let mut arguments: Vec<&str> = words.iter().map(String::as_str).collect();
    arguments.extend([log_name.as_str(), "-e", &trace]);
    // -qq would keep the line by which it says that it is attached.
    arguments.remove(0);
    let tracer = Tracer::attach(&stand, &arguments);
    (change.act)(&stand).expect("nobody disturbs the change");
    let after = ageless(&stand.path("mnt"));
    tracer.detach();
    drop(mounted);
    let text = fs::read_to_string(&log).expect("strace wrote its log");
    let name = |line: &str| Some(line.split_once(' ')?.1.trim_start().split_once('(')?.0.to_owned());
    (text.lines().filter_map(name).collect(), [before, after])
}

fn killed_before(change: &Change, step: &str, count: usize, trees: &[BTreeMap<PathBuf, Facts>; 2]) -> bool {
    let when = format!("{}, killed before {step} number {count}", change.sentence);
    let stand = Stand::new("killed");
    furnish(&stand);
    (change.prepare)(&stand);
    let mounted = stand.mount(",threads=1");
    let known = numbers(&stand, ageless(&stand.path("mnt")).keys());
    let (trace, inject) = (format!("trace={step}"), format!("inject={step}:signal=KILL:when={count}"));
    let tracer = Tracer::attach(&stand, &["-o", "/dev/null", "-e", &trace, "-e", &inject]);
    let told = (change.act)(&stand);
    let died = told.is_err();
    if !died {
        stand.signal(Signal::KILL);
    }
    until("the server is gone", || !is_leased(&stand.path("work")));
    tracer.outlive();
    drop(mounted);
    let lower = tree(&stand.path("lower"));
    let again = stand.mount("");
    let found = ageless(&stand.path("mnt"));
    if !died {
        assert!(
            found == trees[1],
            "{when}: what was answered is there:\n{}",
            differences(&trees[1], &found).join("\n")
        );
    }
    let apart = trees.each_ref().map(|tree| differences(tree, &found));
    assert!(
        apart.iter().any(Vec::is_empty),
        "{when}: neither what was nor what was to be:\n{}\nnor\n{}",
        apart[0].join("\n"),
        apart[1].join("\n")
    );
    let shown = found.iter().filter(|(_, facts)| facts.mode & 0o170_000 != 0o040_000).map(|(name, _)| name);
    assert!(numbers(&stand, shown).is_subset(&known), "{when}: files keep their numbers");
    let left: Vec<_> = fs::read_dir(stand.path("work/work")).expect("a directory").flatten().collect();
    assert!(left.is_empty(), "{when}: the next mount sweeps: {left:?}");
    drop(again);
    let kernel = stand.mount_kernel();
    let shown = ageless(&stand.path("mnt"));
    assert!(
        comparable(&shown) == comparable(&found),
        "{when}: the kernel shows {:?}",
        differences(&shown, &found)
    );
    drop(kernel);
    assert!(differences(&lower, &tree(&stand.path("lower"))).is_empty(), "{when}: the lower is what it was");
    died
}

/// What an overlay of the kernel's shows as well, which takes names of one file in a lower for several files.
fn comparable(tree: &BTreeMap<PathBuf, Facts>) -> Vec<(PathBuf, u32, u64)> {
    let content = |name: &PathBuf, facts: &Facts| match name.to_str() {
        Some("d/one" | "d/two") => 0,
        _ => facts.content,
    };
    tree.iter().map(|(name, facts)| (name.clone(), facts.mode, content(name, facts))).collect()
}

fn numbers<'a>(stand: &Stand, names: impl Iterator<Item = &'a PathBuf>) -> BTreeSet<u64> {
    names.map(|name| meta(stand.path("mnt").join(name)).ino()).collect()
}

#[test]
fn a_server_killed_before_any_step_of_a_change_leaves_what_was_or_what_was_to_be() {
    std::thread::scope(|scope| {
        for changes in CHANGES.chunks(CHANGES.len() / 2) {
            scope.spawn(move || {
                for change in changes {
                    let (steps, trees) = observe(change);
                    assert!(!steps.is_empty(), "{} has steps", change.sentence);
                    let mut died = 0;
                    for (at, step) in steps.iter().enumerate() {
                        let count = steps[..=at].iter().filter(|other| *other == step).count();
                        died += usize::from(killed_before(change, step, count, &trees));
                    }
                    assert!(died > 0, "{}: the server died in none of {steps:?}", change.sentence);
                }
            });
        }
    });
}

/// Stops every thread of the server; one that still ran could take a request with it, whose program can't be killed then.
fn freeze(stand: &Stand) {
    stand.signal(Signal::STOP);
    let server = stand.servers().pop().expect("a server runs").as_raw_nonzero();
    let stopped = |thread: fs::DirEntry| {
        let stat = fs::read_to_string(thread.path().join("stat")).expect("procfs");
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
    };
    until("every thread is stopped", || {
        fs::read_dir(format!("/proc/{server}/task")).expect("procfs").flatten().all(stopped)
    });
}

#[test]
fn a_frozen_server_holds_programs_up_that_can_be_killed_and_the_others_go_on_when_it_thaws() {
    let stand = Stand::new("frozen");
    write(stand.lower("f"), "lower");
    write(stand.lower("g"), "other");
    write(stand.lower("seen"), "x");
    let mounted = stand.mount("");
    assert_eq!(meta(stand.mnt("seen")).len(), 1);
    freeze(&stand);
    let reader = |name: &str| {
        let mut cat = Command::new("cat");
        cat.arg(stand.mnt(name)).stdout(Stdio::piped()).spawn().expect("cat starts")
    };
    let (mut killed, waiting) = (reader("f"), reader("g"));
    let asleep = |child: &Child| {
        let wchan = fs::read_to_string(format!("/proc/{}/wchan", child.id())).unwrap_or_default();
        wchan.contains("request_wait") || wchan.contains("fuse")
    };
    until("both wait for the server", || asleep(&killed) && asleep(&waiting));
    assert_eq!(meta(stand.mnt("seen")).len(), 1, "what the kernel knows needs no server");
    killed.kill().expect("a kill");
    let mut ended = None;
    until("a program that waits can be killed", || {
        ended = killed.try_wait().expect("it can be waited for");
        ended.is_some()
    });
    assert_eq!(ended.and_then(|status| status.signal()), Some(Signal::KILL.as_raw()));
    stand.signal(Signal::CONT);
    let output = waiting.wait_with_output().expect("cat ends");
    assert_eq!((output.status.success(), output.stdout.as_slice()), (true, b"other".as_slice()));
    write(stand.mnt("f"), "written after the thaw");
    drop(mounted);
    assert_eq!(fs::read(stand.upper("f")).expect("a file"), b"written after the thaw");
}

#[test]
fn a_frozen_server_that_is_killed_fails_whoever_waits_and_leaves_the_upper_whole() {
    let stand = Stand::new("frozen-killed");
    write(stand.lower("f"), "lower");
    let mounted = stand.mount("");
    write(stand.mnt("kept"), "kept");
    fs::File::open(stand.mnt("kept")).and_then(|file| file.sync_all()).expect("a sync");
    freeze(&stand);
    let path = stand.mnt("f");
    let waiting = std::thread::spawn(move || fs::read(path));
    stand.signal(Signal::KILL);
    let told = waiting.join().expect("the reader ends").err().and_then(|error| error.raw_os_error());
    assert!(
        [Errno::NOTCONN, Errno::CONNABORTED].map(|error| Some(error.raw_os_error())).contains(&told),
        "{told:?}"
    );
    drop(mounted);
    let _again = stand.mount("");
    assert_eq!(fs::read(stand.mnt("kept")).expect("a file"), b"kept");
    assert_eq!(fs::read(stand.mnt("f")).expect("a file"), b"lower");
}

/// What a process keeps in memory of its own, in KiB.
fn resident(process: Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.as_raw_nonzero())).expect("procfs");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("a line of it");
    line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}

#[test]
fn memory_and_descriptors_fall_when_the_kernel_forgets_the_files() {
    let stand = Stand::new("forget");
    for d in 0..80 {
        fs::create_dir(stand.lower(&format!("d{d}"))).expect("a directory");
        (0..200).for_each(|f| write(stand.lower(&format!("d{d}/a name of usual length {f}")), ""));
    }
    let _mounted = stand.mount("");
    let server = stand.servers().pop().expect("a server runs");
    let descriptors =
        || fs::read_dir(format!("/proc/{}/fd", server.as_raw_nonzero())).expect("procfs").count();
    let (bare, few) = (resident(server), descriptors());
    // What the kernel forgets by itself is little: every file is looked at twice.
    for _ in 0..2 {
        let count = Command::new("find").arg(stand.path("mnt")).args(["-type", "f", "-size", "0"]).output();
        let text = count.expect("find starts").stdout;
        assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 16_000);
    }
    let full = resident(server);
    assert!(full > bare + 2000, "{bare} KiB became {full}: the files are remembered");
    assert!(descriptors() > few + 60, "directories stay open: {}", descriptors());
    // A remount drops every name that nobody uses, as `drop_caches` does, but of this mount alone.
    mount_remount(stand.path("mnt"), MountFlags::empty(), c"").expect("a remount");
    // Half, since the room for requests and what few files held stays.
    until("the memory is given back", || resident(server) < bare + (full - bare) / 2);
    until("the descriptors are closed", || descriptors() < few + 20);
    assert_eq!(fs::read_dir(stand.mnt("d7")).expect("a directory").count(), 200);
}

#[test]
fn recorded_owners_of_pipes_sockets_and_devices_stay_over_a_remount() {
    let stand = Stand::new("recorded-kinds");
    let device = "0:0:0620:char-5-3";
    write(stand.lower("device"), "");
    lsetxattr(stand.lower("device"), "user.containers.override_stat", device.as_bytes(), XattrFlags::empty())
        .expect("a record, as podman writes it");
    let mounted = stand.mount(",xattr_permissions=2");
    mknodat(CWD, stand.mnt("pipe"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).expect("a pipe");
    let socket = std::os::unix::net::UnixListener::bind(stand.mnt("socket")).expect("a socket");
    let owner = if many_ids() { (7, 8) } else { (0, 0) };
    for name in ["pipe", "socket", "device"] {
        let owner = (Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1)));
        chownat(CWD, stand.mnt(name), owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW).expect("a chown");
        fs::set_permissions(stand.mnt(name), fs::Permissions::from_mode(0o606)).expect("a chmod");
    }
    let holds = |when: &str| {
        for name in ["pipe", "socket", "device"] {
            let seen = meta(stand.mnt(name));
            let facts = (seen.uid(), seen.gid(), seen.mode() & 0o7777);
            assert_eq!(facts, (owner.0, owner.1, 0o606), "{name} {when}");
        }
        assert!(meta(stand.mnt("pipe")).file_type().is_fifo(), "{when}");
        assert!(meta(stand.mnt("socket")).file_type().is_socket(), "{when}");
        assert!(meta(stand.mnt("device")).file_type().is_char_device(), "{when}");
        assert_eq!(meta(stand.mnt("device")).rdev(), 5 << 8 | 3, "{when}");
        for name in ["pipe", "socket", "device"] {
            assert_eq!(meta(stand.upper(name)).uid(), 0, "the real {name} stays ours, {when}");
        }
    };
    holds("at once");
    drop((socket, mounted));
    let again = stand.mount(",xattr_permissions=2");
    holds("after a remount");
    fs::rename(stand.mnt("pipe"), stand.mnt("moved")).expect("a rename");
    fs::rename(stand.mnt("moved"), stand.mnt("pipe")).expect("a rename");
    holds("after renames");
    drop(again);
    let text = fs_tests::attributes(&stand.upper("device"));
    let expected = format!("{}:{}:0606:char-5-3", owner.0, owner.1);
    assert!(text.iter().any(|(_, value)| value == expected.as_bytes()), "{text:?}");
}
