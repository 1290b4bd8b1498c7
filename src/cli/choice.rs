//! Which containers `ps` shows: docker's filters. Values of one key are alternatives, keys must all fit, and so must
//! all labels.

use anyhow::Result;
use kelp_net::config::Published;
use std::borrow::Cow;

use crate::cli::filter::{self, Filter};
use crate::cli::pattern;
use crate::container::folder::{Healthiness, Known};
use crate::container::state::State;
use crate::container::{list, published, volume};
use crate::error::Error;
use crate::image::reference::Reference;
use crate::image::store::Store;
use crate::paths::Paths;
use crate::spec::request::{Backend, Network, Request};

const KEYS: [&str; 16] = [
    "id",
    "name",
    "label",
    "status",
    "exited",
    "ancestor",
    "volume",
    "network",
    "health",
    "before",
    "since",
    "publish",
    "expose",
    "until",
    "restart-policy",
    "label!",
];

/// Filters, understood.
#[derive(Debug)]
pub struct Choice {
    tests: Vec<(&'static str, Test)>,
}

#[derive(Debug)]
enum Test {
    Word(String),
    Status(i32),
    Moment(i64),
    /// An image's id, or else what the container calls its root.
    Image(Option<String>, String),
    Ports(u16, u16, String),
}

impl Choice {
    /// # Errors
    /// A filter that is not known, or names a container that is not there.
    pub fn of(paths: &Paths, words: &[String]) -> Result<Self> {
        let mut tests = Vec::new();
        for word in words {
            let refused = || Error::usage(format!("invalid filter {word:?}"));
            let Filter { key, value, is_not } = filter::parse(word).ok_or_else(refused)?;
            let key = if is_not { format!("{key}!") } else { key.to_owned() };
            let hint = || refused().hint(format!("{} are filters", KEYS.join(", ")));
            let key = KEYS.into_iter().find(|known| *known == key).ok_or_else(hint)?;
            tests.push((key, test(paths, key, value).ok_or_else(refused)??));
        }
        Ok(Self { tests })
    }

    /// Whether it asks for states, so that those that do not run are meant too.
    pub fn is_about_states(&self) -> bool {
        self.tests.iter().any(|(key, _)| *key == "status")
    }

    pub fn fits(&self, known: &Known) -> bool {
        KEYS.iter().all(|key| {
            let mut asked = self.tests.iter().filter(|(of, _)| of == key).map(|(_, test)| test).peekable();
            match *key {
                "label" | "label!" => asked.all(|test| fits(key, test, known)),
                _ => asked.peek().is_none() || asked.any(|test| fits(key, test, known)),
            }
        })
    }
}

/// What a filter asks; `None` if its value makes no sense.
fn test(paths: &Paths, key: &str, value: &str) -> Option<Result<Test>> {
    let word = || Test::Word(value.to_owned());
    Some(match key {
        "status" => {
            const STATES: [&str; 8] =
                ["created", "restarting", "running", "removing", "paused", "exited", "dead", "stopped"];
            Ok(STATES.contains(&value).then(word)?)
        }
        "health" => Ok(["starting", "healthy", "unhealthy", "none"].contains(&value).then(word)?),
        "exited" => Ok(Test::Status(value.parse().ok()?)),
        "before" | "since" => list::find(paths, value).map(|known| Test::Moment(known.made.created)),
        "ancestor" => Store::open(paths).map(|store| {
            let found = store.find(value).ok().flatten();
            Test::Image(found.map(|image| image.id.hex().to_owned()), value.to_owned())
        }),
        "publish" | "expose" => {
            let (ports, protocol) = value.split_once('/').unwrap_or((value, "tcp"));
            let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
            Ok(Test::Ports(first.parse().ok()?, last.parse().ok()?, protocol.to_owned()))
        }
        _ => Ok(word()),
    })
}

fn fits(key: &str, test: &Test, known: &Known) -> bool {
    let request = &known.made.request;
    match (key, test) {
        ("id", Test::Word(word)) => known.made.id.as_str().starts_with(word.as_str()),
        ("name", Test::Word(word)) => {
            let name = known.name();
            pattern::found(word, name.as_str()) || pattern::found(word, &format!("/{name}"))
        }
        ("label", Test::Word(word)) => filter::has_label(&request.labels(), word),
        ("label!", Test::Word(word)) => !filter::has_label(&request.labels(), word),
        ("status", Test::Word(word)) => {
            let word = if word == "stopped" { "exited" } else { word };
            known.status.state.word() == word
        }
        ("exited", Test::Status(code)) => known.status.state == State::Exited && known.status.exit == *code,
        (_, Test::Image(id, name)) => {
            let same_name = |word: &str| {
                word == name
                    || word
                        .parse::<Reference>()
                        .ok()
                        .zip(name.parse::<Reference>().ok())
                        .is_some_and(|(a, b)| a == b)
            };
            id.as_ref().is_some_and(|id| *id == request.image.id) || same_name(&request.root_name)
        }
        ("volume", Test::Word(word)) => request.mounts.iter().any(|mount| {
            let name = volume::of(mount, &known.made.id).map(|volume| volume.name);
            name.is_some_and(|name| name.as_str() == word) || mount.target.as_os_str() == word.as_str()
        }),
        ("network", Test::Word(word)) => network(request) == word.as_str(),
        ("restart-policy", Test::Word(word)) => known.status.policy(&known.made).word() == word,
        ("health", Test::Word(word)) => health(known.status.health) == word,
        ("before", Test::Moment(moment)) => known.made.created < *moment,
        ("since", Test::Moment(moment)) => known.made.created > *moment,
        ("until", Test::Word(word)) => filter::until(word, known.made.created / 1_000_000_000),
        ("publish", Test::Ports(first, last, protocol)) => {
            let meets = |one: &Published| {
                one.protocol.to_string() == *protocol
                    && one.host_port <= *last
                    && one.host_port + (one.count - 1) >= *first
            };
            published::of(known).iter().any(meets)
        }
        (_, Test::Ports(first, last, protocol)) => {
            exposed(known).iter().any(|(port, of)| of == protocol && (*first..=*last).contains(port))
        }
        _ => false,
    }
}

/// The word that `ps` shows for a network.
pub fn network(request: &Request) -> Cow<'static, str> {
    match &request.network {
        Network::None => "none".into(),
        Network::Host => "host".into(),
        Network::User(_) if request.backend == Backend::Kelp => "user".into(),
        Network::User(_) => request.backend.word().into(),
        Network::Container(id) => format!("container:{id}").into(),
    }
}

fn health(health: Option<Healthiness>) -> &'static str {
    match health {
        Some(Healthiness::Starting) => "starting",
        Some(Healthiness::Healthy) => "healthy",
        Some(Healthiness::Unhealthy) => "unhealthy",
        None => "none",
    }
}

/// The ports on which the image's services listen, with those that are published.
fn exposed(known: &Known) -> Vec<(u16, String)> {
    let image = known.made.request.image.exposed.iter().filter_map(|word| {
        let (port, protocol) = word.split_once('/').unwrap_or((word, "tcp"));
        Some((port.parse().ok()?, protocol.to_owned()))
    });
    let published = published::of(known);
    let published = published
        .iter()
        .flat_map(|one| (0..one.count).map(|step| (one.container_port + step, one.protocol.to_string())));
    image.chain(published).collect()
}
