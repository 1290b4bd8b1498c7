//! Packing with gzip on several processors: the stream is cut into pieces, each becomes a member of its own, and the
//! members follow one another in order, as RFC 1952 allows and every reader of layers expects. What comes out depends
//! only on what goes in, not on how many threads there are.

use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use libdeflater::{CompressionLvl, Compressor, Crc};

use crate::image::deflate;

/// Of the plain stream, in one member. The window of gzip is 32 KiB, so that starting afresh costs little.
const MEMBER: usize = 1 << 20;

/// On the processors of a laptop, the registry's side wants its share too.
const MOST_THREADS: usize = 4;

/// What a member begins with (RFC 1952, 2.3): packed by the fastest algorithm, at no time, on an unknown system.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 4, 255];

/// What a byte less may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// As little as there is: for what is read again on this machine or beside it.
    Least,
    /// libdeflate's levels, 1 to 9. The first packs as well as zlib's second (docs/decisions/0405).
    Level(i32),
}

enum Packer {
    Ours(Box<deflate::Packer>),
    Libdeflate(Compressor),
}

struct Worker {
    to: SyncSender<Vec<u8>>,
    from: Receiver<io::Result<Vec<u8>>>,
}

/// Packs all that `content` has.
pub fn pack(content: &mut dyn Read, effort: Effort, out: &mut dyn Write) -> io::Result<()> {
    let count = thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    thread::scope(|scope| {
        let workers: Vec<Worker> = (0..count)
            .map(|_| {
                let (to, pieces) = sync_channel::<Vec<u8>>(1);
                let (packed, from) = sync_channel(1);
                scope.spawn(move || {
                    let mut packer = Packer::new(effort);
                    pieces.into_iter().try_for_each(|piece| packed.send(packer.member(&piece)))
                });
                Worker { to, from }
            })
            .collect();
        let (mut sent, mut written) = (0, 0);
        loop {
            let piece = next(content)?;
            let is_end = piece.is_empty();
            // An empty stream is one empty member.
            if !is_end || sent == 0 {
                workers[sent % count].to.send(piece).map_err(|_| gone())?;
                sent += 1;
            }
            while written < sent && (is_end || sent - written >= 2 * count) {
                out.write_all(&workers[written % count].from.recv().map_err(|_| gone())??)?;
                written += 1;
            }
            if is_end {
                return Ok(());
            }
        }
    })
}

fn gone() -> io::Error {
    io::Error::other("a packing thread has ended")
}

fn next(content: &mut dyn Read) -> io::Result<Vec<u8>> {
    let mut piece = Vec::with_capacity(MEMBER);
    Read::take(content, MEMBER as u64).read_to_end(&mut piece)?;
    Ok(piece)
}

impl Packer {
    fn new(effort: Effort) -> Self {
        match effort {
            Effort::Least => Self::Ours(Box::default()),
            Effort::Level(level) => {
                Self::Libdeflate(Compressor::new(CompressionLvl::new(level).unwrap_or_default()))
            }
        }
    }

    fn member(&mut self, piece: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::Ours(packer) => {
                let mut packed = Vec::with_capacity(MEMBER);
                packed.extend(HEADER);
                packer.pack(piece, &mut packed);
                let mut crc = Crc::new();
                crc.update(piece);
                packed.extend(crc.sum().to_le_bytes());
                packed.extend((piece.len() as u32).to_le_bytes());
                Ok(packed)
            }
            Self::Libdeflate(packer) => {
                let mut packed = vec![0; packer.gzip_compress_bound(piece.len())];
                let length = packer.gzip_compress(piece, &mut packed).map_err(io::Error::other)?;
                packed.truncate(length);
                Ok(packed)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::MultiGzDecoder;

    #[test]
    fn what_was_packed_comes_out_again() {
        let lengths = [0, 1, MEMBER - 1, MEMBER, 7 * MEMBER + 3].into_iter();
        let efforts = [Effort::Least, Effort::Level(1), Effort::Level(9)];
        for (length, effort) in lengths.flat_map(|length| efforts.map(|effort| (length, effort))) {
            let plain: Vec<u8> = (0..length).map(|at| (at * at / 7) as u8).collect();
            let mut packed = Vec::new();
            pack(&mut plain.as_slice(), effort, &mut packed).unwrap();
            assert_eq!(&packed[..2], b"\x1f\x8b");
            let mut again = Vec::new();
            MultiGzDecoder::new(packed.as_slice()).read_to_end(&mut again).unwrap();
            assert!(again == plain, "{length} bytes, {effort:?}");
        }
    }

    #[test]
    fn a_reader_that_fails_fails() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("broken"))
            }
        }
        assert_eq!(pack(&mut Broken, Effort::Least, &mut Vec::new()).unwrap_err().to_string(), "broken");
    }
}
