//! The wire: requests of the kernel become calls of an `Overlay`, and its plain answers become replies. Nothing is
//! decided here but what the kernel may remember. OPEN, OPENDIR, CREATE, FLUSH and ACCESS are answered ENOSYS once (some
//! of them by fuser), so that they are never sent again (an open file then costs nothing, and CREATE becomes MKNOD without a RELEASE). A
//! panic in a handler answers EIO and the server lives on.

use crate::attr::{Attr, Caller, Changes};
use crate::contents::{Privilege, Seek, Span};
use crate::create::New;
use crate::directory::Detail;
use crate::overlay::Overlay;
use crate::rename::{Replace, Spot};
use crate::transport::counters::{Counters, Request as Kind};
use crate::transport::pause::Pause;
use crate::transport::placement::Placement;
use crate::transport::translate::{NOTHING, done, errno, file_attr, file_type, room, sized, stamp};
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};
use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

const GENERATION: Generation = Generation(0);
const MAX_WRITE: u32 = 1 << 20;
/// Data from which on copying it takes longer than waking somebody.
const HEAVY: usize = 64 << 10;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

pub(super) struct Wire {
    pub(super) overlay: Arc<Overlay>,
    pub(super) ttl: Duration,
    pub(super) counters: Arc<Counters>,
    pub(super) pause: Pause,
    pub(super) placement: Option<Arc<Placement>>,
}

impl Wire {
    /// Runs a handler; if it panics its reply is dropped, which answers EIO, and nothing else happens.
    fn guard(&self, kind: Kind, request: &Request, act: impl FnOnce()) {
        self.guard_sized(kind, request, 0, act);
    }

    /// The same for a request that carries `size` bytes of data.
    fn guard_sized(&self, kind: Kind, request: &Request, size: usize, act: impl FnOnce()) {
        self.counters.count(kind);
        if catch_unwind(AssertUnwindSafe(act)).is_err() {
            self.counters.count(Kind::Fault);
        }
        if let Some(placement) = &self.placement {
            placement.answered(request.pid(), size >= HEAVY);
        }
    }

