//! The Container Device Interface: what a vendor's file says that a container needs for a device. Text to edits,
//! edits into a request. Pure: it is given the texts, and does not look whether a node or a file is there.
//!
//! | edit | what becomes of it |
//! |---|---|
//! | `env` | variables, before the user's own |
//! | `deviceNodes` | binds of the host's nodes; owner and mode stay the host's |
//! | `mounts` | mounts, before the user's own |
//! | `additionalGIDs` | groups, as by `--group-add` |
//! | `hooks` | links, and folders for the dynamic linker, as nvidia-ctk's hooks would make; others are refused |

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::error::Error;
use crate::spec::Device;
use crate::spec::mount::{self, Mount};
use crate::spec::request::Request;

/// A vendor's file, as far as kelp reads it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Specification {
    pub cdi_version: String,
    /// `vendor.com/class`.
    pub kind: String,
    #[serde(default)]
    pub devices: Vec<Named>,
    #[serde(default)]
    pub container_edits: Edits,
}

/// One device of the file.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Named {
    pub name: String,
    #[serde(default)]
    pub container_edits: Edits,
}

/// What is changed in a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Edits {
    #[serde(default)]
    pub env: Vec<String>,
    #[serde(default)]
    pub device_nodes: Vec<Node>,
    #[serde(default)]
    pub mounts: Vec<MountEdit>,
    #[serde(default)]
    pub hooks: Vec<Hook>,
    #[serde(default, rename = "additionalGIDs")]
    pub additional_gids: Vec<u32>,
    #[serde(default)]
    pub intel_rdt: Option<serde_json::Value>,
    #[serde(default)]
    pub net_devices: Vec<serde_json::Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    pub path: String,
    pub host_path: Option<String>,
    pub permissions: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MountEdit {
    pub host_path: String,
    pub container_path: String,
    #[serde(default)]
    pub options: Vec<String>,
    #[serde(default, rename = "type")]
    pub kind: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hook {
    pub hook_name: String,
    pub path: String,
    #[serde(default)]
    pub args: Vec<String>,
}

/// `vendor.com/class=name`, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QualifiedName {
    pub kind: String,
    pub device: String,
}

/// The CDI name that `word` is; `None` for a path.
pub fn qualified(word: &str) -> Option<QualifiedName> {
    let (kind, device) = word.split_once('=')?;
    let (vendor, class) = kind.split_once('/')?;
    let plain = |text: &str, more: &str| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    let is_name = plain(vendor, "_-.") && plain(class, "_-") && plain(device, "_-.:");
    is_name.then(|| QualifiedName { kind: kind.to_owned(), device: device.to_owned() })
}

/// Reads a file's text: JSON, or YAML, of which JSON is a part.
pub fn parse(text: &str, is_json: bool) -> Result<Specification> {
    let value = if is_json { serde_json::from_str(text)? } else { yaml(text)? };
    let specification: Specification = serde_json::from_value(value)?;
    if qualified(&format!("{}=x", specification.kind)).is_none() {
        bail!("its kind {:?} is not VENDOR/CLASS", specification.kind);
    }
    let version = specification.cdi_version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    if version.is_none_or(|major| major > 1) {
        bail!("it has version {:?} of the format, and this kelp reads 0 and 1", specification.cdi_version);
    }
    Ok(specification)
}

fn yaml(text: &str) -> Result<serde_json::Value> {
    use saphyr::{LoadableYamlNode, Yaml};
    let documents = Yaml::load_from_str(text)?;
    match &documents[..] {
        [only] => json(only),
        several => bail!("it has {} documents, not one", several.len()),
    }
}

fn json(yaml: &saphyr::Yaml<'_>) -> Result<serde_json::Value> {
    use saphyr::{Scalar, Yaml};
    use serde_json::Value;
    Ok(match yaml {
        Yaml::Value(Scalar::Null) => Value::Null,
        Yaml::Value(Scalar::Boolean(on)) => Value::from(*on),
        Yaml::Value(Scalar::Integer(number)) => Value::from(*number),
        Yaml::Value(Scalar::FloatingPoint(number)) => Value::from(number.into_inner()),
        Yaml::Value(Scalar::String(text)) => Value::from(text.as_ref()),
        Yaml::Sequence(items) => Value::Array(items.iter().map(json).collect::<Result<_>>()?),
        Yaml::Mapping(pairs) => {
            let pair = |(key, value): (&Yaml<'_>, &Yaml<'_>)| {
                let key = key.as_str().context("a key is not a word")?;
                Ok((key.to_owned(), json(value)?))
            };
            Value::Object(pairs.iter().map(pair).collect::<Result<_>>()?)
        }
        _ => bail!("it has an alias or a tag, which this kelp does not read"),
    })
}

