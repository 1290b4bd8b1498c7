//! `--network container:NAME`: the container whose network another one shares. It is found by the user's word when the
//! other is made, and by its id at each start, when it must run.

use std::os::fd::OwnedFd;

use anyhow::Result;

use crate::container::folder::Known;
use crate::container::list;
use crate::error::Error;
use crate::ids::ContainerName;
use crate::paths::Paths;
use crate::spec::request::{Network, Request, UserNamespace};
use crate::spec::resolve::Facts;
use crate::supervise::member;
use crate::sys::process;
use crate::userns::maps::{self, IdMaps};

/// A container that runs.
#[derive(Debug)]
pub struct Neighbour {
    /// Its first process.
    pub pidfd: OwnedFd,
    pub maps: IdMaps,
    /// What was asked of whoever made its network.
    pub request: Request,
}

/// What is asked of a start, and in which user namespace it is done.
pub struct Asked<'a> {
    pub request: &'a Request,
    pub maps: IdMaps,
    pub neighbour: Option<Neighbour>,
}

impl<'a> Asked<'a> {
    /// # Errors
    /// The container whose network is to be shared does not run, or the maps that were asked for are not ours to have.
    pub fn of(paths: &Paths, request: &'a mut Request) -> Result<Self> {
        let neighbour = of(paths, request)?;
        let maps = match &neighbour {
            Some(found) => found.maps.clone(),
            None => maps::choose(&request.userns)?,
        };
        Ok(Self { request, maps, neighbour })
    }

    /// Whether one id may do where many are refused.
    pub fn may_have_one_id(&self) -> bool {
        self.request.userns == UserNamespace::Auto && !self.maps.one_id()
    }

    pub fn facts(&self, id: ContainerName) -> Facts {
        let neighbour = self.neighbour.as_ref().map(|found| Box::new(found.request.clone()));
        Facts { neighbour, ..member::facts(id, &self.maps) }
    }
}

/// Puts the id in the place of the user's word. As in docker the new container is called what the other is called; and
/// it shares the other's user namespace, which owns the network.
///
/// # Errors
/// There is no such container, or other id maps were asked for.
pub fn name(request: &mut Request) -> Result<()> {
    let Network::Container(word) = &request.network else { return Ok(()) };
    let conflicts = [
        (request.hostname.is_some(), "hostname"),
        (!request.add_hosts.is_empty(), "custom host-to-IP mapping"),
    ];
    if let Some((_, what)) = conflicts.iter().find(|(said, _)| *said) {
        return Err(Error::usage(format!("conflicting options: {what} and the network mode")).into());
    }
    if request.time.is_some() {
        let sentence =
            format!("--time-offset: not with --network container:{word}, whose time is shared too");
        return Err(Error::usage(sentence).into());
    }
    let known = find(&Paths::find()?, word)?;
    let theirs = &known.made.request;
    if request.userns == UserNamespace::Auto {
        request.userns = theirs.userns.clone();
    } else if request.userns != theirs.userns {
        let sentence =
            format!("--userns: with --network container:{word} the ids are mapped as in that container");
        return Err(Error::usage(sentence).into());
    }
    let id = known.made.id.clone();
    request.hostname = theirs.hostname.clone().or_else(|| Some(id.short().to_owned()));
    request.network = Network::Container(id.as_str().to_owned());
    Ok(())
}

/// The container whose network `request` names. Where that is the host's, the host's is what is asked for.
///
/// # Errors
/// It is gone or does not run.
fn of(paths: &Paths, request: &mut Request) -> Result<Option<Neighbour>> {
    let Network::Container(id) = &request.network else { return Ok(None) };
    let known = find(paths, id)?;
    let made = maker(paths, &known);
    if matches!(made.network, Network::Host) {
        request.network = Network::Host;
        return Ok(None);
    }
    let not_running =
        || Error::container(format!("cannot join network of a non running container: {id}")).exit(125);
    let first =
        known.status.process.clone().filter(|_| known.status.state.is_live()).ok_or_else(not_running)?;
    let pidfd = process::pidfd_open(first.pid).map_err(|_| not_running())?;
    if !first.lives() {
        return Err(not_running().into());
    }
    Ok(Some(Neighbour { pidfd, maps: IdMaps::of_process(first.pid)?, request: made }))
}

fn find(paths: &Paths, word: &str) -> Result<Known> {
    list::find(paths, word).map_err(|error| match list::is_absence(&error) {
        true => Error::usage(format!("No such container: {word}")).into(),
        false => error,
    })
}

/// What was asked of the container that made the network: the last of those that share one with another. Ids are older
/// than what refers to them, so this ends.
fn maker(paths: &Paths, known: &Known) -> Request {
    let mut request = known.made.request.clone();
    while let Network::Container(id) = &request.network
        && let Ok(other) = list::find(paths, id)
    {
        request = other.made.request;
    }
    request
}
