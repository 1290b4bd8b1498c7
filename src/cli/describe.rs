//! A container as docker's API describes it, in docker's names: from its record, and from the kernel where it
//! runs. It prints nothing.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use anyhow::Result;
use kelp_net::config::Published;
use nix::sys::signal::Signal;
use serde_json::{Map, Value, json};

use crate::cgroup::group::Group;
use crate::cli::{choice, limits};
use crate::container::folder::Known;
use crate::container::health::{Entry, Findings};
use crate::container::published;
use crate::container::state::State;
use crate::container::volume::{self, Volume};
use crate::ids::ContainerName;
use crate::image::config::rfc3339_nanos;
use crate::image::store::Store;
use crate::paths::Paths;
use crate::rootfs::rung::Rung;
use crate::spec::life::{LogFormat, Restart, Stream};
use crate::spec::mount::{Mount, MountKind, Propagation};
use crate::spec::request::{Network, Request, SecretPlace, SecretUse};
use crate::spec::resolve::{self, Facts};
use crate::spec::{Root, Sharing, Spec};
use crate::verbs::observe;

/// What was never.
const NEVER: &str = "0001-01-01T00:00:00Z";

pub fn container(paths: &Paths, known: &Known, with_size: bool) -> Result<Value> {
    let (made, status) = (&known.made, &known.status);
    let request = &made.request;
    let id = made.id.clone();
    let spec = resolve::resolve(
        request,
        &Facts { id, one_id: false, term: None, neighbour: None, shared_memory: Vec::new() },
    )?;
    let words = texts(&spec.process.arguments);
    let log = matches!(request.life.log.format, LogFormat::JsonFile | LogFormat::K8sFile);
    let mut value = json!({
        "Id": made.id.to_string(),
        "Created": rfc3339_nanos(made.created),
        "Path": words.first(),
        "Args": words.get(1..).unwrap_or_default(),
        "State": state(known),
        "Image": if request.image.id.is_empty() { String::new() } else { format!("sha256:{}", request.image.id) },
        "LogPath": if log { known.folder.join("log").display().to_string() } else { String::new() },
        "Name": format!("/{}", known.name()),
        "RestartCount": status.restarts,
        "PidFile": request.life.pidfile.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        "Driver": driver(status.rung),
        "Platform": "linux",
        "ExecIDs": null,
        "GraphDriver": graph_driver(known),
        "Mounts": request.mounts.iter().map(|mount| describe_mount(paths, &made.id, mount)).collect::<Vec<_>>(),
        "Config": config(request, &spec),
        "HostConfig": host_config(known),
        "NetworkSettings": network_settings(known),
        "Namespaces": namespaces(known),
        "EnforcedBy": status.enforced,
    });
    if with_size {
        let own = volume::size(&known.folder.join("upper"));
        let image = Store::open(paths)?.find(&request.image.id).ok().flatten();
        value["SizeRw"] = own.into();
        value["SizeRootFs"] = (own + image.map_or(0, |image| image.record.size)).into();
    }
    Ok(value)
}

fn text(word: &OsStr) -> String {
    word.to_string_lossy().into_owned()
}

fn texts(words: &[OsString]) -> Vec<String> {
    words.iter().map(|word| text(word)).collect()
}

fn time(nanoseconds: i64) -> String {
    if nanoseconds == 0 { NEVER.to_owned() } else { rfc3339_nanos(nanoseconds) }
}

/// The process number of its program.
pub fn pid(known: &Known) -> Option<i32> {
    let lives = matches!(known.status.state, State::Running | State::Paused);
    known.status.process.as_ref().filter(|_| lives).map(|process| process.pid)
}

fn state(known: &Known) -> Value {
    let status = &known.status;
    let mut value = json!({
        "Status": status.state.word(),
        "Running": matches!(status.state, State::Running | State::Paused | State::Restarting),
        "Paused": status.state == State::Paused,
        "Restarting": status.state == State::Restarting,
        "OOMKilled": status.oom_killed,
        "MemoryPeak": status.group.as_ref().map_or(status.memory_peak, Group::memory_peak),
        "Dead": status.state == State::Dead,
        "Pid": pid(known).unwrap_or(0),
        "ExitCode": status.exit,
        "Error": status.error,
        "StartedAt": time(status.started),
        "FinishedAt": time(status.finished),
    });
    if let Some(found) = status.health.and_then(|_| Findings::read(&known.folder).ok().flatten()) {
        let entry = |entry: &Entry| {
            json!({
                "Start": rfc3339_nanos(entry.start),
                "End": rfc3339_nanos(entry.end),
                "ExitCode": entry.exit,
                "Output": entry.output,
            })
        };
        value["Health"] = json!({
            "Status": found.status.word(),
            "FailingStreak": found.failing,
            "Log": found.log.iter().map(entry).collect::<Vec<_>>(),
        });
    }
    value
}

