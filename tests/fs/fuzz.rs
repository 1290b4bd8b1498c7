//! The differential fuzzer: the same random operations on the kernel's overlay and on the program under test, over
//! identical layers. Every errno (but one, see `kernel_takes_one_file_for_two`), every read and, now and then, the whole
//! tree must be equal; then each side is mounted again over the other's upper, must show the same tree, and goes on.
//! Seeds are fixed; `FUZZ_SEED`, `FUZZ_SEEDS` and `FUZZ_SECONDS` say from where, how many and how long at most.

use fs_tests::{Dice, Mounted, Stand, differences, tree};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid,
    XattrFlags, chmodat, chownat, fallocate, fstat, ftruncate, linkat, lsetxattr, mkdirat, mknodat, openat,
    renameat_with, symlinkat, unlinkat, utimensat,
};
use rustix::io::{Errno, pread, pwrite};
use std::fmt::Debug;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const OLD: i64 = 1_000_000_000;

#[derive(Clone, Debug)]
enum Operation {
    Create(PathBuf, u32),
    Write(PathBuf, u64, Vec<u8>, bool),
    Truncate(PathBuf, u64),
    MakeDir(PathBuf, u32),
    RemoveDir(PathBuf),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf, u32),
    Link(PathBuf, PathBuf),
    Symlink(PathBuf, PathBuf),
    Fifo(PathBuf),
    Mode(PathBuf, u32),
    Owner(PathBuf, u32, u32),
    Times(PathBuf, i64),
    SetAttribute(PathBuf, u8, Vec<u8>),
    RemoveAttribute(PathBuf, u8),
    List(PathBuf),
    Read(PathBuf),
    Look(PathBuf),
    Open(usize, PathBuf, bool),
    WriteFd(usize, u64, Vec<u8>),
    ReadFd(usize, u64),
    TruncateFd(usize, u64),
    LookFd(usize),
    Punch(usize, u64, u64),
    Close(usize),
}

/// One side of the comparison.
struct Side {
    stand: Stand,
    files: [Option<OwnedFd>; 4],
    mounted: Option<Mounted>,
}

fn path(dice: &mut Dice) -> PathBuf {
    (0..=dice.roll(3)).map(|_| *dice.pick(&NAMES)).collect()
}

fn operation(dice: &mut Dice) -> Operation {
    let slot = dice.roll(4) as usize;
    let length = dice.roll(9000) as usize;
    match dice.roll(40) {
        0..=2 => Operation::Create(path(dice), *dice.pick(&[0o644, 0o600, 0o755, 0o444])),
        3..=5 => {
            let (offset, truncate) = (dice.roll(20_000), dice.roll(3) == 0);
            Operation::Write(path(dice), offset, dice.bytes(length), truncate)
        }
        6 => Operation::Truncate(path(dice), dice.roll(30_000)),
        7..=9 => Operation::MakeDir(path(dice), *dice.pick(&[0o755, 0o700, 0o1777, 0o750])),
        10..=12 => Operation::RemoveDir(path(dice)),
        13..=16 => Operation::Unlink(path(dice)),
        17..=20 => Operation::Rename(path(dice), path(dice), dice.roll(8) as u32),
        21 => Operation::Link(path(dice), path(dice)),
        22 => Operation::Symlink(path(dice), path(dice)),
        23 => Operation::Fifo(path(dice)),
        24 => Operation::Mode(path(dice), *dice.pick(&[0o644, 0o600, 0o4755, 0o2755, 0o2644, 0o755])),
        25 => Operation::Owner(path(dice), dice.roll(3) as u32, dice.roll(3) as u32),
        26 => Operation::Times(path(dice), OLD + dice.roll(1000) as i64),
        27 => Operation::SetAttribute(path(dice), dice.roll(3) as u8, dice.bytes(length % 100)),
        28 => Operation::RemoveAttribute(path(dice), dice.roll(3) as u8),
        29..=30 => Operation::List(path(dice)),
        31 => Operation::Read(path(dice)),
        32 => Operation::Look(path(dice)),
        33..=34 => Operation::Open(slot, path(dice), dice.roll(2) == 0),
        35 => Operation::WriteFd(slot, dice.roll(20_000), dice.bytes(length)),
        36 => Operation::ReadFd(slot, dice.roll(20_000)),
        37 => match dice.roll(2) {
            0 => Operation::TruncateFd(slot, dice.roll(20_000)),
            _ => Operation::Punch(slot, dice.roll(20_000), 1 + dice.roll(9000)),
        },
        38 => Operation::LookFd(slot),
        _ => Operation::Close(slot),
    }
}

