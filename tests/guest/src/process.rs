//! The plain verbs: read and write files, look at the terminal, end in a chosen way, wait, leave orphans.
//! A failed file operation is an answer (`{"error": "ENOENT"}`), not a failure of the guest.

use crate::{report::names_in, sys};
use serde_json::{Value, json};
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::time::Duration;

pub(crate) fn answer(result: io::Result<Value>) -> Option<Value> {
    Some(result.unwrap_or_else(|error| json!({"error": sys::errno_name(&error)})))
}

fn word(words: &[String], at: usize) -> &str {
    words.get(at).map_or("", String::as_str)
}

pub(crate) fn read(words: &[String]) -> Option<Value> {
    answer(fs::read(word(words, 0)).map(|bytes| json!({"text": String::from_utf8_lossy(&bytes)})))
}

/// `write PATH TEXT`: creates or truncates.
pub(crate) fn write(words: &[String]) -> Option<Value> {
    answer(fs::write(word(words, 0), word(words, 1)).map(|()| json!({"written": true})))
}

pub(crate) fn list(words: &[String]) -> Option<Value> {
    answer(fs::read_dir(word(words, 0)).map(|_| json!({"names": names_in(word(words, 0))})))
}

pub(crate) fn stat(words: &[String]) -> Option<Value> {
    let seen = fs::symlink_metadata(word(words, 0)).map(|meta| {
        let kind = meta.file_type();
        let kinds = [
            ("directory", kind.is_dir()),
            ("link", kind.is_symlink()),
            ("file", kind.is_file()),
            ("character", kind.is_char_device()),
            ("block", kind.is_block_device()),
            ("fifo", kind.is_fifo()),
            ("socket", kind.is_socket()),
        ];
        let named = kinds.iter().find(|(_, is)| *is).map(|(name, _)| *name);
        json!({"kind": named, "uid": meta.uid(), "gid": meta.gid(), "mode": format!("{:04o}", meta.mode() & 0o7777),
            "size": meta.size(), "device": [sys::major(meta.rdev()), sys::minor(meta.rdev())]})
    });
    answer(seen)
}

pub(crate) fn remove(words: &[String]) -> Option<Value> {
    let path = word(words, 0);
    let gone = fs::symlink_metadata(path)
        .and_then(|meta| if meta.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) });
    answer(gone.map(|()| json!({"removed": true})))
}

/// `say TEXT [TEXT]`: the first to standard output, the second to standard error.
pub(crate) fn say(words: &[String]) -> Option<Value> {
    println!("{}", word(words, 0));
    if let Some(second) = words.get(1) {
        eprintln!("{second}");
    }
    None
}

/// Standard input to standard output until end of file.
pub(crate) fn copy(_: &[String]) -> Option<Value> {
    let (mut from, mut to) = (io::stdin().lock(), io::stdout().lock());
    let mut block = [0; 65536];
    while let Ok(count @ 1..) = from.read(&mut block) {
        if to.write_all(&block[..count]).and_then(|()| to.flush()).is_err() {
            std::process::exit(1);
        }
    }
    None
}

pub(crate) fn isatty(_: &[String]) -> Option<Value> {
    Some(json!([0, 1, 2].map(sys::isatty)))
}

/// Prints the window size, and again after each change of it, until standard input ends.
pub(crate) fn window(_: &[String]) -> Option<Value> {
    sys::catch_signals(&[libc::SIGWINCH]);
    loop {
        println!("{}", json!(sys::window(0).map(|(rows, columns)| [rows, columns])));
        sys::next_signal();
    }
}

pub(crate) fn exit(words: &[String]) -> Option<Value> {
    std::process::exit(word(words, 0).parse().unwrap_or(99));
}

/// `raise SIGNAL`: by number or name, with the default action restored; pid 1 survives what it does not catch.
pub(crate) fn raise(words: &[String]) -> Option<Value> {
    let number = sys::signal_number(word(words, 0));
    sys::raise(number);
    Some(json!({"survived": number}))
}

/// `sleep [SECONDS]`: says `ready` first, and sleeps for ever without a number.
pub(crate) fn sleep(words: &[String]) -> Option<Value> {
    println!("ready");
    match word(words, 0).parse() {
        Ok(seconds) => std::thread::sleep(Duration::from_secs_f64(seconds)),
        Err(_) => loop {
            std::thread::sleep(Duration::from_secs(3600));
        },
    }
    None
}

/// `await-signal SIGNAL...`: says `ready`, waits for one of them, prints its name and exits 7.
pub(crate) fn await_signal(words: &[String]) -> Option<Value> {
    let numbers: Vec<i32> = words.iter().map(|name| sys::signal_number(name)).collect();
    sys::catch_signals(&numbers);
    println!("ready");
    let seen = sys::next_signal();
    println!("{}", sys::signal_name(seen));
    std::process::exit(7);
}

/// Leaves a grandchild behind that sleeps for ever in its own session, and prints its pid.
pub(crate) fn spawn_orphan(_: &[String]) -> Option<Value> {
    Some(json!({"pid": sys::spawn_orphan(None)}))
}

/// Makes an orphan that exits at once and tells whether pid 1 has reaped it within five seconds.
pub(crate) fn reap_orphan(_: &[String]) -> Option<Value> {
    let pid = sys::spawn_orphan(Some(0));
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    let mut reaped = false;
    while !reaped && std::time::Instant::now() < deadline {
        reaped = fs::metadata(format!("/proc/{pid}")).is_err();
        std::thread::sleep(Duration::from_millis(10));
    }
    Some(json!({"reaped": reaped, "self": std::process::id()}))
}

/// `spawn PROGRAM ARGS`: runs it and tells how it ended.
pub(crate) fn spawn(words: &[String]) -> Option<Value> {
    let ended = std::process::Command::new(word(words, 0)).args(words.get(1..).unwrap_or_default()).output();
    answer(ended.map(|out| {
        json!({"code": out.status.code(), "stdout": String::from_utf8_lossy(&out.stdout), "stderr": String::from_utf8_lossy(&out.stderr)})
    }))
}

pub(crate) fn clock(_: &[String]) -> Option<Value> {
    Some(
        json!({"boottime": sys::clock(libc::CLOCK_BOOTTIME), "monotonic": sys::clock(libc::CLOCK_MONOTONIC)}),
    )
}

/// `umask-file PATH`: the mode that a new 0666 file gets.
pub(crate) fn umask_file(words: &[String]) -> Option<Value> {
    let path = word(words, 0);
    answer(
        fs::File::create(path)
            .and_then(|file| file.metadata())
            .map(|meta| json!(format!("{:03o}", meta.mode() & 0o777))),
    )
}
