//! Putting blobs and manifests into a registry: what is there already is not sent, what another repository of
//! the same registry has is mounted from there, the rest goes up as one stream while it is made. After a break
//! the registry is asked how far it came, the stream is made again, and what has arrived is left out of it.

use std::io::{self, Read, Write};
use std::time::Duration;

use anyhow::{Context, Result};
use ureq::http::{Method, Request, Response, StatusCode};
use ureq::{Body, SendBody};

use crate::error::Error;
use crate::image::manifest::Descriptor;
use crate::image::reference::Digest;
use crate::image::registry::{
    Call, Client, Payload, absolute, header, is_passing, pause, refusal, retry_after,
};
use crate::image::stream::{self, PipeWriter};

const SCOPE: &str = "pull,push";

/// Whether a registry has a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Existed,
    Mounted,
    Missing,
}

/// Makes the bytes of a blob, the same ones each time, and says what they were.
pub type Maker<'a> = dyn Fn(&mut dyn Write) -> Result<Descriptor> + Sync + 'a;

/// An upload that has been opened, where its next bytes go, and how many it has.
pub struct Upload<'a> {
    client: &'a Client,
    url: String,
    sent: u64,
}

impl Client {
    /// Whether the repository has the blob.
    pub fn has_blob(&self, digest: &Digest) -> Result<bool> {
        let call = Call {
            method: Method::HEAD,
            url: self.url(&format!("blobs/{digest}"))?,
            headers: vec![],
            payload: Payload::None,
            scope: SCOPE.to_owned(),
        };
        let mut response = self.send(&call)?;
        match response.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(refusal(&mut response, &format!("ask {} for blob {digest}", self.endpoint.host))),
        }
    }

    /// Opens an upload; `None` if the registry could mount the blob from one of `from` instead.
    pub fn start_upload(&self, blob: Option<&Digest>, from: Option<&str>) -> Result<Option<Upload<'_>>> {
        let mut rest = "blobs/uploads/".to_owned();
        if let (Some(digest), Some(repository)) = (blob, from) {
            rest.push_str(&format!("?mount={digest}&from={repository}"));
        }
        let url = self.url(&rest)?;
        let headers = vec![("content-length", "0".to_owned())];
        let call = Call {
            method: Method::POST,
            url,
            headers,
            payload: Payload::Bytes(b""),
            scope: SCOPE.to_owned(),
        };
        let mut response = self.send(&call)?;
        match response.status() {
            StatusCode::CREATED => Ok(None),
            StatusCode::ACCEPTED => {
                let location =
                    header(&response, "location").context("the registry opens an upload nowhere")?;
                let url = absolute(&call.url, &location).context("the registry opens an upload nowhere")?;
                Ok(Some(Upload { client: self, url, sent: 0 }))
            }
            _ => Err(refusal(&mut response, &format!("push to {}", self.endpoint.host))),
        }
    }

    /// Puts a manifest under a tag or digest.
    pub fn put_manifest(&self, selector: &str, media_type: &str, bytes: &[u8]) -> Result<()> {
        let call = Call {
            method: Method::PUT,
            url: self.url(&format!("manifests/{selector}"))?,
            headers: vec![("content-type", media_type.to_owned())],
            payload: Payload::Bytes(bytes),
            scope: SCOPE.to_owned(),
        };
        let mut response = self.send(&call)?;
        match response.status() {
            StatusCode::CREATED | StatusCode::OK | StatusCode::ACCEPTED => Ok(()),
            _ => Err(refusal(&mut response, &format!("put the manifest {selector}"))),
        }
    }

    /// Looks for the blob in the repository, then in others of the same registry.
    pub fn find(&self, digest: &Digest, neighbours: &[String]) -> Result<Found> {
        if self.has_blob(digest)? {
            return Ok(Found::Existed);
        }
        for repository in neighbours {
            // A registry that can't mount it opens an upload instead, which expires by itself.
            if self.start_upload(Some(digest), Some(repository))?.is_none() {
                return Ok(Found::Mounted);
            }
        }
        Ok(Found::Missing)
    }

    pub fn open(&self) -> Result<Upload<'_>> {
        self.start_upload(None, None)?.context("the registry opens no upload")
    }

    /// Puts a small blob unless it is there.
    pub fn put_blob(&self, bytes: &[u8], neighbours: &[String]) -> Result<()> {
        let digest = Digest::of(bytes);
        match self.find(&digest, neighbours)? {
            Found::Existed | Found::Mounted => Ok(()),
            Found::Missing => self.open()?.close(&digest, bytes),
        }
    }

    /// A body whose length nobody knows yet. It can't be sent again, so nothing here is tried twice. A registry that does not
    /// want it says so before any of it is sent (RFC 9110, 10.1.1); after that its answer could get lost.
    fn stream(&self, url: &str, body: &mut dyn Read) -> Result<Response<Body>, ureq::Error> {
        let mut request = Request::builder().method(Method::PATCH).uri(url);
        request = request.header("content-type", "application/octet-stream");
        request = request.header("expect", "100-continue");
        if let Some(value) = self.tokens.header(SCOPE) {
            request = request.header("authorization", value);
        }
        self.agent.run(request.body(SendBody::from_reader(body))?)
    }
}

