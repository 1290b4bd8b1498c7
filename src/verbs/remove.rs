//! `kelp rm`: a container goes with its layers and its name; one that runs only by force. Whoever else removes it
//! at the same time is no error.

use anyhow::Result;

use crate::container::call::Then;
use crate::container::folder::Container;
use crate::container::list;
use crate::paths::Paths;
use crate::userns::maps;
use crate::verbs::order::{self, refusal};

/// Removes the container that `word` means; gives its id.
pub fn remove(paths: &Paths, word: &str, force: bool) -> Result<String> {
    let known = list::find(paths, word)?;
    let (id, name) = (known.made.id.to_string(), known.name());
    if known.status.state.is_live() {
        if !force {
            let state = known.status.state.word();
            return Err(refusal(format!(
                "cannot remove container \"/{name}\": container is {state}: stop the container before removing or force remove"
            )));
        }
        order::stop(paths, &id, Some(libc::SIGKILL), Some(-1), Then::Stay)?.ended(paths)?;
    }
    // One that was to be removed at its end is gone by now.
    let Some(container) = Container::wait(&known.folder)? else { return Ok(id) };
    if container.status.state.is_live() {
        return Err(refusal(format!("cannot remove container \"/{name}\": it was started again")));
    }
    let maps = maps::choose(&container.made.request.userns);
    container.remove(paths, maps.ok().as_ref())?;
    Ok(id)
}
