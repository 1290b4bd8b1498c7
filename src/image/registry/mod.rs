//! The registry client (OCI distribution 1.1) of one repository at one endpoint: requests with credentials,
//! retries and redirects. A request that fails for a passing reason (the network, 429, 5xx) is tried again
//! with growing pauses, or after what `Retry-After` says. Credentials go to the endpoint and to the token
//! service that it names over TLS, and never to where a redirect points. Blocking; threads are its callers'.

pub mod blob;
pub mod catalog;
pub mod connect;
pub mod token;
pub mod upload;

use std::io::Read;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ureq::http::{Method, Request, Response, StatusCode, Uri};
use ureq::{Agent, Body, SendBody};

use crate::error::Error;
use crate::image::manifest;
use crate::image::reference::{Digest, Reference};
use crate::image::registries_conf::Endpoint;
use connect::Scheme;
use token::Tokens;

/// The way to a registry in the same building and back, and its look at a disk.
const NEAR: Duration = Duration::from_millis(5);

const MOST_REDIRECTS: usize = 10;
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How a user wants registries to be talked to.
#[derive(Clone, Debug)]
pub struct Manner {
    pub authfile: Option<PathBuf>,
    /// `--creds`, or what `login` tries.
    pub credentials: Option<crate::image::auth::Credentials>,
    /// `--tls-verify=false`.
    pub insecure: bool,
    pub retries: u32,
    /// How long a registry may be silent.
    pub silence: Duration,
}

impl Default for Manner {
    fn default() -> Self {
        let seconds =
            std::env::var("KELP_REGISTRY_TIMEOUT").ok().and_then(|text| text.parse().ok()).unwrap_or(30);
        Self {
            authfile: None,
            credentials: None,
            insecure: false,
            retries: 5,
            silence: Duration::from_secs(seconds),
        }
    }
}

/// What may be done again: the body of a request.
pub enum Payload<'a> {
    None,
    Bytes(&'a [u8]),
}

/// One request, as often as it takes.
pub struct Call<'a> {
    pub method: Method,
    pub url: String,
    pub headers: Vec<(&'static str, String)>,
    pub payload: Payload<'a>,
    /// `pull`, or `pull,push`.
    pub scope: String,
}

/// A repository at an endpoint.
pub struct Client {
    pub endpoint: Endpoint,
    /// The reference whose credentials count: a mirror's are its own.
    manner: Manner,
    agent: Agent,
    scheme: Mutex<Option<Scheme>>,
    tokens: Tokens,
    /// The least time that an answer took, in microseconds.
    quickest: AtomicU64,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// A manifest as it came.
#[derive(Clone, Debug)]
pub struct Fetched {
    pub bytes: Vec<u8>,
    pub digest: Digest,
    pub media_type: Option<String>,
}

impl Client {
    pub fn new(mut endpoint: Endpoint, manner: Manner) -> Result<Self> {
        endpoint.insecure |= manner.insecure;
        let agent = connect::agent(&endpoint, manner.silence)?;
        let quickest = AtomicU64::new(u64::MAX);
        Ok(Self { endpoint, manner, agent, scheme: Mutex::new(None), tokens: Tokens::default(), quickest })
    }

    /// `https://HOST/v2/REPOSITORY/REST`; which scheme the endpoint speaks is found out once.
    pub fn url(&self, rest: &str) -> Result<String> {
        let Endpoint { host, repository, .. } = &self.endpoint;
        let repository = if repository.is_empty() { String::new() } else { format!("{repository}/") };
        Ok(format!("{}://{host}/v2/{repository}{rest}", self.scheme()?.as_str()))
    }

    fn scheme(&self) -> Result<Scheme> {
        let mut known = self.scheme.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(scheme) = *known {
            return Ok(scheme);
        }
        let scheme = self.patiently(|| connect::probe(&self.agent, &self.endpoint))?;
        *known = Some(scheme);
        Ok(scheme)
    }

