//! Where a name is really fetched from: `registries.conf` and its `.d` (containers-registries.conf(5)):
//! aliases and search lists for short names, mirrors, other locations, blocked and insecure registries. Read
//! once; what it yields is a list of endpoints to try in order.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::error::Error;
use crate::image::reference::{DEFAULT_REGISTRY, Reference};

/// The host that serves the default registry's API.
const DEFAULT_REGISTRY_HOST: &str = "registry-1.docker.io";

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    unqualified_search_registries: Option<Vec<String>>,
    #[serde(default)]
    registry: Vec<Registry>,
    #[serde(default)]
    aliases: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Registry {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror: Vec<Mirror>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mirror {
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    pull_from_mirror: Option<String>,
}

/// All files folded, later ones winning.
#[derive(Debug, Default)]
pub struct RegistriesConf {
    search: Vec<String>,
    registries: Vec<Registry>,
    aliases: BTreeMap<String, String>,
}

/// One place that serves a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `HOST` or `HOST:PORT`.
    pub host: String,
    pub repository: String,
    /// Unverified TLS and plain HTTP are taken too.
    pub insecure: bool,
}

fn home(variable: &str, below: &str) -> Option<PathBuf> {
    let set = std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    set.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(below)))
}

impl RegistriesConf {
    /// Reads the files of the host and of the user.
    pub fn load() -> Result<Self> {
        let user = home("XDG_CONFIG_HOME", ".config").map(|folder| folder.join("containers/registries.conf"));
        let chosen = std::env::var_os("CONTAINERS_REGISTRIES_CONF").map(PathBuf::from);
        let main = chosen.or_else(|| user.clone().filter(|path| path.exists()));
        let mut files = vec![main.unwrap_or_else(|| "/etc/containers/registries.conf".into())];
        for folder in [
            Some(PathBuf::from("/etc/containers/registries.conf.d")),
            user.map(|u| u.with_extension("conf.d")),
        ]
        .into_iter()
        .flatten()
        {
            let Ok(listing) = std::fs::read_dir(folder) else { continue };
            let mut found: Vec<PathBuf> = listing.filter_map(|entry| Some(entry.ok()?.path())).collect();
            found.retain(|path| path.extension().is_some_and(|end| end == "conf"));
            found.sort();
            files.append(&mut found);
        }
        let mut whole = Self::default();
        for path in files {
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            whole.add(&text).with_context(|| format!("cannot read {}", path.display()))?;
        }
        Ok(whole)
    }

    fn add(&mut self, text: &str) -> Result<()> {
        let file: File = toml::from_str(text)?;
        self.search = file.unqualified_search_registries.unwrap_or_else(|| std::mem::take(&mut self.search));
        self.aliases.extend(file.aliases.into_iter().filter(|(_, name)| !name.is_empty()));
        for mut registry in file.registry {
            if registry.prefix.is_empty() {
                registry.prefix.clone_from(&registry.location);
            }
            self.registries.retain(|known| known.prefix != registry.prefix);
            self.registries.push(registry);
        }
        Ok(())
    }

    /// What a user's word may mean, best first. A word with a host means itself.
    pub fn candidates(&self, text: &str) -> Result<Vec<Reference>> {
        let plain: Reference = text.parse()?;
        if Reference::has_host(text) {
            return Ok(vec![plain]);
        }
        let name = text.split('@').next().unwrap_or(text);
        let name = name.split(':').next().unwrap_or(name);
        if let Some(full) = self.aliases.get(name) {
            let full: Reference =
                full.parse().with_context(|| format!("the alias of {name} is malformed"))?;
            return Ok(vec![Reference { tag: plain.tag, digest: plain.digest, ..full }]);
        }
        let mut found = Vec::new();
        for registry in &self.search {
            found.push(format!("{registry}/{text}").parse()?);
        }
        Ok(if found.is_empty() { vec![plain] } else { found })
    }

