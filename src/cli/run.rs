//! `kelp run`: docker's flags to a request. It takes words apart and looks at nothing of the machine but the
//! files that the words name.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{ArgMatches, Args, Command, FromArgMatches};

use crate::cli::life::LifeArgs;
use crate::cli::limits::ResourceArgs;
use crate::cli::network::NetworkArgs;
use crate::cli::pull::{FetchArgs, PolicyWord};
use crate::cli::storage::{Places, StorageArgs};
use crate::cli::surroundings::{self, SurroundingsArgs};
use crate::cli::{cdi, from_image, parse, secret, warn, words};
use crate::error::Error;
use crate::ids::ContainerName;
use crate::network::names::HOST_GATEWAY;
use crate::paths::Paths;
use crate::spec::cdi::{QualifiedName, qualified};
use crate::spec::life::Stream;
use crate::spec::request::{ImageDefaults, Network, Request, SeccompChoice, Security, Unmask, UserNamespace};
use crate::spec::{Root, Writes};
use crate::units;
use crate::verbs;
use crate::verbs::run::Foreground;

/// Run a program in a new container
///
/// ROOT is an image, or @host (your machine's own userland below a throw-away layer), or is left out with --rootfs DIR.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 125 kelp failed, 126 the program cannot run, 127 it was not found, 128+n signal n ended it, else the program's own."
)]
pub struct RunArgs {
    #[command(flatten)]
    often: Often,
    #[command(flatten)]
    seldom: Seldom,
}

// Plain comments, since clap would print the others in place of the verb's.
// What most containers are started with. Each flag of a table costs three microseconds of every start.
#[derive(Debug, Args)]
#[command(trailing_var_arg = true, disable_help_flag = true)]
struct Often {
    /// Print help
    #[arg(long, action = clap::ArgAction::Help, help_heading = "Container")]
    help: Option<bool>,
    /// ROOT [--] [COMMAND [ARG...]]
    #[arg(value_name = "ROOT COMMAND", allow_hyphen_values = true)]
    words: Vec<OsString>,
    /// Use a directory as the root; writes go to a throw-away layer
    #[arg(long, value_name = "DIR", help_heading = "Root")]
    rootfs: Option<PathBuf>,
    /// Make the root read-only
    #[arg(long, help_heading = "Root")]
    read_only: bool,
    #[command(flatten, next_help_heading = "Root")]
    storage: StorageArgs,
    /// Remove the container when it ends
    #[arg(long, help_heading = "Container")]
    rm: bool,
    /// Name of the container
    #[arg(long, help_heading = "Container")]
    name: Option<String>,
    /// Put a small reaper as pid 1 before the program
    #[arg(long, help_heading = "Container")]
    init: bool,
    /// Run in the background and print the id
    #[arg(short = 'd', long, help_heading = "Container")]
    detach: bool,
    /// Keep stdin open
    #[arg(short = 'i', long, help_heading = "Process")]
    interactive: bool,
    /// Give the program a terminal
    #[arg(short = 't', long, help_heading = "Process")]
    tty: bool,
    /// Set an environment variable: NAME=VALUE, or NAME to pass it on
    #[arg(short = 'e', long, value_name = "NAME=VALUE", help_heading = "Process")]
    env: Vec<OsString>,
    /// Working folder
    #[arg(short = 'w', long, value_name = "DIR", help_heading = "Process")]
    workdir: Option<PathBuf>,
    /// USER[:GROUP], by name or number, as the container knows them
    #[arg(short = 'u', long, help_heading = "Process")]
    user: Option<String>,
    /// Program that the command is given to
    #[arg(long, value_name = "PROGRAM", help_heading = "Process")]
    entrypoint: Option<OsString>,
    /// Id maps: auto, single, keep-id[:uid=N,gid=N]
    #[arg(long, value_name = "MODE", help_heading = "Namespaces")]
    userns: Option<String>,
    #[command(flatten, next_help_heading = "Network")]
    network: NetworkArgs,
    /// Host name
    #[arg(short = 'h', long, help_heading = "Namespaces")]
    hostname: Option<String>,
}