    fn entry(&self, outcome: rustix::io::Result<Attr>, reply: ReplyEntry) {
        match outcome {
            Ok(attr) => reply.entry(&self.ttl, &file_attr(&attr), GENERATION),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn attr(&self, outcome: rustix::io::Result<Attr>, reply: ReplyAttr) {
        match outcome {
            Ok(attr) => reply.attr(&self.ttl, &file_attr(&attr)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn create_new(&self, request: &Request, umask: u32, spot: &Spot<'_>, new: &New<'_>, reply: ReplyEntry) {
        let caller = Caller { uid: request.uid(), gid: request.gid(), umask };
        self.guard(Kind::Create, request, || {
            self.entry(self.overlay.create(spot.parent, spot.name, new, caller), reply);
        });
    }
}

fn spot(parent: INodeNo, name: &OsStr) -> Spot<'_> {
    Spot { parent: parent.0, name: name.as_bytes() }
}

impl Filesystem for Wire {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let mut wanted = vec![
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_NO_OPEN_SUPPORT,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            InitFlags::FUSE_NO_EXPORT_SUPPORT,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
        ];
        if self.overlay.is_coherent() {
            wanted.push(InitFlags::FUSE_AUTO_INVAL_DATA);
        } else {
            wanted.push(InitFlags::FUSE_EXPLICIT_INVAL_DATA);
        }
        if self.overlay.uses_writeback() {
            wanted.push(InitFlags::FUSE_WRITEBACK_CACHE);
        }
        if self.overlay.has_acls() {
            // Only the directory knows whether its list stands in for the umask.
            wanted.extend([InitFlags::FUSE_POSIX_ACL, InitFlags::FUSE_DONT_MASK]);
        }
        for flag in wanted {
            // An older kernel lacks some; each only makes things faster, and KILLPRIV is cleared by us in any case.
            let _missing = config.add_capabilities(flag);
        }
        let _refused = config.set_max_write(MAX_WRITE);
        let _refused = config.set_max_background(64);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.guard(Kind::Lookup, request, || match self.overlay.lookup(parent.0, name.as_bytes()) {
            Ok(Some(attr)) => reply.entry(&self.ttl, &file_attr(&attr), GENERATION),
            Ok(None) => {
                // Node 0: the kernel remembers that the name does not exist.
                self.counters.count(Kind::Missed);
                let nothing = Attr { ino: 0, ..NOTHING };
                reply.entry(&self.ttl, &file_attr(&nothing), GENERATION);
            }
            Err(error) => reply.error(errno(error)),
        });
    }

    fn forget(&self, request: &Request, ino: INodeNo, count: u64) {
        self.guard(Kind::Forget, request, || self.overlay.forget(ino.0, count));
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _file: Option<FileHandle>, reply: ReplyAttr) {
        self.guard(Kind::GetAttr, request, || self.attr(self.overlay.attributes_of(ino.0), reply));
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _file: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changes = Changes { mode, uid, gid, size, atime: atime.map(stamp), mtime: mtime.map(stamp) };
        self.guard(Kind::SetAttr, request, || {
            // Only the kernel itself sends a change time, when it writes back what it kept.
            let outcome = match (ctime, changes) {
                (
                    Some(_),
                    Changes { mode: None, uid: None, gid: None, size: None, atime: None, mtime: Some(mtime) },
                ) => self.overlay.write_times_back(ino.0, mtime),
                _ => self.overlay.set_attr(ino.0, &changes),
            };
            self.attr(outcome, reply);
        });
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        self.guard(Kind::ReadLink, request, || match self.overlay.read_link(ino.0) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        self.create_new(request, umask, &spot(parent, name), &New::Node { mode, rdev }, reply);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        self.create_new(request, umask, &spot(parent, name), &New::Directory { mode }, reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = target.as_os_str().as_bytes();
        self.create_new(request, 0, &spot(parent, name), &New::Symlink { target }, reply);
    }

    fn open(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.counters.count(Kind::Open);
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.counters.count(Kind::Open);
        reply.error(Errno::ENOSYS);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.guard(Kind::Unlink, request, || done(self.overlay.unlink(parent.0, name.as_bytes()), reply));
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.guard(Kind::RmDir, request, || done(self.overlay.rmdir(parent.0, name.as_bytes()), reply));
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let replace = if flags == RenameFlags::empty() {
            Replace::Over
        } else if flags == RenameFlags::RENAME_NOREPLACE {
            Replace::Refuse
        } else if flags == RenameFlags::RENAME_EXCHANGE {
            Replace::Exchange
        } else {
            return reply.error(Errno::EINVAL);
        };
        let (from, to) = (spot(parent, name), spot(new_parent, new_name));
        self.guard(Kind::Rename, request, || done(self.overlay.rename(&from, &to, replace), reply));
    }

    fn link(&self, request: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.guard(Kind::Link, request, || {
            self.entry(self.overlay.link(ino.0, parent.0, name.as_bytes()), reply)
        });
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        _file: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.guard_sized(Kind::Read, request, size as usize, || {
            BUFFER.with_borrow_mut(|buffer| {
                let size = size as usize;
                if buffer.len() < size {
                    buffer.resize(size, 0);
                }
                match self.overlay.read(ino.0, offset, buffer.get_mut(..size).unwrap_or_default()) {
                    Ok(count) => {
                        let due = self.overlay.read_due(count, Instant::now());
                        self.pause.send(buffer.get(..count).unwrap_or_default(), due, reply);
                    }
                    Err(error) => reply.error(errno(error)),
                }
            });
        });
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        _file: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let privilege = if write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID) {
            Privilege::Drop
        } else {
            Privilege::Keep
        };
        self.guard_sized(Kind::Write, request, data.len(), || {
            match self.overlay.write(Span { ino: ino.0, offset }, data, privilege) {
                Ok(count) => match self.overlay.write_due(count, Instant::now()) {
                    None => reply.written(count as u32),
                    Some(due) => self.pause.until(due, Box::new(move || reply.written(count as u32))),
                },
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn flush(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _file: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, request: &Request, ino: INodeNo, _file: FileHandle, data_only: bool, reply: ReplyEmpty) {
        if self.overlay.is_volatile() {
            return reply.error(Errno::ENOSYS);
        }
        self.guard(Kind::Sync, request, || done(self.overlay.sync(ino.0, data_only), reply));
    }

    fn fsyncdir(
        &self,
        request: &Request,
        ino: INodeNo,
        _file: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
        // Of a volatile mount too: whoever looks at the upper asks so for the removals that are not in it yet.
        self.guard(Kind::Sync, request, || done(self.overlay.sync(ino.0, data_only), reply));
    }

    fn readdir(
        &self,
        request: &Request,
        ino: INodeNo,
        _file: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.guard(Kind::ReadDir, request, || {
            let outcome = self.overlay.read_dir(ino.0, offset, Detail::Names, &mut |entry| {
                let name = OsStr::from_bytes(entry.name);
                room(reply.add(INodeNo(entry.ino), entry.cookie, file_type(entry.kind), name))
            });
            match outcome {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn readdirplus(
        &self,
        request: &Request,
        ino: INodeNo,
        _file: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.guard(Kind::ReadDirPlus, request, || {
            let outcome = self.overlay.read_dir(ino.0, offset, Detail::Attributes, &mut |entry| {
                let attr = entry.attr.unwrap_or(Attr { ino: entry.ino, ..NOTHING });
                let (number, name) = (INodeNo(attr.ino), OsStr::from_bytes(entry.name));
                room(reply.add(number, entry.cookie, name, &self.ttl, &file_attr(&attr), GENERATION))
            });
            match outcome {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn statfs(&self, request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.guard(Kind::StatFs, request, || match self.overlay.stat_fs() {
            Ok(stat) => reply.statfs(
                stat.f_blocks,
                stat.f_bfree,
                stat.f_bavail,
                stat.f_files,
                stat.f_ffree,
                stat.f_bsize as u32,
                stat.f_namemax as u32,
                stat.f_frsize as u32,
            ),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn getxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.guard(Kind::GetXattr, request, || {
            sized(self.overlay.xattr(ino.0, name.as_bytes()), size, reply)
        });
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.guard(Kind::ListXattr, request, || sized(self.overlay.list_xattr(ino.0), size, reply));
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let flags = flags.unsigned_abs();
        self.guard(Kind::SetXattr, request, || {
            let set = self.overlay.set_xattr(ino.0, name.as_bytes(), value, flags);
            let asks = Caller { uid: request.uid(), gid: request.gid(), umask: 0 };
            done(set.and_then(|()| self.overlay.list_changed(ino.0, name.as_bytes(), asks)), reply)
        });
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.guard(Kind::RemoveXattr, request, || {
            done(self.overlay.remove_xattr(ino.0, name.as_bytes()), reply)
        });
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        _file: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let span = Span { ino: ino.0, offset };
        self.guard(Kind::Allocate, request, || {
            done(self.overlay.allocate(span, length, mode.unsigned_abs()), reply)
        });
    }

    fn lseek(
        &self,
        request: &Request,
        ino: INodeNo,
        _file: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let question = if whence == libc::SEEK_DATA { Seek::Data } else { Seek::Hole };
        // The kernel does not write dirty pages back before it asks, so the real file may have holes where the caller
        // has just written. ENOSYS makes it answer "all data" by itself, which is always right (decision 0103).
        if self.overlay.uses_writeback() {
            return reply.error(Errno::ENOSYS);
        }
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        self.guard(Kind::Seek, request, || match self.overlay.seek(Span { ino: ino.0, offset }, question) {
            Ok(offset) => reply.offset(offset as i64),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn copy_file_range(
        &self,
        request: &Request,
        ino_in: INodeNo,
        _in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _out: FileHandle,
        offset_out: u64,
        length: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let from = Span { ino: ino_in.0, offset: offset_in };
        let to = Span { ino: ino_out.0, offset: offset_out };
        self.guard(Kind::CopyRange, request, || match self.overlay.copy_range(from, to, length) {
            Ok(count) => reply.written(count as u32),
            Err(error) => reply.error(errno(error)),
        });
    }
}