    /// Runs `attempt` until it yields something or fails for a lasting reason.
    fn patiently<T>(&self, mut attempt: impl FnMut() -> Result<T, ureq::Error>) -> Result<T> {
        let mut tried = 0;
        loop {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(error) if tried >= self.manner.retries || !is_passing(&error) => {
                    return Err(self.unreachable(error));
                }
                Err(_) => std::thread::sleep(pause(tried)),
            }
            tried += 1;
        }
    }

    fn unreachable(&self, error: ureq::Error) -> anyhow::Error {
        let host = &self.endpoint.host;
        let hint = if error.to_string().contains("certificate") {
            "put its CA into ~/.config/containers/certs.d/HOST:PORT/ca.crt, or use --tls-verify=false"
        } else if is_passing(&error) {
            "check that it is up and that HTTPS_PROXY and NO_PROXY are right"
        } else {
            "check the name, /etc/resolv.conf and the network"
        };
        Error::host(format!("cannot reach the registry {host}: {error}")).hint(hint).into()
    }

    /// Sends a call: with a token if one is known, again after a challenge, a redirect or a passing failure.
    ///
    /// # Errors
    /// What a registry refuses is not an error here but a response; see `refusal`.
    pub fn send(&self, call: &Call<'_>) -> Result<Response<Body>> {
        let (mut tried, mut challenged) = (0, false);
        loop {
            let response = self.patiently(|| self.send_once(call))?;
            match response.status() {
                StatusCode::UNAUTHORIZED if !challenged => {
                    challenged = true;
                    self.answer_challenge(&response, &call.scope)?;
                }
                StatusCode::TOO_MANY_REQUESTS => {
                    if tried >= self.manner.retries {
                        return Ok(response);
                    }
                    std::thread::sleep(retry_after(&response).unwrap_or_else(|| pause(tried)));
                    tried += 1;
                }
                status if status.is_server_error() => {
                    if tried >= self.manner.retries {
                        return Ok(response);
                    }
                    std::thread::sleep(retry_after(&response).unwrap_or_else(|| pause(tried)));
                    tried += 1;
                }
                _ => return Ok(response),
            }
        }
    }

    fn send_once(&self, call: &Call<'_>) -> Result<Response<Body>, ureq::Error> {
        let (mut url, home) = (call.url.clone(), origin(&call.url));
        for _ in 0..MOST_REDIRECTS {
            let mut request = Request::builder().method(call.method.clone()).uri(&url);
            for (name, value) in &call.headers {
                request = request.header(*name, value);
            }
            if let (true, Some(value)) = (origin(&url) == home, self.tokens.header(&call.scope)) {
                request = request.header("authorization", value);
            }
            let begun = Instant::now();
            let response = match call.payload {
                Payload::None => self.agent.run(request.body(SendBody::none())?)?,
                Payload::Bytes(bytes) => self.agent.run(request.body(bytes)?)?,
            };
            self.quickest.fetch_min(begun.elapsed().as_micros() as u64, Ordering::Relaxed);
            if !response.status().is_redirection() || response.status() == StatusCode::NOT_MODIFIED {
                return Ok(response);
            }
            let location = response.headers().get("location").and_then(|value| value.to_str().ok());
            let next =
                location.and_then(|location| absolute(&url, location)).ok_or(ureq::Error::RedirectFailed)?;
            // A registry that speaks TLS has no business in sending us where anybody can listen.
            if url.starts_with("https:") && !next.starts_with("https:") && !self.endpoint.insecure {
                return Err(ureq::Error::RedirectFailed);
            }
            url = next;
        }
        Err(ureq::Error::TooManyRedirects)
    }

    /// Whether it has ever answered as fast as only this machine and its neighbours do.
    pub fn is_near(&self) -> bool {
        self.quickest.load(Ordering::Relaxed) < NEAR.as_micros() as u64
    }