/// In docker's nanoseconds.
fn healthcheck(request: &Request) -> Option<Value> {
    let health = request.health()?;
    Some(json!({
        "Test": health.test.words(),
        "Interval": health.interval.as_nanos() as u64,
        "Timeout": health.timeout.as_nanos() as u64,
        "StartPeriod": health.start_period.as_nanos() as u64,
        "StartInterval": health.start_interval.as_nanos() as u64,
        "Retries": health.retries,
    }))
}

/// The words of `--storage-driver`.
fn driver(rung: Option<Rung>) -> &'static str {
    match rung {
        Some(Rung::KernelOverlay) => "overlay",
        Some(Rung::OverlayOnFuse) => "overlay-on-fuse",
        Some(Rung::FuseOverlay) => "fuse",
        Some(Rung::Copy) => "copy",
        Some(Rung::Through) => "none",
        None => "",
    }
}

fn graph_driver(known: &Known) -> Value {
    let lower = match &known.made.request.root {
        Root::Host => vec!["/".to_owned()],
        Root::Layers(layers) => layers.iter().rev().map(|path| path.display().to_string()).collect(),
        Root::Directory { path, .. } => vec![path.display().to_string()],
    };
    let own = |name: &str| known.folder.join(name).display().to_string();
    json!({
        "Name": driver(known.status.rung),
        "Data": {
            "LowerDir": lower.join(":"),
            "UpperDir": own("upper"),
            "WorkDir": own("work"),
            "MergedDir": own("root"),
        },
    })
}

fn describe_mount(paths: &Paths, id: &ContainerName, mount: &Mount) -> Value {
    let (kind, name, source, propagation) = match (&mount.kind, volume::of(mount, id)) {
        (MountKind::Bind { source, propagation, .. }, _) => {
            ("bind", String::new(), source.display().to_string(), *propagation)
        }
        (_, Some(Volume { name, .. })) => {
            let folder = volume::folder(paths, &name).display().to_string();
            ("volume", name.to_string(), folder, Propagation::Private)
        }
        _ => ("tmpfs", String::new(), String::new(), Propagation::Private),
    };
    let mut value = json!({
        "Type": kind,
        "Source": source,
        "Destination": mount.target.display().to_string(),
        "Mode": if mount.flags.read_only { "ro" } else { "" },
        "RW": !mount.flags.read_only,
        "Propagation": match propagation {
            Propagation::Private => "rprivate",
            Propagation::Slave => "rslave",
            Propagation::Shared => "rshared",
        },
    });
    if kind == "volume" {
        value["Name"] = name.into();
        value["Driver"] = "local".into();
    }
    value
}

fn config(request: &Request, spec: &Spec) -> Value {
    let image = &request.image;
    let variable = |(name, value): &(OsString, OsString)| format!("{}={}", text(name), text(value));
    let entrypoint = match &request.entrypoint {
        Some(program) => vec![text(program)],
        None => texts(&image.entrypoint),
    };
    let command = if request.command.is_empty() && request.entrypoint.is_none() {
        &image.command
    } else {
        &request.command
    };
    let signal = request.stop_signal();
    let ports: Map<String, Value> =
        published(asked(request)).into_iter().map(|(port, _)| (port, json!({}))).collect();
    let mut value = json!({
        "Hostname": spec.hostname.clone().unwrap_or_default(),
        "Domainname": spec.domainname.clone().unwrap_or_default(),
        "User": request.user.as_ref().or(image.user.as_ref()).cloned().unwrap_or_default(),
        "AttachStdin": request.life.attached.contains(&Stream::Stdin),
        "AttachStdout": request.life.attached.contains(&Stream::Stdout),
        "AttachStderr": request.life.attached.contains(&Stream::Stderr),
        "Tty": request.terminal,
        "OpenStdin": request.interactive,
        "StdinOnce": request.interactive && request.life.attached.contains(&Stream::Stdin),
        "Env": spec.process.environment.iter().map(variable).collect::<Vec<_>>(),
        "Cmd": texts(command),
        "Image": request.root_name,
        "WorkingDir": spec.process.cwd.display().to_string(),
        "Entrypoint": Some(entrypoint).filter(|words| !words.is_empty()),
        "ExposedPorts": ports,
        "Volumes": own_volumes(request),
        "Secrets": request.secrets.iter().map(secret).collect::<Vec<_>>(),
        "Labels": request.labels(),
        "StopSignal": Signal::try_from(signal).map_or_else(|_| signal.to_string(), |name| name.to_string()),
        "StopTimeout": request.life.stop_timeout,
    });
    if let Some(check) = healthcheck(request) {
        value["Healthcheck"] = check;
    }
    value
}

