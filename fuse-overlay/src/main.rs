//! The program `fuse-overlay`: reads the command line, mounts, and serves in the background. It decides nothing about
//! files. Everything that can be refused is refused before the process splits, so that the caller sees the sentence and status 1.
#![allow(unreachable_pub)]

mod options;

use anyhow::{Context, Result, anyhow};
use fuse_overlay::Overlay;
use fuse_overlay::sys::{Side, split};
use fuse_overlay::transport::counters::Counters;
use fuse_overlay::transport::session::Placing;
use fuse_overlay::transport::{mounting, session};
use options::{Mount, Request};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;

fn main() -> ExitCode {
    let outcome = options::parse(std::env::args_os().skip(1)).and_then(|request| match request {
        Request::Mount(mount) => run(*mount),
        Request::Check(upper) => check(&upper),
        Request::Help => {
            print!("{}", options::HELP);
            Ok(())
        }
        Request::Version => {
            println!("fuse-overlay {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fuse-overlay: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check(upper: &std::path::Path) -> Result<()> {
    let findings = fuse_overlay::check::upper(upper)?;
    findings.iter().for_each(|finding| println!("{finding}"));
    if findings.is_empty() {
        Ok(())
    } else {
        Err(anyhow!("{} has {} faults", upper.display(), findings.len()))
    }
}

fn run(mut mount: Mount) -> Result<()> {
    let config = std::mem::take(&mut mount.config);
    let overlay = Arc::new(Overlay::new(config)?);
    let device = attach(&mount)?;
    if mount.foreground {
        return serve(&overlay, device, &mount, || {});
    }
    let (reader, writer) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("cannot make a pipe")?;
    match split().context("cannot go to the background")? {
        Side::Parent => {
            drop(writer);
            let heard = rustix::io::read(&reader, &mut [0; 1]).unwrap_or(0);
            if heard == 1 { Ok(()) } else { Err(anyhow!("the server ended before the mount was ready")) }
        }
        Side::Child => {
            drop(reader);
            let _already_a_leader = rustix::process::setsid();
            serve(&overlay, device, &mount, || {
                let _nobody_waits = rustix::io::write(&writer, b"1");
                drop(writer);
                detach();
            })
        }
    }
}

/// Opens the device and mounts it; `None` where only the setuid helper may mount.
fn attach(mount: &Mount) -> Result<Option<OwnedFd>> {
    let target = &mount.mountpoint;
    let device = mounting::open_device().with_context(|| {
        format!("cannot open {}: is the fuse module loaded and the device open to you?", mounting::DEVICE)
    })?;
    match mounting::mount(&device, target, mount.flags) {
        Ok(()) => Ok(Some(device)),
        Err(Errno::PERM) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot mount on {}", target.display())),
    }
}

fn serve(overlay: &Arc<Overlay>, device: Option<OwnedFd>, mount: &Mount, ready: impl FnOnce()) -> Result<()> {
    let threads = mount.threads.unwrap_or_else(session::default_threads);
    let counters = Arc::new(Counters::default());
    let served = match device {
        Some(device) => {
            let placing = if mount.spread { Placing::Spread } else { Placing::here() };
            session::serve_counted(overlay.clone(), device, threads, placing, counters.clone(), ready)
        }
        None => {
            session::serve_by_fusermount(overlay.clone(), &mount.mountpoint, threads, counters.clone(), ready)
        }
    };
    if let Some(path) = &mount.stats {
        std::fs::write(path, counters.to_string())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    served.with_context(|| format!("cannot serve {}", mount.mountpoint.display()))
}

/// Lets go of the caller's terminal and directory.
fn detach() {
    let _stays = std::env::set_current_dir("/");
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null");
    if let Ok(null) = null {
        let _kept = rustix::stdio::dup2_stdin(&null);
        let _kept = rustix::stdio::dup2_stdout(&null);
        let _kept = rustix::stdio::dup2_stderr(&null);
    }
}
