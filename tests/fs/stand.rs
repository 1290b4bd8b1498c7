//! The stand on which the tests work: layers in a directory of their own, the real program or the kernel's overlay
//! mounted over them, and the facts of a tree to compare. It runs inside a user and mount namespace that `run` made
//! for an ordinary user; nothing is faked.

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{Pid, Signal};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The program under test.
pub fn program() -> PathBuf {
    PathBuf::from(
        std::env::var_os("FUSE_OVERLAY_BIN").expect("FUSE_OVERLAY_BIN names the program under test"),
    )
}

pub fn write(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) {
    fs::write(&path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()));
}

pub fn read(path: impl AsRef<Path>) -> Vec<u8> {
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()))
}

/// Opens a file that is there for both.
pub fn read_write(path: &Path) -> fs::File {
    fs::OpenOptions::new().read(true).write(true).open(path).expect("a file can be opened for writing")
}

pub fn meta(path: impl AsRef<Path>) -> fs::Metadata {
    fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()))
}

/// Whether files here can have several owners.
pub fn many_ids() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").expect("procfs is mounted");
    map.split_whitespace().skip(2).step_by(3).filter_map(|count| count.parse::<u64>().ok()).sum::<u64>() > 1
}

/// Layers and a mount point in a directory that goes when the stand does.
pub struct Stand {
    pub dir: PathBuf,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Stand {
    pub fn new(name: &str) -> Self {
        let base = std::env::var_os("FS_TESTS_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = base.join(format!("{name}-{}-{number}", std::process::id()));
        for part in ["lower", "lower2", "upper", "work", "mnt"] {
            fs::create_dir_all(dir.join(part)).expect("the test's directory can be made");
        }
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn lower(&self, name: &str) -> PathBuf {
        self.dir.join("lower").join(name)
    }

    pub fn upper(&self, name: &str) -> PathBuf {
        self.dir.join("upper").join(name)
    }

    pub fn mnt(&self, name: &str) -> PathBuf {
        self.dir.join("mnt").join(name)
    }

    pub fn layers(&self) -> String {
        let dir = self.dir.display();
        format!("lowerdir={dir}/lower:{dir}/lower2,upperdir={dir}/upper,workdir={dir}/work")
    }

    /// Mounts the program under test; the mount goes with the returned value.
    pub fn mount(&self, options: &str) -> Mounted {
        let outcome = self.attempt(&format!("{}{options}", self.layers()));
        assert!(outcome.0, "the program mounts: {}", outcome.1);
        Mounted { at: self.path("mnt") }
    }

    /// Runs the program with these options and returns whether it mounted, and what it said.
    pub fn attempt(&self, options: &str) -> (bool, String) {
        let output = Command::new(program()).arg("-o").arg(options).arg(self.path("mnt")).output();
        let output = output.expect("the program under test can be started");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// The processes that serve a mount of this stand.
    pub fn servers(&self) -> Vec<Pid> {
        let needle = [self.dir.as_os_str().as_bytes(), b"/"].concat();
        let serves = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).next().is_some_and(|name| name.ends_with(b"fuse-overlay"))
                && line.windows(needle.len()).any(|part| part == needle)
        };
        let processes = fs::read_dir("/proc").expect("procfs").flatten();
        let pids =
            processes.filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()));
        pids.filter(serves).filter_map(Pid::from_raw).collect()
    }

    /// Sends a signal to whoever serves this stand.
    pub fn signal(&self, signal: Signal) {
        let servers = self.servers();
        assert!(!servers.is_empty(), "somebody serves {}", self.dir.display());
        for server in servers {
            rustix::process::kill_process(server, signal).expect("the server can be signalled");
        }
    }

    /// Mounts the kernel's overlay with user attributes over the same layers.
    pub fn mount_kernel(&self) -> Mounted {
        let data = CString::new(format!("{},userxattr", self.layers())).expect("no NUL in a path");
        let target = self.path("mnt");
        rustix::mount::mount("overlay", &target, "overlay", MountFlags::empty(), data.as_c_str())
            .expect("the kernel mounts its own overlay");
        Mounted { at: target }
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        if std::env::var_os("FS_TESTS_KEEP").is_none() {
            let _left_behind = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Waits for what happens of itself.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        std::thread::yield_now();
    }
}

/// `strace` attached to the server of a stand.
pub struct Tracer(Child);

impl Tracer {
    pub fn attach(stand: &Stand, arguments: &[&str]) -> Self {
        let server = stand.servers().pop().expect("a server runs").as_raw_nonzero().to_string();
        let mut tracer = Command::new("strace")
            .args(["-f", "-p", &server])
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace starts");
        let mut said = BufReader::new(tracer.stderr.take().expect("a pipe"));
        let mut line = String::new();
        said.read_line(&mut line).expect("strace speaks");
        assert!(line.contains("attached"), "{line}");
        // It goes on speaking; nobody has to listen.
        std::thread::spawn(move || said.lines().for_each(drop));
        Self(tracer)
    }

