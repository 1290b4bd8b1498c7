//! `kelp pull`, and the flags about registries and unpacking that other verbs share with it. The story itself
//! is `image/pull`.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill};
use nix::unistd::Pid;

use crate::cli::{inside, progress, tag};
use crate::image::auth::Credentials;
use crate::image::manifest::Platform;
use crate::image::pull::{self, Options, Policy};
use crate::image::registry::Manner;
use crate::image::store::Store;
use crate::image::unpack::{Limits, Owners};
use crate::paths::Paths;
use crate::units::Bytes;

/// Get images from a registry
#[derive(Debug, Args)]
pub struct PullArgs {
    /// IMAGE[:TAG|@DIGEST]
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    #[command(flatten)]
    fetch: FetchArgs,
    /// Get the images of all platforms; the name is the one's for this machine, the others are known by their ids
    #[arg(long, conflicts_with = "platform")]
    all_platforms: bool,
    /// When to ask the registry
    #[arg(long, value_enum, default_value = "always")]
    policy: PolicyWord,
    /// Print only the id
    #[arg(short, long)]
    quiet: bool,
}

/// How images are fetched and unpacked.
#[derive(Clone, Debug, Default, Args)]
pub struct FetchArgs {
    /// The platform, when an image has several: OS/ARCH[/VARIANT]
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<Platform>,
    /// Keep the compressed layers too, so that push and save send the very same bytes
    #[arg(long)]
    pub keep_blobs: bool,
    /// Whose files the store has: real (if there are ids for it) or recorded [default: auto]
    #[arg(long, value_name = "OWNERS", value_enum)]
    pub store_owners: Option<OwnersWord>,
    /// The most that one layer may become [default: 128g]
    #[arg(long, value_name = "BYTES")]
    pub max_layer_size: Option<Bytes>,
    #[command(flatten)]
    pub registry: RegistryArgs,
}

/// How registries are talked to.
#[derive(Clone, Debug, Default, Args)]
pub struct RegistryArgs {
    /// File with credentials
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
    /// USER:PASSWORD for the registry
    #[arg(long, value_name = "USER:PASSWORD")]
    pub creds: Option<String>,
    /// Verify certificates and refuse plain HTTP [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub tls_verify: Option<bool>,
    /// How often a request is tried again [default: 5]
    #[arg(long, value_name = "N")]
    pub retry: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PolicyWord {
    Always,
    Missing,
    Never,
    Newer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OwnersWord {
    Auto,
    Recorded,
}

impl From<PolicyWord> for Policy {
    fn from(word: PolicyWord) -> Self {
        match word {
            PolicyWord::Always => Self::Always,
            PolicyWord::Missing => Self::Missing,
            PolicyWord::Never => Self::Never,
            PolicyWord::Newer => Self::Newer,
        }
    }
}

impl RegistryArgs {
    pub fn manner(&self) -> Manner {
        let pair = self.creds.as_deref().map(|text| text.split_once(':').unwrap_or((text, "")));
        let basic = |(user, password): (&str, &str)| Credentials::Basic {
            user: user.to_owned(),
            password: password.to_owned(),
        };
        let usual = Manner::default();
        Manner {
            authfile: self.authfile.clone(),
            credentials: pair.map(basic),
            insecure: self.tls_verify == Some(false),
            retries: self.retry.unwrap_or(usual.retries),
            ..usual
        }
    }
}

impl FetchArgs {
    /// To be asked where the work is done: owners depend on the user namespace.
    pub fn options(&self, policy: Policy) -> Options {
        let owners = match self.store_owners {
            None | Some(OwnersWord::Auto) => Owners::possible(),
            Some(OwnersWord::Recorded) => Owners::Recorded,
        };
        let mut limits = Limits::default();
        limits.layer = self.max_layer_size.unwrap_or(limits.layer);
        Options {
            platform: self.platform.clone(),
            policy,
            keep_blobs: self.keep_blobs,
            owners,
            limits,
            manner: self.registry.manner(),
            ..Options::default()
        }
    }
}

pub fn run(arguments: PullArgs) -> Result<i32> {
    let paths = Paths::find()?;
    interruptible(move || {
        let store = Store::open(&paths)?;
        let options = arguments.fetch.options(arguments.policy.into());
        for word in &arguments.images {
            let platforms =
                if arguments.all_platforms { pull::platforms(word, &options)? } else { Vec::new() };
            if platforms.is_empty() {
                let id = get(&store, word, &options, arguments.quiet)?;
                tag::tell(&paths, "pull", &id, word);
            }
            for platform in platforms {
                let options = Options { platform: Some(platform), ..options.clone() };
                get(&store, word, &options, arguments.quiet)?;
            }
        }
        Ok(0)
    })
}

/// Gets images inside. An interrupt meanwhile ends the command, which says what it leaves; the process inside says it, and
/// this one outlives that.
pub fn interruptible(work: impl FnOnce() -> Result<i32>) -> Result<i32> {
    if is_ignored(Signal::SIGINT) {
        return inside::run(work);
    }
    let signals = SigSet::from_iter([Signal::SIGINT, OVER]);
    let before = signals.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let outcome = inside::run(move || {
        let waiting = std::thread::spawn(move || leave(&signals));
        let outcome = work();
        let _ = kill(Pid::this(), OVER);
        let _ = waiting.join();
        outcome
    });
    if matches!(outcome, Ok(INTERRUPTED)) {
        std::process::exit(INTERRUPTED);
    }
    before.thread_set_mask()?;
    outcome
}

/// Ends the wait for an interrupt: a signal that means nothing to whoever does not wait for it.
const OVER: Signal = Signal::SIGURG;

const INTERRUPTED: i32 = 128 + Signal::SIGINT as i32;

/// As a shell's jobs in the background ignore interrupts (`proc_pid_status(5)`, SigIgn).
fn is_ignored(signal: Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    ignored >> (signal as i32 - 1) & 1 == 1
}

/// Ends the process at an interrupt, as the signal would: the store is whole at every moment.
fn leave(signals: &SigSet) {
    if signals.wait() == Ok(Signal::SIGINT) {
        eprintln!("kelp: interrupted: what has come so far is kept, and the same command goes on from there");
        std::process::exit(INTERRUPTED);
    }
}

fn get(store: &Store, word: &str, options: &Options, quiet: bool) -> Result<String> {
    let shown = progress::Shown::new(quiet);
    let image = pull::pull(store, word, options, &|event| shown.event(&event))?;
    shown.finish();
    println!("{}", image.id.hex());
    Ok(image.id.hex().to_owned())
}
