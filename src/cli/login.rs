//! `kelp login` and `kelp logout`. Credentials are kept only after the registry took them; a password is never
//! shown, and asked for only on a terminal.

use std::io::{BufRead, IsTerminal, Read, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
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
    /// Verify certificates and refuse plain HTTP
    #[arg(long, value_name = "BOOL", default_value = "true", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    tls_verify: bool,
}

/// Forget the credentials for a registry
#[derive(Debug, Args)]
pub struct LogoutArgs {
    registry: Option<String>,
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
    let registry = registry(arguments.registry);
    let path = auth::written_file(arguments.authfile.as_deref())?;
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
    eprint!("{question}");
    std::io::stderr().flush()?;
    let before = termios::tcgetattr(&stdin)?;
    if !shown {
        let mut hidden = before.clone();
        hidden.local_flags.remove(LocalFlags::ECHO);
        termios::tcsetattr(&stdin, SetArg::TCSAFLUSH, &hidden)?;
    }
    let mut line = String::new();
    let read = stdin.lock().read_line(&mut line);
    if !shown {
        termios::tcsetattr(&stdin, SetArg::TCSAFLUSH, &before)?;
        eprintln!();
    }
    read.context("cannot read the answer")?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