/// Adds what the devices need to `request`: each file's own edits once, then those of the devices.
pub fn apply(request: &mut Request, chosen: &[(&Specification, Vec<&Named>)]) -> Result<()> {
    let mut needed = Needed::default();
    for (specification, devices) in chosen {
        let edits = [&specification.container_edits];
        for edits in edits.into_iter().chain(devices.iter().map(|device| &device.container_edits)) {
            needed.add(edits).with_context(|| format!("cannot give {}", specification.kind))?;
        }
    }
    let own = std::mem::take(&mut request.environment);
    request.environment = needed.variables();
    request.environment.extend(own);
    let own = std::mem::take(&mut request.mounts);
    needed.mounts.retain(|mount| !own.iter().any(|asked| asked.target == mount.target));
    request.mounts = needed.mounts;
    request.mounts.extend(own);
    for device in needed.devices {
        if !request.devices.iter().any(|known| known.container == device.container) {
            request.devices.push(device);
        }
    }
    request.groups.extend(needed.groups.iter().map(ToString::to_string));
    request.links.extend(needed.links);
    Ok(())
}

#[derive(Default)]
struct Needed {
    environment: Vec<(OsString, OsString)>,
    mounts: Vec<Mount>,
    devices: Vec<Device>,
    groups: Vec<u32>,
    links: Vec<(PathBuf, PathBuf)>,
    /// Where the dynamic linker is to look.
    libraries: Vec<String>,
}

impl Needed {
    fn add(&mut self, edits: &Edits) -> Result<()> {
        for word in &edits.env {
            let (name, value) = word.split_once('=').with_context(|| format!("env {word:?} has no ="))?;
            self.environment.push((name.into(), value.into()));
        }
        for node in &edits.device_nodes {
            self.devices.push(node.device()?);
        }
        for mount in &edits.mounts {
            let mount = mount.mount()?;
            if !self.mounts.iter().any(|known| known.target == mount.target) {
                self.mounts.push(mount);
            }
        }
        self.groups.extend(&edits.additional_gids);
        if edits.intel_rdt.is_some() || !edits.net_devices.is_empty() {
            return Err(Error::host("it wants intelRdt or netDevices, which only root can give").into());
        }
        edits.hooks.iter().try_for_each(|hook| self.hook(hook))
    }

    /// kelp runs no programs of others while it prepares a container. What the known hooks do, it does itself.
    fn hook(&mut self, hook: &Hook) -> Result<()> {
        let words: Vec<&str> = hook.args.iter().skip(1).map(String::as_str).collect();
        let words = words.strip_prefix(&["hook"][..]).unwrap_or(&words);
        let known = Path::new(&hook.path).file_name().is_some_and(|name| {
            ["nvidia-ctk", "nvidia-cdi-hook"].iter().any(|program| name.to_str() == Some(program))
        });
        match words {
            ["create-symlinks", rest @ ..] if known => {
                for pair in values(rest, "--link") {
                    let (to, link) = pair.split_once("::").with_context(|| format!("--link {pair:?}"))?;
                    self.links.push((PathBuf::from(to), absolute(link)?));
                }
            }
            ["update-ldcache", rest @ ..] if known => {
                self.libraries.extend(values(rest, "--folder").into_iter().map(str::to_owned));
            }
            // The nodes' folders are kelp's own and can be entered by all; a driver can't change a node that is
            // bound.
            ["chmod" | "disable-device-node-modification" | "enable-cuda-compat", ..] if known => {}
            _ => {
                let sentence =
                    format!("it wants the {} hook {} {}", hook.hook_name, hook.path, words.join(" "));
                let hint = "kelp does what nvidia-ctk's hooks do by itself, and runs no others";
                return Err(Error::host(sentence).hint(hint).into());
            }
        }
        Ok(())
    }

    fn variables(&self) -> Vec<(OsString, OsString)> {
        let mut variables = self.environment.clone();
        if !self.libraries.is_empty() {
            variables.push(("LD_LIBRARY_PATH".into(), self.libraries.join(":").into()));
        }
        variables
    }
}

/// The values of `--flag VALUE` and `--flag=VALUE`.
fn values<'a>(words: &[&'a str], flag: &str) -> Vec<&'a str> {
    let mut found = Vec::new();
    for (at, word) in words.iter().enumerate() {
        match word.strip_prefix(flag) {
            Some("") => found.extend(words.get(at + 1)),
            Some(rest) => found.extend(rest.strip_prefix('=')),
            None => {}
        }
    }
    found
}

