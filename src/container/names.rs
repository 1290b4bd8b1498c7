//! Names of containers: links in the store that hold an id, so that a name is taken by one container only; and
//! the names that kelp gives, an adjective and somebody who went to sea or studied it, both chosen by the id.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::ids::{ContainerName, Name};
use crate::paths::{self, Paths};
use crate::record::Lock;

/// How long the lock of the names is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

const ADJECTIVES: [&str; 96] = [
    "able", "agile", "alert", "amber", "ample", "azure", "balmy", "blithe", "bold", "brave", "breezy",
    "bright", "brisk", "bubbly", "buoyant", "calm", "candid", "cheery", "clear", "clever", "coastal",
    "cobalt", "coral", "cosy", "crisp", "curious", "daring", "deep", "deft", "dreamy", "eager", "earnest",
    "easy", "fair", "fearless", "fleet", "floating", "fluent", "fond", "free", "fresh", "gentle", "gifted",
    "glad", "golden", "graceful", "grand", "happy", "hardy", "hearty", "honest", "humble", "jolly", "jovial",
    "keen", "kind", "lively", "loyal", "lucid", "lucky", "lunar", "mellow", "merry", "mild", "modest",
    "neat", "nimble", "noble", "patient", "placid", "plucky", "polite", "proud", "quick", "quiet", "ready",
    "rolling", "sandy", "serene", "sharp", "silent", "silver", "smooth", "snug", "solid", "steady", "sturdy",
    "sunny", "swift", "tidal", "tidy", "tranquil", "upbeat", "vivid", "warm", "wise",
];

const SURNAMES: [&str; 96] = [
    "agassiz",
    "amundsen",
    "anning",
    "atkins",
    "baffin",
    "banks",
    "baret",
    "beaufort",
    "bellingshausen",
    "bering",
    "bigelow",
    "blackburn",
    "bligh",
    "bonny",
    "bowditch",
    "cabot",
    "cameron",
    "carson",
    "cartier",
    "champlain",
    "clark",
    "columbus",
    "cook",
    "cousteau",
    "crozier",
    "dana",
    "darwin",
    "davis",
    "dias",
    "dohrn",
    "drake",
    "drew",
    "earle",
    "ekman",
    "ellis",
    "erikson",
    "fitzroy",
    "flinders",
    "forbes",
    "franklin",
    "frobisher",
    "gama",
    "gilbert",
    "haeckel",
    "halley",
    "hardy",
    "hawkins",
    "heezen",
    "hess",
    "heyerdahl",
    "hudson",
    "humboldt",
    "hurley",
    "ibarra",
    "jason",
    "joyon",
    "kidd",
    "kingsley",
    "laperouse",
    "lovell",
    "macarthur",
    "magellan",
    "markham",
    "maury",
    "mawson",
    "mcclintock",
    "moitessier",
    "munk",
    "nansen",
    "nelson",
    "parry",
    "peary",
    "penfield",
    "piccard",
    "polo",
    "raleigh",
    "revelle",
    "ritter",
    "ross",
    "sabine",
    "scoresby",
    "scott",
    "shackleton",
    "slocum",
    "stommel",
    "sverdrup",
    "tabarly",
    "tasman",
    "tharp",
    "thomson",
    "torres",
    "vancouver",
    "vespucci",
    "weddell",
    "worsley",
    "zheng",
];

/// The name that an id gives.
pub fn of(id: &ContainerName) -> Name {
    numbered(id, 0)
}

fn numbered(id: &ContainerName, attempt: u32) -> Name {
    let number = id.as_str().get(..12).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or(0);
    let pick = |list: &[&'static str; 96], number: u64| list[(number % 96) as usize];
    let digit = if attempt == 0 { String::new() } else { attempt.to_string() };
    Name::generated(format!("{}_{}{digit}", pick(&ADJECTIVES, number), pick(&SURNAMES, number / 96)))
}

/// The name of the volume that a container has for itself at `target`: 64 digits, as docker's.
pub fn of_volume(id: &ContainerName, target: &Path) -> Name {
    let mut sum = Sha256::new_with_prefix(id.as_str());
    sum.update(target.as_os_str().as_encoded_bytes());
    Name::generated(sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Whether kelp could have given the name.
pub fn is_generated(word: &str) -> bool {
    word.split_once('_').is_some_and(|(adjective, _)| ADJECTIVES.contains(&adjective))
}

fn link(paths: &Paths, name: &str) -> PathBuf {
    paths.store.join("names").join(name)
}

/// The id that a name stands for.
pub fn holder(paths: &Paths, name: &str) -> Option<PathBuf> {
    if name.parse::<Name>().is_err() {
        return None;
    }
    fs::read_link(link(paths, name)).ok()
}

/// Reserves the name. A link to a container that is no more is what a killed kelp left.
///
/// # Errors
/// Another container has it.
pub fn take(paths: &Paths, name: &Name, id: &ContainerName) -> Result<()> {
    let names = paths.store.join("names");
    paths::private_folder(&names)?;
    let _lock = Lock::within(&names.join(".lock"), PATIENCE)?;
    let link = link(paths, name.as_str());
    if let Ok(holder) = fs::read_link(&link) {
        if holder != Path::new(id.as_str()) && paths.containers().join(&holder).exists() {
            return Err(Error::usage(format!(
                "the container name {name} is already in use by container {}",
                holder.display()
            ))
            .hint("remove that container, or use another name")
            .into());
        }
        fs::remove_file(&link).with_context(|| format!("cannot free the name {name}"))?;
    }
    symlink(id.as_str(), &link).with_context(|| format!("cannot take the name {name}"))
}

/// Reserves the name that the id gives, or that with a number behind it.
pub fn take_any(paths: &Paths, id: &ContainerName) -> Result<Name> {
    paths::private_folder(&paths.store.join("names"))?;
    for attempt in 0..1000 {
        let name = numbered(id, attempt);
        match symlink(id.as_str(), link(paths, name.as_str())) {
            Ok(()) => return Ok(name),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("cannot take the name {name}")),
        }
    }
    Err(Error::host("cannot find a free name for the container").hint("--name gives it one").into())
}

/// Frees the name if it is the container's.
pub fn release(paths: &Paths, name: &Name, id: &ContainerName) {
    let link = link(paths, name.as_str());
    if fs::read_link(&link).is_ok_and(|holder| holder == Path::new(id.as_str())) {
        let _ = fs::remove_file(link);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_name_is_a_name_and_always_the_same() {
        let id = ContainerName::from_folder("0123456789abcdef".repeat(4));
        assert_eq!(of(&id), of(&id));
        assert!(of(&id).as_str().parse::<Name>().is_ok() && is_generated(of(&id).as_str()));
        assert!(numbered(&id, 7).as_str().ends_with('7') && !is_generated("web"));
    }
}
