//! As much of FUSE's protocol (`fuse(4)`, linux/fuse.h, version 7.31) as a folder of read-only files needs: a request
//! parsed into a word, an answer written into bytes. It does no input and no output, and knows no file by name.
//!
//! | request | answer |
//! |---|---|
//! | `Init` | the version, that folders are listed with their files' attributes, and that a file with another time is another text |
//! | `Lookup`, `Attributes`, `List`, `Read`, `Space` | what was asked, or an errno |
//! | `Silent` | none: the kernel waits for none |
//! | `Other`, such as the opening of a file | ENOSYS, which for some the kernel takes as: never ask again |

use std::time::Duration;

/// The kernel gives no request to a smaller buffer (`FUSE_MIN_READ_BUFFER`).
pub const LARGEST: usize = 8192;

/// The folder is as it is.
pub const UNCHANGED: Attributes = Attributes { size: 0, changed: Duration::ZERO, holds: FOREVER };

/// The number of the folder.
pub const FOLDER: u64 = 1;

const MINOR: u32 = 31;
const AUTO_INVALIDATE: u32 = 1 << 12;
const DO_READDIRPLUS: u32 = 1 << 13;

/// Names never change, and neither does the folder.
const FOREVER: Duration = Duration::from_secs(1 << 30);

/// What changes of a file's attributes, and for how long the kernel may believe it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    pub size: u64,
    /// When it became what it is: what the kernel keeps of a file with another time is thrown away.
    pub changed: Duration,
    pub holds: Duration,
}

/// What the kernel asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    Init { major: u32, minor: u32 },
    Lookup(Vec<u8>),
    Attributes(u64),
    List { from: u64, room: usize },
    Read { file: u64, from: u64, most: usize },
    Space,
    Silent,
    Other,
}

/// A request with the number that its answer carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub unique: u64,
    pub asked: Asked,
}

/// `None` if it is no request.
pub fn parse(bytes: &[u8]) -> Option<Request> {
    let (head, body) = bytes.split_at_checked(40)?;
    let (opcode, unique, node) = (u32_at(head, 4)?, u64_at(head, 8)?, u64_at(head, 16)?);
    Some(Request { unique, asked: asked(opcode, node, body).unwrap_or(Asked::Other) })
}

