//! `kelp run IMAGE`: the image found in the store, or pulled first, as a root and the defaults of its
//! configuration. The store is read in this process; a pull happens where owners can be made.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use crate::cli::pull::{self, FetchArgs, PolicyWord};
use crate::cli::{progress, words};
use crate::error::Error;
use crate::image::pull as image_pull;
use crate::image::store::{Image, Store};
use crate::paths::Paths;
use crate::spec::Root;
use crate::spec::life::{Health, HealthChoice, HealthTest};
use crate::spec::request::ImageDefaults;

/// The root and the defaults of the image `name`.
pub fn find(name: &str, fetch: &FetchArgs, policy: PolicyWord) -> Result<(Root, ImageDefaults)> {
    let paths = Paths::find()?;
    let store = Store::open(&paths)?;
    let here = match policy {
        PolicyWord::Missing | PolicyWord::Never => {
            let fits = |image: &Image| {
                fetch.platform.as_ref().is_none_or(|wanted| wanted.accepts(&image.record.platform))
            };
            store.find(name)?.filter(|image| image.unsettled.is_empty() && fits(image))
        }
        PolicyWord::Always | PolicyWord::Newer => None,
    };
    let image = match here {
        Some(image) => image,
        None => pulled(&store, name, fetch, policy)?,
    };
    image_pull::is_for(&image.record.platform, fetch.platform.as_ref(), name)?;
    Ok((Root::Layers(image.layers.clone()), defaults(&image)?))
}

fn pulled(store: &Store, name: &str, fetch: &FetchArgs, policy: PolicyWord) -> Result<Image> {
    let status = pull::interruptible(|| {
        let shown = progress::Shown::new(false);
        image_pull::pull(store, name, &fetch.options(policy.into()), &|event| shown.event(&event))?;
        shown.finish();
        Ok(0)
    })?;
    match store.find(name)? {
        Some(image) if status == 0 => Ok(image),
        _ => Err(Error::host(format!("cannot run image {name}: it was not pulled")).into()),
    }
}

fn defaults(image: &Image) -> Result<ImageDefaults> {
    let config = &image.config.config;
    let words = |list: &Option<Vec<String>>| list.iter().flatten().map(OsString::from).collect();
    let said = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let variable = |text: &String| {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        (OsString::from(name), OsString::from(value))
    };
    Ok(ImageDefaults {
        id: image.id.hex().to_owned(),
        environment: config.env.iter().map(variable).collect(),
        entrypoint: words(&config.entrypoint),
        command: words(&config.cmd),
        exposed: config.exposed_ports.keys().cloned().collect(),
        volumes: config.volumes.keys().cloned().collect(),
        user: said(&config.user),
        cwd: said(&config.working_dir).map(|path| PathBuf::from("/").join(path)),
        stop_signal: said(&config.stop_signal).map(|word| words::signal(&word)).transpose()?,
        labels: config.labels.clone(),
        health: config.healthcheck.as_ref().and_then(health),
    })
}

/// Docker's object; a time of 0 is the default.
fn health(value: &Value) -> Option<Health> {
    let words = value["Test"].as_array()?.iter().filter_map(|word| word.as_str().map(str::to_owned));
    let time = |key: &str| value[key].as_u64().filter(|time| *time > 0).map(Duration::from_nanos);
    let choice = HealthChoice {
        test: HealthTest::of(&words.collect::<Vec<_>>()),
        interval: time("Interval"),
        timeout: time("Timeout"),
        start_period: time("StartPeriod"),
        start_interval: time("StartInterval"),
        retries: value["Retries"]
            .as_u64()
            .filter(|count| *count > 0)
            .and_then(|count| u32::try_from(count).ok()),
    };
    choice.over(None)
}
