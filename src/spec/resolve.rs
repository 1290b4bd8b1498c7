//! `Request` to `Spec`: fills in docker's defaults. Pure: the same request gives the same spec on every
//! machine; what the host permits is decided later, by the ladders.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::error::Error;
use crate::ids::ContainerName;
use crate::spec::capability::CapabilitySet;
use crate::spec::mount::Mount;
use crate::spec::request::{Network, Request, SeccompChoice, Unmask, UserNamespace};
use crate::spec::seccomp::{self, Filter, Profile};
use crate::spec::{Inherited, Namespaces, Process, Sharing, Spec, defaults};

/// What is known of the host before anything is made: facts that a spec may name.
#[derive(Clone, Debug)]
pub struct Facts {
    pub id: ContainerName,
    /// Set when exactly one id is mapped, so that refused changes of ids may be emulated.
    pub one_id: bool,
    /// The kind of terminal that the caller sits at.
    pub term: Option<OsString>,
    /// What was asked of the container whose network this one is to share.
    pub neighbour: Option<Box<Request>>,
    /// Which of the host's /dev/shm and /dev/mqueue exist, for `--ipc host`.
    pub shared_memory: Vec<PathBuf>,
}

/// The spec of `request`.
///
/// # Errors
/// A word that has no meaning: an unknown capability, a bad seccomp profile, a missing command.
pub fn resolve(request: &Request, facts: &Facts) -> Result<Spec> {
    let image = &request.image;
    // Docker's containers share the files with the network.
    let told = facts.neighbour.as_deref().unwrap_or(request);
    let capabilities = CapabilitySet::with(&request.cap_add, &request.cap_drop)?;
    let hostname = match request.uts {
        Sharing::Host => None,
        Sharing::Private => Some(request.hostname.clone().unwrap_or_else(|| facts.id.short().to_owned())),
    };
    Ok(Spec {
        root: request.root.clone(),
        read_only_root: request.read_only,
        mounts: mounts(request, facts)?,
        namespaces: namespaces(request),
        engine: config(request),
        backend: told.backend,
        beside: facts.neighbour.is_some(),
        addresses: config(told),
        dns: told.dns.clone(),
        hosts: told.add_hosts.clone(),
        masked_paths: hidden(&defaults::MASKED, &request.security.mask, &request.security.unmask),
        read_only_paths: hidden(&defaults::READ_ONLY, &[], &request.security.unmask),
        devices: request.devices.clone(),
        links: request.links.clone(),
        sysctls: sysctls(request)?,
        process: Process {
            arguments: request.arguments(),
            environment: environment(request, hostname.as_deref(), facts),
            cwd: request.cwd.clone().or_else(|| image.cwd.clone()).unwrap_or_else(|| PathBuf::from("/")),
            user: user(request),
            additional_groups: request.groups.iter().filter(|name| *name != "keep-groups").cloned().collect(),
            keep_groups: request.groups.iter().any(|name| name == "keep-groups"),
            terminal: request.terminal,
            stdin: request.interactive,
            capabilities,
            no_new_privileges: request.security.no_new_privileges,
            rlimits: request.rlimits.clone(),
            inherited: Inherited::default(),
            seccomp: profile(request, capabilities, facts)?,
            umask: request.umask,
            scope_abstract_sockets: matches!(request.network, Network::Host),
            oom_score_adj: request.oom_score_adj,
        },
        hostname,
        domainname: request.domainname.clone(),
        view: view(request),
        init: request.init,
        timeout: request.timeout,
    })
}

fn mounts(request: &Request, facts: &Facts) -> Result<Vec<Mount>> {
    for mount in &request.mounts {
        let target = mount.target.components().as_path();
        if target == Path::new("/") || target.starts_with("/proc/self") || target == Path::new("/proc") {
            let why = if target == Path::new("/") { "the root itself" } else { "inside /proc" };
            return Err(
                Error::usage(format!("{} cannot be mounted because it is {why}", target.display())).into()
            );
        }
    }
    let host_ipc = (request.ipc == Sharing::Host).then_some(facts.shared_memory.as_slice());
    let mut mounts = defaults::mounts(request.shm_size, host_ipc);
    mounts.retain(|default| !request.mounts.iter().any(|asked| asked.target == default.target));
    mounts.extend(request.mounts.iter().cloned());
    Ok(mounts)
}

