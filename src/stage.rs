//! kelp started again as a named helper: one typed request, and the descriptors that it names. A helper process
//! starts with one thread and nothing of its parent's memory, so it may join namespaces, make threads and drop
//! what it holds, whatever the parent is doing. It knows no request by its content.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::sys::{memory, process};

/// A descriptor that a request names by the number it has in the helper.
pub type Number = RawFd;

/// Starts the helper `name` with `request`, in which the descriptors `kept` are named by their numbers. Its
/// standard streams are /dev/null but for stderr.
pub fn start<T: Serialize>(name: &str, request: &T, kept: &[BorrowedFd<'_>]) -> Result<Child> {
    start_from(None, name, request, kept)
}

/// The same from a copy of kelp's file.
pub fn start_from<T: Serialize>(
    copy: Option<BorrowedFd<'_>>,
    name: &str,
    request: &T,
    kept: &[BorrowedFd<'_>],
) -> Result<Child> {
    let file = memory::file(c"kelp-request", &serde_json::to_vec(request)?)?;
    let passed: Vec<BorrowedFd<'_>> = kept.iter().copied().chain([file.as_fd()]).collect();
    for fd in &passed {
        process::keep_over_exec(*fd)?;
    }
    let program = copy.map_or_else(|| "exe".to_owned(), |copy| format!("fd/{}", copy.as_raw_fd()));
    let started = Command::new(format!("/proc/self/{program}"))
        .arg0(name)
        .arg(file.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn();
    for fd in &passed {
        process::close_at_exec(*fd)?;
    }
    started.with_context(|| format!("cannot start {name}"))
}

/// The request that this process was started with.
///
/// # Errors
/// Somebody else started kelp under a helper's name.
pub fn request<T: DeserializeOwned>() -> Result<T> {
    let number = std::env::args().nth(1).and_then(|word| word.parse().ok());
    let number: Number = number.context("a helper is started by kelp only")?;
    let file = File::from(process::inherited(number).context("a helper is started by kelp only")?);
    serde_json::from_reader(io::BufReader::new(file)).context("cannot read the request")
}

/// Takes a descriptor over that the request names.
pub fn take(number: Number) -> Result<OwnedFd> {
    process::inherited(number).with_context(|| format!("descriptor {number} did not arrive"))
}

/// The helper's word to its parent over a pipe: `1` says that it works, anything else why it does not.
pub fn tell(to: OwnedFd, outcome: &Result<()>) {
    let words = match outcome {
        Ok(()) => "1".to_owned(),
        Err(error) => format!("{error:#}"),
    };
    let _ = nix::unistd::write(&to, words.as_bytes());
}

/// Waits for the helper's word.
///
/// # Errors
/// Its sentence, or that it ended without one.
pub fn hear(from: OwnedFd) -> Result<()> {
    let mut words = [0u8; 4096];
    let length = nix::unistd::read(&from, &mut words)?;
    match words.get(..length) {
        Some(b"1") => Ok(()),
        Some([]) | None => Err(anyhow::anyhow!("the helper ended without a word")),
        Some(words) => Err(anyhow::anyhow!("{}", String::from_utf8_lossy(words))),
    }
}
