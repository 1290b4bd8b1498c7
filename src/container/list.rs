//! The containers of a store: all of them, and the one that a user's word means (a name, an id, the beginning of
//! an id, in docker's order).

use std::path::Path;

use anyhow::Result;

use crate::container::folder::{Known, ids, recorded};
use crate::container::{names, sweep};
use crate::error::Error;
use crate::ids::ContainerName;
use crate::paths::Paths;

/// All containers, put right, the newest first. One that can't be read is left out.
pub fn all(paths: &Paths) -> Vec<Known> {
    let mut known: Vec<Known> = ids(paths)
        .into_iter()
        .filter_map(|id| sweep::look(paths, &paths.containers().join(id)).ok().flatten())
        .collect();
    known.sort_by_key(|known| std::cmp::Reverse(known.made.created));
    known
}

/// The container that `word` means.
///
/// # Errors
/// There is none, or the word is the beginning of several ids.
pub fn find(paths: &Paths, word: &str) -> Result<Known> {
    let folder = paths.containers();
    let at = |id: &Path| sweep::look(paths, &folder.join(id)).transpose();
    let whole = word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    if whole && let Some(known) = at(Path::new(word)) {
        return known;
    }
    if let Some(id) = names::holder(paths, word)
        && let Some(known) = at(&id)
    {
        return known;
    }
    let ids = ids(paths);
    let is_prefix = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut fits = ids.iter().filter(|id| is_prefix && id.starts_with(word));
    let (mut first, second) = (fits.next(), fits.next());
    if second.is_some() {
        return Err(Error::usage(format!("multiple IDs found with provided prefix: {word}")).exit(1).into());
    }
    if first.is_none() && names::is_generated(word) {
        let named = |id: &&String| names::of(&ContainerName::from_folder((*id).clone())).as_str() == word;
        first = ids.iter().find(named);
    }
    let known = first.and_then(|id| at(Path::new(id)));
    known.unwrap_or_else(|| Err(no_such(word)))
}

/// Docker's sentence.
pub fn no_such(word: &str) -> anyhow::Error {
    Error::usage(format!("No such container: {word}")).exit(1).into()
}

/// Whether the error is that there is no such container.
pub fn is_absence(error: &anyhow::Error) -> bool {
    error.to_string().starts_with("No such container")
}

/// The containers, by name, that were made from the image `id`.
pub fn made_from(paths: &Paths, id: &str) -> Vec<String> {
    let of_image = recorded(paths).filter(|known| known.made.request.image.id == id);
    of_image.map(|known| known.name().to_string()).collect()
}
