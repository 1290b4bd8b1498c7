//! The text of `user.containers.override_stat`, as container-libs writes it: `uid:gid:mode[:type]`, mode in octal,
//! type one of `file`, `dir`, `symlink`, `pipe`, `socket`, `block-MAJ-MIN`, `char-MAJ-MIN`. Pure text.

use crate::attr::{Attr, encode_device};
use crate::config::Owner;
use rustix::fs::FileType;

pub(crate) fn format(attr: &Attr) -> String {
    let kind = match attr.kind() {
        FileType::Directory => "dir".to_owned(),
        FileType::Symlink => "symlink".to_owned(),
        FileType::Fifo => "pipe".to_owned(),
        FileType::Socket => "socket".to_owned(),
        FileType::BlockDevice => device("block", attr.rdev),
        FileType::CharacterDevice => device("char", attr.rdev),
        _ => "file".to_owned(),
    };
    format!("{}:{}:{:04o}:{kind}", attr.uid, attr.gid, attr.mode & 0o7777)
}

fn device(kind: &str, rdev: u32) -> String {
    format!("{kind}-{}-{}", (rdev & 0xf_ff00) >> 8, (rdev & 0xff) | ((rdev >> 12) & 0xf_ff00))
}

/// Lays a recorded owner over what the file says. A text that does not parse changes nothing.
pub(crate) fn apply(text: &[u8], attr: &mut Attr, owner: &mut Owner) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    let mut fields = text.splitn(4, ':');
    let number = |field: Option<&str>| field.and_then(|field| field.parse().ok());
    let (Some(uid), Some(gid)) = (number(fields.next()), number(fields.next())) else { return };
    let Some(mode) = fields.next().and_then(|mode| u32::from_str_radix(mode, 8).ok()) else { return };
    *owner = Owner { uid, gid };
    attr.mode = (attr.mode & !0o7777) | (mode & 0o7777);
    if let Some(kind) = fields.next() {
        apply_kind(kind, attr);
    }
}

fn apply_kind(kind: &str, attr: &mut Attr) {
    // 2.0.0 of fuse-overlayfs separates a device's numbers by a colon.
    let mut parts = kind.split(['-', ':']);
    let bits = match parts.next().map(|name| name.trim_end_matches(|c: char| c.is_ascii_digit())) {
        Some("file") => 0o100_000,
        Some("dir") => 0o040_000,
        Some("symlink") => 0o120_000,
        Some("pipe") => 0o010_000,
        Some("socket") => 0o140_000,
        Some("block") => 0o060_000,
        Some("char") => 0o020_000,
        _ => return,
    };
    attr.mode = bits | (attr.mode & 0o7777);
    let number = |part: Option<&str>| part.and_then(|part| part.parse().ok());
    if let (Some(major), Some(minor)) = (number(parts.next()), number(parts.next())) {
        attr.rdev = encode_device(major, minor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attr::Time;

    fn file() -> Attr {
        let time = Time::default();
        Attr {
            ino: 5,
            size: 0,
            blocks: 0,
            atime: time,
            mtime: time,
            ctime: time,
            mode: 0o100_644,
            nlink: 1,
            uid: 1,
            gid: 2,
            rdev: 0,
            blksize: 4096,
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        let device = Attr { mode: 0o020_600, rdev: encode_device(8, 300), uid: 7, gid: 9, ..file() };
        let (mut attr, mut owner) = (file(), Owner { uid: 0, gid: 0 });
        apply(format(&device).as_bytes(), &mut attr, &mut owner);
        assert_eq!((attr.mode, attr.rdev, owner), (device.mode, device.rdev, Owner { uid: 7, gid: 9 }));
        assert_eq!(format(&device), "7:9:0600:char-8-300");
    }

    #[test]
    fn three_fields_are_enough_and_nonsense_changes_nothing() {
        let (mut attr, mut owner) = (file(), Owner { uid: 0, gid: 0 });
        apply(b"3:4:4755", &mut attr, &mut owner);
        assert_eq!((attr.mode, owner.uid), (0o104_755, 3));
        let before = attr;
        for text in [&b""[..], b"1", b"a:b:c", b"1:2:999", b"\xff"] {
            apply(text, &mut attr, &mut owner);
        }
        assert_eq!(attr, before);
    }
}
