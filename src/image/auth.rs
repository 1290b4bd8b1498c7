//! Who we are to a registry: the files and helper programs that podman and docker keep credentials in, in
//! podman's order (containers-auth.json(5)). Secrets are read when a registry asks and never printed.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::image::reference::DEFAULT_REGISTRY;

/// What docker calls the default registry in its files.
const DOCKER_KEY: &str = "https://index.docker.io/v1/";

#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    Basic {
        user: String,
        password: String,
    },
    /// An OAuth refresh token.
    Identity(String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials")
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase")]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    identitytoken: String,
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The file that `login` writes: `--authfile`, `$REGISTRY_AUTH_FILE`, the session's, or the user's.
pub fn written_file(chosen: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = chosen.map(Path::to_owned).or_else(|| variable("REGISTRY_AUTH_FILE")) {
        return Ok(path);
    }
    read_files(None).into_iter().next().context("cannot find a place for credentials: HOME is not set")
}

fn read_files(chosen: Option<&Path>) -> Vec<PathBuf> {
    if let Some(path) = chosen.map(Path::to_owned).or_else(|| variable("REGISTRY_AUTH_FILE")) {
        return vec![path];
    }
    let session = variable("XDG_RUNTIME_DIR").filter(|path| path.is_dir());
    let config = variable("XDG_CONFIG_HOME").or_else(|| Some(variable("HOME")?.join(".config")));
    let docker = variable("DOCKER_CONFIG").or_else(|| Some(variable("HOME")?.join(".docker")));
    let files = [
        session.map(|folder| folder.join("containers/auth.json")),
        config.map(|folder| folder.join("containers/auth.json")),
        docker.map(|folder| folder.join("config.json")),
    ];
    files.into_iter().flatten().collect()
}

/// The keys under which credentials for a repository may stand, most exact first.
fn keys(registry: &str, repository: &str) -> Vec<String> {
    let mut keys = Vec::new();
    let mut path = format!("{registry}/{repository}");
    while let Some((above, _)) = path.rsplit_once('/') {
        keys.push(path.clone());
        path = above.to_owned();
    }
    keys.push(registry.to_owned());
    keys.extend([
        format!("https://{registry}"),
        format!("http://{registry}"),
        format!("https://{registry}/v2/"),
    ]);
    if registry == DEFAULT_REGISTRY {
        keys.extend([DOCKER_KEY.to_owned(), "index.docker.io".to_owned()]);
    }
    keys
}

/// The credentials for a repository, if there are any.
pub fn find(registry: &str, repository: &str, chosen: Option<&Path>) -> Result<Option<Credentials>> {
    for path in read_files(chosen) {
        let Ok(text) = fs::read(&path) else { continue };
        let file: AuthFile = serde_json::from_slice(&text)
            .with_context(|| format!("cannot read {}: it is not an auth file", path.display()))?;
        let found =
            in_file(&file, registry, repository).with_context(|| format!("cannot use {}", path.display()))?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

fn in_file(file: &AuthFile, registry: &str, repository: &str) -> Result<Option<Credentials>> {
    let keys = keys(registry, repository);
    let helper = keys.iter().find_map(|key| file.cred_helpers.get(key)).or(file.creds_store.as_ref());
    if let Some(helper) = helper {
        let server = if registry == DEFAULT_REGISTRY { DOCKER_KEY } else { registry };
        if let Some(found) = ask_program(helper, server)? {
            return Ok(Some(found));
        }
    }
    let Some(entry) = keys.iter().find_map(|key| file.auths.get(key)) else { return Ok(None) };
    if !entry.identitytoken.is_empty() {
        return Ok(Some(Credentials::Identity(entry.identitytoken.clone())));
    }
    if entry.auth.is_empty() {
        return Ok(None);
    }
    let text = STANDARD.decode(entry.auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let pair = text.as_deref().and_then(|text| text.trim_end_matches('\0').split_once(':'));
    let (user, password) = pair.with_context(|| format!("its entry for {registry} is malformed"))?;
    Ok(Some(Credentials::Basic { user: user.to_owned(), password: password.to_owned() }))
}

/// docker-credential-helpers' protocol: the server's name in, JSON out.
fn run_program(name: &str, verb: &str, input: &str) -> Result<std::process::Output> {
    if name.contains('/') {
        bail!("{name:?} is not the name of a credential helper");
    }
    let program = format!("docker-credential-{name}");
    let mut child = Command::new(&program)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).with_context(|| format!("cannot ask {program}"))?;
    }
    child.wait_with_output().with_context(|| format!("cannot hear from {program}"))
}

fn ask_program(name: &str, server: &str) -> Result<Option<Credentials>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let output = run_program(name, "get", server)?;
    if !output.status.success() {
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        if said.contains("credentials not found") {
            return Ok(None);
        }
        bail!("docker-credential-{name} failed: {}", said.trim());
    }
    let answer: Answer = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("docker-credential-{name} answered something else than credentials"))?;
    Ok(Some(match answer.username.as_str() {
        "<token>" => Credentials::Identity(answer.secret),
        _ => Credentials::Basic { user: answer.username, password: answer.secret },
    }))
}

fn read_map(path: &Path) -> Result<Map<String, Value>> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).with_context(|| format!("cannot read {}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Map::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn write_map(path: &Path, map: &Map<String, Value>) -> Result<()> {
    let beside = crate::record::beside(path);
    let write = || -> Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(&serde_json::to_vec_pretty(map)?)?;
        file.sync_all()?;
        Ok(fs::rename(&beside, path)?)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Keeps what `login` was given: with the file's credential helper if it names one, else in the file.
pub fn store(path: &Path, registry: &str, user: &str, password: &str) -> Result<()> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Request<'a> {
        #[serde(rename = "ServerURL")]
        server: &'a str,
        username: &'a str,
        secret: &'a str,
    }
    let mut map = read_map(path)?;
    if let Some(name) = map.get("credsStore").and_then(Value::as_str) {
        let request = Request { server: registry, username: user, secret: password };
        let output = run_program(name, "store", &serde_json::to_string(&request)?)?;
        if !output.status.success() {
            bail!("docker-credential-{name} failed: {}", String::from_utf8_lossy(&output.stdout).trim());
        }
        return Ok(());
    }
    let auths = map.entry("auths").or_insert_with(|| Value::Object(Map::new()));
    let auths =
        auths.as_object_mut().with_context(|| format!("{} has malformed \"auths\"", path.display()))?;
    let auth = STANDARD.encode(format!("{user}:{password}"));
    auths.insert(registry.to_owned(), serde_json::json!({ "auth": auth }));
    write_map(path, &map)
}

/// Forgets all registries that the file itself has credentials for.
pub fn erase_all(path: &Path) -> Result<()> {
    let mut map = read_map(path)?;
    match map.remove("auths") {
        Some(_) => write_map(path, &map),
        None => Ok(()),
    }
}

/// Forgets a registry; returns whether there was something to forget.
pub fn erase(path: &Path, registry: &str) -> Result<bool> {
    let mut map = read_map(path)?;
    if let Some(name) = map.get("credsStore").and_then(Value::as_str) {
        return Ok(run_program(name, "erase", registry)?.status.success());
    }
    let auths = map.get_mut("auths").and_then(Value::as_object_mut);
    let erased = auths.is_some_and(|auths| auths.remove(registry).is_some());
    if erased {
        write_map(path, &map)?;
    }
    Ok(erased)
}
