//! The seal against CVE-2019-5736: where kelp's own file belongs to an id of the container, the child goes on
//! from a copy that nobody can write to, so that `/proc/self/exe` inside never leads to the real file. The copy
//! is the same file on a read-only mount of its own; where the kernel has none, a sealed memfd.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};

use crate::launch::child::{self, SOCKET};
use crate::launch::plan::Plan;
use crate::spec::capability::NAMES;
use crate::sys::memory;
use crate::sys::mount::{Depth, MOUNT_ATTR_RDONLY, MountAttr, mount_setattr, open_tree};
use crate::sys::process::{self, CapabilitySets};
use crate::sys::seccomp::Instruction;
use crate::userns::maps::IdMaps;

/// `argv[0]` of the child that goes on.
pub const NAME: &str = "kelp-launch";

/// Where the rest of the work lies for it.
const REST: i32 = 4;

#[derive(Serialize, Deserialize)]
struct Rest {
    plan: Plan,
    filter: Vec<(u16, u8, u8, u32)>,
    next: usize,
}

/// Whether the container's ids could write to kelp's file.
pub fn needs_seal(maps: &IdMaps) -> Result<bool> {
    let file = fs::metadata("/proc/self/exe").context("cannot look at kelp's own file")?;
    let ours = maps
        .uid
        .iter()
        .any(|line| file.uid().checked_sub(line.host.0).is_some_and(|offset| offset < line.count));
    Ok(ours || file.mode() & 0o022 != 0)
}

/// Goes on with step `next` of `plan` in a sealed copy; returns only with an error.
pub fn seal(plan: &Plan, filter: &[Instruction], next: usize, socket: BorrowedFd<'_>) -> Result<()> {
    let filter = filter.iter().map(|one| (one.code, one.jt, one.jf, one.k)).collect();
    let rest = Rest { plan: plan.clone(), filter, next };
    let file = memory::file(c"kelp-launch", &serde_json::to_vec(&rest)?)?;
    let program = read_only_copy().or_else(|_| memory_copy()).context("copy kelp's own file")?;
    keep_capabilities()?;
    process::keep_over_exec(socket)?;
    let rest = process::duplicate_to(OwnedFd::from(file), REST)?;
    process::keep_over_exec(rest.as_fd())?;
    Err(process::execveat(program.as_fd(), &[CString::new(NAME)?], &[])).context("run the sealed copy")
}

/// The same file on a detached mount that is read-only; the name is checked to be still the same file.
fn read_only_copy() -> Result<OwnedFd> {
    let path = fs::read_link("/proc/self/exe")?;
    let file = nix::fcntl::open(&path, OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, Mode::empty())?;
    let (named, own) = (nix::sys::stat::fstat(&file)?, fs::metadata("/proc/self/exe")?);
    if (named.st_dev, named.st_ino) != (own.dev(), own.ino()) {
        return Err(io::Error::from_raw_os_error(libc::ESTALE).into());
    }
    let copy = open_tree(file.as_fd(), Depth::This)?;
    let attr = MountAttr { set: MOUNT_ATTR_RDONLY, ..MountAttr::default() };
    mount_setattr(copy.as_fd(), Depth::This, attr)?;
    Ok(copy)
}

/// A copy of kelp's own file in memory that nobody can write to.
pub fn memory_copy() -> Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut copy = File::from(memfd_create(c"kelp", flags)?);
    io::copy(&mut File::open("/proc/self/exe")?, &mut copy)?;
    let seals =
        SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(&copy, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(copy.into())
}

/// The same command again from a copy that nobody can write to, unless this is one already: a program that is
/// about to enter a container whose ids own kelp's file. Returns only with an error, or if there is nothing to do.
pub fn run_from_copy() -> Result<()> {
    if fs::read_link("/proc/self/exe")?.as_os_str().as_encoded_bytes().starts_with(b"/memfd:") {
        return Ok(());
    }
    let words = |list: Vec<std::ffi::OsString>| -> Result<Vec<CString>> {
        list.into_iter().map(|word| Ok(CString::new(word.into_encoded_bytes())?)).collect()
    };
    let variable = |(mut name, value): (std::ffi::OsString, std::ffi::OsString)| {
        name.push("=");
        name.push(value);
        name
    };
    let (arguments, environment) =
        (words(std::env::args_os().collect())?, words(std::env::vars_os().map(variable).collect())?);
    let copy = memory_copy().context("copy kelp's own file")?;
    Err(process::execveat(copy.as_fd(), &arguments, &environment)).context("run the copy")
}

/// Exec takes the capabilities of a process that is not root inside, unless they are ambient.
fn keep_capabilities() -> Result<()> {
    let sets = process::capget()?;
    process::capset(CapabilitySets { inheritable: sets.permitted, ..sets })?;
    for number in (0..NAMES.len() as u32).filter(|number| sets.permitted & 1 << number != 0) {
        process::raise_ambient(number)?;
    }
    Ok(())
}

/// The start of the sealed copy: takes the rest up and goes on.
///
/// # Errors
/// Somebody else started kelp under this name.
pub fn resume() -> Result<()> {
    let socket = process::inherited(SOCKET).context("kelp-launch is started by kelp only")?;
    let rest = File::from(process::inherited(REST).context("kelp-launch is started by kelp only")?);
    let rest: Rest = serde_json::from_reader(io::BufReader::new(rest)).context("cannot read the plan")?;
    process::parent_death_signal(libc::SIGKILL)?;
    let sets = process::capget()?;
    process::capset(CapabilitySets { inheritable: 0, ..sets })?;
    let instruction = |(code, jt, jf, k): (u16, u8, u8, u32)| Instruction { code, jt, jf, k };
    let filter: Vec<Instruction> = rest.filter.into_iter().map(instruction).collect();
    child::go_on(&rest.plan, &filter, rest.next, socket)
}