// Its `default` is what no word gives.
#[derive(Debug, Default, Args)]
struct Seldom {
    /// With --rootfs, write into the directory itself
    #[arg(long, requires = "rootfs", help_heading = "Root")]
    rootfs_rw: bool,
    /// Give a device node of the host, or a device of a CDI file: HOST[:CONTAINER[:rwm]], VENDOR/CLASS=NAME
    #[arg(long, value_name = "NODE", help_heading = "Root")]
    device: Vec<String>,
    /// Give a secret: NAME[,type=mount|env,target=,uid=,gid=,mode=]
    #[arg(long, value_name = "SECRET", help_heading = "Root")]
    secret: Vec<String>,
    #[command(flatten)]
    cdi: cdi::CdiArgs,
    #[command(flatten)]
    surroundings: SurroundingsArgs,
    /// Size of /dev/shm
    #[arg(long, value_name = "BYTES", help_heading = "Root")]
    shm_size: Option<String>,
    /// When to ask the registry for the image [default: missing]
    #[arg(long, value_enum, help_heading = "Image")]
    pull: Option<PolicyWord>,
    #[command(flatten, next_help_heading = "Image")]
    fetch: FetchArgs,
    /// What makes the root: overlay (the kernel's), fuse (kelp's own), overlay-on-fuse (both), copy [default: $KELP_STORAGE_DRIVER, else the best that works]
    #[arg(long, value_name = "DRIVER", help_heading = "Root")]
    storage_driver: Option<String>,
    /// Limits of the throw-away layer, with the fuse driver: size=1g, inodes=10000
    #[arg(long, value_name = "LIMIT", help_heading = "Root")]
    storage_opt: Vec<String>,
    /// Signal that stops the container
    #[arg(long, value_name = "SIGNAL", help_heading = "Container")]
    stop_signal: Option<String>,
    /// Kill the container after this many seconds
    #[arg(long, value_name = "SECONDS", help_heading = "Container")]
    timeout: Option<String>,
    /// Print the plan instead of running it
    #[arg(long, help_heading = "Container")]
    explain: bool,
    #[command(flatten)]
    life: LifeArgs,
    /// Read environment variables from a file
    #[arg(long, value_name = "FILE", help_heading = "Process")]
    env_file: Vec<PathBuf>,
    /// Add a group; keep-groups keeps the caller's
    #[arg(long, value_name = "GROUP", help_heading = "Process")]
    group_add: Vec<String>,
    /// Resource limit: NAME=SOFT[:HARD]
    #[arg(long, value_name = "LIMIT", help_heading = "Process")]
    ulimit: Vec<String>,
    /// File mode creation mask, octal
    #[arg(long, value_name = "MASK", help_heading = "Process")]
    umask: Option<String>,
    /// Adjust the preference of the kernel's OOM killer (-1000 to 1000)
    #[arg(long, value_name = "SCORE", allow_hyphen_values = true, help_heading = "Process")]
    oom_score_adj: Option<i32>,
    /// Add a capability, or ALL
    #[arg(long, value_name = "CAP", help_heading = "Security")]
    cap_add: Vec<String>,
    /// Drop a capability, or ALL
    #[arg(long, value_name = "CAP", help_heading = "Security")]
    cap_drop: Vec<String>,
    /// no-new-privileges[=false], seccomp=FILE|unconfined, mask=PATH:..., unmask=PATH:...|ALL, root-emulation=false
    #[arg(long, value_name = "OPTION", help_heading = "Security")]
    security_opt: Vec<String>,
    /// Map user ids: CONTAINER:HOST[:COUNT], where host id 0 is yours and 1 your first subordinate one
    #[arg(long, value_name = "MAP", conflicts_with = "userns", help_heading = "Namespaces")]
    uidmap: Vec<String>,
    /// Map group ids, likewise
    #[arg(long, value_name = "MAP", conflicts_with = "userns", help_heading = "Namespaces")]
    gidmap: Vec<String>,
    /// host or private [default: private]
    #[arg(long, value_name = "MODE", help_heading = "Namespaces")]
    pid: Option<String>,
    /// host or private [default: private]
    #[arg(long, value_name = "MODE", help_heading = "Namespaces")]
    ipc: Option<String>,
    /// host or private [default: private]
    #[arg(long, value_name = "MODE", help_heading = "Namespaces")]
    uts: Option<String>,
    /// host or private [default: private]
    #[arg(long, value_name = "MODE", help_heading = "Namespaces")]
    cgroupns: Option<String>,
    /// Clocks ahead of the host's: boottime=SECONDS,monotonic=SECONDS
    #[arg(long, value_name = "OFFSETS", help_heading = "Namespaces")]
    time_offset: Option<String>,
    /// NIS domain name
    #[arg(long, help_heading = "Namespaces")]
    domainname: Option<String>,
    /// Add a line to /etc/hosts: NAME:ADDRESS, or NAME:host-gateway for the host itself
    #[arg(long, value_name = "LINE", help_heading = "Namespaces")]
    add_host: Vec<String>,
    /// Set a namespaced sysctl: NAME=VALUE
    #[arg(long, value_name = "NAME=VALUE", help_heading = "Namespaces")]
    sysctl: Vec<String>,
    #[command(flatten)]
    resources: ResourceArgs,
}

