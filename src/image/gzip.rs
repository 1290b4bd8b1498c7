//! Packing with gzip on several processors: the stream is cut into pieces, each becomes a member of its own, and the
//! members follow one another in order, as RFC 1952 allows and every reader of layers expects. What comes out depends
//! only on what goes in, not on how many threads there are.

use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use libdeflater::{CompressionLvl, Compressor};

/// Of the plain stream, in one member. The window of gzip is 32 KiB, so that starting afresh costs little.
const MEMBER: usize = 1 << 20;

/// On the processors of a laptop, the registry's side wants its share too.
const MOST_THREADS: usize = 4;

/// The fastest of libdeflate's, which packs as well as zlib's level 2 and takes two thirds of its time (docs/decisions/0405).
const LEVEL: i32 = 1;

struct Worker {
    to: SyncSender<Vec<u8>>,
    from: Receiver<io::Result<Vec<u8>>>,
}

/// Packs all that `content` has.
pub fn pack(content: &mut dyn Read, out: &mut dyn Write) -> io::Result<()> {
    let count = thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    thread::scope(|scope| {
        let workers: Vec<Worker> = (0..count)
            .map(|_| {
                let (to, pieces) = sync_channel::<Vec<u8>>(1);
                let (packed, from) = sync_channel(1);
                scope.spawn(move || {
                    let mut packer = Compressor::new(CompressionLvl::new(LEVEL).unwrap_or_default());
                    pieces.into_iter().try_for_each(|piece| packed.send(member(&mut packer, &piece)))
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

fn member(packer: &mut Compressor, piece: &[u8]) -> io::Result<Vec<u8>> {
    let mut packed = vec![0; packer.gzip_compress_bound(piece.len())];
    let length = packer.gzip_compress(piece, &mut packed).map_err(io::Error::other)?;
    packed.truncate(length);
    Ok(packed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::MultiGzDecoder;

    #[test]
    fn what_was_packed_comes_out_again() {
        for length in [0, 1, MEMBER - 1, MEMBER, 7 * MEMBER + 3] {
            let plain: Vec<u8> = (0..length).map(|at| (at * at / 7) as u8).collect();
            let mut packed = Vec::new();
            pack(&mut plain.as_slice(), &mut packed).unwrap();
            assert_eq!(&packed[..2], b"\x1f\x8b");
            let mut again = Vec::new();
            MultiGzDecoder::new(packed.as_slice()).read_to_end(&mut again).unwrap();
            assert!(again == plain, "{length} bytes");
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
        assert_eq!(pack(&mut Broken, &mut Vec::new()).unwrap_err().to_string(), "broken");
    }
}
