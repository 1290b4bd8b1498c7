//! Manifests and indexes, of OCI and of docker (version 2, schema 2), as one pair of types; which kind a text
//! is, and which platform of an index is wanted. Pure: bytes in, types out. The bytes themselves are kept
//! beside, because their digest is the identity.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::image::reference::Digest;

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// The longest manifest or index that is read; registries refuse to take longer ones.
pub const LONGEST: u64 = 4 << 20;

/// What kind of content, how long, and its digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.into(),
            digest,
            size,
            platform: None,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
        }
    }
}

/// An image: its configuration and its layers, lowest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Manifest {
    pub fn new(config: Descriptor, layers: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: OCI_MANIFEST.to_owned(),
            config,
            layers,
            annotations: BTreeMap::new(),
        }
    }

    /// Of a configuration of `size` bytes, in somebody's words; docker has none for zstd.
    pub fn in_words_of(dialect: Dialect, config: &Digest, size: u64, mut layers: Vec<Descriptor>) -> Self {
        let has_zstd = layers.iter().any(|layer| layer.media_type.ends_with("zstd"));
        let (media_type, config_type, word): (_, _, fn(&str) -> String) = match dialect {
            Dialect::Docker if !has_zstd => (DOCKER_MANIFEST, DOCKER_CONFIG, docker_layer),
            _ => (OCI_MANIFEST, OCI_CONFIG, oci_layer),
        };
        layers.iter_mut().for_each(|layer| layer.media_type = word(&layer.media_type));
        let config = Descriptor::new(config_type, config.clone(), size);
        Self { media_type: media_type.to_owned(), ..Self::new(config, layers) }
    }

    pub fn dialect(&self) -> Dialect {
        if self.media_type == DOCKER_MANIFEST { Dialect::Docker } else { Dialect::Oci }
    }
}

/// Whose words a manifest is written in; they mean the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    #[default]
    Oci,
    Docker,
}

/// Several manifests under one name, usually one a platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    pub manifests: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What a manifest address can answer with.
#[derive(Clone, Debug)]
pub enum Document {
    Manifest(Manifest),
    Index(Index),
}

impl Document {
    /// Decides by the text itself: a registry's Content-Type is only checked against it, so that a manifest
    /// can't be passed off as an index (CVE-2021-41190).
    pub fn parse(text: &[u8], content_type: Option<&str>) -> Result<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Shape {
            #[serde(default)]
            schema_version: u32,
            media_type: Option<String>,
            manifests: Option<serde::de::IgnoredAny>,
            layers: Option<serde::de::IgnoredAny>,
            config: Option<serde::de::IgnoredAny>,
        }
        let shape: Shape = serde_json::from_slice(text).context("the manifest is not a JSON object")?;
        if shape.schema_version == 1 {
            return Err(refused("the manifest has docker's schema 1, which has been obsolete since 2017"));
        }
        let is_index = match (shape.manifests.is_some(), shape.layers.is_some() || shape.config.is_some()) {
            (true, false) => true,
            (false, true) => false,
            (true, true) => return Err(refused("the manifest claims to be an image and an index at once")),
            (false, false) => return Err(refused("the manifest has neither layers nor manifests")),
        };
        let declared = [shape.media_type.as_deref(), content_type];
        for declared in declared.into_iter().flatten().map(|text| text.split(';').next().unwrap_or(text)) {
            let says_index = match declared.trim() {
                OCI_INDEX | DOCKER_LIST => true,
                OCI_MANIFEST | DOCKER_MANIFEST => false,
                _ => continue,
            };
            if says_index != is_index {
                return Err(refused(&format!("the manifest is declared as {declared}, which it is not")));
            }
        }
        Ok(match is_index {
            true => Self::Index(serde_json::from_slice(text).context("the index is malformed")?),
            false => Self::Manifest(serde_json::from_slice(text).context("the manifest is malformed")?),
        })
    }
}

fn refused(sentence: &str) -> anyhow::Error {
    Error::host(sentence).into()
}

/// How a layer's tar is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    pub fn media_type(self) -> String {
        match self {
            Self::None => OCI_LAYER.to_owned(),
            Self::Gzip => format!("{OCI_LAYER}+gzip"),
            Self::Zstd => format!("{OCI_LAYER}+zstd"),
        }
    }
}

/// OCI's word for a kind of layer that docker has its own for.
pub fn oci_layer(media_type: &str) -> String {
    media_type
        .replace(&format!("{DOCKER_LAYER}.gzip"), &format!("{OCI_LAYER}+gzip"))
        .replace(DOCKER_LAYER, OCI_LAYER)
}

/// The other way round.
fn docker_layer(media_type: &str) -> String {
    media_type
        .replace(&format!("{OCI_LAYER}+gzip"), &format!("{DOCKER_LAYER}.gzip"))
        .replace(OCI_LAYER, DOCKER_LAYER)
}

/// Refuses what is not a layer that can be unpacked; how it is packed is seen from its first bytes.
pub fn check_layer(layer: &Descriptor) -> Result<()> {
    let kind = layer.media_type.as_str();
    if kind.contains("foreign") || kind.contains("nondistributable") {
        let sentence =
            format!("layer {} is a foreign layer, which its registry does not serve", layer.digest);
        return Err(Error::host(sentence).hint("such images are for Windows hosts").into());
    }
    let base = kind.strip_suffix(".gzip").or_else(|| kind.rsplit_once('+').map(|(base, _)| base));
    if [OCI_LAYER, DOCKER_LAYER].contains(&base.unwrap_or(kind)) {
        return Ok(());
    }
    let sentence =
        format!("layer {} has the media type {kind:?}: this is not a container image", layer.digest);
    Err(Error::host(sentence).hint("an OCI artifact has no root file system to run").into())
}