fn absolute(path: &str) -> Result<PathBuf> {
    if path.starts_with('/') && !path.contains('\0') {
        return Ok(PathBuf::from(path));
    }
    bail!("{path:?} is not an absolute path")
}

impl Node {
    fn device(&self) -> Result<Device> {
        let permissions = self.permissions.as_deref().unwrap_or("rwm");
        Ok(Device {
            host: absolute(self.host_path.as_deref().filter(|path| !path.is_empty()).unwrap_or(&self.path))?,
            container: absolute(&self.path)?,
            read_only: !permissions.contains('w'),
        })
    }
}

impl MountEdit {
    fn mount(&self) -> Result<Mount> {
        if self.kind == "tmpfs" {
            return mount::parse_tmpfs(&format!("{}:{}", self.container_path, self.options.join(",")));
        }
        absolute(&self.host_path)?;
        let options: Vec<&str> =
            self.options.iter().map(String::as_str).filter(|word| *word != "bind").collect();
        // A colon would end the path in the grammar of -v.
        let mut mount = mount::parse_volume(&format!("/:/x:{}", options.join(",")))?;
        if let mount::MountKind::Bind { source, .. } = &mut mount.kind {
            *source = PathBuf::from(&self.host_path);
        }
        mount.target = absolute(&self.container_path)?;
        Ok(mount)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_qualified_name_is_told_from_a_path() {
        let name = qualified("vendor.com/class=gpu0").unwrap();
        assert_eq!((name.kind.as_str(), name.device.as_str()), ("vendor.com/class", "gpu0"));
        assert!(qualified("nvidia.com/gpu=0:1").is_some());
        for path in ["/dev/x", "/dev/a=b", "a=b", "vendor.com/=x", "vendor.com/class=", "a/b/c=d"] {
            assert!(qualified(path).is_none(), "{path}");
        }
    }

    #[test]
    fn yaml_and_json_say_the_same() {
        let json = r#"{"cdiVersion":"0.6.0","kind":"v.com/c","devices":[{"name":"0","containerEdits":
            {"env":["A=1"],"deviceNodes":[{"path":"/dev/x","permissions":"r"}]}}]}"#;
        let yaml = "cdiVersion: 0.6.0\nkind: v.com/c\ndevices:\n- name: \"0\"\n  containerEdits:\n    env: [A=1]\n    deviceNodes:\n    - path: /dev/x\n      permissions: r\n";
        let (one, other) = (parse(json, true).unwrap(), parse(yaml, false).unwrap());
        assert_eq!(format!("{one:?}"), format!("{other:?}"));
        assert!(one.devices[0].container_edits.device_nodes[0].device().unwrap().read_only);
    }

    #[test]
    fn what_is_malformed_is_refused() {
        for text in [
            "{}",
            r#"{"cdiVersion":"2.0.0","kind":"v.com/c"}"#,
            r#"{"cdiVersion":"0.6.0","kind":"vc"}"#,
            r#"{"cdiVersion":"0.6.0","kind":"v.com/c","devices":[{"name":0}]}"#,
            "a: [",
            "- 1\n--- \n- 2\n",
        ] {
            assert!(parse(text, false).is_err(), "{text}");
        }
    }

    #[test]
    fn known_hooks_are_done_and_others_refused() {
        let hook = |words: &[&str]| Hook {
            hook_name: "createContainer".into(),
            path: "/usr/bin/nvidia-ctk".into(),
            args: words.iter().map(|word| (*word).to_owned()).collect(),
        };
        let mut needed = Needed::default();
        let link = ["nvidia-ctk", "hook", "create-symlinks", "--link", "libcuda.so.1::/usr/lib/libcuda.so"];
        needed.hook(&hook(&link)).unwrap();
        needed.hook(&hook(&["nvidia-ctk", "hook", "update-ldcache", "--folder=/usr/lib/gpu"])).unwrap();
        assert_eq!(needed.links, [(PathBuf::from("libcuda.so.1"), PathBuf::from("/usr/lib/libcuda.so"))]);
        assert_eq!(needed.variables(), [("LD_LIBRARY_PATH".into(), "/usr/lib/gpu".into())]);
        assert!(needed.hook(&hook(&["nvidia-ctk", "hook", "burn"])).is_err());
        let other = Hook { path: "/usr/bin/other".into(), ..hook(&link) };
        assert!(needed.hook(&other).is_err());
    }
}