/// An outcome as text, so that both sides can be compared whatever the operation returns.
fn told<T: Debug>(outcome: Result<T, Errno>) -> String {
    match outcome {
        Ok(value) => format!("{value:?}"),
        Err(error) => format!("{error:?}"),
    }
}

fn plain<T>(outcome: Result<T, Errno>) -> String {
    told(outcome.map(|_| ()))
}

fn hashed(bytes: &[u8]) -> u64 {
    fs_tests::hash(bytes)
}

impl Side {
    fn new(name: &str) -> Self {
        Self { stand: Stand::new(name), files: [const { None }; 4], mounted: None }
    }

    fn at(&self, path: &Path) -> PathBuf {
        self.stand.path("mnt").join(path)
    }

    /// The inode number that `tree` ("mnt" or "upper") has for what the mount shows at a path.
    fn number_in(&self, tree: &str, path: &Path) -> Option<u64> {
        let (shown, mount) = (self.at(path), fs::canonicalize(self.stand.path("mnt")).ok()?);
        let parent = fs::canonicalize(shown.parent()?).ok()?;
        let place = self.stand.path(tree).join(parent.strip_prefix(mount).ok()?).join(shown.file_name()?);
        fs::symlink_metadata(place).ok().map(|facts| facts.ino())
    }

    /// Repeats a change of mode through every name of the file, as the kernel needs where it takes one file for several
    /// (docs/decisions/0105): the other names keep the old mode in memory and then a write leaves set-user-id bits.
    fn repeat_mode(&self, path: &Path, mode: u32) {
        let Some(number) = self.number_in("upper", path) else { return };
        if fs::symlink_metadata(self.at(path)).is_ok_and(|facts| !facts.is_file() || facts.nlink() < 2) {
            return;
        }
        let names = tree(&self.stand.path("mnt")).into_keys();
        for name in names.filter(|name| self.number_in("upper", name) == Some(number)) {
            chmodat(CWD, self.at(&name), Mode::from_raw_mode(mode), AtFlags::empty()).expect("a chmod");
        }
    }

    fn on_file(&self, slot: usize, act: impl FnOnce(&OwnedFd) -> String) -> String {
        self.files[slot].as_ref().map_or_else(|| "closed".to_owned(), act)
    }

