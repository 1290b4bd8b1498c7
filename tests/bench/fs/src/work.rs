//! The work that is timed: each row is a name and a function on the root of a mount. They use few instructions of
//! their own, so that the time is the file system's.

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, openat, statx};
use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

type Work = fn(&Path);

/// One line of the table.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// Runs before the clock starts.
    pub(crate) before: Work,
    pub(crate) work: Work,
    /// Times the second run, so that the kernel's caches are warm.
    pub(crate) warm: bool,
}

const fn row(name: &'static str, before: Work, work: Work, warm: bool) -> Row {
    Row { name, before, work, warm }
}

pub(crate) const ROWS: &[Row] = &[
    row("find, cold", nothing, find, false),
    row("find, warm", nothing, find, true),
    row("find -ls", nothing, find_ls, false),
    row("du -s", nothing, du, false),
    row("stat every file, warm", nothing, stat_all, true),
    row("stat missing names, warm", nothing, stat_missing, true),
    row("tar c of usr", nothing, tar, false),
    row("grep -r usr/share", nothing, grep, false),
    row("create + unlink 5,000 files", nothing, create_unlink, false),
    row("untar 5,000 small files", nothing, untar, false),
    row("mkdir + rmdir 3,000", nothing, mkdir_rmdir, false),
    row("chmod of usr/bin (copy-up)", nothing, chmod_bin, false),
    row("append to 1,000 lower files", nothing, append, false),
    row("rm -rf usr/share/locale", nothing, rm_locale, false),
    row("rm -rf usr", nothing, rm_usr, false),
    row("write 512 MiB, 1 MiB blocks", nothing, write_big, false),
    row("read 512 MiB, 1 MiB blocks, cold", write_big_synced, read_big, false),
    row("read 512 MiB, 1 MiB blocks, warm", write_big_synced, read_big, true),
    row("100-byte buffered writes, 200,000", nothing, small_writes, true),
    row("open + read + close, 5,000, cold", nothing, open_read_close, false),
    row("open + read + close, 5,000, warm", nothing, open_read_close, true),
    row("python3 imports, warm", nothing, python, true),
    row("cp -r, git init, add, commit, status", nothing, git, false),
];

fn nothing(_root: &Path) {}

fn run(root: &Path, program: &str, arguments: &[&str]) {
    let status = Command::new(program)
        .args(arguments)
        .current_dir(root)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.expect("the program of a row can be started");
}

fn find(root: &Path) {
    run(root, "find", &["."]);
}

fn find_ls(root: &Path) {
    run(root, "find", &[".", "-ls"]);
}

fn du(root: &Path) {
    run(root, "du", &["-s", "."]);
}

fn tar(root: &Path) {
    run(root, "sh", &["-c", "tar c usr | cat > /dev/null"]);
}

fn grep(root: &Path) {
    run(root, "grep", &["-r", "xyzzy-nowhere", "usr/share"]);
}

fn files(root: &Path, below: &str, limit: usize) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![root.join(below)];
    while let Some(directory) = left.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        let mut entries: Vec<_> = entries.flatten().collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => left.push(entry.path()),
                Ok(kind) if kind.is_file() && found.len() < limit => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found
}

fn stat(path: &Path) {
    let _there_or_not = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS);
}

fn stat_all(root: &Path) {
    let names = files(root, "usr", 5000);
    for _ in 0..10 {
        names.iter().for_each(|name| stat(name));
    }
}

fn stat_missing(root: &Path) {
    for round in 0..200 {
        for i in 0..100 {
            let _round = round;
            stat(&root.join(format!("usr/lib/missing-{i}.so")));
        }
    }
}

fn create(path: &Path) -> OwnedFd {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
    openat(CWD, path, flags, Mode::from_raw_mode(0o644)).expect("a file can be created")
}

fn create_unlink(root: &Path) {
    let directory = root.join("usr/bench");
    fs::create_dir(&directory).expect("a directory can be made");
    let name = |i: usize| directory.join(format!("f{i}"));
    (0..5000).for_each(|i| drop(create(&name(i))));
    (0..5000).for_each(|i| fs::remove_file(name(i)).expect("a file can be removed"));
    fs::remove_dir(&directory).expect("a directory can be removed");
}

fn untar(root: &Path) {
    let directory = root.join("usr/untar");
    fs::create_dir(&directory).expect("a directory can be made");
    let archive = std::env::var("BENCH_TAR").expect("BENCH_TAR names an archive of small files");
    run(&directory, "tar", &["xf", &archive]);
}

fn mkdir_rmdir(root: &Path) {
    let name = |i: usize| root.join(format!("usr/d{i}"));
    (0..3000).for_each(|i| fs::create_dir(name(i)).expect("a directory can be made"));
    (0..3000).for_each(|i| fs::remove_dir(name(i)).expect("a directory can be removed"));
}

fn chmod_bin(root: &Path) {
    run(root, "chmod", &["-R", "o-rx", "usr/bin"]);
}

fn append(root: &Path) {
    for name in files(root, "usr/share", 1000) {
        let mut file = fs::OpenOptions::new().append(true).open(name).expect("a file can be opened");
        file.write_all(b"one more line\n").expect("a file can be written");
    }
}

fn rm_locale(root: &Path) {
    run(root, "rm", &["-rf", "usr/share/locale"]);
}

fn rm_usr(root: &Path) {
    run(root, "rm", &["-rf", "usr"]);
}

const BIG: usize = 512;

fn write_big(root: &Path) {
    let mut file = fs::File::from(create(&root.join("big")));
    let block = vec![7; 1 << 20];
    (0..BIG).for_each(|_| file.write_all(&block).expect("a file can be written"));
}

/// The file is in the kernel's cache of the real file system but not in that of the mount.
fn write_big_synced(root: &Path) {
    write_big(root);
    let file = fs::File::open(root.join("big")).expect("a file can be opened");
    file.sync_all().expect("a file can be synced");
    let _only_advice = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
}

fn read_big(root: &Path) {
    let mut file = fs::File::open(root.join("big")).expect("a file can be opened");
    let mut block = vec![0; 1 << 20];
    while file.read(&mut block).expect("a file can be read") > 0 {}
}

fn small_writes(root: &Path) {
    let mut file = fs::File::from(create(&root.join("small")));
    (0..200_000).for_each(|_| file.write_all(&[7; 100]).expect("a file can be written"));
}

fn open_read_close(root: &Path) {
    let mut buffer = vec![0; 4096];
    for name in files(root, "usr", 5000) {
        let mut file = fs::File::open(name).expect("a file can be opened");
        let _bytes = file.read(&mut buffer).expect("a file can be read");
    }
}

fn python(root: &Path) {
    let code = "import json,email.mime.text,http.client,argparse,unittest,xml.dom.minidom,sqlite3,asyncio";
    let library = root.join("usr/lib/python3.11");
    let home = root.join("usr");
    let status = Command::new("python3")
        .args(["-S", "-c", code])
        .env("PYTHONPATH", library)
        .env("PYTHONHOME", home)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stderr(Stdio::null())
        .status();
    status.expect("python3 can be started");
}

fn git(root: &Path) {
    let script = "cp -r usr/share/perl usr/share/zoneinfo usr/share/doc work-tree 2>/dev/null || \
        { mkdir work-tree; cp -r usr/share/perl usr/share/doc work-tree; }; cd work-tree && git init -q . && git add -A && \
        git -c user.name=a -c user.email=b commit -qm x && git status -s";
    run(root, "sh", &["-c", script]);
}
