//! Secrets: small files of the store that a container gets in memory, never in its layers. Each is one record with
//! mode 0600, so that it is whole or absent; its content leaves the store only for the container.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::ids::{ContainerName, Name};
use crate::paths::{self, Paths};
use crate::record::{self, Durability, Lock};

#[derive(Clone, Serialize, Deserialize)]
pub struct Secret {
    /// Twenty-five hexadecimal digits, as podman's.
    pub id: String,
    pub name: Name,
    /// Seconds since 1970.
    pub created: i64,
    pub updated: i64,
    pub labels: BTreeMap<String, String>,
    #[serde(with = "base64")]
    pub content: Vec<u8>,
}

/// Podman's bound.
const LARGEST: usize = 512_000;
const PATIENCE: Duration = Duration::from_secs(10);

mod base64 {
    use ::base64::Engine;
    use ::base64::prelude::BASE64_STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(content: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&BASE64_STANDARD.encode(content))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        BASE64_STANDARD.decode(String::deserialize(from)?).map_err(D::Error::custom)
    }
}

fn all(paths: &Paths) -> PathBuf {
    paths.store.join("secrets")
}

fn place(paths: &Paths, name: &Name) -> PathBuf {
    all(paths).join(format!("{name}.json"))
}

fn lock(paths: &Paths) -> Result<Lock> {
    let all = all(paths);
    paths::private_folder(&all).with_context(|| format!("cannot make {}", all.display()))?;
    Lock::within(&all.join(".lock"), PATIENCE)
}

/// What happens to a secret of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Same {
    Refused,
    Replaced,
}

/// Keeps a secret; gives its id.
pub fn create(
    paths: &Paths,
    name: &Name,
    content: Vec<u8>,
    labels: BTreeMap<String, String>,
    same: Same,
) -> Result<String> {
    if content.is_empty() || content.len() > LARGEST {
        let sentence = format!("secret {name}: a secret has 1 to {LARGEST} bytes, not {}", content.len());
        return Err(Error::usage(sentence).into());
    }
    let _lock = lock(paths)?;
    let known = read(paths, name)?;
    if known.is_some() && same == Same::Refused {
        let sentence = format!("there is a secret {name} already");
        return Err(Error::usage(sentence).hint("--replace puts the new one in its place").into());
    }
    let now = crate::image::config::now();
    let id: String = ContainerName::fresh()?.as_str().chars().take(25).collect();
    let created = known.map_or(now, |known| known.created);
    let secret = Secret { id: id.clone(), name: name.clone(), created, updated: now, labels, content };
    record::write(&place(paths, name), &secret, Durability::Synced)?;
    Ok(id)
}

/// The secret of that name.
pub fn read(paths: &Paths, name: &Name) -> Result<Option<Secret>> {
    record::read(&place(paths, name))
}

/// All secrets, by name.
pub fn list(paths: &Paths) -> Result<Vec<Secret>> {
    let all = all(paths);
    let entries = match fs::read_dir(&all) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("cannot read {}", all.display()))?,
    };
    let mut secrets = Vec::new();
    for entry in entries {
        let name = entry?.file_name().into_string().unwrap_or_default();
        let name = name.strip_suffix(".json").and_then(|name| name.parse::<Name>().ok());
        if let Some(name) = name {
            secrets.extend(read(paths, &name)?);
        }
    }
    secrets.sort_by(|a: &Secret, b| a.name.as_str().cmp(b.name.as_str()));
    Ok(secrets)
}

/// The secret that `word` names: its name, or the beginning of its id.
pub fn find(paths: &Paths, word: &str) -> Result<Secret> {
    if let Some(secret) = word.parse().ok().map(|name| read(paths, &name)).transpose()?.flatten() {
        return Ok(secret);
    }
    let by_id = list(paths)?.into_iter().find(|secret| word.len() >= 3 && secret.id.starts_with(word));
    by_id.ok_or_else(|| {
        let sentence = format!("no secret with name or id {word:?}: no such secret");
        Error::usage(sentence).hint("see `kelp secret ls`").exit(1).into()
    })
}

/// Removes the secret; containers that run keep what they were given.
pub fn remove(paths: &Paths, name: &Name) -> Result<()> {
    let _lock = lock(paths)?;
    fs::remove_file(place(paths, name)).with_context(|| format!("cannot remove secret {name}"))
}
