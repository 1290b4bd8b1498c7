//! `kelp rm`: a container goes with its layers and its name; one that runs only by force. Whoever else removes it
//! at the same time is no error. Also what goes along with a container: its image, and the one that had its name.

use anyhow::{Context, Result};

use crate::container::call::Then;
use crate::container::folder::Container;
use crate::container::state::State;
use crate::container::{list, names, volume};
use crate::error::Error;
use crate::ids::Name;
use crate::image::collect;
use crate::image::reference::Digest;
use crate::image::store::Store;
use crate::paths::Paths;
use crate::spec::request::{Request, UserNamespace};
use crate::userns::{maps, within};
use crate::verbs::order::{self, refusal};

/// How a container is removed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Way {
    /// One that runs, too.
    pub force: bool,
    /// With its anonymous volumes, as one that goes by itself does.
    pub volumes: bool,
    /// Seconds that one that runs has to end by itself.
    pub patience: Option<i64>,
}

/// Removes the container that `word` means; gives its id.
pub fn remove(paths: &Paths, word: &str, way: Way, warn: &mut dyn FnMut(&str)) -> Result<String> {
    let known = list::find(paths, word)?;
    let (id, name) = (known.made.id.to_string(), known.name());
    if known.status.state.is_live() {
        if !way.force {
            let state = known.status.state.word();
            return Err(refusal(format!(
                "cannot remove container \"/{name}\": container is {state}: stop the container before removing or force remove"
            )));
        }
        let stopped = match way.patience.filter(|seconds| *seconds != 0) {
            Some(seconds) => order::stop(paths, &id, None, Some(seconds), Then::Stay)?,
            None => order::stop(paths, &id, Some(libc::SIGKILL), Some(-1), Then::Die)?,
        };
        stopped.ended(paths, warn)?;
    }
    // One that was to be removed at its end is gone by now.
    let Some(mut container) = Container::wait(&known.folder)? else { return Ok(id) };
    if container.status.state.is_live() {
        return Err(refusal(format!("cannot remove container \"/{name}\": it was started again")));
    }
    if way.volumes || container.status.remove {
        // Whoever finds it half removed goes on.
        container.status.remove = true;
        if container.status.state != State::Dead {
            container.become_state(State::Dead)?;
        }
        volume::release(paths, &container.made)?;
    }
    let maps = maps::choose(&container.made.request.userns);
    container.remove(paths, maps.ok().as_ref())?;
    Ok(id)
}

/// Makes room for a container of that name: `--replace`.
pub fn replace(paths: &Paths, name: &Name, warn: &mut dyn FnMut(&str)) -> Result<()> {
    let Some(id) = names::holder(paths, name.as_str()) else { return Ok(()) };
    let way = Way { force: true, ..Way::default() };
    match remove(paths, &id.to_string_lossy(), way, warn) {
        Err(error) if !list::is_absence(&error) => {
            Err(error.context(format!("cannot replace container {name}")))
        }
        _ => Ok(()),
    }
}

/// Removes the image that a container was made from, unless another container is: `--rmi`.
pub fn image_of(paths: &Paths, request: &Request) -> Result<()> {
    let id = &request.image.id;
    if id.is_empty() || !list::made_from(paths, id).is_empty() {
        return Ok(());
    }
    let remove = || -> Result<()> {
        let holders = |id: &Digest| list::made_from(paths, id.hex());
        collect::remove(&Store::open(paths)?, &request.root_name, false, &holders).map(|_| ())
    };
    let maps = maps::choose(&UserNamespace::Auto)?;
    let failed = || format!("cannot remove image {}", request.root_name);
    if maps.one_id() || nix::unistd::geteuid().is_root() {
        return remove().with_context(failed);
    }
    match within::run(&maps, 0, || i32::from(remove().is_err()))? {
        0 => Ok(()),
        _ => Err(Error::host(failed()).hint(format!("`kelp rmi {}` says why", request.root_name)).into()),
    }
}
