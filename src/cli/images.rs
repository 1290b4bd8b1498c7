//! `kelp images`, `kelp image ls`: a row a name, docker's columns and filters. Reads records only, never a
//! layer.

use std::collections::HashMap;

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use crate::cli::filter;
use crate::cli::table::{self, Column, ListArgs};
use crate::error::Error;
use crate::image::config::{now, rfc3339};
use crate::image::reference::Digest;
use crate::image::store::{ImageRecord, NameRecord, Store};
use crate::paths::Paths;

/// List images
#[derive(Debug, Args)]
pub struct ImagesArgs {
    /// Only images with this name
    repository: Option<String>,
    /// Print whole ids
    #[arg(long)]
    no_trunc: bool,
    /// Print digests too
    #[arg(long)]
    digests: bool,
    /// For docker's command line: all images are always shown
    #[arg(short, long)]
    all: bool,
    /// dangling=BOOL, reference=PATTERN, label=KEY[=VALUE], before=IMAGE, since=IMAGE
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    /// created, id, repository, size or tag
    #[arg(long, value_name = "COLUMN", default_value = "created")]
    sort: String,
    #[command(flatten)]
    list: ListArgs,
}

struct Row {
    image: ImageRecord,
    name: Option<NameRecord>,
}

pub fn run(arguments: &ImagesArgs) -> Result<i32> {
    let store = Store::open(&Paths::find()?)?;
    let mut rows = rows(&store)?;
    if let Some(wanted) = &arguments.repository {
        rows.retain(|row| row.name.as_ref().is_some_and(|name| matches_name(name, wanted)));
    }
    for filter in &arguments.filter {
        apply(&store, filter, &mut rows)?;
    }
    sort(&arguments.sort, &mut rows)?;
    let values: Vec<Value> = rows.iter().map(|row| value(row, arguments.no_trunc)).collect();
    let mut columns = vec![
        Column::new("REPOSITORY", "Repository").shrinks(16),
        Column::new("TAG", "Tag").shrinks(8),
        Column::new("IMAGE ID", "ID"),
        Column::new("CREATED", "CreatedSince"),
        Column::new("SIZE", "Size"),
    ];
    if arguments.digests {
        columns.insert(2, Column::new("DIGEST", "Digest").shrinks(20));
    }
    if arguments.no_trunc {
        columns.iter_mut().for_each(Column::keep);
    }
    arguments.list.print(&values, &columns, "ID")?;
    Ok(0)
}

/// podman's orders.
fn sort(by: &str, rows: &mut [Row]) -> Result<()> {
    let name = |row: &Row| row.name.as_ref().map(|name| name.reference.familiar_name());
    let tag = |row: &Row| row.name.as_ref().and_then(|name| name.reference.tag.clone());
    match by {
        "created" => rows.sort_by_key(|row| std::cmp::Reverse(row.image.created)),
        "id" => rows.sort_by(|one, other| one.image.id.hex().cmp(other.image.id.hex())),
        "repository" => rows.sort_by_key(name),
        "size" => rows.sort_by_key(|row| row.image.size),
        "tag" => rows.sort_by_key(tag),
        _ => {
            let sentence = format!("--sort {by}: created, id, repository, size or tag is expected");
            return Err(Error::usage(sentence).into());
        }
    }
    Ok(())
}

fn rows(store: &Store) -> Result<Vec<Row>> {
    let mut names: HashMap<Digest, Vec<NameRecord>> = HashMap::new();
    for name in store.names()? {
        names.entry(name.image.clone()).or_default().push(name);
    }
    let mut rows = Vec::new();
    for image in store.images()? {
        match names.remove(&image.id) {
            None => rows.push(Row { image, name: None }),
            Some(own) => {
                rows.extend(own.into_iter().map(|name| Row { image: image.clone(), name: Some(name) }));
            }
        }
    }
    Ok(rows)
}

fn matches_name(name: &NameRecord, wanted: &str) -> bool {
    let reference = &name.reference;
    let with_tag = wanted.rsplit_once('/').map_or(wanted, |(_, last)| last).contains(':');
    let shown = if with_tag { reference.familiar() } else { reference.familiar_name() };
    let full = if with_tag { reference.to_string() } else { reference.name() };
    table::glob(wanted, &shown) || table::glob(wanted, &full)
}

fn apply(store: &Store, filter: &str, rows: &mut Vec<Row>) -> Result<()> {
    let Some((key, value)) = filter.split_once('=') else {
        return Err(Error::usage(format!("{filter:?} is not a filter: KEY=VALUE is expected")).into());
    };
    match key {
        "dangling" => {
            let wanted = matches!(value, "true" | "1");
            rows.retain(|row| row.name.is_none() == wanted);
        }
        "reference" => rows.retain(|row| row.name.as_ref().is_some_and(|name| matches_name(name, value))),
        "label" => rows.retain(|row| filter::has_label(&row.image.labels, value)),
        "before" | "since" => {
            let created = store.expect(value)?.record.created;
            rows.retain(|row| {
                if key == "before" { row.image.created < created } else { row.image.created > created }
            });
        }
        "id" => rows.retain(|row| row.image.id.hex().starts_with(value.trim_start_matches("sha256:"))),
        _ => {
            let sentence = format!("{key:?} is not a filter of images");
            let hint = "dangling, reference, label, before, since and id are";
            return Err(Error::usage(sentence).hint(hint).into());
        }
    }
    Ok(())
}

fn id(row: &Row, whole: bool) -> String {
    if whole { row.image.id.to_string() } else { row.image.id.short().to_owned() }
}

fn value(row: &Row, whole: bool) -> Value {
    let none = || "<none>".to_owned();
    let reference = row.name.as_ref().map(|name| &name.reference);
    json!({
        "ID": id(row, whole),
        "Repository": reference.map_or_else(none, crate::image::reference::Reference::familiar_name),
        "Tag": reference.and_then(|reference| reference.tag.clone()).unwrap_or_else(none),
        "Digest": row.image.manifest.to_string(),
        "CreatedSince": format!("{} ago", table::duration(now() - row.image.created)),
        "CreatedAt": rfc3339(row.image.created),
        "Size": table::size(row.image.size),
        "VirtualSize": table::size(row.image.size),
        "Containers": "N/A",
        "SharedSize": "N/A",
        "UniqueSize": "N/A",
    })
}
