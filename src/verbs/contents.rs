//! What a container's files consist of: the layers that it runs on and the directory that holds its changes.
//! For the verbs that look at them beside the container: diff, commit, export, cp. The caller has one thread.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::container::folder::{Known, Process};
use crate::container::list;
use crate::error::Error;
use crate::image::store::{Image, Store};
use crate::paths::Paths;
use crate::rootfs::rung::Rung;
use crate::rootfs::view::{Own, View};
use crate::spec::request::{Driver, Request, UserNamespace};
use crate::sys::process;
use crate::userns::maps::{self, IdMaps, Shift};
use crate::userns::numbers::Numbers;
use crate::userns::within;

/// A container's layers.
#[derive(Debug)]
pub struct Contents {
    /// How users call it.
    pub name: String,
    pub folder: PathBuf,
    pub request: Request,
    pub image: Image,
    /// The lowest first.
    pub lowers: Vec<PathBuf>,
    /// The first process of a container that runs.
    pub process: Option<Process>,
    rung: Option<Rung>,
    /// How the container sees the owners of its layers, if its own changes lie under the real ones all the same. What
    /// a map is can be found out outside of all user namespaces only.
    shown: Option<Numbers>,
}

impl Contents {
    /// The container that a user's word means: its name, its id, or the start of that.
    pub fn find(paths: &Paths, store: &Store, word: &str) -> Result<Self> {
        let Known { folder, made, status } = list::find(paths, word)?;
        let id = &made.request.image.id;
        if id.is_empty() {
            let sentence = format!("container {word} runs on no image, so what it changed is not known");
            return Err(Error::usage(sentence).into());
        }
        let image = store.expect(id)?;
        let lowers = image.layers.clone();
        let process = status.process.filter(Process::lives);
        let (request, rung) = (made.request, status.rung);
        let shown = shown(&request, rung)?;
        Ok(Self { name: word.to_owned(), folder, request, image, lowers, process, rung, shown })
    }

    /// What has changed; `None` in a container that has never started and that nothing was copied to.
    pub fn upper(&self) -> Option<PathBuf> {
        Some(self.folder.join("upper")).filter(|upper| upper.is_dir())
    }

    /// Makes the upper directory of a running container hold everything that the container has done so far. Kernel
    /// overlay writes there at once; of the user-space overlay the kernel keeps pages, and the server removals.
    pub fn settle(&self) -> Result<()> {
        let (Some(process), Some(Rung::FuseOverlay)) = (&self.process, self.rung) else { return Ok(()) };
        let Ok(pidfd) = process::pidfd_open(process.pid) else { return Ok(()) };
        if !process.lives() {
            return Ok(());
        }
        // Only a process of its user namespace may open what is mounted there by FUSE.
        let synced = || -> Result<()> {
            let root = File::open("/")?;
            nix::unistd::syncfs(&root)?;
            Ok(root.sync_all()?)
        };
        let (status, ()) = within::join(pidfd.as_fd(), || i32::from(synced().is_err()), || ())?;
        if status != 0 && process.lives() {
            bail!("cannot bring what container {} has written into its layer", self.name);
        }
        Ok(())
    }

    /// Whether the files lie as those of the image do, and the user-space overlay shows the container other owners
    /// than they carry in its user namespace.
    pub fn is_renumbered(&self) -> Result<bool> {
        let is_served = match self.rung {
            Some(rung) => rung == Rung::FuseOverlay,
            None => !matches!(self.request.storage.driver, Some(Driver::Overlay | Driver::OverlayOnFuse)),
        };
        let asked = &self.request.userns;
        if !is_served || *asked == UserNamespace::Auto {
            return Ok(false);
        }
        Ok(Numbers::of_image(asked, &maps::choose(asked)?)?.is_some())
    }

    /// The root, to be changed; in a namespace with the `root_maps`.
    pub fn open(&self) -> Result<View> {
        self.view(Own::Write(&self.folder))
    }

    /// The root, to be read; in a namespace with the `root_maps`.
    pub fn open_to_read(&self) -> Result<View> {
        self.view(self.upper().as_deref().map_or(Own::None, Own::Read))
    }

    fn view(&self, own: Own<'_>) -> Result<View> {
        match &self.shown {
            Some(numbers) => View::stacked(&self.lowers, numbers, own),
            None => View::open(&self.lowers, own),
        }
    }

    /// The id maps under which the container's files got their owners.
    pub fn maps(&self) -> Result<IdMaps> {
        if self.is_renumbered()? {
            return Numbers::of_made(&self.request.userns);
        }
        match &self.process {
            Some(process) => IdMaps::of_process(process.pid),
            None => maps::choose(&self.request.userns),
        }
    }

    /// From the ids that this process sees to those of the container; `theirs` were found outside.
    pub fn shift(theirs: &IdMaps) -> Result<Option<Shift>> {
        let own = IdMaps::of_process(std::process::id() as i32).context("cannot read the own id maps")?;
        Ok(Shift::between(&own, theirs))
    }

    /// From the owners of its own layer to those of the layers below, if they were laid out under different maps;
    /// `theirs` are those of the container.
    pub fn shift_below(&self, theirs: &IdMaps) -> Result<Option<Shift>> {
        if self.shown.is_some() { Self::shift(theirs) } else { Ok(None) }
    }

    /// Maps in which somebody is root who may read and write what the container has.
    pub fn root_maps(&self) -> Result<IdMaps> {
        let maps = maps::choose(&self.request.userns)?;
        if maps.has_root() && !self.is_renumbered()? { Ok(maps) } else { maps::choose(&UserNamespace::Auto) }
    }
}

fn shown(request: &Request, rung: Option<Rung>) -> Result<Option<Numbers>> {
    let is_stacked = match rung {
        Some(rung) => rung == Rung::OverlayOnFuse,
        None => request.storage.driver == Some(Driver::OverlayOnFuse),
    };
    if !is_stacked {
        return Ok(None);
    }
    Numbers::of_image(&request.userns, &maps::choose(&request.userns)?)
}
