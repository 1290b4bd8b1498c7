//! Mounts as a user asks for them: `-v`, `--mount`, `--tmpfs`, taken apart into one plain type. It knows the
//! grammar of docker and podman, not the kernel's calls.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::ids::Name;
use crate::units::Bytes;

/// One mount, in the order in which it is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub kind: MountKind,
    /// Absolute, as the container sees it.
    #[serde(with = "crate::raw::path")]
    pub target: PathBuf,
    pub flags: MountFlags,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountKind {
    /// A file or directory of the host.
    Bind {
        #[serde(with = "crate::raw::path")]
        source: PathBuf,
        recursive: bool,
        propagation: Propagation,
    },
    /// A volume of kelp's store, made on first use; a bind by the time that a plan is made.
    Volume(Name),
    /// A volume of the container's own, named after it and the target; a bind likewise.
    Anonymous,
    Tmpfs {
        size: Option<Bytes>,
        mode: Option<u32>,
    },
    Proc,
    Sysfs,
    /// The hierarchy of v2, as the container's cgroup namespace shows it.
    Cgroup,
    Mqueue,
    Devpts,
    /// A tmpfs with the nodes that docker gives.
    Dev,
}

impl MountKind {
    pub fn is_volume(&self) -> bool {
        matches!(self, Self::Volume(_) | Self::Anonymous)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountFlags {
    pub read_only: bool,
    pub nosuid: bool,
    pub nodev: bool,
    pub noexec: bool,
    /// What the image has on the place is copied into a volume that nobody had before.
    pub fill: bool,
    /// Everything in the source is given to the container's user.
    pub own: bool,
}

/// `mount_namespaces(7)`: what later mounts on the host or in the container do to the other side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    #[default]
    Private,
    Slave,
    Shared,
}

fn refused(option: &str, text: &str, why: &str) -> anyhow::Error {
    Error::usage(format!("{option} {text}: {why}")).into()
}

fn container_path(option: &str, text: &str, path: &str) -> Result<PathBuf> {
    if path.starts_with('/') && !path.contains('\0') {
        Ok(PathBuf::from(path))
    } else {
        Err(refused(option, text, &format!("{path:?} is not an absolute path in the container")))
    }
}

impl Mount {
    /// A volume of the container's own at `target`, as `option` asks for it in `text`.
    pub fn anonymous(option: &str, text: &str, target: &str) -> Result<Self> {
        let flags = MountFlags { fill: true, ..MountFlags::default() };
        Ok(Self { kind: MountKind::Anonymous, target: container_path(option, text, target)?, flags })
    }
}

/// `-v SRC:DST[:OPTIONS]`, or `-v DST` for a volume of the container's own. A relative SRC that begins with `.` is
/// taken from the caller's folder, as docker does; other words are volume names.
pub fn parse_volume(text: &str) -> Result<Mount> {
    let option = "-v";
    let parts: Vec<&str> = text.splitn(3, ':').collect();
    let (source, target, options) = match parts[..] {
        [target] => return Mount::anonymous(option, text, target),
        [source, target] => (source, target, ""),
        [source, target, options] => (source, target, options),
        _ => return Err(refused(option, text, "[SOURCE:]TARGET[:OPTIONS] is expected")),
    };
    let kind = match source.starts_with(['/', '.']) {
        true => bind(source)?,
        false => MountKind::Volume(source.parse().with_context(|| format!("{option} {text}"))?),
    };
    let flags = MountFlags { fill: kind.is_volume(), ..MountFlags::default() };
    let mut mount = Mount { kind, target: container_path(option, text, target)?, flags };
    for word in options.split(',').filter(|word| !word.is_empty()) {
        apply(&mut mount, word).ok_or_else(|| refused(option, text, &format!("{word:?} is no option")))?;
    }
    Ok(mount)
}

fn bind(source: &str) -> Result<MountKind> {
    let source = std::path::absolute(Path::new(source))?;
    Ok(MountKind::Bind { source, recursive: true, propagation: Propagation::Private })
}

fn apply(mount: &mut Mount, word: &str) -> Option<()> {
    let flags = &mut mount.flags;
    match word {
        "ro" | "readonly" => flags.read_only = true,
        "rw" => flags.read_only = false,
        "nosuid" => flags.nosuid = true,
        "suid" => flags.nosuid = false,
        "nodev" => flags.nodev = true,
        "dev" => flags.nodev = false,
        "noexec" => flags.noexec = true,
        "exec" => flags.noexec = false,
        "z" | "Z" => {}
        "U" if !matches!(mount.kind, MountKind::Tmpfs { .. }) => flags.own = true,
        "copy" | "nocopy" if mount.kind.is_volume() => flags.fill = word == "copy",
        _ => return apply_bind(&mut mount.kind, word),
    }
    Some(())
}

fn apply_bind(kind: &mut MountKind, word: &str) -> Option<()> {
    let MountKind::Bind { recursive, propagation, .. } = kind else { return None };
    match word {
        "bind" => *recursive = false,
        "rbind" => *recursive = true,
        "private" | "rprivate" => *propagation = Propagation::Private,
        "slave" | "rslave" => *propagation = Propagation::Slave,
        "shared" | "rshared" => *propagation = Propagation::Shared,
        _ => return None,
    }
    Some(())
}

/// `--tmpfs DST[:OPTIONS]`: docker's default is `rw,noexec,nosuid,nodev`.
pub fn parse_tmpfs(text: &str) -> Result<Mount> {
    let option = "--tmpfs";
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    let mut mount = Mount {
        kind: MountKind::Tmpfs { size: None, mode: Some(0o1777) },
        target: container_path(option, text, target)?,
        flags: MountFlags { nosuid: true, nodev: true, noexec: true, ..MountFlags::default() },
    };
    for word in options.split(',').filter(|word| !word.is_empty()) {
        tmpfs_option(&mut mount, word)
            .ok_or_else(|| refused(option, text, &format!("{word:?} is no option")))?;
    }
    Ok(mount)
}

fn tmpfs_option(mount: &mut Mount, word: &str) -> Option<()> {
    let (key, value) = word.split_once('=').unwrap_or((word, ""));
    if let MountKind::Tmpfs { size, mode } = &mut mount.kind {
        match key {
            "size" | "tmpfs-size" => {
                *size = Some(value.parse().ok()?);
                return Some(());
            }
            "mode" | "tmpfs-mode" => {
                *mode = Some(u32::from_str_radix(value, 8).ok().filter(|mode| *mode <= 0o7777)?);
                return Some(());
            }
            _ => {}
        }
    }
    apply(mount, word)
}

/// `--mount type=bind|tmpfs|volume,...` (`docker-run(1)`): fields in any order, `readonly` with or without a
/// value.
pub fn parse_mount(text: &str) -> Result<Mount> {
    let option = "--mount";
    let fields: Vec<(&str, &str)> =
        text.split(',').map(|field| field.split_once('=').unwrap_or((field, ""))).collect();
    let find = |names: &[&str]| {
        fields.iter().find(|(key, _)| names.contains(key)).map(|(_, value)| (*value).to_owned())
    };
    let target =
        find(&["target", "destination", "dst"]).ok_or_else(|| refused(option, text, "target= is missing"))?;
    let kind = match find(&["type"]).as_deref() {
        Some("bind") => {
            let source =
                find(&["source", "src"]).ok_or_else(|| refused(option, text, "source= is missing"))?;
            bind(&source)?
        }
        Some("tmpfs") => MountKind::Tmpfs { size: None, mode: Some(0o1777) },
        Some("volume") | None => match find(&["source", "src"]).filter(|name| !name.is_empty()) {
            Some(name) => MountKind::Volume(name.parse().with_context(|| format!("{option} {text}"))?),
            None => MountKind::Anonymous,
        },
        Some(other) => return Err(refused(option, text, &format!("type {other:?} is not known"))),
    };
    let flags = MountFlags { fill: kind.is_volume(), ..MountFlags::default() };
    let mut mount = Mount { kind, target: container_path(option, text, &target)?, flags };
    for (key, value) in fields {
        mount_field(&mut mount, key, value)
            .ok_or_else(|| refused(option, text, &format!("{key}={value} is not understood")))?;
    }
    Ok(mount)
}

fn mount_field(mount: &mut Mount, key: &str, value: &str) -> Option<()> {
    let on = match value {
        "" | "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    };
    match key {
        "type" | "target" | "destination" | "dst" | "source" | "src" | "relabel" | "consistency" => Some(()),
        "readonly" | "ro" => {
            mount.flags.read_only = on?;
            Some(())
        }
        "volume-nocopy" => apply(mount, if on? { "nocopy" } else { "copy" }),
        "chown" => {
            mount.flags.own = on?;
            Some(())
        }
        "bind-propagation" => apply_bind(&mut mount.kind, value),
        "bind-nonrecursive" => {
            let word = if on? { "bind" } else { "rbind" };
            apply_bind(&mut mount.kind, word)
        }
        "tmpfs-size" | "tmpfs-mode" => tmpfs_option(mount, &format!("{key}={value}")),
        _ if value.is_empty() => apply(mount, key),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_follow_dockers_grammar() {
        let mount = parse_volume("/a:/b:ro,nosuid,rslave").unwrap();
        assert_eq!(mount.target, Path::new("/b"));
        assert!(mount.flags.read_only && mount.flags.nosuid && !mount.flags.noexec);
        let MountKind::Bind { source, recursive, propagation } = mount.kind else { panic!("not a bind") };
        assert_eq!((source.as_path(), recursive, propagation), (Path::new("/a"), true, Propagation::Slave));
        assert_eq!(parse_volume("/a").unwrap().kind, MountKind::Anonymous);
        for refused in ["", "a", "/a:b", "/a:/b:bogus", "na/me:/b", ":/b"] {
            assert!(parse_volume(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn mount_fields_come_in_any_order() {
        let mount = parse_mount("readonly,dst=/b,source=/a,type=bind,bind-propagation=rshared").unwrap();
        assert!(mount.flags.read_only);
        let tmpfs = parse_mount("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=700").unwrap();
        assert_eq!(tmpfs.kind, MountKind::Tmpfs { size: Some(Bytes(1 << 20)), mode: Some(0o700) });
        assert_eq!(parse_mount("type=volume,dst=/b").unwrap().kind, MountKind::Anonymous);
        for refused in ["type=bind,target=/b", "type=bind,source=/a", "type=nfs,source=/a,target=/b", "x"] {
            assert!(parse_mount(refused).is_err(), "{refused}");
        }
    }
}
