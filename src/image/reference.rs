//! What users call an image: `debian:12`, `localhost:5000/team/app@sha256:...`, by docker's grammar, and the
//! digests that name content. Parsed once, at the door; what is parsed is safe as part of a URL and, escaped,
//! as the name of a file. It knows nothing of short-name configuration, which `registries_conf` applies.

use std::fmt;
use std::str::FromStr;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The registry that a name without a host belongs to, as docker has it.
pub const DEFAULT_REGISTRY: &str = "docker.io";

/// A SHA-256 digest. Other algorithms are refused: nothing that registries serve today needs them, and a
/// store with one algorithm can't be confused about which content a name means.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// The digest of bytes in memory.
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::{Digest as _, Sha256};
        Self::from_hash(&Sha256::digest(bytes))
    }

    pub fn from_hash(hash: &[u8]) -> Self {
        use fmt::Write as _;
        Self(hash.iter().fold(String::with_capacity(64), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        }))
    }

    /// The 64 hexadecimal digits.
    pub fn hex(&self) -> &str {
        &self.0
    }

    /// The first twelve digits, as docker prints ids.
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }

    /// Parses the bare 64 digits, as they name files in the store.
    pub fn from_hex(hex: &str) -> Option<Self> {
        let digits = hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        (hex.len() == 64 && digits).then(|| Self(hex.to_owned()))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl FromStr for Digest {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some((algorithm, hex)) = text.split_once(':') else {
            return Err(Error::usage(format!("{text:?} is not a digest: sha256:HEX is expected")).into());
        };
        if algorithm != "sha256" {
            let sentence = format!("{text:?} has the digest algorithm {algorithm:?}, only sha256 is taken");
            return Err(Error::usage(sentence).into());
        }
        Self::from_hex(hex)
            .ok_or_else(|| Error::usage(format!("{text:?} is not 64 lower-case hexadecimal digits")).into())
    }
}

/// A full name: where it is served, which repository, and which of its images.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    /// Host and, if given, port.
    pub registry: String,
    pub repository: String,
    pub tag: Option<String>,
    pub digest: Option<Digest>,
}

impl Reference {
    /// `registry/repository`, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The same name with another image of the repository.
    pub fn with_digest(&self, digest: &Digest) -> Self {
        Self { tag: None, digest: Some(digest.clone()), ..self.clone() }
    }

    /// The tag or digest as the registry's manifest addresses want it; the digest wins.
    pub fn selector(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }

    /// The repository as docker prints it: without the default registry and `library/`.
    pub fn familiar_name(&self) -> String {
        if self.registry != DEFAULT_REGISTRY {
            return self.name();
        }
        self.repository
            .strip_prefix("library/")
            .filter(|rest| !rest.contains('/'))
            .map_or_else(|| self.repository.clone(), str::to_owned)
    }

    /// The whole reference as docker prints it.
    pub fn familiar(&self) -> String {
        self.suffixed(self.familiar_name())
    }

    fn suffixed(&self, mut text: String) -> String {
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(&digest.to_string());
        }
        text
    }

    /// Whether the text names a registry itself, so that no short-name rule applies.
    pub fn has_host(text: &str) -> bool {
        text.split_once('/').is_some_and(|(first, _)| is_host(first))
    }
}

fn is_host(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.suffixed(self.name()))
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

impl TryFrom<String> for Reference {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl FromStr for Reference {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = |why: &str| Error::usage(format!("{text:?} is not an image name: {why}"));
        let text = text.strip_prefix("docker://").unwrap_or(text);
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(refused("its tag has letters, digits, _ . - and at most 128 of them").into());
        }
        let (registry, repository) = match path.split_once('/') {
            Some((first, rest)) if is_host(first) => (first, rest.to_owned()),
            _ if path.contains('/') => (DEFAULT_REGISTRY, path.to_owned()),
            _ => (DEFAULT_REGISTRY, format!("library/{path}")),
        };
        let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
        let repository = match repository.contains('/') || registry != DEFAULT_REGISTRY {
            true => repository,
            false => format!("library/{repository}"),
        };
        if !is_registry(registry) {
            return Err(refused("its registry is not HOST or HOST:PORT").into());
        }
        if repository.len() > 255 || !repository.split('/').all(is_component) {
            return Err(refused("its parts are lower-case letters and digits, with . _ __ - between").into());
        }
        let tag = tag.map(str::to_owned);
        let tag = if tag.is_none() && digest.is_none() { Some("latest".to_owned()) } else { tag };
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

fn is_registry(registry: &str) -> bool {
    let (host, port) = match registry.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            return address.parse::<std::net::Ipv6Addr>().is_ok() && (port.is_empty() || is_port(port));
        }
        None => registry.find(':').map_or((registry, ""), |at| registry.split_at(at)),
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    host.split('.').all(label) && (port.is_empty() || is_port(port))
}

fn is_port(text: &str) -> bool {
    text.strip_prefix(':')
        .is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok())
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(component: &str) -> bool {
    let bytes = component.as_bytes();
    let word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    if !bytes.first().is_some_and(word) || !bytes.last().is_some_and(word) {
        return false;
    }
    bytes.split(word).all(|run| matches!(run, b"" | b"." | b"_" | b"__") || run.iter().all(|b| *b == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_by_dockers_rules() {
        let digest = "a".repeat(64);
        for (text, full) in [
            ("debian", "docker.io/library/debian:latest".to_owned()),
            ("debian:12", "docker.io/library/debian:12".to_owned()),
            ("docker.io/debian", "docker.io/library/debian:latest".to_owned()),
            ("index.docker.io/a/b", "docker.io/a/b:latest".to_owned()),
            ("team/app", "docker.io/team/app:latest".to_owned()),
            ("localhost/app", "localhost/app:latest".to_owned()),
            ("localhost:5000/app:1", "localhost:5000/app:1".to_owned()),
            ("example.org/a/b__c/d--e:V1", "example.org/a/b__c/d--e:V1".to_owned()),
            ("[::1]:5000/app", "[::1]:5000/app:latest".to_owned()),
            (&format!("app@sha256:{digest}"), format!("docker.io/library/app@sha256:{digest}")),
            (&format!("app:1@sha256:{digest}"), format!("docker.io/library/app:1@sha256:{digest}")),
        ] {
            let parsed: Reference = text.parse().unwrap();
            assert_eq!(parsed.to_string(), full, "{text}");
            assert_eq!(full.parse::<Reference>().unwrap(), parsed, "{text}");
        }
    }

    #[test]
    fn what_is_not_a_name_is_refused() {
        for text in [
            "",
            ":",
            "a:",
            "A",
            "a b",
            "../a",
            "a/../b",
            "/a",
            "a/",
            "a//b",
            "a:b:c",
            "a@sha256:1",
            "a@md5:1",
            "-a",
            "a___b",
            "a..b",
            "h.x:99999/a",
            "h.x:/a",
            "h.x:a/b",
            "a\n",
            "a:-x",
            "[::g]:1/a",
            "ex ample.org/a",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn docker_prints_the_short_form() {
        for (text, familiar) in [
            ("debian:12", "debian:12"),
            ("docker.io/team/app", "team/app:latest"),
            ("localhost:5000/app", "localhost:5000/app:latest"),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().familiar(), familiar);
        }
    }

    #[test]
    fn a_digest_is_lower_case_sha256() {
        let good = format!("sha256:{}", "0f".repeat(32));
        assert_eq!(good.parse::<Digest>().unwrap().to_string(), good);
        for text in ["sha256:", "sha512:00", "../x", &good.to_uppercase(), &good[..70]] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }
}
