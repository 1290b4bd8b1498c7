//! `kelp unshare`: the flags of `unshare(1)`, as far as they make sense where a user namespace always comes
//! first.

use std::ffi::OsString;

use anyhow::Result;
use clap::Args;

use crate::cli::{report, warn, words};
use crate::verbs::unshare::{Unshare, unshare};

/// Run a program as root of a user namespace of your own
///
/// The machine's files are seen as they are. Inside, mount, chroot, unshare, ip link and ip netns work as in
/// tutorials written for root.
#[derive(Debug, Args)]
#[command(trailing_var_arg = true)]
pub struct UnshareArgs {
    /// Also a network namespace, with a private /run/netns
    #[arg(short = 'n', long)]
    net: bool,
    /// Also a pid namespace, with a fresh /proc
    #[arg(short = 'p', long)]
    pid: bool,
    /// Also a mount namespace (always made)
    #[arg(short = 'm', long)]
    mount: bool,
    /// Also an IPC namespace
    #[arg(short = 'i', long)]
    ipc: bool,
    /// Also a UTS namespace
    #[arg(short = 'u', long)]
    uts: bool,
    /// Also a cgroup namespace
    #[arg(short = 'C', long)]
    cgroup: bool,
    /// Id maps: auto, single, keep-id[:uid=N,gid=N]
    #[arg(long, default_value = "auto")]
    userns: String,
    /// The program and its arguments [default: $SHELL]
    command: Vec<OsString>,
}

pub fn run(arguments: UnshareArgs) -> Result<i32> {
    let shell = || vec![std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into())];
    let request = Unshare {
        network: arguments.net,
        pid: arguments.pid,
        ipc: arguments.ipc,
        uts: arguments.uts,
        cgroup: arguments.cgroup,
        userns: words::userns(&arguments.userns)?,
        command: if arguments.command.is_empty() { shell() } else { arguments.command },
    };
    unshare(&request, &|text| warn(text), &|error| {
        let hint = error.hint.clone();
        let mut shown = crate::error::Error::new(error.kind, error.sentence.clone()).exit(error.exit);
        shown.hint = hint;
        report(&shown.into());
    })
}