impl RunArgs {
    /// The words by the table of what is given often; `None` if that does not tell what they mean.
    pub fn at_once(command: Command, words: &[OsString]) -> Option<(Self, ArgMatches)> {
        let matches = Often::augment_args(command).try_get_matches_from(words).ok()?;
        // A flag that the table does not have is taken for the root, or for a flag's value.
        let is_flag = |word: &OsStr| word.as_encoded_bytes().starts_with(b"-");
        let looked_at = |id: &str| if id == "words" { 1 } else { usize::MAX };
        let doubtful = matches
            .ids()
            .map(clap::Id::as_str)
            .any(|id| matches.get_raw(id).into_iter().flatten().take(looked_at(id)).any(is_flag));
        if doubtful {
            return None;
        }
        let often = Often::from_arg_matches(&matches).ok()?;
        Some((Self { often, seldom: Seldom::default() }, matches))
    }
}

pub fn run(arguments: RunArgs, places: &Places) -> Result<i32> {
    let (explain, detach) = (arguments.seldom.explain, arguments.often.detach);
    let cidfile = cidfile(&arguments)?;
    let pass_signals = arguments.seldom.life.proxy.sig_proxy;
    let itself = pass_signals && !arguments.often.tty && !arguments.seldom.life.is_choosy();
    let foreground = if itself { Foreground::Itself } else { Foreground::Attached { pass_signals } };
    let replace = arguments.seldom.life.replace;
    let request = request(arguments, places)?;
    if explain {
        use std::io::Write;
        std::io::stdout().write_all(verbs::begin::explain(&request)?.as_bytes())?;
        return Ok(0);
    }
    make_room(replace, &request)?;
    let mut cidfile = cidfile;
    let silent = request.life.attached == [Stream::Stdin];
    let mut made = |id: &ContainerName| {
        if silent {
            println!("{id}");
        }
        write_id(cidfile.take(), id)
    };
    if detach {
        println!("{}", verbs::run::detached(request, &mut made, &mut warn)?);
        return Ok(0);
    }
    verbs::run::run(request, foreground, &mut made, &mut warn)
}

/// `--cidfile`, made before the container, so that two don't share one.
fn cidfile(arguments: &RunArgs) -> Result<Option<File>> {
    let Some(path) = &arguments.seldom.life.cidfile else { return Ok(None) };
    let made = File::create_new(path).map_err(|error| Error::usage(error.to_string()));
    Ok(Some(made.with_context(|| format!("cannot make the container id file {}", path.display()))?))
}

fn write_id(file: Option<File>, id: &ContainerName) -> Result<()> {
    use std::io::Write;
    file.map_or(Ok(()), |mut file| write!(file, "{id}")).context("cannot write the container id file")
}

/// `--replace`
fn make_room(replace: bool, request: &Request) -> Result<()> {
    match &request.name {
        Some(name) if replace => verbs::remove::replace(&Paths::find()?, name, &mut warn),
        _ => Ok(()),
    }
}

/// `kelp create`
pub fn create(arguments: RunArgs, places: &Places) -> Result<i32> {
    let cidfile = cidfile(&arguments)?;
    let replace = arguments.seldom.life.replace;
    let request = request(arguments, places)?;
    make_room(replace, &request)?;
    let id = verbs::start::create(request)?;
    write_id(cidfile, &id)?;
    println!("{id}");
    Ok(0)
}

fn each<T>(list: &[String], parse: impl Fn(&str) -> Result<T>) -> Result<Vec<T>> {
    list.iter().map(|word| parse(word)).collect()
}

