//! One arm a step: what the child's loop calls. The steps share the root's descriptor, the terminal and the
//! covers; nothing here decides anything.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};
use nix::sched::CloneFlags;

use crate::error::Error;
use crate::launch::message::{self, ToParent};
use crate::launch::plan::{Plan, Step};
use crate::launch::{device, hide, mounts, root, view};
use crate::spec::TimeOffsets;
use crate::sys::process;
use crate::userns::{refusal, within};

/// What the steps have made so far.
#[derive(Debug)]
pub struct Site<'a> {
    pub plan: &'a Plan,
    pub socket: BorrowedFd<'a>,
    pub root: Option<OwnedFd>,
    /// The slave of the container's terminal.
    pub console: Option<OwnedFd>,
    pub masks: hide::Masks,
    /// The file system in memory that holds kelp's own files.
    pub files: Option<OwnedFd>,
}

impl Site<'_> {
    /// The root's descriptor; the plan makes the root before anything in it.
    pub fn root(&self) -> io::Result<BorrowedFd<'_>> {
        let root = self.root.as_ref().map(AsFd::as_fd);
        root.ok_or_else(|| io::Error::other("the plan has no root yet"))
    }

    /// Tells the user something that is weaker than it could be.
    pub fn warn(&self, sentence: String) {
        let _ = message::send(self.socket, &ToParent::Warn(sentence), None);
    }
}

/// Carries out one step.
pub fn run(site: &mut Site<'_>, step: &Step) -> Result<()> {
    match step {
        Step::TimeOffsets(offsets) => time(*offsets),
        Step::OomScore(score) => Ok(fs::write("/proc/self/oom_score_adj", score.to_string())?),
        Step::BecomeRoot { keep_groups } => {
            within::become_root(&site.plan.maps, *keep_groups)?;
            // A change of ids clears it (prctl(2)).
            Ok(process::parent_death_signal(libc::SIGKILL)?)
        }
        Step::Seal => Err(io::Error::other("the child itself does this").into()),
        Step::Hide => Ok(process::not_dumpable()?),
        Step::Root(root) => {
            site.root = Some(root::make(root, site.socket)?);
            Ok(())
        }
        Step::Mount { mount, .. } => mounts::make(site, mount),
        Step::Console => device::console(site),
        Step::Device(asked) => device::bind(site.root()?, asked),
        Step::Link { to, at } => mounts::link(site, to, at),
        Step::File { target, text } => mounts::file(site, target, text),
        Step::Secret(secret) => mounts::secret(site, secret),
        Step::View => view::bind(site),
        Step::Mask(path) => hide::mask(site, path),
        Step::ReadOnly(path) => hide::read_only(site, path),
        Step::ReadOnlyRoot(overlays) => Ok(root::read_only(site.root()?, overlays)?),
        Step::Pivot => pivot(site),
        Step::CgroupNamespace => Ok(nix::sched::unshare(CloneFlags::CLONE_NEWCGROUP)?),
        Step::Unshare(flags) => {
            let flags = CloneFlags::from_bits_retain(*flags as i32);
            Ok(nix::sched::unshare(flags).map_err(|errno| refusal::of_clone(&errno.into()))?)
        }
        Step::Loopback => Ok(process::loopback_up()?),
        Step::Hostname(name) => Ok(nix::unistd::sethostname(name)?),
        Step::Domainname(name) => Ok(process::setdomainname(name)?),
        Step::Sysctl { name, value } => sysctl(site, name, value),
    }
}

/// A time namespace takes its offsets before any process enters it; entering by `setns(2)` needs no fork
/// (`time_namespaces(7)`).
fn time(offsets: TimeOffsets) -> Result<()> {
    let clone_newtime = CloneFlags::from_bits_retain(0x80);
    nix::sched::unshare(clone_newtime).context("unshare the time namespace (Linux 5.6)")?;
    let text = format!("monotonic {} 0\nboottime {} 0\n", offsets.monotonic, offsets.boottime);
    fs::write("/proc/self/timens_offsets", text)?;
    let namespace = fs::File::open("/proc/self/ns/time_for_children")?;
    Ok(nix::sched::setns(namespace, clone_newtime)?)
}

/// `pivot_root(".", ".")` stacks the old root under the new one, and the detach takes it away
/// (`pivot_root(2)`, NOTES).
fn pivot(site: &mut Site<'_>) -> Result<()> {
    let root = site.root.take().ok_or_else(|| io::Error::other("the plan has no root"))?;
    nix::unistd::fchdir(&root)?;
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH).context("detach the old root")?;
    Ok(nix::unistd::chdir("/")?)
}

/// Written in the container's own /proc, which is checked to be procfs (CVE-2025-52881), before it is made
/// read-only.
fn sysctl(site: &Site<'_>, name: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(name.replace('.', "/"));
    let place = crate::rootfs::target::open_file_of(site.root()?, &path, nix::sys::statfs::PROC_SUPER_MAGIC)
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => anyhow::Error::from(
                Error::usage(format!("there is no sysctl {name} in the container"))
                    .hint("a sysctl of a namespace that is shared with the host can't be set"),
            ),
            _ => error.into(),
        })?;
    Ok(fs::write(crate::rootfs::target::path_of(place.as_fd()), value)?)
}