/// By name, as podman shows it: what it says stands nowhere.
fn secret(asked: &SecretUse) -> Value {
    let (uid, gid, mode) = match asked.place {
        SecretPlace::File { uid, gid, mode, .. } => (uid.unwrap_or(0), gid.unwrap_or(0), mode),
        SecretPlace::Variable(_) => (0, 0, 0),
    };
    json!({"Name": asked.name.as_str(), "ID": asked.id, "UID": uid, "GID": gid, "Mode": mode})
}

/// Where it has volumes that were made for it; null without any, as docker has it.
fn own_volumes(request: &Request) -> Option<Map<String, Value>> {
    let own = request.mounts.iter().filter(|mount| mount.kind == MountKind::Anonymous);
    let own: Map<String, Value> = own.map(|mount| (mount.target.display().to_string(), json!({}))).collect();
    Some(own).filter(|own| !own.is_empty())
}

fn host_config(known: &Known) -> Value {
    let request = &known.made.request;
    let shared = |sharing: Sharing| if sharing == Sharing::Host { "host" } else { "private" };
    let (policy, count) = match known.status.policy(&known.made) {
        Restart::No => ("no", 0),
        Restart::OnFailure(count) => ("on-failure", count),
        Restart::Always => ("always", 0),
        Restart::UnlessStopped => ("unless-stopped", 0),
    };
    let log = &request.life.log;
    let mut options = BTreeMap::from([("max-file", log.max_file.to_string())]);
    options.extend(log.max_size.map(|size| ("max-size", size.0.to_string())));
    let driver = match log.format {
        LogFormat::JsonFile => "json-file",
        LogFormat::K8sFile => "k8s-file",
        LogFormat::None => "none",
        LogFormat::Passthrough => "passthrough",
    };
    let device = |device: &crate::spec::Device| {
        json!({
            "PathOnHost": device.host.display().to_string(),
            "PathInContainer": device.container.display().to_string(),
            "CgroupPermissions": if device.read_only { "r" } else { "rwm" },
        })
    };
    let limit =
        |limit: &crate::spec::Rlimit| json!({"Name": limit.name, "Soft": limit.soft, "Hard": limit.hard});
    let mut config = json!({
        "Binds": binds(request),
        "NetworkMode": choice::network(request),
        "PortBindings": ports(asked(request), |host| vec![host]),
        "RestartPolicy": { "Name": policy, "MaximumRetryCount": count },
        "AutoRemove": request.remove,
        "LogConfig": { "Type": driver, "Config": options },
        "CapAdd": request.cap_add,
        "CapDrop": request.cap_drop,
        "CgroupnsMode": shared(request.cgroupns),
        "Devices": request.devices.iter().map(device).collect::<Vec<_>>(),
        "ExtraHosts": request.add_hosts.iter().map(|(name, ip)| format!("{name}:{ip}")).collect::<Vec<_>>(),
        "GroupAdd": request.groups,
        "Init": request.init,
        "IpcMode": shared(request.ipc),
        "PidMode": shared(request.pid),
        "UTSMode": shared(request.uts),
        "OomScoreAdj": request.oom_score_adj.unwrap_or(0),
        "Privileged": false,
        "ReadonlyRootfs": request.read_only,
        "ShmSize": request.shm_size.map(|size| size.0),
        "Sysctls": request.sysctls.iter().cloned().collect::<BTreeMap<_, _>>(),
        "VolumesFrom": Some(&request.volumes_from).filter(|words| !words.is_empty()),
        "Annotations": request.life.annotations,
        "Ulimits": request.rlimits.iter().map(limit).collect::<Vec<_>>(),
        "CgroupParent": request.resources.parent.clone().unwrap_or_default(),
        "OomKillDisable": false,
    });
    let mut limits = request.resources.limits.clone();
    limits.update(&known.status.limits);
    for (name, value) in limits::host_config(&limits) {
        config[name] = value;
    }
    config
}

