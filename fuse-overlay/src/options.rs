//! The command line: fuse-overlayfs's, so that podman and buildah run on it by `mount_program` without a change, and
//! a few words of our own. Pure: text in, plain data out. Options that only tune the other program are accepted and
//! ignored; an option that nobody knows is an error, because a misspelt `workdir` must not be silent.

use anyhow::{Context, Result, bail};
use fuse_overlay::config::{Config, Directory, IdRange, Lower, Owner, Owners};
use rustix::mount::MountFlags;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// What the program was asked to do.
#[derive(Debug)]
pub(crate) enum Request {
    Mount(Box<Mount>),
    Check(PathBuf),
    Help,
    Version,
}

#[derive(Debug)]
pub(crate) struct Mount {
    pub(crate) config: Config,
    pub(crate) mountpoint: PathBuf,
    pub(crate) foreground: bool,
    pub(crate) flags: MountFlags,
    pub(crate) threads: Option<usize>,
    /// Serve on any CPU.
    pub(crate) spread: bool,
    /// Where to write the counts of requests when the mount ends.
    pub(crate) stats: Option<PathBuf>,
}

pub(crate) const HELP: &str = "\
usage: fuse-overlay [-f] [--stats FILE] -o lowerdir=A:B[,upperdir=U,workdir=W][,OPTION...] MOUNTPOINT
       fuse-overlay check UPPER

  -f                    stay in the foreground
  -d, --debug           the same
  --stats FILE          write the number of requests by kind to FILE when the mount ends

options (-o):
  lowerdir=A:B          lower layers, topmost first; \\: and \\, stand for themselves
  upperdir=U,workdir=W  the writable layer and its work directory on the same file system
  squash_to_root, squash_to_uid=N, squash_to_gid=N
                        show every file as owned by one id
  squash_unmapped=U:G   show files of lowers whose owner has no name here as owned by U:G
  uidmapping=IN:OUT:N[:...], gidmapping=...
                        ids of the mount and of the files
  xattr_permissions=N   record owners in user.containers.override_stat (0 off, 2 on)
  volatile, fsync=0     never sync: after a power cut the upper is worthless
  writeback=0           no write-back cache
  redirect_dir=on       directories of lowers can be renamed; the kernel then refuses to mount the upper
  noacl                 access control lists are neither kept nor looked at
  coherent              the layers change behind our back: cache for a second only
  xdev                  stay on the mounts of the lower layers
  exclude=PATH[:PATH]   names of the lower layers that are not there
  ociwhiteouts=0        .wh. files of the lowers are ordinary files, not whiteouts of an unpacked OCI archive
  size=BYTES, inodes=N  what the upper may hold
  read_bps=N, write_bps=N, read_iops=N, write_iops=N
                        bytes a second
  threads=N             threads that serve the mount
  spread                serve on any CPU, not on that of the program that asks
  ro, nosuid, nodev, noexec, noatime
";

/// Reads the arguments without the program's own name.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Request> {
    let mut words = arguments.into_iter();
    let (mut options, mut names) = (Vec::new(), Vec::new());
    let (mut foreground, mut stats) = (false, None);
    while let Some(word) = words.next() {
        let mut value = |name: &str| words.next().with_context(|| format!("{name} needs a value"));
        match word.as_bytes() {
            b"-f" | b"-d" | b"--foreground" | b"--debug" => foreground = true,
            b"-h" | b"--help" => return Ok(Request::Help),
            b"-V" | b"--version" => return Ok(Request::Version),
            b"--stats" => stats = Some(PathBuf::from(value("--stats")?)),
            b"-o" => options.push(value("-o")?),
            [b'-', b'o', rest @ ..] => options.push(OsStr::from_bytes(rest).to_owned()),
            [b'-', _, ..] => bail!("the option {} is not known", word.display()),
            _ => names.push(PathBuf::from(word)),
        }
    }
    if names.first().is_some_and(|name| name.as_os_str() == "check") {
        let upper = names.get(1).context("check needs the directory of an upper layer")?;
        return Ok(Request::Check(upper.clone()));
    }
    // mount(8) passes the source first.
    if names.len() > 2 {
        bail!("too many arguments: one mount point is expected");
    }
    let mountpoint = names.pop().context("no mount point is named")?;
    let mut mount = Mount {
        config: Config::default(),
        mountpoint,
        foreground,
        flags: MountFlags::empty(),
        threads: None,
        spread: false,
        stats,
    };
    let mut gathered = Gathered::default();
    for option in options.iter().flat_map(|text| split(text.as_bytes(), b',')) {
        apply(&option, &mut mount, &mut gathered)?;
    }
    for lower in &mut mount.config.lowers {
        (lower.xdev, lower.raw) = (gathered.xdev, !gathered.plain);
        lower.exclude.clone_from(&gathered.exclude);
    }
    Ok(Request::Mount(Box::new(mount)))
}