fn request(arguments: RunArgs, places: &Places) -> Result<Request> {
    let (root, image, command) = root(&arguments)?;
    let RunArgs { often, seldom } = &arguments;
    let storage = words::storage(&root, seldom.storage_driver.as_deref(), &seldom.storage_opt)?;
    let network = often.network.network(&image.exposed, seldom.surroundings.defaults().network)?;
    let add_hosts = each(&seldom.add_host, words::host)?;
    if matches!(network, Network::None) && add_hosts.iter().any(|(_, address)| address == HOST_GATEWAY) {
        return Err(Error::usage("--add-host: without a network there is no gateway").into());
    }
    let (named, nodes): (Vec<String>, Vec<String>) =
        seldom.device.iter().cloned().partition(|word| qualified(word).is_some());
    let named: Vec<QualifiedName> = named.iter().filter_map(|word| qualified(word)).collect();
    let mut request = Request {
        root_name: root_name(often),
        root,
        image,
        read_only: often.read_only,
        name: often.name.as_deref().map(str::parse).transpose()?,
        remove: often.rm || seldom.life.rmi,
        remove_image: seldom.life.rmi,
        init: often.init,
        interactive: often.interactive,
        terminal: often.tty,
        command,
        entrypoint: often.entrypoint.clone(),
        environment: variables(&seldom.env_file, &often.env)?,
        cwd: cwd(often.workdir.clone())?,
        user: often.user.clone(),
        groups: seldom.group_add.clone(),
        hostname: often.hostname.as_deref().map(|word| words::hostname("--hostname", word)).transpose()?,
        domainname: seldom
            .domainname
            .as_deref()
            .map(|word| words::hostname("--domainname", word))
            .transpose()?,
        add_hosts,
        mounts: often.storage.mounts(places)?,
        volumes_from: Vec::new(),
        secrets: each(&seldom.secret, secret::asked)?,
        devices: each(&nodes, words::device)?,
        links: Vec::new(),
        shm_size: seldom.shm_size.as_deref().map(str::parse).transpose()?,
        userns: userns(&arguments)?,
        network,
        backend: often.network.backend()?,
        dns: often.network.dns()?,
        pid: words::sharing("--pid", seldom.pid.as_deref().unwrap_or(seldom.surroundings.defaults().pid))?,
        ipc: words::sharing("--ipc", seldom.ipc.as_deref().unwrap_or_default())?,
        uts: words::sharing("--uts", seldom.uts.as_deref().unwrap_or_default())?,
        cgroupns: words::sharing("--cgroupns", seldom.cgroupns.as_deref().unwrap_or_default())?,
        time: seldom.time_offset.as_deref().map(words::time_offsets).transpose()?,
        sysctls: each(&seldom.sysctl, words::sysctl)?,
        rlimits: each(&seldom.ulimit, words::ulimit)?,
        umask: umask(seldom.umask.as_deref())?,
        oom_score_adj: seldom.oom_score_adj,
        cap_add: seldom.cap_add.clone(),
        cap_drop: seldom.cap_drop.clone(),
        security: security(&seldom.security_opt)?,
        stop_signal: seldom.stop_signal.as_deref().map(words::signal).transpose()?,
        timeout: seldom.timeout.as_deref().map(units::parse_duration).transpose()?,
        storage,
        life: seldom.life.life(often.rm || seldom.life.rmi)?,
        resources: seldom.resources.resources()?,
    };
    verbs::neighbour::name(&mut request)?;
    let (choice, on_failure) = seldom.life.health.choice(request.image.health.is_some())?;
    (request.life.health, request.life.on_failure) = (Some(choice), on_failure);
    request.life.attached = seldom.life.attached(often.detach, often.interactive)?;
    often.storage.add(&mut request)?;
    cdi::add(&mut request, &named, &seldom.cdi)?;
    surroundings::add(&mut request, &seldom.surroundings)?;
    Ok(request)
}

/// What the user called the root.
fn root_name(often: &Often) -> String {
    let directory = often.rootfs.as_ref().map(|path| path.display().to_string());
    let word =
        || often.words.iter().find(|word| *word != "--").map(|word| word.to_string_lossy().into_owned());
    directory.or_else(word).unwrap_or_default()
}

