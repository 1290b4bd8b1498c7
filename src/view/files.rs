//! The file system: one folder, one file for each of `render`. A file is written when it is opened, so that a reader
//! sees one moment, whatever pieces it reads.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags,
    ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, Request, Session, SessionACL,
};

use crate::view::numbers::Source;
use crate::view::render::{FILES, Rendered};

/// Names and attributes never change.
const FOREVER: Duration = Duration::from_secs(1 << 30);

/// The number of the first file; 1 is the folder.
const FIRST: u64 = 2;

/// Open files, and where their texts come from.
pub struct Files {
    source: Mutex<Source>,
    open: Mutex<HashMap<u64, String>>,
    next: AtomicU64,
}

/// Serves the device until its mounts are gone; `ready` is called when the kernel was answered first.
pub fn serve(source: Source, device: OwnedFd, ready: impl FnOnce()) -> io::Result<()> {
    let files = Files { source: Mutex::new(source), open: Mutex::default(), next: AtomicU64::new(1) };
    let mut config = fuser::Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(1);
    let session = Session::from_fd(files, device, SessionACL::All, config)?;
    ready();
    session.run()
}

impl Files {
    fn file(number: INodeNo) -> Option<&'static Rendered> {
        FILES.get(usize::try_from(number.0.checked_sub(FIRST)?).ok()?)
    }

    fn text(&self, file: &Rendered) -> Option<String> {
        let numbers = self.source.lock().ok()?.numbers();
        // Two files are the machine's with other numbers in them.
        let host = match file.name {
            "cpuinfo" | "diskstats" | "stat" => fs::read_to_string(file.target).unwrap_or_default(),
            _ => String::new(),
        };
        Some((file.text)(&numbers, &host))
    }
}

fn attributes(number: u64) -> FileAttr {
    let (kind, perm) =
        if number < FIRST { (FileType::Directory, 0o555) } else { (FileType::RegularFile, 0o444) };
    let epoch = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(number),
        size: 0,
        blocks: 0,
        atime: epoch,
        mtime: epoch,
        ctime: epoch,
        crtime: epoch,
        kind,
        perm,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Files {
    fn lookup(&self, _request: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match FILES.iter().position(|file| name == file.name) {
            Some(at) => reply.entry(&FOREVER, &attributes(FIRST + at as u64), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _request: &Request, number: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOREVER, &attributes(number.0));
    }

    fn open(&self, _request: &Request, number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let text = Self::file(number).and_then(|file| self.text(file));
        match (text, self.open.lock()) {
            (Some(text), Ok(mut open)) => {
                let handle = self.next.fetch_add(1, Ordering::Relaxed);
                open.insert(handle, text);
                reply.opened(FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO);
            }
            _ => reply.error(Errno::EIO),
        }
    }

    fn read(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Ok(open) = self.open.lock() else { return reply.error(Errno::EIO) };
        let text = open.get(&handle.0).map(String::as_bytes).unwrap_or_default();
        let rest = usize::try_from(offset).ok().and_then(|from| text.get(from..)).unwrap_or_default();
        reply.data(rest.get(..size as usize).unwrap_or(rest));
    }

    fn release(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        if let Ok(mut open) = self.open.lock() {
            open.remove(&handle.0);
        }
        reply.ok();
    }
}