/// Only what belongs to a namespace of the container: anything else is the machine's, and a root with a full
/// id map could write it (docker's list).
fn sysctls(request: &Request) -> Result<Vec<(String, String)>> {
    for (name, _) in &request.sysctls {
        let name = name.replace('/', ".");
        let (namespace, sharing) = if name.starts_with("net.") {
            (
                "network",
                if matches!(request.network, Network::Host) { Sharing::Host } else { Sharing::Private },
            )
        } else if name.starts_with("fs.mqueue.") || defaults::IPC_SYSCTLS.contains(&name.as_str()) {
            ("IPC", request.ipc)
        } else {
            return Err(Error::usage(format!(
                "--sysctl {name}: it is not one of a namespace of the container"
            ))
            .hint("net.*, fs.mqueue.* and the kernel.shm*, kernel.msg* and kernel.sem limits can be set")
            .into());
        };
        if sharing == Sharing::Host {
            return Err(
                Error::usage(format!("--sysctl {name}: the {namespace} namespace is the host's")).into()
            );
        }
    }
    Ok(request.sysctls.clone())
}

fn namespaces(request: &Request) -> Namespaces {
    let network = match request.network {
        Network::None | Network::User(_) | Network::Container(_) => Sharing::Private,
        Network::Host => Sharing::Host,
    };
    Namespaces {
        pid: request.pid,
        ipc: request.ipc,
        uts: request.uts,
        cgroup: request.cgroupns,
        network,
        time: request.time,
    }
}

/// Engine and child work side by side: without being told, the engine might take a choice of the user's for the host's.
fn config(request: &Request) -> Option<kelp_net::config::Config> {
    let Network::User(config) = &request.network else { return None };
    let chosen_sysctls = request.sysctls.iter().map(|(name, _)| name.replace('/', ".")).collect();
    Some(kelp_net::config::Config { chosen_sysctls, ..config.as_ref().clone() })
}

fn hidden(defaults: &[&str], more: &[PathBuf], unmask: &Unmask) -> Vec<PathBuf> {
    let lifted = |path: &Path| match unmask {
        Unmask::All => true,
        Unmask::Paths(paths) => paths.iter().any(|shown| shown == path),
    };
    defaults.iter().map(PathBuf::from).filter(|path| !lifted(path)).chain(more.iter().cloned()).collect()
}

fn user(request: &Request) -> String {
    let keeps = matches!(request.userns, UserNamespace::KeepId { .. });
    let asked = request.user.clone().or_else(|| request.image.user.clone().filter(|_| !keeps));
    asked.unwrap_or_else(|| default_user(&request.userns))
}

/// The defaults first, so that the user's words win; a later word for the same name replaces the earlier.
fn environment(request: &Request, hostname: Option<&str>, facts: &Facts) -> Vec<(OsString, OsString)> {
    let mut environment: Vec<(OsString, OsString)> = vec![("PATH".into(), defaults::PATH.into())];
    if let Some(hostname) = hostname {
        environment.push(("HOSTNAME".into(), hostname.into()));
    }
    environment.push(("container".into(), "kelp".into()));
    if request.terminal {
        environment.push(("TERM".into(), facts.term.clone().unwrap_or_else(|| "xterm".into())));
    }
    for (name, value) in request.image.environment.iter().chain(&request.environment) {
        environment.retain(|(known, _)| known != name);
        environment.push((name.clone(), value.clone()));
    }
    environment
}

fn default_user(userns: &UserNamespace) -> String {
    let own = |asked: Option<u32>, real: u32| asked.unwrap_or(real);
    match userns {
        UserNamespace::KeepId { uid, gid } => format!(
            "{}:{}",
            own(*uid, nix::unistd::getuid().as_raw()),
            own(*gid, nix::unistd::getgid().as_raw())
        ),
        _ => "0".to_owned(),
    }
}

/// Whether the container sees its own numbers.
fn view(request: &Request) -> bool {
    !request.resources.limits.is_empty() && !request.resources.host_view
}

fn profile(request: &Request, capabilities: CapabilitySet, facts: &Facts) -> Result<Profile> {
    let mut filter = match &request.security.seccomp {
        SeccompChoice::Default => seccomp::docker_default(capabilities),
        SeccompChoice::Text(file, text) => seccomp::parse(file, text, capabilities)?,
        SeccompChoice::Unconfined => return Ok(Profile::Unconfined),
    };
    // A program may have one listener above it. Where it can't make user namespaces it starts no containers, which are
    // what else wants one.
    let is_default = matches!(request.security.seccomp, SeccompChoice::Default);
    if view(request) && is_default && !capabilities.has("SYS_ADMIN") {
        filter.rules.insert(0, seccomp::asked_numbers());
    }
    if facts.one_id && request.security.root_emulation {
        filter = Filter { rules: [seccomp::root_emulation(), filter.rules].concat(), ..filter };
    }
    Ok(Profile::Filter(filter))
}