/// With `--rootfs` all words are the command; without it the first names the root. A `--` between the two is
/// no word.
fn root(arguments: &RunArgs) -> Result<(Root, ImageDefaults, Vec<OsString>)> {
    let RunArgs { often, seldom } = arguments;
    let mut words = often.words.clone();
    let strip = |words: &mut Vec<OsString>| {
        if words.first().is_some_and(|word| word == "--") {
            words.remove(0);
        }
    };
    strip(&mut words);
    if let Some(directory) = &often.rootfs {
        let path = std::path::absolute(directory).context("cannot make --rootfs absolute")?;
        let writes = if seldom.rootfs_rw { Writes::Through } else { Writes::Layer };
        return Ok((Root::Directory { path, writes }, ImageDefaults::default(), words));
    }
    if words.is_empty() {
        return Err(Error::usage("no root is named").hint("use @host, an image or --rootfs DIR").into());
    }
    let name = words.remove(0);
    parse::no_flag(&name, "run")?;
    strip(&mut words);
    if name == "@host" {
        return Ok((Root::Host, ImageDefaults::default(), words));
    }
    let Some(name) = name.to_str() else {
        return Err(Error::usage(format!("{name:?} is not an image name")).into());
    };
    let (root, image) = from_image::find(name, &seldom.fetch, seldom.pull.unwrap_or(PolicyWord::Missing))?;
    Ok((root, image, words))
}

/// `--env-file`, then `-e`.
pub fn variables(files: &[PathBuf], given: &[OsString]) -> Result<Vec<(OsString, OsString)>> {
    let mut variables = Vec::new();
    for file in files {
        variables.extend(words::env_file(file)?);
    }
    for word in given {
        if word.as_encoded_bytes().first() == Some(&b'=') || word.is_empty() {
            return Err(Error::usage(format!("-e {word:?}: the name is empty")).into());
        }
        variables.extend(words::variable(word));
    }
    Ok(variables)
}

pub fn cwd(path: Option<PathBuf>) -> Result<Option<PathBuf>> {
    match path {
        Some(path) if !path.is_absolute() => {
            Err(Error::usage(format!("-w {}: an absolute path is expected", path.display())).into())
        }
        other => Ok(other),
    }
}

fn userns(RunArgs { often, seldom }: &RunArgs) -> Result<UserNamespace> {
    if !seldom.uidmap.is_empty() || !seldom.gidmap.is_empty() {
        return Ok(UserNamespace::Maps {
            uid: each(&seldom.uidmap, |word| words::extent("--uidmap", word))?,
            gid: each(&seldom.gidmap, |word| words::extent("--gidmap", word))?,
        });
    }
    words::userns(often.userns.as_deref().unwrap_or(seldom.surroundings.defaults().userns))
}

fn umask(word: Option<&str>) -> Result<u32> {
    let Some(word) = word else { return Ok(0o022) };
    let mask = u32::from_str_radix(word, 8).ok().filter(|mask| *mask <= 0o777);
    mask.ok_or_else(|| Error::usage(format!("--umask {word}: an octal number up to 777 is expected")).into())
}

fn security(options: &[String]) -> Result<Security> {
    let mut security = Security {
        no_new_privileges: true,
        seccomp: SeccompChoice::Default,
        mask: Vec::new(),
        unmask: Unmask::Paths(Vec::new()),
        root_emulation: true,
    };
    for option in options {
        let (key, value) = option.split_once(['=', ':']).unwrap_or((option, ""));
        let on = match value {
            "" | "true" => Some(true),
            "false" => Some(false),
            _ => None,
        };
        let paths = || value.split(':').map(PathBuf::from).collect::<Vec<_>>();
        match (key, on) {
            ("no-new-privileges", Some(on)) => security.no_new_privileges = on,
            ("root-emulation", Some(on)) => security.root_emulation = on,
            ("seccomp", _) if value == "unconfined" => security.seccomp = SeccompChoice::Unconfined,
            ("seccomp", _) => {
                let text = std::fs::read_to_string(value)
                    .map_err(|error| Error::usage(error.to_string()))
                    .with_context(|| format!("cannot read seccomp profile {value}"))?;
                security.seccomp = SeccompChoice::Text(PathBuf::from(value), text);
            }
            ("mask", _) if value.starts_with('/') => security.mask.extend(paths()),
            ("unmask", _) if value.eq_ignore_ascii_case("all") => security.unmask = Unmask::All,
            ("unmask", _) if value.starts_with('/') => {
                if let Unmask::Paths(list) = &mut security.unmask {
                    list.extend(paths());
                }
            }
            ("label" | "apparmor", _) if matches!(value, "disable" | "unconfined") => {}
            _ => return Err(Error::usage(format!("--security-opt {option}: it is not known")).into()),
        }
    }
    Ok(security)
}