fn asked(opcode: u32, node: u64, body: &[u8]) -> Option<Asked> {
    Some(match opcode {
        1 => Asked::Lookup(body.split(|byte| *byte == 0).next()?.to_vec()),
        2 | 36 | 42 => Asked::Silent,
        3 => Asked::Attributes(node),
        15 => Asked::Read { file: node, from: u64_at(body, 8)?, most: u32_at(body, 16)? as usize },
        17 => Asked::Space,
        26 => Asked::Init { major: u32_at(body, 0)?, minor: u32_at(body, 4)? },
        44 => Asked::List { from: u64_at(body, 8)?, room: u32_at(body, 16)? as usize },
        _ => Asked::Other,
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// An answer: its head first, then numbers as they are.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer(pub Vec<u8>);

impl Answer {
    fn start(unique: u64, error: i32) -> Self {
        Self(Vec::with_capacity(256)).word(0).word(error as u32).long(unique)
    }

    fn word(mut self, number: u32) -> Self {
        self.0.extend(number.to_ne_bytes());
        self
    }

    fn long(mut self, number: u64) -> Self {
        self.0.extend(number.to_ne_bytes());
        self
    }

    fn zeros(mut self, count: usize) -> Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }

    /// The kernel takes an answer only if it says its own length.
    fn end(mut self) -> Self {
        let length = (self.0.len() as u32).to_ne_bytes();
        if let Some(place) = self.0.first_chunk_mut::<4>() {
            *place = length;
        }
        self
    }

    pub fn error(unique: u64, errno: i32) -> Self {
        Self::start(unique, -errno).end()
    }

    pub fn init(unique: u64, minor: u32) -> Self {
        let versions = Self::start(unique, 0).word(7).word(minor.min(MINOR)).word(0);
        let versions = versions.word(AUTO_INVALIDATE | DO_READDIRPLUS);
        // How many may wait, how long a write may be, how fine times are.
        versions.zeros(4).word(4096).word(1).zeros(36).end()
    }

    pub fn entry(unique: u64, number: u64) -> Self {
        Self::start(unique, 0).entry_of(number).end()
    }

    pub fn attributes(unique: u64, number: u64, attributes: Attributes) -> Self {
        let Attributes { holds, .. } = attributes;
        let head = Self::start(unique, 0).long(holds.as_secs()).word(holds.subsec_nanos()).zeros(4);
        head.attributes_of(number, attributes).end()
    }

    pub fn bytes(unique: u64, bytes: &[u8]) -> Self {
        let mut answer = Self::start(unique, 0);
        answer.0.extend(bytes);
        answer.end()
    }

    /// A file system without blocks, whose names are as long as any.
    pub fn space(unique: u64) -> Self {
        Self::start(unique, 0).zeros(40).word(4096).word(255).zeros(32).end()
    }

    /// As many of these files, by number and name, as there is room for: those behind the first `from`.
    pub fn list<'a>(
        unique: u64,
        files: impl Iterator<Item = (u64, &'a str)>,
        from: u64,
        room: usize,
    ) -> Self {
        let mut answer = Self::start(unique, 0);
        for (place, (number, name)) in (1..).zip(files) {
            let length = 128 + 24 + name.len().next_multiple_of(8);
            if place <= from {
                continue;
            }
            if answer.0.len() - 16 + length > room {
                break;
            }
            let end = answer.0.len() + length;
            answer = answer.entry_of(number).long(number).long(place).word(name.len() as u32);
            answer = answer.word(u32::from(libc::DT_REG));
            answer.0.extend(name.bytes());
            answer.0.resize(end, 0);
        }
        answer.end()
    }

    /// `struct fuse_entry_out`: the name for good, the attributes only until they are wanted.
    fn entry_of(self, number: u64) -> Self {
        self.long(number)
            .long(0)
            .long(FOREVER.as_secs())
            .zeros(16)
            .attributes_of(number, Attributes::default())
    }

    /// `struct fuse_attr`: all of it root's.
    fn attributes_of(self, number: u64, attributes: Attributes) -> Self {
        let Attributes { size, changed, .. } = attributes;
        let mode = if number == FOLDER { libc::S_IFDIR | 0o555 } else { libc::S_IFREG | 0o444 };
        let (seconds, nanoseconds) = (changed.as_secs(), changed.subsec_nanos());
        let times = self.long(number).long(size).zeros(8).long(seconds).long(seconds).long(seconds);
        let times = times.word(nanoseconds).word(nanoseconds).word(nanoseconds);
        times.word(mode).word(1).zeros(12).word(4096).zeros(4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(opcode: u32, body: &[u8]) -> Vec<u8> {
        let head = [&(40 + body.len() as u32).to_ne_bytes()[..], &opcode.to_ne_bytes(), &7u64.to_ne_bytes()];
        [&head.concat()[..], &3u64.to_ne_bytes(), &[0; 16], body].concat()
    }

    #[test]
    fn requests_are_understood_and_short_ones_are_none() {
        let asked = |opcode, body: &[u8]| parse(&request(opcode, body)).map(|request| request.asked);
        assert_eq!(asked(1, b"stat\0"), Some(Asked::Lookup(b"stat".to_vec())));
        assert_eq!(asked(3, &[0; 16]), Some(Asked::Attributes(3)));
        assert_eq!(asked(14, &[0; 8]), Some(Asked::Other));
        assert_eq!(asked(15, &[0; 40]), Some(Asked::Read { file: 3, from: 0, most: 0 }));
        assert_eq!(asked(36, &[0; 8]), Some(Asked::Silent));
        assert_eq!(asked(1000, b""), Some(Asked::Other));
        assert_eq!(asked(15, &[0; 19]), Some(Asked::Other));
        assert_eq!(parse(&[0; 39]), None);
        assert_eq!(parse(&request(3, b"")).unwrap().unique, 7);
    }

    /// The sizes of linux/fuse.h.
    #[test]
    fn answers_are_as_long_as_the_kernel_wants_them() {
        for (answer, length) in [
            (Answer::init(7, 39), 64),
            (Answer::entry(7, 2), 128),
            (Answer::attributes(7, 2, Attributes::default()), 104),
            (Answer::space(7), 80),
            (Answer::bytes(7, b"abc"), 3),
            (Answer::error(7, libc::ENOENT), 0),
        ] {
            assert_eq!(answer.0.len(), 16 + length);
            assert_eq!(u32_at(&answer.0, 0), Some(16 + length as u32));
            assert_eq!(u64_at(&answer.0, 8), Some(7));
        }
    }

    #[test]
    fn a_list_goes_on_where_it_had_no_room() {
        let files = || [(2, "meminfo"), (3, "cpuinfo"), (4, "online-cpus")].into_iter();
        let first = Answer::list(7, files(), 0, 330);
        assert_eq!(first.0.len(), 16 + 160 + 160);
        let rest = Answer::list(7, files(), 2, 330);
        assert_eq!(rest.0.len(), 16 + 168);
        assert_eq!(u64_at(&rest.0, 16), Some(4));
        assert_eq!(Answer::list(7, files(), 3, 330), Answer::bytes(7, b""));
    }
}