/// Options that belong to every lower, wherever on the line they stand.
#[derive(Default)]
struct Gathered {
    xdev: bool,
    /// podman leaves whiteouts of layers as `.wh.` files where a `mount_program` is set, so they are read unless told not to.
    plain: bool,
    exclude: Vec<Vec<u8>>,
}

fn apply(option: &[u8], mount: &mut Mount, gathered: &mut Gathered) -> Result<()> {
    let mut halves = option.splitn(2, |byte| *byte == b'=');
    let key = String::from_utf8_lossy(halves.next().unwrap_or_default()).into_owned();
    let value = halves.next();
    let path = || {
        value
            .map(|value| PathBuf::from(OsString::from_vec(unescape(value))))
            .context(format!("{key} needs a path"))
    };
    let config = &mut mount.config;
    match key.as_str() {
        "lowerdir" => {
            let value = value.context("lowerdir needs a path")?;
            let paths = split(value, b':').into_iter().filter(|path| !path.is_empty());
            config.lowers = paths.map(|path| Lower::path(OsString::from_vec(unescape(&path)))).collect();
        }
        "upperdir" => config.upper = Some(Directory::Path(path()?)),
        "workdir" => config.work = Some(Directory::Path(path()?)),
        "squash_to_root" => (config.squash_uid, config.squash_gid) = (Some(0), Some(0)),
        "squash_to_uid" => config.squash_uid = Some(number(&key, value)?),
        "squash_to_gid" => config.squash_gid = Some(number(&key, value)?),
        "squash_unmapped" => config.squash_unmapped = Some(owner(value)?),
        "uidmapping" => config.uid_map = ranges(&key, value)?,
        "gidmapping" => config.gid_map = ranges(&key, value)?,
        "xattr_permissions" if number::<u32>(&key, value)? > 0 => config.owners = Owners::Recorded,
        "volatile" => config.volatile = true,
        "fsync" if number::<u32>(&key, value)? == 0 => config.volatile = true,
        "redirect_dir" if value == Some(b"on") => config.redirect = true,
        "writeback" => config.writeback = number::<u32>(&key, value)? > 0,
        "coherent" => config.coherent = true,
        "noacl" => config.acl = false,
        "xdev" => gathered.xdev = true,
        "ociwhiteouts" => gathered.plain = number::<u32>(&key, value)? == 0,
        "exclude" => {
            let paths = split(value.unwrap_or_default(), b':').into_iter();
            gathered
                .exclude
                .extend(paths.map(|path| unescape(&path).trim_ascii_start().to_vec()).map(without_slashes));
        }
        "size" => config.limits.bytes = number(&key, value)?,
        "inodes" => config.limits.inodes = number(&key, value)?,
        "read_bps" => config.limits.read_bytes_per_second = number(&key, value)?,
        "write_bps" => config.limits.write_bytes_per_second = number(&key, value)?,
        "read_iops" => config.limits.reads_per_second = number(&key, value)?,
        "write_iops" => config.limits.writes_per_second = number(&key, value)?,
        "threads" => mount.threads = Some(number(&key, value)?),
        "near" => mount.spread = false,
        "spread" => mount.spread = true,
        _ => return flag(&key, mount),
    }
    Ok(())
}

