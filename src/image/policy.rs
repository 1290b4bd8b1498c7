//! `policy.json` (containers-policy.json(5)): may an image from this place be used at all? `reject` and
//! `insecureAcceptAnything` are obeyed. Whoever asks for signatures gets a refusal rather than an image whose
//! signatures nobody looked at.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::error::Error;
use crate::image::reference::Reference;

#[derive(Debug, Deserialize)]
struct Requirement {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, Deserialize)]
struct Policy {
    default: Vec<Requirement>,
    #[serde(default)]
    transports: BTreeMap<String, BTreeMap<String, Vec<Requirement>>>,
}

/// Checks the user's policy, or else the host's; without any, everything is taken.
pub fn check(reference: &Reference) -> Result<()> {
    let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let config = config.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")));
    let user = config.map(|folder| folder.join("containers/policy.json"));
    for path in user.into_iter().chain(["/etc/containers/policy.json".into()]) {
        let Ok(text) = std::fs::read(&path) else { continue };
        let policy: Policy =
            serde_json::from_slice(&text).with_context(|| format!("cannot read {}", path.display()))?;
        return judge(&policy, reference).with_context(|| format!("{} does not allow it", path.display()));
    }
    Ok(())
}

/// The requirements for the longest scope that fits: reference, repository, its folders, host, `*.` domains.
fn scopes(reference: &Reference) -> Vec<String> {
    let mut scopes = vec![reference.to_string()];
    let mut name = reference.name();
    while let Some((above, _)) = name.rsplit_once('/') {
        scopes.push(name.clone());
        name = above.to_owned();
    }
    scopes.push(name);
    let mut host = reference.registry.as_str();
    while let Some((_, domain)) = host.split_once('.') {
        scopes.push(format!("*.{domain}"));
        host = domain;
    }
    scopes.push(String::new());
    scopes
}

fn judge(policy: &Policy, reference: &Reference) -> Result<()> {
    let transport = policy.transports.get("docker");
    let scopes = scopes(reference);
    let fitting = transport.and_then(|transport| scopes.iter().find_map(|scope| transport.get(scope)));
    for requirement in fitting.unwrap_or(&policy.default) {
        match requirement.kind.as_str() {
            "insecureAcceptAnything" => {}
            "reject" => {
                let sentence = format!("images from {} are rejected", reference.name());
                return Err(Error::host(sentence).into());
            }
            other => {
                let sentence = format!("images from {} need a check of kind {other:?}", reference.name());
                return Err(Error::host(sentence).hint("kelp does not check signatures yet").into());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_exact_scope_decides_and_unknown_requirements_refuse() {
        let text = r#"{"default":[{"type":"insecureAcceptAnything"}],"transports":{"docker":{
            "bad.example":[{"type":"reject"}],
            "bad.example/good":[{"type":"insecureAcceptAnything"}],
            "*.signed.example":[{"type":"signedBy","keyType":"GPGKeys"}]}}}"#;
        let policy: Policy = serde_json::from_str(text).unwrap();
        let allowed = |text: &str| judge(&policy, &text.parse().unwrap()).is_ok();
        assert!(allowed("x") && allowed("bad.example/good/app"));
        assert!(!allowed("bad.example/app") && !allowed("a.signed.example/app"));
    }
}
