//! `kelp search`: which repositories, or which tags of one, registries have. A term without a registry is looked for
//! in those that `registries.conf` names.

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};

use crate::cli::filter;
use crate::cli::pull::RegistryArgs;
use crate::cli::table::{self, Column};
use crate::error::Error;
use crate::image::reference::{DEFAULT_REGISTRY, Reference};
use crate::image::registries_conf::{Endpoint, RegistriesConf};
use crate::image::registry::Client;
use crate::image::registry::catalog::Hit;

/// Search registries for images
#[derive(Debug, Args)]
pub struct SearchArgs {
    /// [REGISTRY/]TERM
    term: String,
    /// The most that is shown of each registry
    #[arg(long, value_name = "N", default_value = "25")]
    limit: usize,
    /// List the tags of the repository TERM
    #[arg(long)]
    list_tags: bool,
    /// stars=N, is-official=BOOL, is-automated=BOOL
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Print whole descriptions
    #[arg(long)]
    no_trunc: bool,
    /// A Go template or `json`
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    #[command(flatten)]
    registry: RegistryArgs,
}

pub fn run(arguments: &SearchArgs) -> Result<i32> {
    let conf = RegistriesConf::load()?;
    let format = arguments.format.as_deref();
    if arguments.list_tags {
        let mut rows = Vec::new();
        for reference in conf.candidates(&arguments.term)? {
            let client = client(&conf, &reference, arguments)?;
            for tag in client.tags(arguments.limit)? {
                rows.push(json!({ "Name": reference.name(), "Tag": tag }));
            }
        }
        table::print(&rows, &[Column::new("NAME", "Name"), Column::new("TAG", "Tag")], format, true)?;
        return Ok(0);
    }
    let mut rows = Vec::new();
    for (registry, term) in places(&conf, &arguments.term)? {
        let reference: Reference = format!("{registry}/x/x").parse()?;
        let client = client(&conf, &reference, arguments)?;
        let catalog = Endpoint { repository: String::new(), ..client.endpoint.clone() };
        let client = Client::new(catalog, arguments.registry.manner())?;
        let hits =
            client.search(&term, arguments.limit).with_context(|| format!("cannot search {registry}"))?;
        for hit in hits {
            if arguments
                .filter
                .iter()
                .map(|text| fits(text, &hit))
                .collect::<Result<Vec<_>>>()?
                .contains(&false)
            {
                continue;
            }
            rows.push(row(&registry, &hit, arguments.no_trunc));
        }
    }
    let columns = [
        Column::new("NAME", "Name"),
        Column::new("DESCRIPTION", "Description"),
        Column::new("STARS", "Stars"),
        Column::new("OFFICIAL", "Official"),
    ];
    table::print(&rows, &columns, format, true)?;
    Ok(0)
}

fn client(conf: &RegistriesConf, reference: &Reference, arguments: &SearchArgs) -> Result<Client> {
    let endpoint = conf.endpoints(reference)?.pop().context("registries.conf leaves no endpoint")?;
    Client::new(endpoint, arguments.registry.manner())
}

/// Each registry to ask, and for what.
fn places(conf: &RegistriesConf, word: &str) -> Result<Vec<(String, String)>> {
    if let Some((registry, term)) = word.split_once('/').filter(|_| Reference::has_host(word)) {
        return Ok(vec![(registry.to_owned(), term.to_owned())]);
    }
    let found = conf.candidates("x")?;
    Ok(found.into_iter().map(|reference| (reference.registry, word.to_owned())).collect())
}

fn row(registry: &str, hit: &Hit, whole: bool) -> Value {
    let text = hit.description.replace('\n', " ");
    let short: String = text.chars().take(44).collect();
    let description = if whole || short.len() == text.len() { text } else { format!("{short}…") };
    let name = if hit.name.contains('/') { hit.name.clone() } else { format!("library/{}", hit.name) };
    let name = if registry == DEFAULT_REGISTRY { name } else { hit.name.clone() };
    json!({
        "Index": registry,
        "Name": format!("{registry}/{name}"),
        "Description": description,
        "Stars": hit.stars,
        "Official": if hit.official { "[OK]" } else { "" },
        "Automated": if hit.automated { "[OK]" } else { "" },
    })
}

fn fits(text: &str, hit: &Hit) -> Result<bool> {
    let refused = || {
        Error::usage(format!(
            "{text:?} is no filter: stars=N, is-official=BOOL or is-automated=BOOL is expected"
        ))
    };
    let filter = filter::parse(text).ok_or_else(refused)?;
    let word = || filter.value.parse::<bool>().map_err(|_| refused());
    Ok(match filter.key {
        "stars" => hit.stars >= filter.value.parse().map_err(|_| refused())?,
        "is-official" => hit.official == word()?,
        "is-automated" => hit.automated == word()?,
        _ => return Err(refused().into()),
    })
}
