//! What the layers below do to a mount: reads that fail and are mended, attributes as large as there are, marks, links and folders of
//! ten thousand names. The layer that fails is a file system of this test's own, mounted by FUSE.

use fs_tests::{Mounted, Stand, Tracer, meta, tree, write};
use fuse_overlay::transport::mounting;
use fuser::{
    FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, LockOwner, OpenFlags, SessionACL,
};
use fuser::{ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, Request, Session};
use rustix::fs::{XattrFlags, lgetxattr, llistxattr, lsetxattr};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, unmount};
use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, UNIX_EPOCH};

/// How much of `file` can be read while the disk fails; all of it is this much and as much again.
const GOOD: usize = 128 << 10;

const FILE: INodeNo = INodeNo(2);
const FOLDER: INodeNo = INodeNo(3);
const WITHIN: INodeNo = INodeNo(4);

/// A disk that fails while it is told to: `file` in its second half, `folder` when it is listed or looked into.
struct Disk {
    fails: Arc<AtomicBool>,
}

fn content() -> Vec<u8> {
    (0..2 * GOOD).map(|at| (at / 512) as u8).collect()
}

fn attributes(ino: INodeNo) -> FileAttr {
    let kind = if [FILE, WITHIN].contains(&ino) { FileType::RegularFile } else { FileType::Directory };
    let size = if ino == FILE { 2 * GOOD as u64 } else { 0 };
    let perm = if kind == FileType::Directory { 0o755 } else { 0o644 };
    FileAttr {
        ino,
        size,
        blocks: size / 512,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        flags: 0,
        blksize: 4096,
    }
}

impl Disk {
    fn fails(&self) -> bool {
        self.fails.load(Ordering::SeqCst)
    }
}

impl Filesystem for Disk {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match (parent, name.to_str()) {
            (FOLDER, _) if self.fails() => reply.error(fuser::Errno::EIO),
            (FOLDER, Some("within")) => reply.entry(&Duration::ZERO, &attributes(WITHIN), Generation(0)),
            (INodeNo::ROOT, Some("file")) => {
                reply.entry(&Duration::ZERO, &attributes(FILE), Generation(0));
            }
            (INodeNo::ROOT, Some("folder")) => {
                reply.entry(&Duration::ZERO, &attributes(FOLDER), Generation(0));
            }
            _ => reply.error(fuser::Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::ZERO, &attributes(ino));
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let all = if ino == FILE { content() } else { Vec::new() };
        let from = all.len().min(offset as usize);
        let to = all.len().min(from + size as usize);
        if to > GOOD && self.fails() { reply.error(fuser::Errno::EIO) } else { reply.data(&all[from..to]) }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if ino == FOLDER && self.fails() {
            return reply.error(fuser::Errno::EIO);
        }
        let all: &[(INodeNo, FileType, &str)] = match ino {
            FOLDER => &[(WITHIN, FileType::RegularFile, "within")],
            _ => &[(FILE, FileType::RegularFile, "file"), (FOLDER, FileType::Directory, "folder")],
        };
        for (at, (ino, kind, name)) in all.iter().enumerate().skip(offset as usize) {
            if reply.add(*ino, at as u64 + 1, *kind, name) {
                break;
            }
        }
        reply.ok();
    }
}

