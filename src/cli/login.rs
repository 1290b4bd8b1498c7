//! `kelp login` and `kelp logout`. Credentials are kept only after the registry took them; a password is never
//! shown, and asked for only on a terminal.

use std::io::{BufRead, IsTerminal, Read, Stdin, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{self, LocalFlags, SetArg};

use crate::error::Error;
use crate::image::auth::{self, Credentials};
use crate::image::reference::{DEFAULT_REGISTRY, Reference};
use crate::image::registries_conf::{Endpoint, RegistriesConf};
use crate::image::registry::{Client, Manner};

/// Try credentials at a registry and keep them
#[derive(Debug, Args)]
pub struct LoginArgs {
    registry: Option<String>,
    #[arg(short, long)]
    username: Option<String>,
    /// Better: --password-stdin, which others can't see in the process list
    #[arg(short, long)]
    password: Option<String>,
    /// Read the password from standard input
    #[arg(long, conflicts_with = "password")]
    password_stdin: bool,
    /// File to keep them in
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// Only say as whom one is logged in
    #[arg(long)]
    get_login: bool,
    /// Verify certificates and refuse plain HTTP
    #[arg(long, value_name = "BOOL", default_value = "true", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    tls_verify: bool,
}

/// Forget the credentials for a registry
#[derive(Debug, Args)]
pub struct LogoutArgs {
    #[arg(conflicts_with = "all")]
    registry: Option<String>,
    /// Forget all that are kept in the file
    #[arg(short, long)]
    all: bool,
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
}

fn registry(word: Option<String>) -> String {
    let word = word.unwrap_or_else(|| DEFAULT_REGISTRY.to_owned());
    let word = word.trim_start_matches("https://").trim_start_matches("http://");
    word.split('/').next().unwrap_or(word).to_owned()
}

fn endpoint(registry: &str) -> Result<Endpoint> {
    let probe: Reference = format!("{registry}/x/x").parse()?;
    let found =
        RegistriesConf::load()?.endpoints(&probe)?.pop().context("registries.conf leaves no endpoint")?;
    Ok(Endpoint { repository: String::new(), ..found })
}

pub fn run(arguments: LoginArgs) -> Result<i32> {
    let registry = registry(arguments.registry);
    if arguments.get_login {
        let known = auth::find(&registry, "", arguments.authfile.as_deref())?;
        let Some(Credentials::Basic { user, .. }) = known else {
            return Err(Error::usage(format!("not logged in to {registry}")).into());
        };
        println!("{user}");
        return Ok(0);
    }
    let user = match arguments.username {
        Some(user) => user,
        None => prompt("Username: ", true)?,
    };
    let password = match arguments.password {
        Some(password) => password,
        None if arguments.password_stdin => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("cannot read the password")?;
            text.trim_end_matches(['\r', '\n']).to_owned()
        }
        None => prompt("Password: ", false)?,
    };
    let credentials = Credentials::Basic { user: user.clone(), password: password.clone() };
    let manner = Manner {
        credentials: Some(credentials),
        insecure: !arguments.tls_verify,
        retries: 1,
        ..Manner::default()
    };
    Client::new(endpoint(&registry)?, manner)?.check_login()?;
    auth::store(&auth::written_file(arguments.authfile.as_deref())?, &registry, &user, &password)?;
    println!("Login Succeeded");
    Ok(0)
}

pub fn logout(arguments: LogoutArgs) -> Result<i32> {
    let path = auth::written_file(arguments.authfile.as_deref())?;
    if arguments.all {
        auth::erase_all(&path)?;
        println!("Removed login credentials for all registries");
        return Ok(0);
    }
    let registry = registry(arguments.registry);
    if !auth::erase(&path, &registry)? {
        return Err(Error::usage(format!("not logged in to {registry}")).into());
    }
    println!("Removed login credentials for {registry}");
    Ok(0)
}

/// Asks on the terminal; a password is not shown while it is typed.
fn prompt(question: &str, shown: bool) -> Result<String> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Error::usage("there is no terminal to ask for the user and the password on")
            .hint("use --username and --password-stdin")
            .into());
    }
    let ask = || {
        eprint!("{question}");
        std::io::stderr().flush()
    };
    if shown {
        ask()?;
        return line(&stdin);
    }
    let before = termios::tcgetattr(&stdin)?;
    let mut hidden = before.clone();
    hidden.local_flags.remove(LocalFlags::ECHO);
    // Whoever ends the command meanwhile must find the terminal as it was.
    let ends = SigSet::from_iter([
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGTSTP,
    ]);
    let mask = ends.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let signals = SignalFd::with_flags(&ends, SfdFlags::SFD_CLOEXEC)?;
    termios::tcsetattr(&stdin, SetArg::TCSAFLUSH, &hidden)?;
    // Whoever answers at once is not to be seen either.
    let answer = ask().map_err(Into::into).and_then(|()| answered(&stdin, &signals));
    termios::tcsetattr(&stdin, SetArg::TCSAFLUSH, &before)?;
    eprintln!();
    match answer? {
        Answer::Line(line) => {
            mask.thread_set_mask()?;
            Ok(line)
        }
        Answer::Signal(signal) => std::process::exit(128 + signal),
    }
}

enum Answer {
    Line(String),
    Signal(i32),
}

fn answered(stdin: &Stdin, signals: &SignalFd) -> Result<Answer> {
    let mut polled =
        [PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    while let Err(Errno::EINTR) = poll(&mut polled, PollTimeout::NONE) {}
    if polled[0].any() == Some(true)
        && let Some(signal) = signals.read_signal()?
    {
        return Ok(Answer::Signal(signal.ssi_signo as i32));
    }
    line(stdin).map(Answer::Line)
}

fn line(stdin: &Stdin) -> Result<String> {
    let mut line = String::new();
    stdin.lock().read_line(&mut line).context("cannot read the answer")?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
