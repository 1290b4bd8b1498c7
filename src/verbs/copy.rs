//! `kelp cp`: files between the host and containers, as a tar stream from one process to another. The process
//! inside is root of the container's user namespace and nothing of the host's; of a running container it sees
//! the mounts too. The process outside is the user. Each resolves names in its own root by descriptors, once
//! (CVE-2018-15664), and neither loads anything from the container (CVE-2019-14271).

use std::cell::Cell;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use crate::container::folder::Container;
use crate::error::Error;
use crate::image::snapshot::{Ownership, Snapshot};
use crate::image::store::Store;
use crate::image::tar::Kind;
use crate::image::tree::kind_of;
use crate::image::unpack::{self, Destination};
use crate::paths::Paths;
use crate::rootfs::rung::Rung;
use crate::rootfs::target::{self, Place};
use crate::rootfs::view::View;
use crate::spec::request::Driver;
use crate::sys::process;
use crate::userns::within;
use crate::verbs::contents::Contents;

/// Where files come from or go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Host(PathBuf),
    Container {
        name: String,
        path: PathBuf,
    },
    /// A tar on standard input or output.
    Stream,
}

#[derive(Clone, Debug)]
pub struct Copy {
    pub from: End,
    pub to: End,
    /// Copy what a link leads to.
    pub follow: bool,
    /// Files keep their owners, as far as the other side has them.
    pub archive: bool,
    pub overwrite: bool,
}

/// Prints an error of a child process and gives its exit status.
pub type Complain<'a> = dyn Fn(&anyhow::Error) -> i32 + 'a;

const FAILED: i32 = 125;

/// Carries the copy out; the status of the process inside, which has said what is wrong.
pub fn copy(request: &Copy, complain: &Complain<'_>) -> Result<i32> {
    let paths = Paths::find()?;
    let pipe = Pipe::new()?;
    let within = |name: &str, work: &dyn Fn(BorrowedFd<'_>) -> Result<()>, meanwhile: &Meanwhile<'_>| {
        inside(&paths, name, work, meanwhile, complain)
    };
    let (from, to) = (&request.from, &request.to);
    let send_all = |root: BorrowedFd<'_>, path: &Path| send(request, root, path, pipe.writer()?, b"0");
    let receive_all = |root: BorrowedFd<'_>, path: &Path| receive(request, root, path, pipe.reader()?);
    match (from, to) {
        (End::Container { name, path }, End::Stream) => {
            let base = if is_contents(path) { b"." } else { base(path) };
            within(name, &|root| send(request, root, path, std::io::stdout().lock(), base), &|| Ok(0))
        }
        (End::Stream, End::Container { name, path }) => {
            within(name, &|root| receive(request, root, path, std::io::stdin()), &|| Ok(0))
        }
        (End::Container { name, path }, End::Host(host)) => {
            within(name, &|root| send_all(root, path), &|| {
                receive_all(File::open("/")?.as_fd(), host).map(|()| 0)
            })
        }
        (End::Host(host), End::Container { name, path }) => {
            within(name, &|root| receive_all(root, path), &|| {
                send_all(File::open("/")?.as_fd(), host).map(|()| 0)
            })
        }
        (End::Container { name: first, path: from }, End::Container { name: second, path: to }) => {
            within(first, &|root| send_all(root, from), &|| {
                let status = within(second, &|root| receive_all(root, to), &|| {
                    pipe.close();
                    Ok(0)
                });
                pipe.close();
                status
            })
        }
        _ => Err(Error::usage("one of the two must be a container's: CONTAINER:PATH").into()),
    }
}

/// What the process outside does; its status counts if it is not 0.
type Meanwhile<'a> = dyn Fn() -> Result<i32> + 'a;

/// The two ends of a pipe that two processes hold after a fork, each of which keeps one.
struct Pipe {
    read: Cell<Option<OwnedFd>>,
    write: Cell<Option<OwnedFd>>,
}

impl Pipe {
    fn new() -> Result<Self> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        Ok(Self { read: Cell::new(Some(read)), write: Cell::new(Some(write)) })
    }

    fn reader(&self) -> Result<File> {
        self.write.take();
        Ok(self.read.take().context("the pipe is closed")?.into())
    }

    fn writer(&self) -> Result<File> {
        self.read.take();
        Ok(self.write.take().context("the pipe is closed")?.into())
    }

    fn close(&self) {
        self.read.take();
        self.write.take();
    }
}