    fn perform(&mut self, operation: &Operation) -> String {
        let none = AtFlags::empty();
        match operation {
            Operation::Create(path, mode) => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
                plain(openat(CWD, self.at(path), flags, Mode::from_raw_mode(*mode)))
            }
            Operation::Write(path, offset, bytes, truncate) => {
                let cut = if *truncate { OFlags::TRUNC } else { OFlags::empty() };
                let file = openat(CWD, self.at(path), OFlags::WRONLY | OFlags::NONBLOCK | cut, Mode::empty());
                told(file.and_then(|file| pwrite(&file, bytes, *offset)))
            }
            Operation::Truncate(path, size) => {
                let file = openat(CWD, self.at(path), OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty());
                plain(file.and_then(|file| ftruncate(&file, *size)))
            }
            Operation::MakeDir(path, mode) => plain(mkdirat(CWD, self.at(path), Mode::from_raw_mode(*mode))),
            Operation::RemoveDir(path) => plain(unlinkat(CWD, self.at(path), AtFlags::REMOVEDIR)),
            Operation::Unlink(path) => plain(unlinkat(CWD, self.at(path), none)),
            Operation::Rename(from, to, flags) => {
                let flags = match flags {
                    0 => RenameFlags::NOREPLACE,
                    1 | 2 => RenameFlags::EXCHANGE,
                    _ => RenameFlags::empty(),
                };
                plain(renameat_with(CWD, self.at(from), CWD, self.at(to), flags))
            }
            Operation::Link(from, to) => plain(linkat(CWD, self.at(from), CWD, self.at(to), none)),
            Operation::Symlink(target, path) => plain(symlinkat(target, CWD, self.at(path))),
            Operation::Fifo(path) => {
                plain(mknodat(CWD, self.at(path), FileType::Fifo, Mode::from_raw_mode(0o640), 0))
            }
            Operation::Mode(path, mode) => {
                plain(chmodat(CWD, self.at(path), Mode::from_raw_mode(*mode), none))
            }
            Operation::Owner(path, uid, gid) => {
                let owner = (Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)));
                plain(chownat(CWD, self.at(path), owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW))
            }
            Operation::Times(path, seconds) => {
                let time = Timespec { tv_sec: *seconds, tv_nsec: 5 };
                let times = Timestamps { last_access: time, last_modification: time };
                plain(utimensat(CWD, self.at(path), &times, AtFlags::SYMLINK_NOFOLLOW))
            }
            _ => self.perform_more(operation),
        }
    }

    fn perform_more(&mut self, operation: &Operation) -> String {
        match operation {
            Operation::SetAttribute(path, which, value) => {
                let name = format!("user.fuzz{which}");
                plain(lsetxattr(self.at(path), name, value, XattrFlags::empty()))
            }
            Operation::RemoveAttribute(path, which) => {
                plain(rustix::fs::lremovexattr(self.at(path), format!("user.fuzz{which}")))
            }
            Operation::List(path) => {
                let Ok(entries) = fs::read_dir(self.at(path)) else { return "no directory".to_owned() };
                let mut names: Vec<_> = entries
                    .map(|entry| entry.expect("an entry can be read"))
                    .map(|entry| (entry.file_name(), entry.file_type().expect("an entry has a type")))
                    .map(|(name, kind)| format!("{name:?} {kind:?}"))
                    .collect();
                names.sort();
                names.join(",")
            }
            Operation::Read(path) => {
                let file = openat(CWD, self.at(path), OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty());
                let mut bytes = vec![0; 100_000];
                told(
                    file.and_then(|file| pread(&file, bytes.as_mut_slice(), 0))
                        .map(|count| hashed(&bytes[..count])),
                )
            }
            Operation::Look(path) => fs_tests::facts_of(&self.at(path)).map_or_else(
                |error| format!("{:?}", error.kind()),
                |facts| {
                    if facts.mode & 0o170_000 == 0o010_000 { String::new() } else { format!("{facts:?}") }
                },
            ),
            Operation::Open(slot, path, write) => {
                let access = if *write { OFlags::RDWR } else { OFlags::RDONLY };
                let opened = openat(CWD, self.at(path), access | OFlags::NONBLOCK, Mode::empty());
                let text = plain(opened.as_ref().copied_errno());
                self.files[*slot] = opened.ok();
                text
            }
            Operation::WriteFd(slot, offset, bytes) => {
                self.on_file(*slot, |file| told(pwrite(file, bytes, *offset)))
            }
            Operation::ReadFd(slot, offset) => self.on_file(*slot, |file| {
                let mut bytes = vec![0; 30_000];
                told(pread(file, bytes.as_mut_slice(), *offset).map(|count| hashed(&bytes[..count])))
            }),
            Operation::TruncateFd(slot, size) => self.on_file(*slot, |file| plain(ftruncate(file, *size))),
            Operation::Punch(slot, offset, length) => self.on_file(*slot, |file| {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                plain(fallocate(file, flags, *offset, *length))
            }),
            Operation::LookFd(slot) => self.on_file(*slot, |file| {
                told(fstat(file).map(|stat| match stat.st_mode & 0o170_000 {
                    0o100_000 => (stat.st_mode, stat.st_size),
                    mode => (mode, 0),
                }))
            }),
            Operation::Close(slot) => {
                self.files[*slot] = None;
                String::new()
            }
            _ => unreachable!("perform handles the rest"),
        }
    }

    fn close_all(&mut self) {
        self.files = [const { None }; 4];
    }
}

