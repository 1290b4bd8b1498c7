//! Fetching a blob as one stream that goes on where it broke off: first what an earlier run left in the
//! partial file, then what the registry sends, by `Range` after a break. A registry that refuses `Range` sends
//! what we have once more, and it is passed over. Nothing is judged here but the length: who reads the stream
//! hashes it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use ureq::http::{Method, Response, StatusCode};
use ureq::{Body, http};

use crate::error::Error;
use crate::image::manifest::Descriptor;
use crate::image::registry::{Call, Client, Payload, header, pause, refusal};
use crate::image::stream::PIECE;

/// Where a fetch stands, told now and then.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    Received(u64),
    /// The connection broke after so many bytes and is made again.
    Broke(u64),
}

/// What is kept of a blob on the disk while it comes.
struct Partial {
    file: Option<File>,
}

impl Partial {
    /// Writes what came; a full disk ends the keeping, not the fetching.
    fn keep(&mut self, bytes: &[u8]) {
        if self.file.as_mut().is_some_and(|file| file.write_all(bytes).is_err())
            && let Some(file) = self.file.take()
        {
            let _ = file.set_len(0);
        }
    }
}

/// Sends the whole blob into `out` and keeps it in `partial` as it comes.
pub fn fetch(
    client: &Client,
    blob: &Descriptor,
    partial: &Path,
    out: &mut dyn Write,
    tell: &mut dyn FnMut(Step),
) -> Result<()> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(partial)
        .with_context(|| format!("cannot open {}", partial.display()))?;
    let mut at = replay(&mut file, blob.size, out)?;
    tell(Step::Received(at));
    let mut kept = Partial { file: Some(file) };
    let (mut stuck, mut last) = (0, at);
    while at < blob.size {
        let broken = receive(client, blob, &mut at, &mut |bytes, at| {
            kept.keep(bytes);
            out.write_all(bytes)?;
            tell(Step::Received(at));
            Ok(())
        })?;
        let Some(reason) = broken else { continue };
        stuck = if at > last { 0 } else { stuck + 1 };
        if stuck > client.manner.retries {
            let sentence =
                format!("cannot fetch blob {}: after {at} of {} bytes: {reason}", blob.digest, blob.size);
            return Err(Error::host(sentence)
                .hint("run the same command again: it goes on from there")
                .into());
        }
        last = at;
        tell(Step::Broke(at));
        std::thread::sleep(pause(stuck));
    }
    Ok(())
}

/// What an earlier run got, at most the blob's size.
fn replay(file: &mut File, size: u64, out: &mut dyn Write) -> Result<u64> {
    if file.metadata()?.len() > size {
        file.set_len(0)?;
    }
    file.seek(SeekFrom::Start(0))?;
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            return Ok(at);
        }
        out.write_all(&buffer[..length])?;
        at += length as u64;
    }
}

/// One response's worth; says why it ended if that was before the end. `at` counts what went on.
fn receive(
    client: &Client,
    blob: &Descriptor,
    at: &mut u64,
    take: &mut dyn FnMut(&[u8], u64) -> Result<()>,
) -> Result<Option<String>> {
    let mut headers = Vec::new();
    if *at > 0 {
        headers.push(("range", format!("bytes={at}-")));
    }
    let call = Call {
        method: Method::GET,
        url: client.url(&format!("blobs/{}", blob.digest))?,
        headers,
        payload: Payload::None,
        scope: "pull".to_owned(),
    };
    let mut response = client.send(&call)?;
    let mut skip = match response.status() {
        StatusCode::OK => *at,
        StatusCode::PARTIAL_CONTENT => {
            let start = range_start(&response).context("the registry answers a part without saying which")?;
            at.checked_sub(start).context("the registry leaves out a part of the blob")?
        }
        _ => return Err(refusal(&mut response, &format!("fetch blob {}", blob.digest))),
    };
    let mut body = response.body_mut().with_config().limit(u64::MAX).reader();
    let mut buffer = vec![0; PIECE];
    loop {
        let length = match body.read(&mut buffer) {
            Ok(0) if *at == blob.size => return Ok(None),
            Ok(0) => return Ok(Some("the registry ended it".to_owned())),
            Ok(length) => length,
            Err(error) if *at == blob.size && error.kind() != std::io::ErrorKind::Other => return Ok(None),
            Err(error) => return Ok(Some(error.to_string())),
        };
        let passed = length.min(usize::try_from(skip).unwrap_or(usize::MAX));
        skip -= passed as u64;
        let bytes = &buffer[passed..length];
        *at += bytes.len() as u64;
        if *at > blob.size {
            bail!("blob {} is longer than the {} bytes that its manifest names", blob.digest, blob.size);
        }
        if !bytes.is_empty() {
            take(bytes, *at)?;
        }
    }
}

/// `Content-Range: bytes FIRST-LAST/SIZE`
fn range_start(response: &Response<Body>) -> Option<u64> {
    let text = header(response, http::header::CONTENT_RANGE.as_str())?;
    text.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}