fn asked(request: &Request) -> &[Published] {
    match &request.network {
        Network::User(config) => &config.published,
        _ => &[],
    }
}

fn binds(request: &Request) -> Vec<String> {
    let bind = |mount: &Mount| {
        let source = match &mount.kind {
            MountKind::Bind { source, .. } => source.display().to_string(),
            MountKind::Volume(name) => name.to_string(),
            _ => return None,
        };
        let mode = if mount.flags.read_only { "ro" } else { "rw" };
        Some(format!("{source}:{}:{mode}", mount.target.display()))
    };
    request.mounts.iter().filter_map(bind).collect()
}

/// `80/tcp` and where each published port is bound: address and port of the host.
fn published(ports: &[Published]) -> Vec<(String, (String, u16))> {
    let each = |port: &Published| {
        let (port, host) = (*port, port.host.map(|host| host.to_string()).unwrap_or_default());
        (0..port.count).map(move |at| {
            let on_host = if port.host_port == 0 { 0 } else { port.host_port + at };
            (format!("{}/{}", port.container_port + at, port.protocol), (host.clone(), on_host))
        })
    };
    ports.iter().flat_map(each).collect()
}

/// `80/tcp` and the address of the host that leads there, as docker prints it; without one, every address of both
/// families does.
pub fn listening(known: &Known) -> Vec<(String, String)> {
    let each = |(port, (host, number)): (String, (String, u16))| {
        addresses(host).into_iter().map(move |host| {
            let host = if host.contains(':') { format!("[{host}]") } else { host };
            (port.clone(), format!("{host}:{number}"))
        })
    };
    published(&published::of(known)).into_iter().flat_map(each).collect()
}

/// Without an address, all of both families.
fn addresses(host: String) -> Vec<String> {
    if host.is_empty() { vec!["0.0.0.0".to_owned(), "::".to_owned()] } else { vec![host] }
}

/// Each port of the container with where it is bound, by `hosts` of the address that was asked for.
fn ports(asked: &[Published], hosts: impl Fn(String) -> Vec<String>) -> Map<String, Value> {
    let mut ports = Map::new();
    for (port, (host, number)) in published(asked) {
        let bound =
            hosts(host).into_iter().map(|host| json!({"HostIp": host, "HostPort": number.to_string()}));
        if let Some(list) = ports.entry(port).or_insert_with(|| json!([])).as_array_mut() {
            list.extend(bound);
        }
    }
    ports
}

fn network_settings(known: &Known) -> Value {
    let request = &known.made.request;
    let (v4, v6) = match &request.network {
        Network::User(config) if pid(known).is_some() => (config.v4, config.v6),
        _ => (None, None),
    };
    json!({
        "Ports": if pid(known).is_some() { ports(&published::of(known), addresses) } else { Map::new() },
        "IPAddress": v4.map(|net| net.address.to_string()).unwrap_or_default(),
        "IPPrefixLen": v4.map_or(0, |net| net.prefix),
        "Gateway": v4.map(|net| net.gateway.to_string()).unwrap_or_default(),
        "GlobalIPv6Address": v6.map(|net| net.address.to_string()).unwrap_or_default(),
        "GlobalIPv6PrefixLen": v6.map_or(0, |net| net.prefix),
        "IPv6Gateway": v6.map(|net| net.gateway.to_string()).unwrap_or_default(),
    })
}

/// kelp's own: what `lsns` shows of the first process.
fn namespaces(known: &Known) -> Vec<Value> {
    let seen = pid(known).map(observe::namespaces).unwrap_or_default();
    let value = |namespace: observe::Namespace| {
        json!({
            "Kind": namespace.kind,
            "Flag": namespace.flag,
            "Inode": namespace.inode,
            "Shared": namespace.shared,
        })
    };
    seen.into_iter().map(value).collect()
}