trait CopiedErrno {
    fn copied_errno(self) -> Result<(), Errno>;
}

impl<T> CopiedErrno for Result<T, &Errno> {
    fn copied_errno(self) -> Result<(), Errno> {
        self.map(|_| ()).map_err(|error| *error)
    }
}

/// Fills both lower layers from the dice.
fn furnish(stand: &Stand, dice: &mut Dice) {
    for layer in ["lower", "lower2"] {
        let root = stand.path(layer);
        for _ in 0..40 {
            let path = root.join(path(dice));
            let length = dice.roll(20_000) as usize;
            let parent = path.parent().expect("a path below the root");
            if fs::create_dir_all(parent).is_err() || path.exists() {
                continue;
            }
            let _already_there = match dice.roll(6) {
                0 => fs::create_dir(&path),
                1 => std::os::unix::fs::symlink("a", &path),
                _ => fs::write(&path, dice.bytes(length)),
            };
        }
        settle(&root, dice);
    }
}

/// Gives everything an old time, children first.
fn settle(at: &Path, dice: &mut Dice) {
    if at.is_dir() && !at.is_symlink() {
        let mut names: Vec<_> =
            fs::read_dir(at).expect("a layer can be read").flatten().map(|e| e.path()).collect();
        names.sort();
        names.iter().for_each(|name| settle(name, dice));
    }
    let time = Timespec { tv_sec: OLD + dice.roll(100_000) as i64, tv_nsec: 7 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, at, &times, AtFlags::SYMLINK_NOFOLLOW).expect("times of a layer can be set");
}

fn compare(kernel: &Side, ours: &Side, when: &str, log: &[String]) {
    let (a, mut b) = (tree(&kernel.stand.path("mnt")), tree(&ours.stand.path("mnt")));
    // The kernel touches a parent in some renames that fail; only a time that we change alone is a fault.
    for (name, facts) in &mut b {
        let touched = a.get(name).is_some_and(|kernel| kernel.old_mtime.is_none());
        if touched && facts.mode & 0o170_000 == 0o040_000 {
            facts.old_mtime = None;
        }
    }
    let found = differences(&a, &b);
    assert!(found.is_empty(), "{when}: kernel and ours differ:\n{}\n{}", found.join("\n"), tail(log));
}

/// A look at a directory that the kernel alone touched, as `compare` lets pass: only the time may differ.
fn only_touched_by_the_kernel(operation: &Operation, theirs: &str, own: &str) -> bool {
    let timed = |text: &str| {
        let (before, rest) = text.split_once("mtime ")?;
        let (time, after) = rest.split_once(" xattrs")?;
        Some((time.to_owned(), before.to_owned() + after))
    };
    let (Some((time, rest)), Some((_, own_rest))) = (timed(theirs), timed(own)) else { return false };
    matches!(operation, Operation::Look(_)) && theirs.starts_with("4") && time == "None" && rest == own_rest
}

/// The one outcome in which the kernel is at fault (docs/decisions/0105): a rename between two names of one file that a
/// link copied up is refused as stale, because the kernel shows the names as two files until it is mounted again.
fn kernel_takes_one_file_for_two(
    operation: &Operation,
    (theirs, kernel): (&str, &Side),
    (own, ours): (&str, &Side),
) -> bool {
    let Operation::Rename(from, to, _) = operation else { return false };
    let one_file = |side: &Side, tree: &str| {
        let found = side.number_in(tree, from);
        found.is_some() && found == side.number_in(tree, to)
    };
    theirs == plain::<()>(Err(Errno::STALE))
        && own == plain(Ok(()))
        && one_file(ours, "mnt")
        && one_file(ours, "upper")
        && one_file(kernel, "upper")
        && !one_file(kernel, "mnt")
}