/// What became of a stream that did not arrive whole.
struct Broken {
    why: anyhow::Error,
    wait: Option<Duration>,
}

impl Upload<'_> {
    /// Sends what `make` makes, while it is made.
    pub fn send(&mut self, make: &Maker<'_>) -> Result<Descriptor> {
        let mut tried = 0;
        loop {
            let broken = match self.attempt(make)? {
                Ok(blob) => return Ok(blob),
                Err(broken) => broken,
            };
            if tried >= self.client.manner.retries {
                return Err(broken.why);
            }
            std::thread::sleep(broken.wait.unwrap_or_else(|| pause(tried)));
            tried += 1;
            match self.arrived()? {
                Some(arrived) => {
                    tried = if arrived > self.sent { 0 } else { tried };
                    self.sent = arrived;
                }
                // Some registries give an upload up that broke.
                None => *self = self.client.open()?,
            }
        }
    }

    /// # Errors
    /// What another attempt can't mend.
    fn attempt(&mut self, make: &Maker<'_>) -> Result<Result<Descriptor, Broken>> {
        let skip = self.sent;
        let make = |writer| Rest { writer, skip }.fill(make);
        let (made, answer) = stream::between(make, |reader| self.client.stream(&self.url, reader));
        let made = match made {
            Err(error) if !stream::is_echo(&error) => return Err(error),
            made => made,
        };
        let host = &self.client.endpoint.host;
        match answer {
            Err(error) if is_passing(&error) => {
                Ok(Err(Broken { why: self.client.unreachable(error), wait: None }))
            }
            Err(error) => Err(self.client.unreachable(error)),
            Ok(mut response) => match response.status() {
                StatusCode::ACCEPTED | StatusCode::NO_CONTENT | StatusCode::CREATED => {
                    self.follow(&response);
                    Ok(made.map_err(|why| Broken { why, wait: None }))
                }
                status if is_for_later(status) => {
                    let wait = retry_after(&response);
                    Ok(Err(Broken { why: refusal(&mut response, &format!("push to {host}")), wait }))
                }
                _ => Err(refusal(&mut response, &format!("push to {host}"))),
            },
        }
    }

    fn follow(&mut self, response: &Response<Body>) {
        let next = header(response, "location").and_then(|location| absolute(&self.url, &location));
        self.url = next.unwrap_or_else(|| std::mem::take(&mut self.url));
    }

    /// How many bytes the registry has, by the last that it names; `None` if it forgot the upload.
    fn arrived(&mut self) -> Result<Option<u64>> {
        let call = Call {
            method: Method::GET,
            url: self.url.clone(),
            headers: vec![],
            payload: Payload::None,
            scope: SCOPE.to_owned(),
        };
        let mut response = self.client.send(&call)?;
        if matches!(response.status(), StatusCode::NOT_FOUND | StatusCode::GONE) {
            return Ok(None);
        }
        if !response.status().is_success() {
            let intent = format!("go on with a push to {}", self.client.endpoint.host);
            return Err(refusal(&mut response, &intent));
        }
        self.follow(&response);
        let range = header(&response, "range").unwrap_or_default();
        let last: u64 = range.rsplit_once('-').and_then(|(_, last)| last.parse().ok()).unwrap_or(0);
        // "0-0" is what registries say of nothing.
        Ok(Some(if last == 0 { 0 } else { last + 1 }))
    }

    /// Closes the upload under the digest that was computed while it went.
    pub fn finish(self, digest: &Digest) -> Result<()> {
        self.close(digest, b"")
    }

    /// The same, with its last bytes.
    fn close(self, digest: &Digest, bytes: &[u8]) -> Result<()> {
        let glue = if self.url.contains('?') { '&' } else { '?' };
        let call = Call {
            method: Method::PUT,
            url: format!("{}{glue}digest=sha256%3A{}", self.url, digest.hex()),
            headers: vec![("content-type", "application/octet-stream".to_owned())],
            payload: Payload::Bytes(bytes),
            scope: SCOPE.to_owned(),
        };
        let mut response = self.client.send(&call)?;
        match response.status() {
            StatusCode::CREATED | StatusCode::NO_CONTENT => Ok(()),
            StatusCode::BAD_REQUEST => Err(Error::host(format!(
                "cannot push blob {digest}: {:#}",
                refusal(&mut response, "close the upload")
            ))
            .hint("something on the way changed it")
            .into()),
            _ => Err(refusal(&mut response, &format!("push to {}", self.client.endpoint.host))),
        }
    }
}

/// Credentials that have run out meanwhile are renewed by the next question.
fn is_for_later(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::TOO_MANY_REQUESTS) || status.is_server_error()
}

/// All but the first bytes of a stream.
struct Rest {
    writer: PipeWriter,
    skip: u64,
}

impl Rest {
    fn fill(mut self, make: &Maker<'_>) -> Result<Descriptor> {
        let blob = make(&mut self)?;
        self.writer.finish()?;
        Ok(blob)
    }
}

impl Write for Rest {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
        self.skip -= skipped as u64;
        self.writer.write_all(&bytes[skipped..])?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}
