//! What a test wants of the host: `needs!(subids, fuse)` at its top. A facility is tried for real. Where it is
//! missing the test is left out, and that is written down: as meant for another kind of user if the kind that
//! runs the suite (`KELP_TEST_KIND`) was never promised it, else as a skip, which `CI=true` makes a failure.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::process::{Command, Stdio};

#[macro_export]
macro_rules! needs {
    ($($facility:ident),+) => {
        if !$crate::needs::met(&[$(stringify!($facility)),+]) {
            return;
        }
    };
}

type Probe = fn() -> bool;

/// Name, how it is tried, and the kinds of user that are promised it.
const FACILITIES: &[(&str, Probe, &[&str])] = &[
    ("userns", || succeeds("unshare", &["--user", "--map-root-user", "true"]), &["ids", "one", "container"]),
    ("overlay", overlay, &["ids", "one", "container"]),
    ("subids", subids, &["ids"]),
    ("ordinary", || crate::sys::uid() != 0, &["ids", "one"]),
    ("single", || crate::sys::uid() != 0 && !subids(), &["one"]),
    (
        "peers",
        || succeeds("slirp4netns", &["--version"]) && succeeds("pasta", &["--config-net", "--", "true"]),
        &["ids", "one"],
    ),
    ("root", || crate::sys::uid() == 0, &["container"]),
    ("many_ids", || crate::sys::uid() == 0 || subids(), &["ids", "container"]),
    (
        "fuse",
        || OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok(),
        &["ids", "one", "container"],
    ),
    ("disk", || crate::disk::disk(&std::env::temp_dir().display().to_string()).is_some(), &[]),
    ("debian", || debian().is_some(), &["ids", "one", "container"]),
    ("package", || package().is_some(), &["ids", "one", "container"]),
    ("stress", || succeeds("stress", &["--version"]), &["ids", "one", "container"]),
    ("compiler", || succeeds("cc", &["--version"]), &["ids", "one", "container"]),
    ("secret", || fs::metadata(SECRET).is_ok() && fs::read(SECRET).is_err(), &["ids", "one"]),
    ("shared_group", || fs::read_to_string(SHARED).is_ok() && crate::sys::uid() != 0, &["ids", "one"]),
];

/// A file that only members of the group `kelp-shared` may read.
pub(crate) const SHARED: &str = "/var/cache/kelp-tests/shared/letter";

/// A file that only the host's root may read.
pub(crate) const SECRET: &str = "/var/cache/kelp-tests/shared/secret";

pub(crate) fn met(facilities: &[&str]) -> bool {
    let missing = facilities.iter().find(|name| !facility(name).1());
    let Some(name) = missing else { return true };
    let kind = std::env::var("KELP_TEST_KIND").unwrap_or_default();
    let elsewhere = !kind.is_empty() && !facility(name).2.contains(&kind.as_str());
    let test = std::thread::current().name().unwrap_or("?").to_string();
    note(if elsewhere { "elsewhere" } else { "skipped" }, &format!("{test}\tneeds {name}"));
    let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(elsewhere || !ci, "{test} needs {name}, which this host does not give");
    false
}

fn facility(name: &str) -> &'static (&'static str, Probe, &'static [&'static str]) {
    FACILITIES.iter().find(|(known, ..)| *known == name).unwrap_or_else(|| panic!("no facility {name}"))
}

fn note(file: &str, line: &str) {
    eprintln!("left out: {line}");
    let Some(folder) = std::env::var_os("KELP_TEST_LOG") else { return };
    let path = std::path::Path::new(&folder).join(file);
    writeln!(OpenOptions::new().append(true).create(true).open(path).unwrap(), "{line}").unwrap();
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let ended = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    ended.is_ok_and(|status| status.success())
}

fn subids() -> bool {
    crate::sys::uid() != 0
        && !crate::host::subordinate("/etc/subuid").is_empty()
        && succeeds("unshare", &["--user", "--map-auto", "--map-root-user", "true"])
}

/// Kernel overlay with `userxattr`, tried where tests keep their folders.
fn overlay() -> bool {
    let dir = crate::dir::Dir::new();
    let [lower, upper, work, top] = ["l", "u", "w", "t"].map(|name| dir.folder(name));
    let mount = format!(
        "mount -t overlay overlay -o userxattr,lowerdir={lower},upperdir={upper},workdir={work} {top}"
    );
    let works = succeeds("unshare", &["--user", "--map-root-user", "--mount", "sh", "-c", &mount]);
    succeeds("chmod", &["-R", "u+rwx", &work]) && works
}

/// The Debian root that this kind of user can own.
pub(crate) fn debian() -> Option<String> {
    let root = std::env::var("KELP_TEST_ROOT").ok()?;
    fs::metadata(format!("{root}/usr/bin/dpkg")).is_ok().then_some(root)
}

/// A real package to install in it.
pub(crate) fn package() -> Option<String> {
    std::env::var("KELP_TEST_DEB").ok().filter(|path| fs::metadata(path).is_ok())
}