/// Gives the directories that the kernel alone touched the time that ours have: after the swap they would look like
/// directories that we touched alone.
fn untouch(kernel: &Side, ours: &Side) {
    let b = tree(&ours.stand.path("mnt"));
    for (name, facts) in tree(&kernel.stand.path("mnt")) {
        let own = b.get(&name).and_then(|own| own.old_mtime);
        if let (0o040_000, None, Some((seconds, nanos))) = (facts.mode & 0o170_000, facts.old_mtime, own) {
            let time = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
            let times = Timestamps { last_access: time, last_modification: time };
            utimensat(CWD, kernel.at(&name), &times, AtFlags::empty()).expect("a time can be set");
        }
    }
}

fn tail(log: &[String]) -> String {
    let from = log.len().saturating_sub(if std::env::var_os("FUZZ_LOG").is_some() { 100_000 } else { 30 });
    log[from..].join("\n")
}

fn burst(seed: u64, dice: &mut Dice, kernel: &mut Side, ours: &mut Side, log: &mut Vec<String>) {
    let every_step = std::env::var_os("FUZZ_EVERY_STEP").is_some();
    for step in 0..400 {
        let operation = operation(dice);
        let shown: String = format!("{operation:?}").chars().take(110).collect();
        let (a, b) = (kernel.perform(&operation), ours.perform(&operation));
        if let Operation::Mode(path, mode) = &operation
            && a == plain(Ok(()))
        {
            kernel.repeat_mode(path, *mode);
        }
        log.push(format!("{shown} -> {}", a.chars().take(60).collect::<String>()));
        let apart = a != b && kernel_takes_one_file_for_two(&operation, (&a, kernel), (&b, ours));
        if !apart && !only_touched_by_the_kernel(&operation, &a, &b) {
            assert_eq!(a, b, "seed {seed}: kernel (left) and ours differ\n{}", tail(log));
        }
        if step % 100 == 99 || every_step || apart {
            compare(kernel, ours, &format!("seed {seed}"), log);
        }
    }
    kernel.close_all();
    ours.close_all();
}

fn once(seed: u64) {
    let (mut kernel, mut ours) = (Side::new("kernel"), Side::new("ours"));
    furnish(&kernel.stand, &mut Dice(seed));
    furnish(&ours.stand, &mut Dice(seed));
    let before = tree(&ours.stand.path("lower"));
    let (mut dice, mut log) = (Dice(seed ^ 0xfeed), Vec::new());
    kernel.mounted = Some(kernel.stand.mount_kernel());
    ours.mounted = Some(ours.stand.mount(""));
    compare(&kernel, &ours, &format!("seed {seed}, fresh"), &log);
    burst(seed, &mut dice, &mut kernel, &mut ours, &mut log);
    untouch(&kernel, &ours);
    // Each side goes on over what the other left behind.
    (kernel.mounted, ours.mounted) = (None, None);
    kernel.mounted = Some(kernel.stand.mount(""));
    ours.mounted = Some(ours.stand.mount_kernel());
    log.push("-- swapped --".to_owned());
    compare(&ours, &kernel, &format!("seed {seed}, swapped"), &log);
    burst(seed, &mut dice, &mut ours, &mut kernel, &mut log);
    (kernel.mounted, ours.mounted) = (None, None);
    if std::env::var_os("FUZZ_LOG").is_some() {
        println!("{}", log.join("\n"));
    }
    let touched = differences(&before, &tree(&ours.stand.path("lower")));
    assert!(touched.is_empty(), "seed {seed}: the lower changed: {touched:?}");
}

#[test]
fn random_operations_do_the_same_on_the_kernels_overlay_and_on_ours() {
    let number =
        |name: &str, default| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let end = Instant::now() + Duration::from_secs(number("FUZZ_SECONDS", 120));
    let mut seed = number("FUZZ_SEED", 1);
    let first = seed;
    let count = number("FUZZ_SEEDS", u64::MAX);
    while Instant::now() < end && seed - first < count {
        once(seed);
        seed += 1;
    }
    println!("{} seeds", seed - first);
}
