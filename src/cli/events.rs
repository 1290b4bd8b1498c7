//! `kelp events`: what has happened to containers, images and volumes, as docker tells it; without `--until` also
//! what happens from now on. It reads the store's journal and wakes up when something is added to it.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{ArgAction, Args};
use serde_json::{Value, json};

use crate::cli::filter::{self, Filter};
use crate::cli::moment;
use crate::cli::template::Template;
use crate::container::journal::{Event, Journal, Kind, Reader};
use crate::container::watch::Watch;
use crate::error::Error;
use crate::image::config::rfc3339_nanos;
use crate::paths::Paths;
use crate::units;

/// Show what happens to containers, images and volumes
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// From this time on: RFC 3339, seconds since 1970, or a duration before now such as 10m
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Up to this time; without it, go on
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Wait for more; without, what has happened is told, from the first that is known on
    #[arg(long, value_name = "BOOL", default_value = "true", num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    stream: bool,
    /// For podman's command line: ids are whole
    #[arg(long)]
    no_trunc: bool,
    /// container=, event=, image=, label=, type=, volume=
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    /// A Go template or `json`
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

/// How an event is printed.
enum Form {
    Text,
    Json,
    Template(Template),
}

pub fn run(arguments: &EventsArgs) -> Result<i32> {
    let filters = filters(&arguments.filter)?;
    let form = match arguments.format.as_deref() {
        None | Some("") => Form::Text,
        Some("json" | "{{json .}}") => Form::Json,
        Some(text) => Form::Template(Template::parse(&text.replace("\\t", "\t").replace("\\n", "\n"))?),
    };
    let now = units::now();
    let since = arguments.since.as_deref().map(moment::nanoseconds).transpose()?;
    let since = since.unwrap_or(if arguments.stream { now } else { 0 });
    let until = arguments.until.as_deref().map(moment::nanoseconds).transpose()?;
    let until = if arguments.stream { until } else { Some(until.unwrap_or(now).min(now)) };
    let store = Paths::find()?.store;
    // Watched before it is read, so that nothing happens between the two.
    let watch = Watch::new(&store).with_context(|| format!("cannot watch {}", store.display()))?;
    let (mut reader, mut events) = Reader::open(&store).context("cannot read the journal")?;
    loop {
        events.retain(|event| {
            event.time >= since && until.is_none_or(|until| event.time <= until) && fits(&filters, event)
        });
        print(&events, &form)?;
        let left = until.map(|until| u64::try_from(until - units::now()).unwrap_or(0));
        if left == Some(0) {
            return Ok(0);
        }
        watch.wait(left.map(|left| Instant::now() + Duration::from_nanos(left)))?;
        events = reader.more().context("cannot read the journal")?;
    }
}

fn filters(words: &[String]) -> Result<Vec<Filter<'_>>> {
    let known = ["container", "event", "image", "label", "type", "volume"];
    let mut filters = Vec::new();
    for word in words {
        let filter = filter::parse(word).filter(|filter| known.contains(&filter.key) && !filter.is_not);
        filters.push(filter.ok_or_else(|| Error::usage(format!("invalid filter {word:?}")))?);
    }
    Ok(filters)
}

/// Of several filters with one key one must fit, and of each key one.
fn fits(filters: &[Filter<'_>], event: &Event) -> bool {
    let of_key = |key: &str| filters.iter().any(|filter| filter.key == key && one_fits(filter, event));
    filters.iter().all(|filter| of_key(filter.key))
}

fn one_fits(filter: &Filter<'_>, event: &Event) -> bool {
    let (kind, wanted) = (event.kind.word(), filter.value);
    let attribute = |key: &str| event.attributes.get(key).map(String::as_str);
    let named = |name: Option<&str>| event.id.starts_with(wanted) || name == Some(wanted);
    match filter.key {
        "event" => event.action == wanted || event.action.split(':').next() == Some(wanted),
        "type" => kind == wanted,
        "label" => filter::has_label(&event.attributes, wanted),
        "image" if kind == "image" => named(attribute("name")),
        "image" => attribute("image") == Some(wanted),
        key => key == kind && named(attribute("name")),
    }
}

/// Says in the journal that what nobody needs was removed, and how many bytes that were.
pub fn pruned(paths: &Paths, kind: Kind, freed: u64) {
    let reclaimed = BTreeMap::from([("reclaimed".to_owned(), freed.to_string())]);
    Journal::of(&paths.store).tell(kind, "prune", "", reclaimed);
}

fn print(events: &[Event], form: &Form) -> Result<()> {
    let mut out = io::stdout().lock();
    for event in events {
        match form {
            Form::Text => writeln!(out, "{}", text(event))?,
            Form::Json => writeln!(out, "{}", message(event))?,
            Form::Template(template) => writeln!(out, "{}", template.render(&fields(event))?)?,
        }
    }
    Ok(out.flush()?)
}

fn text(event: &Event) -> String {
    let attributes: Vec<String> =
        event.attributes.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let tail = if attributes.is_empty() { String::new() } else { format!(" ({})", attributes.join(", ")) };
    format!("{} {} {} {}{tail}", rfc3339_nanos(event.time), event.kind.word(), event.action, event.id)
}

/// Docker's message on the wire.
fn message(event: &Event) -> Value {
    let mut value = json!({
        "Type": event.kind.word(),
        "Action": event.action,
        "Actor": { "ID": event.id, "Attributes": event.attributes },
        "scope": "local",
        "time": event.time / 1_000_000_000,
        "timeNano": event.time,
        "status": event.action,
        "id": event.id,
    });
    if let Some(image) = event.attributes.get("image") {
        value["from"] = image.as_str().into();
    }
    value
}

/// The same by the names that templates use.
fn fields(event: &Event) -> Value {
    let attribute = |key: &str| event.attributes.get(key).cloned().unwrap_or_default();
    json!({
        "Type": event.kind.word(),
        "Action": event.action,
        "Status": event.action,
        "Actor": { "ID": event.id, "Attributes": event.attributes },
        "ID": event.id,
        "Name": if event.kind == Kind::Volume { event.id.clone() } else { attribute("name") },
        "From": attribute("image"),
        "Scope": "local",
        "Time": event.time / 1_000_000_000,
        "TimeNano": event.time,
    })
}