/// The disk, mounted as the second layer of a stand.
struct Failing {
    at: PathBuf,
    fails: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl Failing {
    fn new(stand: &Stand) -> Self {
        let (at, fails) = (stand.path("lower2"), Arc::new(AtomicBool::new(false)));
        let device = mounting::open_device().expect("/dev/fuse opens");
        mounting::mount(&device, &at, MountFlags::empty()).expect("a mount");
        let mut config = fuser::Config::default();
        config.acl = SessionACL::All;
        let disk = Disk { fails: fails.clone() };
        let server = std::thread::spawn(move || {
            let session = Session::from_fd(disk, device, SessionACL::All, config).expect("the kernel greets");
            session.run().expect("a session to its end");
        });
        Self { at, fails, server: Some(server) }
    }

    fn fail(&self, fails: bool) {
        self.fails.store(fails, Ordering::SeqCst);
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        let _gone = unmount(&self.at, UnmountFlags::DETACH);
        if let Some(server) = self.server.take() {
            let _ended = server.join();
        }
    }
}

fn errno<T>(outcome: std::io::Result<T>) -> Option<Errno> {
    outcome.err().and_then(|error| Errno::from_io_error(&error))
}

#[test]
fn what_a_layer_can_not_read_is_an_error_of_the_program_and_the_mount_goes_on() {
    let stand = Stand::new("failing");
    write(stand.lower("sound"), "sound");
    let disk = Failing::new(&stand);
    let mounted = stand.mount("");
    disk.fail(true);
    let file = fs::File::open(stand.mnt("file")).expect("an open");
    let mut first = vec![0; 4096];
    file.read_exact_at(&mut first, 0).expect("what the disk can read");
    assert!(first == content()[..4096], "other data");
    assert_eq!(errno(file.read_at(&mut first, GOOD as u64 + 4096)), Some(Errno::IO));
    assert_eq!(errno((&file).read_to_end(&mut Vec::new())), Some(Errno::IO));
    assert_eq!(
        errno(fs::read_dir(stand.mnt("folder")).and_then(|list| list.collect::<Result<Vec<_>, _>>())),
        Some(Errno::IO)
    );
    assert_eq!(errno(fs::symlink_metadata(stand.mnt("folder/within"))), Some(Errno::IO));
    // A copy that can't be made changes nothing.
    let appended = || {
        let mut file = fs::File::options().append(true).open(stand.mnt("file"))?;
        file.write_all(b"more")?;
        file.sync_all()
    };
    assert_eq!(errno(appended()), Some(Errno::IO));
    assert!(!stand.upper("file").exists(), "half a file is in the upper");
    assert_eq!(fs::read(stand.mnt("sound")).expect("another file"), b"sound");
    write(stand.mnt("new"), "new");
    disk.fail(false);
    // The same descriptor, and names that failed.
    let mut last = vec![0; 4096];
    file.read_exact_at(&mut last, GOOD as u64 + 4096).expect("a disk that was mended");
    assert!(last == content()[GOOD + 4096..][..4096], "other data");
    let listed: Vec<_> = fs::read_dir(stand.mnt("folder"))
        .expect("a folder")
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(listed, ["within"]);
    assert_eq!(meta(stand.mnt("folder/within")).len(), 0);
    appended().expect("an append");
    drop(mounted);
    // What could not be flushed stays in the kernel's cache, as of a disk, and is flushed with what comes after it.
    let made = fs::read(stand.upper("file")).expect("a file");
    assert!(made.starts_with(&content()), "the lower's data comes first, in {} bytes", made.len());
    assert_eq!(String::from_utf8_lossy(&made[2 * GOOD..]), "moremore");
    let left: Vec<_> = fs::read_dir(stand.path("work/work")).expect("a folder").flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A stand whose layers lie on a file system of their own.
struct OnTmpfs(Stand);

impl OnTmpfs {
    fn new(name: &str) -> Self {
        let stand = Stand::new(name);
        rustix::mount::mount("tmpfs", &stand.dir, "tmpfs", MountFlags::empty(), c"").expect("a tmpfs");
        for part in ["lower", "lower2", "upper", "work", "mnt"] {
            fs::create_dir(stand.path(part)).expect("a folder");
        }
        Self(stand)
    }
}

impl Drop for OnTmpfs {
    fn drop(&mut self) {
        let _gone = unmount(&self.0.dir, UnmountFlags::DETACH);
    }
}

/// The largest value of an attribute, and the longest list of names (`xattr(7)`).
const LARGEST: usize = 64 << 10;

/// What each step says, as one text: `Ok` with a length, or the error.
fn large_attributes(stand: &Stand, mount: impl Fn(&Stand) -> Mounted) -> Vec<String> {
    write(stand.lower("valued"), "x");
    write(stand.lower("listed"), "x");
    let value: Vec<u8> = (0..LARGEST).map(|at| (at / 100) as u8).collect();
    lsetxattr(stand.lower("valued"), "user.large", &value, XattrFlags::empty()).expect("a value on the disk");
    let name = |number: usize| format!("user.{number:0>200}");
    let set = |path: &Path, number| lsetxattr(path, name(number), b"", XattrFlags::empty());
    // As long as a list can be.
    let most = LARGEST / (name(0).len() + 1);
    (0..most).for_each(|number| set(&stand.lower("listed"), number).expect("a name on the disk"));
    let mounted = mount(stand);
    let (valued, listed, new) = (stand.mnt("valued"), stand.mnt("listed"), stand.mnt("new"));
    let read = |path: &Path| {
        let mut found = vec![0; LARGEST + 1];
        lgetxattr(path, "user.large", &mut found).inspect(|length| assert_eq!(found[..*length], value))
    };
    let list = |path: &Path| llistxattr(path, &mut vec![0u8; LARGEST + 1]);
    let mut said = Vec::new();
    let mut say = |what: &str, outcome: Result<usize, Errno>| said.push(format!("{what}: {outcome:?}"));
    say("value of the lower", read(&valued));
    say("names of the lower", list(&listed));
    say("one more name", set(&listed, most).map(|()| 0));
    say("names that are too many", list(&listed));
    for path in [&valued, &listed] {
        let mut file = fs::File::options().append(true).open(path).expect("an open");
        say("copy up", file.write(b"y").map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO)));
    }
    say("value of the upper", read(&valued));
    say("names of the upper", list(&listed));
    write(&new, "new");
    say("a value", lsetxattr(&new, "user.large", &value, XattrFlags::empty()).map(|()| 0));
    say("it", read(&new));
    let larger = [&value[..], b"x"].concat();
    say("a larger one", lsetxattr(&new, "user.large", &larger, XattrFlags::empty()).map(|()| 0));
    say("the first still", read(&new));
    drop(mounted);
    said
}

