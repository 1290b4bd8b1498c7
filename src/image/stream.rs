//! Streams of bytes on their way into the store: counted, hashed, unpacked, and carried from one thread to
//! the next in pieces. A pipe whose writer went away without saying that it was done ends in an error, never
//! in what looks like an end.

use std::io::{self, BufRead, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use anyhow::{Result, bail};
use sha2::{Digest as _, Sha256};

use crate::image::manifest::Compression;
use crate::image::reference::Digest;

/// What one message of a pipe carries at most.
pub const PIECE: usize = 128 * 1024;
const PIECES_IN_FLIGHT: usize = 6;

/// Hashes and counts what goes through, in either direction.
#[derive(Debug)]
pub struct Hashing<T> {
    stream: T,
    hash: Sha256,
    pub count: u64,
}

impl<T> Hashing<T> {
    pub fn new(stream: T) -> Self {
        Self { stream, hash: Sha256::new(), count: 0 }
    }

    pub fn finish(self) -> (T, Digest, u64) {
        (self.stream, Digest::from_hash(&self.hash.finalize()), self.count)
    }

    /// The digest of what went through until now.
    pub fn so_far(&self) -> Digest {
        Digest::from_hash(&self.hash.clone().finalize())
    }

    fn saw(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.count += bytes.len() as u64;
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.stream.read(buffer)?;
        self.saw(&buffer[..length]);
        Ok(length)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.stream.write(bytes)?;
        self.saw(&bytes[..length]);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

enum Piece {
    Bytes(Vec<u8>),
    End,
}

/// The writing end of a pipe between two threads.
#[derive(Debug)]
pub struct PipeWriter {
    to: SyncSender<Piece>,
    buffer: Vec<u8>,
}

/// The reading end.
#[derive(Debug)]
pub struct PipeReader {
    from: Receiver<Piece>,
    piece: Vec<u8>,
    at: usize,
    ended: bool,
}

pub fn pipe() -> (PipeWriter, PipeReader) {
    let (to, from) = sync_channel(PIECES_IN_FLIGHT);
    let writer = PipeWriter { to, buffer: Vec::with_capacity(PIECE) };
    (writer, PipeReader { from, piece: Vec::new(), at: 0, ended: false })
}

impl PipeWriter {
    fn send(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE));
        self.to.send(Piece::Bytes(piece)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// Tells the reader that this was all.
    pub fn finish(mut self) -> io::Result<()> {
        self.send()?;
        self.to.send(Piece::End).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for PipeWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let part = bytes.len().min(PIECE - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..part]);
        if self.buffer.len() == PIECE {
            self.send()?;
        }
        Ok(part)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

impl BufRead for PipeReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.piece.len() && !self.ended {
            match self.from.recv() {
                Ok(Piece::Bytes(piece)) => (self.piece, self.at) = (piece, 0),
                Ok(Piece::End) => self.ended = true,
                Err(_) => {
                    return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the stream was cut off"));
                }
            }
        }
        Ok(&self.piece[self.at..])
    }

    fn consume(&mut self, amount: usize) {
        self.at += amount;
    }
}

impl Read for PipeReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let piece = self.fill_buf()?;
        let length = piece.len().min(buffer.len());
        buffer[..length].copy_from_slice(&piece[..length]);
        self.consume(length);
        Ok(length)
    }
}

/// Writes in a thread of its own what `take` reads meanwhile; gives what both came to.
pub fn between<M: Send, T>(
    make: impl FnOnce(PipeWriter) -> Result<M> + Send,
    take: impl FnOnce(&mut PipeReader) -> T,
) -> (Result<M>, T) {
    let (writer, mut reader) = pipe();
    std::thread::scope(|scope| {
        let making = scope.spawn(move || make(writer));
        let taken = take(&mut reader);
        // Whoever still writes is told that nobody reads.
        drop(reader);
        (making.join().unwrap_or_else(|_| bail!("the thread that writes a stream panicked")), taken)
    })
}