    /// The endpoints of a reference, mirrors first.
    pub fn endpoints(&self, reference: &Reference) -> Result<Vec<Endpoint>> {
        let name = reference.name();
        let fits = |registry: &&Registry| is_prefix(&registry.prefix, &name);
        let Some(registry) = self.registries.iter().filter(fits).max_by_key(|registry| registry.prefix.len())
        else {
            return Ok(vec![endpoint(&name, false)]);
        };
        if registry.blocked {
            let sentence = format!("{} is blocked by registries.conf", registry.prefix);
            return Err(Error::host(sentence).hint("ask whoever wrote it, or use another registry").into());
        }
        let rest = name.strip_prefix(&registry.prefix).unwrap_or_default();
        let mut endpoints = Vec::new();
        for mirror in &registry.mirror {
            let fits = match mirror.pull_from_mirror.as_deref() {
                Some("digest-only") => reference.digest.is_some(),
                Some("tag-only") => reference.digest.is_none(),
                _ => true,
            };
            if fits && !mirror.location.is_empty() {
                endpoints.push(endpoint(&format!("{}{rest}", mirror.location), mirror.insecure));
            }
        }
        let wildcard = registry.prefix.starts_with("*.") || registry.location.is_empty();
        let place = if wildcard { name.clone() } else { format!("{}{rest}", registry.location) };
        endpoints.push(endpoint(&place, registry.insecure));
        Ok(endpoints)
    }
}

fn is_prefix(prefix: &str, name: &str) -> bool {
    if let Some(domain) = prefix.strip_prefix("*.") {
        let host = name.split('/').next().unwrap_or(name);
        return host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
    }
    let rest = name.strip_prefix(prefix);
    !prefix.is_empty() && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn endpoint(name: &str, insecure: bool) -> Endpoint {
    let (host, repository) = name.split_once('/').unwrap_or((name, ""));
    let host = if host == DEFAULT_REGISTRY { DEFAULT_REGISTRY_HOST } else { host };
    Endpoint { host: host.to_owned(), repository: repository.to_owned(), insecure }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf() -> RegistriesConf {
        let mut conf = RegistriesConf::default();
        let text = r#"
            unqualified-search-registries = ["one.example", "two.example"]
            [[registry]]
            location = "bad.example"
            blocked = true
            [[registry]]
            prefix = "one.example/team"
            location = "inner.example:5000/mirror"
            insecure = true
            [[registry.mirror]]
            location = "near.example/team"
            [[registry.mirror]]
            location = "sums.example/team"
            pull-from-mirror = "digest-only"
            [aliases]
            "app" = "two.example/real/app"
        "#;
        conf.add(text).unwrap();
        conf
    }

    #[test]
    fn short_names_are_completed() {
        let show = |text: &str| -> Vec<String> {
            conf().candidates(text).unwrap().iter().map(ToString::to_string).collect()
        };
        assert_eq!(show("app:2"), ["two.example/real/app:2"]);
        assert_eq!(show("x"), ["one.example/x:latest", "two.example/x:latest"]);
        assert_eq!(show("h.example/x"), ["h.example/x:latest"]);
        assert_eq!(
            RegistriesConf::default().candidates("x").unwrap()[0].to_string(),
            "docker.io/library/x:latest"
        );
    }

    #[test]
    fn mirrors_come_first_and_blocked_registries_not_at_all() {
        let endpoints = conf().endpoints(&"one.example/team/app:1".parse().unwrap()).unwrap();
        let hosts: Vec<_> =
            endpoints.iter().map(|e| (e.host.as_str(), e.repository.as_str(), e.insecure)).collect();
        assert_eq!(hosts, [("near.example", "team/app", false), ("inner.example:5000", "mirror/app", true)]);
        assert!(conf().endpoints(&"bad.example/x".parse().unwrap()).is_err());
        let other = conf().endpoints(&"one.example/teams/app".parse().unwrap()).unwrap();
        assert_eq!(other, [endpoint("one.example/teams/app", false)]);
    }
}