#[test]
fn attributes_of_64_kib_are_read_copied_up_and_written_as_on_the_kernels_overlay() {
    let (ours, kernels) = (OnTmpfs::new("large"), OnTmpfs::new("large-kernel"));
    write(ours.0.path("probe"), "");
    if lsetxattr(ours.0.path("probe"), "user.probe", b"", XattrFlags::empty()) == Err(Errno::OPNOTSUPP) {
        println!("tmpfs has attributes of users from Linux 6.6 on, and other disks have none of this size");
        return;
    }
    let seen = large_attributes(&ours.0, |stand| stand.mount(""));
    let wanted = large_attributes(&kernels.0, Stand::mount_kernel);
    assert_eq!(seen, wanted);
    assert!(seen.contains(&format!("value of the upper: Ok({LARGEST})")), "{seen:?}");
    assert!(seen.contains(&format!("a larger one: {:?}", Err::<usize, _>(Errno::TOOBIG))), "{seen:?}");
}

#[test]
fn a_value_that_the_disk_has_no_room_for_is_refused_as_on_the_kernels_overlay() {
    let outcome = |stand: &Stand, mount: fn(&Stand) -> Mounted| {
        write(stand.lower("f"), "x");
        let _mounted = mount(stand);
        let set =
            |length: usize| lsetxattr(stand.mnt("f"), "user.v", &vec![b'v'; length], XattrFlags::empty());
        [
            set(100),
            set(LARGEST),
            set(LARGEST + 1),
            lgetxattr(stand.mnt("f"), "user.v", &mut vec![0; LARGEST]).map(drop),
        ]
    };
    let ours = outcome(&Stand::new("no-room"), |stand| stand.mount(""));
    assert_eq!(ours, outcome(&Stand::new("no-room-kernel"), Stand::mount_kernel));
    assert_eq!(ours[2], Err(Errno::TOOBIG));
}

