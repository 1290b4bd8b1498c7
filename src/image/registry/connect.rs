//! How an endpoint is reached: by TLS with the host's CAs and those of `certs.d`, through the proxies that the
//! environment names, by addresses that we look up ourselves. Plain HTTP is tried for loopback and for
//! endpoints that are configured as insecure, after TLS.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use ureq::Agent;
use ureq::config::Config;
use ureq::http::{Request, Uri};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

use crate::image::names;
use crate::image::registries_conf::Endpoint;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Https,
    Http,
}

impl Scheme {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Https => "https",
            Self::Http => "http",
        }
    }
}

#[derive(Debug)]
struct Names;

impl Resolver for Names {
    fn resolve(&self, uri: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().ok_or_else(|| ureq::Error::BadUri(uri.to_string()))?;
        let default = if uri.scheme_str() == Some("https") { 443 } else { 80 };
        let port = uri.port_u16().unwrap_or(default);
        let mut found = self.empty();
        for address in names::addresses(host).map_err(ureq::Error::Io)?.into_iter().take(8) {
            found.push(SocketAddr::new(address, port));
        }
        if found.is_empty() { Err(ureq::Error::HostNotFound) } else { Ok(found) }
    }
}

/// An agent that follows no redirect by itself and takes every status as an answer.
pub fn agent(endpoint: &Endpoint, silence: Duration) -> Result<Agent> {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .timeout_connect(Some(silence.min(Duration::from_secs(20))))
        .timeout_recv_response(Some(silence))
        .timeout_per_read(Some(silence))
        .timeout_per_write(Some(silence))
        .input_buffer_size(256 << 10)
        .output_buffer_size(256 << 10)
        .max_idle_connections_per_host(8)
        .user_agent(concat!("kelp/", env!("CARGO_PKG_VERSION")))
        .tls_config(tls(endpoint)?)
        .build();
    Ok(Agent::with_parts(config, DefaultConnector::default(), Names))
}

fn tls(endpoint: &Endpoint) -> Result<TlsConfig> {
    let mut roots = Vec::new();
    let bundles = [
        std::env::var_os("SSL_CERT_FILE").map(PathBuf::from),
        Some("/etc/ssl/certs/ca-certificates.crt".into()),
        Some("/etc/pki/tls/certs/ca-bundle.crt".into()),
        Some("/etc/ssl/cert.pem".into()),
    ];
    if let Some(text) = bundles.into_iter().flatten().find_map(|path| fs::read(path).ok()) {
        roots.extend(certificates(&text));
    }
    let own = own_certificates(endpoint)?;
    roots.extend(own.roots);
    let roots = if roots.is_empty() { RootCerts::WebPki } else { RootCerts::new_with_certs(&roots) };
    Ok(TlsConfig::builder()
        .root_certs(roots)
        .client_cert(own.client)
        .disable_verification(endpoint.insecure)
        .build())
}

fn certificates(text: &[u8]) -> Vec<Certificate<'static>> {
    let items = parse_pem(text).filter_map(Result::ok);
    items.filter_map(|item| if let PemItem::Certificate(found) = item { Some(found) } else { None }).collect()
}

struct OwnCertificates {
    roots: Vec<Certificate<'static>>,
    client: Option<ClientCert>,
}

/// `certs.d/HOST:PORT/{*.crt,*.cert,*.key}` (containers-certs.d(5)).
fn own_certificates(endpoint: &Endpoint) -> Result<OwnCertificates> {
    let mut found = OwnCertificates { roots: Vec::new(), client: None };
    let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let config = config.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")));
    let folders = [
        config.map(|folder| folder.join("containers/certs.d")),
        Some("/etc/containers/certs.d".into()),
        Some("/etc/docker/certs.d".into()),
    ];
    for folder in folders.into_iter().flatten().map(|folder| folder.join(&endpoint.host)) {
        let Ok(listing) = fs::read_dir(&folder) else { continue };
        for path in listing.filter_map(|entry| Some(entry.ok()?.path())) {
            let end = path.extension().and_then(|end| end.to_str()).unwrap_or_default();
            let read = || fs::read(&path).with_context(|| format!("cannot read {}", path.display()));
            match end {
                "crt" => found.roots.extend(certificates(&read()?)),
                "cert" if found.client.is_none() => {
                    let key = path.with_extension("key");
                    let key = fs::read(&key).with_context(|| format!("cannot read {}", key.display()))?;
                    let key = PrivateKey::from_pem(&key).context("a client key is malformed")?;
                    found.client = Some(ClientCert::new_with_certs(&certificates(&read()?), key));
                }
                _ => {}
            }
        }
    }
    Ok(found)
}

fn is_loopback(host: &str) -> bool {
    let host = host.rsplit_once(':').filter(|(_, port)| !port.contains(']')).map_or(host, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Finds out which scheme the endpoint speaks. Only where plain HTTP is allowed this costs a request.
pub fn probe(agent: &Agent, endpoint: &Endpoint) -> Result<Scheme, ureq::Error> {
    if !endpoint.insecure && !is_loopback(&endpoint.host) {
        return Ok(Scheme::Https);
    }
    let ask = |scheme: Scheme| {
        let url = format!("{}://{}/v2/", scheme.as_str(), endpoint.host);
        agent.run(Request::get(url).body(ureq::SendBody::none())?)
    };
    let refused = match ask(Scheme::Https) {
        Ok(_) => return Ok(Scheme::Https),
        Err(error) => error,
    };
    // A certificate that does not convince is no reason to speak in the clear.
    if refused.to_string().contains("certificate") {
        return Err(refused);
    }
    ask(Scheme::Http).map(|_| Scheme::Http)
}
