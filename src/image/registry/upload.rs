//! Putting blobs and manifests into a registry: what is there already is not sent, what another repository of
//! the same registry has is mounted from there, the rest goes up in chunks, so that a break costs one chunk.

use std::io::Read;

use anyhow::{Context, Result};
use ureq::http::{Method, StatusCode};

use crate::error::Error;
use crate::image::reference::Digest;
use crate::image::registry::{Call, Client, Payload, absolute, header, refusal};

const CHUNK: usize = 8 << 20;
const SCOPE: &str = "pull,push";

/// How a blob came to be in the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Existed,
    Mounted,
    Sent,
}

/// An upload that has been opened, and where its next chunk goes.
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

    /// Puts a small blob unless it is there.
    pub fn put_blob(&self, bytes: &[u8]) -> Result<Outcome> {
        let digest = Digest::of(bytes);
        if self.has_blob(&digest)? {
            return Ok(Outcome::Existed);
        }
        let Some(mut upload) = self.start_upload(None, None)? else { return Ok(Outcome::Mounted) };
        upload.chunk(bytes)?;
        upload.finish(&digest)?;
        Ok(Outcome::Sent)
    }
}

impl Upload<'_> {
    /// Sends all that `source` has, a chunk at a time.
    pub fn send(&mut self, source: &mut dyn Read) -> Result<()> {
        let mut chunk = Vec::with_capacity(CHUNK);
        loop {
            chunk.clear();
            source.take(CHUNK as u64).read_to_end(&mut chunk)?;
            if chunk.is_empty() {
                return Ok(());
            }
            self.chunk(&chunk)?;
        }
    }

    fn chunk(&mut self, bytes: &[u8]) -> Result<()> {
        let end = self.sent + bytes.len() as u64;
        let call = Call {
            method: Method::PATCH,
            url: self.url.clone(),
            headers: vec![
                ("content-type", "application/octet-stream".to_owned()),
                ("content-range", format!("{}-{}", self.sent, end.saturating_sub(1))),
            ],
            payload: Payload::Bytes(bytes),
            scope: SCOPE.to_owned(),
        };
        let mut response = self.client.send(&call)?;
        if !matches!(response.status(), StatusCode::ACCEPTED | StatusCode::NO_CONTENT | StatusCode::CREATED) {
            return Err(refusal(&mut response, &format!("push to {}", self.client.endpoint.host)));
        }
        if let Some(next) = header(&response, "location").and_then(|location| absolute(&self.url, &location))
        {
            self.url = next;
        }
        self.sent = end;
        Ok(())
    }

    /// Closes the upload under the digest that was computed while it went.
    pub fn finish(self, digest: &Digest) -> Result<()> {
        let glue = if self.url.contains('?') { '&' } else { '?' };
        let call = Call {
            method: Method::PUT,
            url: format!("{}{glue}digest=sha256%3A{}", self.url, digest.hex()),
            headers: vec![("content-type", "application/octet-stream".to_owned())],
            payload: Payload::Bytes(b""),
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