    /// Lets a server that lives go.
    pub fn detach(mut self) {
        let pid = Pid::from_child(&self.0);
        rustix::process::kill_process(pid, Signal::INT).expect("strace is told");
        self.0.wait().expect("strace ends");
    }

    /// Waits for the end of a server that dies: told to let it go just then, strace waits for ever.
    pub fn outlive(mut self) {
        until("strace ends with its server", || {
            self.0.try_wait().expect("strace can be waited for").is_some()
        });
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _ended_already = self.0.wait();
    }
}

/// A mount that ends with the value.
pub struct Mounted {
    at: PathBuf,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if rustix::mount::unmount(&self.at, UnmountFlags::empty()).is_err() {
            let _lazily = rustix::mount::unmount(&self.at, UnmountFlags::DETACH);
        }
        // The server lets go of the layers when the kernel has told it so.
        let work = self.at.with_file_name("work");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while is_leased(&work) && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
    }
}

/// Does a server hold the lease on this work directory?
pub fn is_leased(work: &Path) -> bool {
    let Ok(directory) = fs::File::open(work) else { return false };
    rustix::fs::flock(&directory, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err()
}

/// What a tree shows of one file.
#[derive(Clone, PartialEq, Eq)]
pub struct Facts {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    pub size: u64,
    /// Only times before the test began: a fresh time differs between two mounts.
    pub old_mtime: Option<(i64, u32)>,
    pub content: u64,
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

impl fmt::Debug for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mode, uid, gid, nlink, size, content, .. } = self;
        write!(f, "{mode:o} {uid}:{gid} links {nlink} size {size} content {content:x} ")?;
        write!(f, "mtime {:?} xattrs {:?}", self.old_mtime, self.attributes.len())
    }
}

/// Reads a whole tree. The root's own facts stand under an empty name.
pub fn tree(root: &Path) -> BTreeMap<PathBuf, Facts> {
    let mut facts = BTreeMap::new();
    visit(root, Path::new(""), &mut facts);
    facts
}

fn visit(root: &Path, at: &Path, facts: &mut BTreeMap<PathBuf, Facts>) {
    let path = root.join(at);
    let found = facts_of(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let directory = found.mode & 0o170_000 == 0o040_000;
    facts.insert(at.to_owned(), found);
    if directory {
        let entries = fs::read_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for entry in entries {
            let name = entry.expect("a directory entry can be read").file_name();
            visit(root, &at.join(name), facts);
        }
    }
}

pub fn facts_of(path: &Path) -> std::io::Result<Facts> {
    const NEW: i64 = 1_700_000_000;
    let stat = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS)?;
    let mode = u32::from(stat.stx_mode);
    let kind = mode & 0o170_000;
    let content = match kind {
        0o100_000 => hash(&fs::read(path)?),
        0o120_000 => hash(fs::read_link(path)?.as_os_str().as_bytes()),
        _ => 0,
    };
    let old = stat.stx_mtime.tv_sec < NEW;
    Ok(Facts {
        mode,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        // Directories count their links in different ways.
        nlink: if kind == 0o040_000 { 0 } else { stat.stx_nlink },
        size: if kind == 0o040_000 { 0 } else { stat.stx_size },
        old_mtime: old.then_some((stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec)),
        content,
        attributes: if kind == 0o120_000 { Vec::new() } else { attributes(path) },
    })
}

/// Extended attributes of a file, sorted.
pub fn attributes(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = vec![0; 65_536];
    let length = rustix::fs::llistxattr(path, names.as_mut_slice()).unwrap_or(0);
    let mut list: Vec<_> = names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 65_536];
            let length = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).unwrap_or(0);
            (name.to_vec(), value[..length].to_vec())
        })
        .collect();
    list.sort();
    list
}

/// FNV-1a: enough to tell contents apart.
pub fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// What differs between two trees, in words.
pub fn differences(a: &BTreeMap<PathBuf, Facts>, b: &BTreeMap<PathBuf, Facts>) -> Vec<String> {
    let names = a.keys().chain(b.keys()).collect::<std::collections::BTreeSet<_>>();
    let pairs = names.into_iter().map(|name| (name, a.get(name), b.get(name)));
    pairs
        .filter(|(_, a, b)| a != b)
        .map(|(name, a, b)| format!("{}:\n    {a:?}\n    {b:?}", name.display()))
        .collect()
}

/// A generator with a fixed seed, so that a failure comes back (splitmix64).
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.roll(from.len() as u64) as usize]
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.roll(256) as u8).collect()
    }
}
