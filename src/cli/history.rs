//! `kelp history` and `kelp image tree`: what an image was made of, as its configuration and its layers tell
//! it.

use anyhow::Result;
use clap::{ArgAction, Args};
use serde_json::{Value, json};

use crate::cli::table::{self, Column};
use crate::image::config::{now, rfc3339, unix_time};
use crate::image::store::{Image, Store, whole_layer};
use crate::paths::Paths;

/// Show the steps that an image was made by
#[derive(Debug, Args)]
pub struct HistoryArgs {
    image: String,
    /// Print whole ids and commands
    #[arg(long)]
    no_trunc: bool,
    /// Print only ids
    #[arg(short, long)]
    quiet: bool,
    /// Sizes and times as people say them
    #[arg(short = 'H', long, value_name = "BOOL", default_value = "true", num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    human: bool,
    /// A Go template or `json`
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

/// Show the layers of an image
#[derive(Debug, Args)]
pub struct TreeArgs {
    image: String,
}

pub fn run(arguments: &HistoryArgs) -> Result<i32> {
    let store = Store::open(&Paths::find()?)?;
    let image = store.expect(&arguments.image)?;
    let rows = rows(&store, &image, arguments)?;
    if arguments.quiet {
        for row in &rows {
            println!("{}", row["ID"].as_str().unwrap_or_default());
        }
        return Ok(0);
    }
    let columns = [
        Column::new("IMAGE", "ID"),
        Column::new("CREATED", "CreatedSince"),
        Column::new("CREATED BY", "CreatedBy").shrinks(16),
        Column::new("SIZE", "Size"),
        Column::new("COMMENT", "Comment").shrinks(8),
    ];
    let columns = columns.map(|mut column| {
        if arguments.no_trunc {
            column.keep();
        }
        column
    });
    table::print(&rows, &columns, arguments.format.as_deref(), true)?;
    Ok(0)
}

/// Newest first, as docker prints it. Without history there is a line a layer.
fn rows(store: &Store, image: &Image, arguments: &HistoryArgs) -> Result<Vec<Value>> {
    let (whole, human) = (arguments.no_trunc, arguments.human);
    let mut sizes = Vec::new();
    for diff_id in &image.config.rootfs.diff_ids {
        sizes.push(whole_layer(&store.layer_path(diff_id))?.map_or(0, |layer| layer.unpacked.size));
    }
    let mut steps = image.config.history.clone();
    let known = steps.iter().filter(|step| !step.empty_layer).count();
    steps.extend(vec![Default::default(); sizes.len().saturating_sub(known)]);
    let mut sizes = sizes.into_iter();
    let mut rows = Vec::new();
    for step in steps {
        let size = if step.empty_layer { 0 } else { sizes.next().unwrap_or(0) };
        let created = step.created.as_deref().and_then(unix_time).unwrap_or(image.record.created);
        let by = step.created_by.unwrap_or_default();
        let short: String =
            if by.chars().count() > 45 && !whole { by.chars().take(44).chain(['…']).collect() } else { by };
        rows.push(json!({
            "ID": "<missing>",
            "CreatedSince": if human { format!("{} ago", table::duration(now() - created)) } else { rfc3339(created) },
            "CreatedAt": rfc3339(created),
            "CreatedBy": short,
            "Size": if human { table::size(size) } else { size.to_string() },
            "Comment": step.comment.unwrap_or_default(),
        }));
    }
    rows.reverse();
    if let Some(top) = rows.first_mut() {
        top["ID"] = if whole { image.id.to_string() } else { image.id.short().to_owned() }.into();
    }
    Ok(rows)
}

pub fn tree(arguments: &TreeArgs) -> Result<i32> {
    let store = Store::open(&Paths::find()?)?;
    let image = store.expect(&arguments.image)?;
    println!("Image ID: {}", image.id.short());
    let names: Vec<String> = store.names_of(&image.id)?.iter().map(ToString::to_string).collect();
    println!("Tags:     [{}]", names.join(" "));
    println!("Size:     {}", table::size(image.record.size));
    let images = store.images()?;
    let count = image.record.layers.len();
    for (at, layer) in image.record.layers.iter().enumerate() {
        let size = whole_layer(&store.layer_path(&layer.diff_id))?.map_or(0, |layer| layer.unpacked.size);
        let shares = |other: &&crate::image::store::ImageRecord| {
            other.id != image.id && other.layers.iter().any(|known| known.diff_id == layer.diff_id)
        };
        let shared = images.iter().filter(shares).count();
        let branch = if at + 1 == count { "└──" } else { "├──" };
        let note = if shared == 0 { String::new() } else { format!(" (shared with {shared} other images)") };
        println!("{branch} {} {}{note}", layer.diff_id.short(), table::size(size));
    }
    Ok(0)
}