/// Operating system, architecture and variant: `linux/arm64/v8`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// What this machine runs.
    pub fn host() -> Self {
        let (architecture, variant) = normal(std::env::consts::ARCH, None);
        Self { os: "linux".to_owned(), architecture, variant }
    }

    /// Whether what is offered is what is wanted.
    pub fn accepts(&self, offered: &Self) -> bool {
        let (architecture, variant) = normal(&offered.architecture, offered.variant.as_deref());
        let variant_fits = match (&self.variant, &variant) {
            (Some(wanted), Some(offered)) => wanted == offered,
            _ => true,
        };
        self.os == offered.os && self.architecture == architecture && variant_fits
    }
}

/// Names of architectures as Go has them (`x86_64` is `amd64`).
fn normal(architecture: &str, variant: Option<&str>) -> (String, Option<String>) {
    let (name, default) = match architecture {
        "x86_64" | "x86-64" => ("amd64", None),
        "aarch64" | "arm64" => ("arm64", Some("v8")),
        "x86" | "i386" | "i686" => ("386", None),
        "armhf" | "arm" => ("arm", Some("v7")),
        "armel" => ("arm", Some("v6")),
        "powerpc64" | "powerpc64le" => ("ppc64le", None),
        other => (other, None),
    };
    (name.to_owned(), variant.or(default).map(str::to_owned))
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts[..] {
            [architecture] => ("linux", architecture, None),
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => ("", "", None),
        };
        if os.is_empty() || architecture.is_empty() || variant == Some("") {
            let sentence = format!("{text:?} is not a platform: OS/ARCH or OS/ARCH/VARIANT is expected");
            return Err(Error::usage(sentence).into());
        }
        let (architecture, variant) = normal(architecture, variant);
        Ok(Self { os: os.to_owned(), architecture, variant })
    }
}

/// The first manifest of an index for `wanted`. One without a platform serves when nothing else does.
pub fn choose<'a>(index: &'a Index, wanted: &Platform) -> Result<&'a Descriptor> {
    let runnable =
        |entry: &&Descriptor| matches!(entry.media_type.as_str(), OCI_MANIFEST | DOCKER_MANIFEST | "");
    let entries = || index.manifests.iter().filter(runnable);
    let exact =
        entries().find(|entry| entry.platform.as_ref().is_some_and(|offered| wanted.accepts(offered)));
    if let Some(found) = exact.or_else(|| entries().find(|entry| entry.platform.is_none())) {
        return Ok(found);
    }
    let offered: Vec<String> =
        entries().filter_map(|entry| Some(entry.platform.as_ref()?.to_string())).collect();
    Err(Error::host(format!("no image for {wanted} (it exists for: {})", offered.join(", ")))
        .hint("choose one with --platform")
        .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(platform: &str) -> Descriptor {
        let digest = Digest::of(platform.as_bytes());
        let mut entry = Descriptor::new(OCI_MANIFEST, digest, 7);
        entry.platform = Some(platform.parse().unwrap());
        entry
    }

    fn index(platforms: &[&str]) -> Index {
        let manifests = platforms.iter().map(|platform| entry(platform)).collect();
        Index { schema_version: 2, media_type: OCI_INDEX.into(), manifests, annotations: BTreeMap::new() }
    }

    #[test]
    fn the_platform_is_chosen_by_os_architecture_and_variant() {
        let index = index(&["linux/amd64", "linux/arm/v6", "linux/arm/v7", "linux/arm64", "windows/amd64"]);
        for (wanted, found) in [
            ("linux/amd64", "linux/amd64"),
            ("x86_64", "linux/amd64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/v6", "linux/arm/v6"),
            ("linux/arm64/v8", "linux/arm64"),
            ("windows/amd64", "windows/amd64"),
        ] {
            let chosen = choose(&index, &wanted.parse().unwrap()).unwrap();
            assert_eq!(chosen.digest, entry(found).digest, "{wanted}");
        }
        assert!(choose(&index, &"linux/s390x".parse().unwrap()).is_err());
    }

    #[test]
    fn a_document_is_what_it_contains_and_may_not_claim_otherwise() {
        let digest = Digest::of(b"");
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"x","digest":"{digest}","size":1}},"layers":[]}}"#
        );
        assert!(matches!(Document::parse(manifest.as_bytes(), None), Ok(Document::Manifest(_))));
        assert!(Document::parse(manifest.as_bytes(), Some(OCI_INDEX)).is_err());
        let both = manifest.replace("\"layers\"", "\"manifests\":[],\"layers\"");
        assert!(Document::parse(both.as_bytes(), None).is_err());
        assert!(Document::parse(b"{\"schemaVersion\":1}", None).is_err());
        assert!(Document::parse(b"[]", None).is_err());
        let path = manifest.replace("sha256:", "sha256:../");
        assert!(Document::parse(path.as_bytes(), None).is_err());
    }

    #[test]
    fn layers_that_cannot_be_unpacked_are_refused() {
        let layer = |kind: &str| check_layer(&Descriptor::new(kind, Digest::of(b""), 0));
        for kind in [
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        ] {
            assert!(layer(kind).is_ok(), "{kind}");
        }
        for kind in ["application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "application/wasm", ""] {
            assert!(layer(kind).is_err(), "{kind}");
        }
    }
}