/// How many system calls the server makes for `work`.
fn calls(stand: &Stand, work: impl FnOnce()) -> usize {
    let sums = stand.path("sums");
    let tracer = Tracer::attach(stand, &["-c", "-o", sums.to_str().expect("a plain path")]);
    work();
    tracer.detach();
    let text = fs::read_to_string(&sums).expect("the sums");
    let total = text.lines().find(|line| line.trim_end().ends_with("total")).expect("a line of all");
    // Of the time: share, seconds and microseconds a call; then calls, and errors if there are any.
    total.split_whitespace().nth(3).and_then(|count| count.parse().ok()).expect("a number of calls")
}

/// The calls for a listing, 200 new files, and their removal, in a folder of both layers with `count` names.
fn work_in_a_folder_of(count: usize) -> [usize; 4] {
    const NEW: usize = 200;
    let stand = Stand::new("wide");
    for (layer, name) in [("lower", "d"), ("upper", "d")] {
        fs::create_dir(stand.path(layer).join(name)).expect("a folder");
        let half = |at: usize| stand.path(layer).join(name).join(format!("{layer}{at}"));
        (0..count / 2).for_each(|at| write(half(at), ""));
    }
    let _mounted = stand.mount("");
    let listed = || assert_eq!(fs::read_dir(stand.mnt("d")).expect("a folder").count(), count);
    let list = calls(&stand, listed);
    let new = |at: usize| stand.mnt(&format!("d/new{at}"));
    let create = calls(&stand, || (0..NEW).for_each(|at| write(new(at), "")));
    let rename = calls(&stand, || {
        (0..NEW).for_each(|at| fs::rename(new(at), new(at + NEW)).expect("a rename"));
    });
    let remove = calls(&stand, || {
        (NEW..2 * NEW).for_each(|at| fs::remove_file(new(at)).expect("a removal"));
        (0..NEW).for_each(|at| fs::remove_file(stand.mnt(&format!("d/lower{at}"))).expect("a removal"));
        fs::File::open(stand.mnt("d")).and_then(|folder| folder.sync_all()).expect("a sync");
    });
    [list, create, rename, remove]
}

#[test]
fn work_in_a_folder_of_ten_thousand_names_costs_what_it_costs_in_a_small_one() {
    let (small, wide) = (work_in_a_folder_of(1000), work_in_a_folder_of(10_000));
    assert!(wide[0] < 15 * small[0], "a listing of ten times as many names: {small:?} and {wide:?}");
    for (here, there) in small.iter().zip(&wide).skip(1) {
        // What is done by the clock is counted as well.
        assert!(*there < 2 * here, "200 changes of one folder: {small:?} and {wide:?}");
    }
}

#[test]
fn a_raw_layers_whiteouts_hide_and_its_marks_are_not_shown() {
    let stand = Stand::new("raw");
    for part in ["lower", "lower2"] {
        fs::create_dir(stand.path(part).join("d")).expect("a directory");
    }
    write(stand.path("lower2/gone"), "x");
    write(stand.path("lower2/d/old"), "x");
    write(stand.lower(".wh.gone"), "");
    write(stand.lower("d/.wh..wh..opq"), "");
    write(stand.lower("d/new"), "x");
    let _mounted = stand.mount("");
    let names: Vec<_> = tree(&stand.path("mnt")).into_keys().map(|path| path.display().to_string()).collect();
    assert_eq!(names, ["", "d", "d/new"]);
}

#[test]
fn a_symlink_of_a_layer_leads_nowhere_but_where_the_caller_stands() {
    let stand = Stand::new("escape");
    symlink("/etc", stand.lower("etc")).expect("a link");
    symlink("../../..", stand.lower("up")).expect("a link");
    fs::create_dir(stand.path("lower2/up")).expect("a directory");
    let _mounted = stand.mount("");
    assert!(meta(stand.mnt("etc")).is_symlink() && meta(stand.mnt("up")).is_symlink());
    assert_eq!(fs::read_link(stand.mnt("up")).expect("a link"), Path::new("../../.."));
}