/// What both ends of a pipe came to. Of two that failed it is the one that did not fail because of the other; if both
/// failed by themselves, the one that writes, since what it found (a wrong digest) is why the other could not read it.
pub fn first_cause<M, T>(made: Result<M>, taken: Result<T>) -> Result<(M, T)> {
    match (made, taken) {
        (Ok(made), Ok(taken)) => Ok((made, taken)),
        (Err(making), Err(taking)) if is_echo(&making) => Err(taking),
        (Err(making), _) => Err(making),
        (Ok(_), Err(taking)) => Err(taking),
    }
}

/// Whether an error only says that the other end of a pipe gave up, so that the reason is told elsewhere.
pub fn is_echo(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).any(|error| {
        matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted)
            && error.raw_os_error().is_none()
    })
}

/// How a stream is packed, by its first bytes (RFC 1952, RFC 8878).
pub fn sniff(start: &[u8]) -> Compression {
    match start {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        // A skippable frame, as zstd:chunked and pzstd put first.
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
        _ => Compression::None,
    }
}

/// A reader that is whole after it has been sniffed.
pub struct Sniffed<R> {
    start: io::Cursor<Vec<u8>>,
    rest: R,
}

impl<R: Read> Read for Sniffed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.start.read(buffer)? {
            0 => self.rest.read(buffer),
            length => Ok(length),
        }
    }
}

/// Unpacks gzip (of several members) and zstd; passes on what is neither. Returns also which it was.
pub fn unpacked<'a>(
    mut packed: impl Read + Send + 'a,
) -> io::Result<(Compression, Box<dyn Read + Send + 'a>)> {
    let mut start = Vec::new();
    packed.by_ref().take(4).read_to_end(&mut start)?;
    let compression = sniff(&start);
    let whole = Sniffed { start: io::Cursor::new(start), rest: packed };
    let reader: Box<dyn Read + Send> = match compression {
        Compression::Gzip => {
            Box::new(flate2::bufread::MultiGzDecoder::new(io::BufReader::with_capacity(PIECE, whole)))
        }
        Compression::Zstd => Box::new(zstd::Decoder::new(whole)?),
        Compression::None => Box::new(whole),
    };
    Ok((compression, reader))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_whose_writer_is_gone_does_not_look_finished() {
        let (mut writer, mut reader) = pipe();
        writer.write_all(b"half").unwrap();
        writer.flush().unwrap();
        drop(writer);
        let error = reader.read_to_end(&mut Vec::new()).unwrap_err();
        assert!(is_echo(&error.into()));
        let (mut writer, mut reader) = pipe();
        writer.write_all(b"whole").unwrap();
        writer.finish().unwrap();
        let mut text = Vec::new();
        reader.read_to_end(&mut text).unwrap();
        assert_eq!(text, b"whole");
    }

    #[test]
    fn several_gzip_members_and_zstd_are_unpacked() {
        let pack = |text: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(text).unwrap();
            encoder.finish().unwrap()
        };
        let read = |packed: Vec<u8>| {
            let mut text = Vec::new();
            let (compression, mut reader) = unpacked(io::Cursor::new(packed)).unwrap();
            reader.read_to_end(&mut text).map(|_| (compression, text))
        };
        let two = [pack(b"one "), pack(b"two")].concat();
        assert_eq!(read(two.clone()).unwrap(), (Compression::Gzip, b"one two".to_vec()));
        assert!(read(two[..two.len() - 3].to_vec()).is_err());
        let zstd = zstd::encode_all(&b"three"[..], 1).unwrap();
        assert_eq!(read(zstd.clone()).unwrap(), (Compression::Zstd, b"three".to_vec()));
        assert!(read(zstd[..zstd.len() - 1].to_vec()).is_err());
        assert_eq!(read(b"x".to_vec()).unwrap(), (Compression::None, b"x".to_vec()));
    }
}