    fn answer_challenge(&self, response: &Response<Body>, scope: &str) -> Result<()> {
        let headers = response.headers().get_all("www-authenticate").iter();
        let challenges: Vec<&str> = headers.filter_map(|value| value.to_str().ok()).collect();
        let Endpoint { host, repository, .. } = &self.endpoint;
        let credentials = match &self.manner.credentials {
            Some(given) => Some(given.clone()),
            None => {
                let host = if host.ends_with(".docker.io") {
                    crate::image::reference::DEFAULT_REGISTRY
                } else {
                    host
                };
                crate::image::auth::find(host, repository, self.manner.authfile.as_deref())?
            }
        };
        let full =
            if repository.is_empty() { String::new() } else { format!("repository:{repository}:{scope}") };
        let asked = token::Asked { scope, full: &full, credentials: credentials.as_ref() };
        self.tokens
            .answer(
                &self.agent,
                &challenges,
                &asked,
                self.scheme()? == Scheme::Https && !self.endpoint.insecure,
            )
            .with_context(|| format!("cannot log in to {host}"))
    }

    /// Tries the credentials: the address that every registry has and guards.
    pub fn check_login(&self) -> Result<()> {
        let url = format!("{}://{}/v2/", self.scheme()?.as_str(), self.endpoint.host);
        let call =
            Call { method: Method::GET, url, headers: vec![], payload: Payload::None, scope: String::new() };
        let mut response = self.send(&call)?;
        match response.status() {
            StatusCode::OK => Ok(()),
            _ => Err(refusal(&mut response, &format!("log in to {}", self.endpoint.host))),
        }
    }

    /// The manifest or index behind a tag or digest.
    pub fn manifest(&self, reference: &Reference) -> Result<Fetched> {
        let accept =
            [manifest::OCI_INDEX, manifest::DOCKER_LIST, manifest::OCI_MANIFEST, manifest::DOCKER_MANIFEST];
        let call = Call {
            method: Method::GET,
            url: self.url(&format!("manifests/{}", reference.selector()))?,
            headers: vec![("accept", accept.join(", "))],
            payload: Payload::None,
            scope: "pull".to_owned(),
        };
        let mut response = self.send(&call)?;
        if response.status() != StatusCode::OK {
            return Err(refusal(&mut response, &format!("fetch the manifest of {reference}")));
        }
        let media_type = header(&response, "content-type");
        let declared = header(&response, "docker-content-digest");
        let bytes =
            bounded(&mut response, manifest::LONGEST).with_context(|| format!("cannot fetch {reference}"))?;
        let digest = Digest::of(&bytes);
        let mut claims = reference.digest.iter().map(ToString::to_string).chain(declared);
        if let Some(claim) = claims.find(|claim| *claim != digest.to_string()) {
            bail!(
                "the manifest of {reference} has the digest {digest}, not {claim}: it was damaged or exchanged"
            );
        }
        Ok(Fetched { bytes, digest, media_type })
    }

    /// A small blob, whole and checked.
    pub fn small_blob(&self, digest: &Digest, size: u64, longest: u64) -> Result<Vec<u8>> {
        if size > longest {
            bail!("blob {digest} is {size} bytes long, {longest} is the limit");
        }
        let call = Call {
            method: Method::GET,
            url: self.url(&format!("blobs/{digest}"))?,
            headers: vec![],
            payload: Payload::None,
            scope: "pull".to_owned(),
        };
        for tried in 0.. {
            let mut response = self.send(&call)?;
            if response.status() != StatusCode::OK {
                return Err(refusal(&mut response, &format!("fetch blob {digest}")));
            }
            match bounded(&mut response, size) {
                Ok(bytes) if Digest::of(&bytes) == *digest => return Ok(bytes),
                Ok(bytes) if bytes.len() as u64 == size => {
                    bail!("blob {digest} came with another content: it was damaged or exchanged")
                }
                Ok(_) | Err(_) if tried < self.manner.retries => std::thread::sleep(pause(tried)),
                Ok(bytes) => bail!("blob {digest} came with {} bytes instead of {size}", bytes.len()),
                Err(error) => return Err(error.context(format!("cannot fetch blob {digest}"))),
            }
        }
        unreachable!("the loop ends by itself")
    }
}