/// Options of mount(8), and those that mean nothing here.
fn flag(key: &str, mount: &mut Mount) -> Result<()> {
    match key {
        "ro" => mount.flags |= MountFlags::RDONLY,
        "nosuid" => mount.flags |= MountFlags::NOSUID,
        "nodev" => mount.flags |= MountFlags::NODEV,
        "noexec" => mount.flags |= MountFlags::NOEXEC,
        "noatime" => mount.flags |= MountFlags::NOATIME,
        ""
        | "rw"
        | "suid"
        | "dev"
        | "exec"
        | "atime"
        | "relatime"
        | "diratime"
        | "nodiratime"
        | "allow_other"
        | "allow_root"
        | "default_permissions"
        | "auto_unmount"
        | "xattr_permissions"
        | "redirect_dir"
        | "fsync"
        | "timeout"
        | "threaded"
        | "fast_ino"
        | "noxattrs"
        | "plugins"
        | "static_nlink"
        | "fsname"
        | "subtype"
        | "max_write"
        | "max_idle_threads"
        | "clone_fd"
        | "userxattr"
        | "metacopy"
        | "index"
        | "xino"
        | "context"
        | "user"
        | "async"
        | "sync"
        | "_netdev" => {}
        _ => bail!("the mount option {key} is not known"),
    }
    Ok(())
}

fn number<T: std::str::FromStr>(key: &str, value: Option<&[u8]>) -> Result<T> {
    let text = value.and_then(|value| std::str::from_utf8(value).ok());
    let number = text.and_then(|text| text.parse().ok());
    number.with_context(|| format!("{key} needs a number, not {:?}", text.unwrap_or_default()))
}

fn owner(value: Option<&[u8]>) -> Result<Owner> {
    let mut ids = value.unwrap_or_default().splitn(2, |byte| *byte == b':');
    Ok(Owner { uid: number("squash_unmapped", ids.next())?, gid: number("squash_unmapped", ids.next())? })
}

fn ranges(key: &str, value: Option<&[u8]>) -> Result<Vec<IdRange>> {
    let words = value.unwrap_or_default().split(|byte| *byte == b':');
    let ids = words.map(|word| number(key, Some(word))).collect::<Result<Vec<u32>>>()?;
    let triples = ids.chunks(3).map(|ids| match ids {
        [inside, outside, count] => Ok(IdRange { inside: *inside, outside: *outside, count: *count }),
        _ => bail!("{key} needs triples of numbers"),
    });
    triples.collect()
}

/// Splits at `mark` where no backslash stands before it. The backslashes stay.
fn split(text: &[u8], mark: u8) -> Vec<Vec<u8>> {
    let mut parts = vec![Vec::new()];
    let mut escaped = false;
    for byte in text {
        if *byte == mark && !escaped {
            parts.push(Vec::new());
            continue;
        }
        escaped = *byte == b'\\' && !escaped;
        if let Some(part) = parts.last_mut() {
            part.push(*byte);
        }
    }
    parts
}

fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut escaped = false;
    for byte in text {
        escaped = *byte == b'\\' && !escaped;
        if !escaped {
            plain.push(*byte);
        }
    }
    plain
}

fn without_slashes(path: Vec<u8>) -> Vec<u8> {
    let inner = path.iter().skip_while(|byte| **byte == b'/').copied().collect::<Vec<u8>>();
    inner.strip_suffix(b"/").map_or(inner.clone(), <[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(words: &[&str]) -> Mount {
        match parse(words.iter().map(OsString::from)).unwrap() {
            Request::Mount(mount) => *mount,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_line_that_podman_writes_is_understood() {
        let line =
            "lowerdir=/a:/b\\:c\\,d,upperdir=/u,workdir=/w,uidmapping=0:1000:1:1:100000:65536,volatile,nodev";
        let mount = mount(&["-o", line, "/m"]);
        let lowers: Vec<_> =
            mount.config.lowers.iter().map(|lower| format!("{:?}", lower.directory)).collect();
        assert_eq!(lowers, [r#"Path("/a")"#, r#"Path("/b:c,d")"#]);
        assert_eq!(mount.config.uid_map.len(), 2);
        assert!(mount.config.volatile && !mount.foreground);
        assert_eq!(mount.mountpoint, PathBuf::from("/m"));
    }

    #[test]
    fn a_word_that_nobody_knows_is_refused() {
        for words in [&["-o", "wrokdir=/w", "/m"][..], &["--x", "/m"], &["-o", "squash_to_uid=x", "/m"], &[]]
        {
            assert!(parse(words.iter().map(OsString::from)).is_err(), "{words:?}");
        }
    }
}