/// Runs `work` on the root of a container, in a process inside.
fn inside(
    paths: &Paths,
    name: &str,
    work: &dyn Fn(BorrowedFd<'_>) -> Result<()>,
    meanwhile: &Meanwhile<'_>,
    complain: &Complain<'_>,
) -> Result<i32> {
    let contents = Contents::find(paths, &Store::open(paths)?, name)?;
    let told = |outcome: Result<()>| match outcome {
        Ok(()) => 0,
        // Whoever gave up has said why.
        Err(error) if is_broken_pipe(&error) => FAILED,
        Err(error) => complain(&error.context(format!("cannot copy: container {name}"))),
    };
    let (status, done) = match &contents.process {
        Some(process) => {
            let pidfd = process::pidfd_open(process.pid).context("the container has just ended")?;
            if !process.lives() {
                bail!("container {name} has just ended");
            }
            let work = || told(File::open("/").map_err(Into::into).and_then(|root| work(root.as_fd())));
            within::join(pidfd.as_fd(), work, meanwhile)?
        }
        None => {
            let Some(mut container) = Container::open(&contents.folder)? else {
                bail!("container {name} is just being started or removed");
            };
            let is_renumbered = contents.is_renumbered()?;
            let mut open = || -> Result<View> {
                let view = contents.open()?;
                keep_rung(&mut container, &view, is_renumbered)?;
                Ok(view)
            };
            let work =
                || told(open().context("cannot open the root").and_then(|view| work(view.root()?.as_fd())));
            within::beside(&contents.root_maps()?, libc::CLONE_NEWNS as u64, work, meanwhile)?
        }
    };
    match done {
        // The other side gave up and has said why.
        Err(error) if status != 0 && is_broken_pipe(&error) => Ok(status),
        Ok(0) => Ok(status),
        done => done,
    }
}

/// A container that has never started has a layer now, which its start must not take for the remains of a failure.
fn keep_rung(container: &mut Container, view: &View, is_renumbered: bool) -> Result<()> {
    if container.status.rung.is_some() {
        return Ok(());
    }
    container.status.rung = Some(match container.made.request.storage.driver {
        Some(Driver::OverlayOnFuse) => Rung::OverlayOnFuse,
        Some(Driver::Fuse) => Rung::FuseOverlay,
        _ if is_renumbered => Rung::FuseOverlay,
        _ => view.rung(),
    });
    container.keep()
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
    io.is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
}

/// `DIR/.` means what is in the folder.
fn is_contents(path: &Path) -> bool {
    let text = path.as_os_str().as_bytes();
    text.ends_with(b"/.") || matches!(text, b"." | b"/")
}

fn is_folder_said(path: &Path) -> bool {
    path.as_os_str().as_bytes().ends_with(b"/")
}

fn base(path: &Path) -> &[u8] {
    path.file_name().map_or(b".", |name| name.as_bytes())
}

fn shown(error: anyhow::Error, path: &Path) -> anyhow::Error {
    error.context(path.display().to_string())
}

/// Sends what is at `path` under the name `called`.
fn send(request: &Copy, root: BorrowedFd<'_>, path: &Path, out: impl Write, called: &[u8]) -> Result<()> {
    let follow = request.follow || is_folder_said(path) || is_contents(path);
    let outward = !matches!(request.to, End::Container { .. } | End::Stream);
    let kept = matches!(request.to, End::Stream)
        || request.archive && (!outward || nix::unistd::geteuid().is_root());
    let ownership = if kept { Ownership::Kept } else { Ownership::Given { uid: 0, gid: 0 } };
    let sent = || -> Result<()> {
        let Place { folder, name, stat } = target::place(root, path, follow)?;
        let Some(stat) = stat else { bail!("no such file or folder") };
        if kind_of(&stat) != nix::sys::stat::SFlag::S_IFDIR && (is_folder_said(path) || is_contents(path)) {
            bail!("it is no folder");
        }
        let mut snapshot = Snapshot::new(BufWriter::with_capacity(1 << 16, out), ownership);
        snapshot.tree(folder.as_fd(), name.as_bytes(), called)?;
        snapshot.finish()?;
        Ok(())
    };
    sent().map_err(|error| shown(error, path))
}

/// Puts what comes to `path`: into it if it is a folder, else in its place.
fn receive(request: &Copy, root: BorrowedFd<'_>, path: &Path, source: impl Read) -> Result<()> {
    let origin = match &request.from {
        End::Host(path) | End::Container { path, .. } => Some(path.as_path()),
        End::Stream => None,
    };
    let destination = |kind: Kind| -> Result<Destination> {
        let Place { folder, name, stat } = target::place(root, path, true)?;
        let there = stat.map(|stat| kind_of(&stat) == nix::sys::stat::SFlag::S_IFDIR);
        let overwrite = request.overwrite;
        let within = || -> Result<OwnedFd> {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            Ok(openat(&folder, name.as_os_str(), flags, Mode::empty())?)
        };
        match (origin, there) {
            (None, Some(true)) => Ok(Destination { folder: within()?, name: None, overwrite }),
            (None, _) => bail!("a tar stream needs a folder to go to"),
            (Some(origin), Some(true)) => {
                let called = if is_contents(origin) { b"." } else { base(origin) };
                Ok(Destination { folder: within()?, name: Some(called.to_vec()), overwrite })
            }
            (_, Some(false)) if kind == Kind::Directory && !overwrite => {
                bail!("a folder can't be copied onto something that is none")
            }
            (_, None) if kind != Kind::Directory && is_folder_said(path) => bail!("no such folder"),
            _ => Ok(Destination { folder, name: Some(name.into_encoded_bytes()), overwrite }),
        }
    };
    let source = BufReader::with_capacity(1 << 16, source);
    unpack::extract(source, destination).map_err(|error| shown(error, path))
}