/// Errors of the network that another try may not meet.
pub fn is_passing(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed | ureq::Error::Protocol(_) => true,
        ureq::Error::Io(error) => matches!(
            error.kind(),
            std::io::ErrorKind::ConnectionReset
                | std::io::ErrorKind::ConnectionAborted
                | std::io::ErrorKind::BrokenPipe
                | std::io::ErrorKind::UnexpectedEof
                | std::io::ErrorKind::TimedOut
                | std::io::ErrorKind::WouldBlock
        ),
        _ => false,
    }
}

/// 0.2 s, doubled each time, at most 10 s.
pub fn pause(tried: u32) -> Duration {
    Duration::from_millis(200 << tried.min(10)).min(Duration::from_secs(10))
}

fn retry_after(response: &Response<Body>) -> Option<Duration> {
    let seconds = header(response, "retry-after")?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_PAUSE))
}

pub fn header(response: &Response<Body>, name: &str) -> Option<String> {
    Some(response.headers().get(name)?.to_str().ok()?.to_owned())
}

/// The whole body, if it is not longer than `longest`.
pub fn bounded(response: &mut Response<Body>, longest: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    response.body_mut().with_config().limit(u64::MAX).reader().take(longest + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > longest {
        bail!("it is longer than {longest} bytes");
    }
    Ok(bytes)
}

/// A sentence of what a registry says no to, with its own reason if it gives one.
pub fn refusal(response: &mut Response<Body>, intent: &str) -> anyhow::Error {
    let status = response.status();
    let body = bounded(response, 64 << 10).unwrap_or_default();
    let reason = serde_json::from_slice::<serde_json::Value>(&body).ok().and_then(|value| {
        let first = value.get("errors")?.get(0)?;
        let text = first.get("message").or_else(|| first.get("code"))?.as_str()?;
        Some(text.chars().filter(|c| !c.is_control()).take(200).collect::<String>())
    });
    let said = reason.unwrap_or_else(|| status.canonical_reason().unwrap_or("no reason given").to_owned());
    let error = Error::host(format!("cannot {intent}: the registry answers {}: {said}", status.as_u16()));
    match status.as_u16() {
        401 | 403 => error.hint("log in with: kelp login REGISTRY"),
        404 => error.hint("check the name and the tag"),
        429 => error.hint("the registry limits how often it may be asked: wait, or log in"),
        _ => error,
    }
    .into()
}

/// Scheme, host and port: where credentials may be sent.
fn origin(url: &str) -> Option<(String, String)> {
    let uri: Uri = url.parse().ok()?;
    Some((uri.scheme_str()?.to_owned(), uri.authority()?.as_str().to_owned()))
}

/// A `Location`, which may be relative to where it was found.
pub fn absolute(base: &str, location: &str) -> Option<String> {
    if location.starts_with("http://") || location.starts_with("https://") {
        return Some(location.to_owned());
    }
    let (scheme, authority) = origin(base)?;
    if location.starts_with("//") {
        return Some(format!("{scheme}:{location}"));
    }
    if location.starts_with('/') {
        return Some(format!("{scheme}://{authority}{location}"));
    }
    let folder = base.split('?').next()?.rsplit_once('/')?.0;
    Some(format!("{folder}/{location}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_made_absolute() {
        let base = "https://r.example:5000/v2/a/blobs/uploads/";
        for (location, full) in [
            ("/v2/x?y=1", "https://r.example:5000/v2/x?y=1"),
            ("//other.example/x", "https://other.example/x"),
            ("http://other.example/x", "http://other.example/x"),
            ("17", "https://r.example:5000/v2/a/blobs/uploads/17"),
        ] {
            assert_eq!(absolute(base, location).as_deref(), Some(full));
        }
    }

    #[test]
    fn pauses_grow_and_are_bounded() {
        assert_eq!(pause(0), Duration::from_millis(200));
        assert_eq!(pause(2), Duration::from_millis(800));
        assert_eq!(pause(100), Duration::from_secs(10));
    }
}
