//! What a registry has: its repositories and their tags (OCI distribution 1.1 and docker's `_catalog`), and
//! docker.io's own search. Lists come in pages; each says where the next one is.

use anyhow::{Context, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use ureq::http::{Method, StatusCode};

use crate::image::reference::DEFAULT_REGISTRY;
use crate::image::registry::{Call, Client, Payload, absolute, bounded, header, refusal};

const LONGEST: u64 = 16 << 20;
const MOST_PAGES: usize = 200;

/// A repository that a search found.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Hit {
    pub name: String,
    #[serde(default)]
    pub description: String,
    #[serde(default, rename = "star_count")]
    pub stars: u64,
    #[serde(default, rename = "is_official")]
    pub official: bool,
    #[serde(default, rename = "is_automated")]
    pub automated: bool,
}

impl Client {
    /// Repositories whose name has `term` in it, at most `limit`; `None` as the term means all.
    pub fn search(&self, term: &str, limit: usize) -> Result<Vec<Hit>> {
        if self.endpoint.host.ends_with(DEFAULT_REGISTRY) {
            #[derive(Deserialize)]
            struct Answer {
                #[serde(default)]
                results: Vec<Hit>,
            }
            let url = format!("https://index.{DEFAULT_REGISTRY}/v1/search?q={}&n={limit}", escaped(term));
            return Ok(self.page::<Answer>(url)?.0.results);
        }
        #[derive(Deserialize)]
        struct Answer {
            #[serde(default)]
            repositories: Vec<String>,
        }
        let mut hits = Vec::new();
        self.pages("_catalog?n=1000", |answer: Answer| {
            let found = answer.repositories.into_iter().filter(|name| name.contains(term));
            hits.extend(found.map(|name| Hit { name, ..Hit::default() }));
            hits.len() < limit
        })?;
        hits.truncate(limit);
        Ok(hits)
    }

    /// The tags of the endpoint's repository.
    pub fn tags(&self, limit: usize) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Answer {
            tags: Option<Vec<String>>,
        }
        let mut tags = Vec::new();
        self.pages("tags/list?n=1000", |answer: Answer| {
            tags.extend(answer.tags.unwrap_or_default());
            tags.len() < limit
        })?;
        tags.truncate(limit);
        Ok(tags)
    }

    fn pages<T: DeserializeOwned>(&self, first: &str, mut more: impl FnMut(T) -> bool) -> Result<()> {
        let mut next = Some(self.url(first)?);
        for _ in 0..MOST_PAGES {
            let Some(url) = next else { return Ok(()) };
            let (answer, link) = self.page(url)?;
            if !more(answer) {
                return Ok(());
            }
            next = link;
        }
        Ok(())
    }

    /// One page, and the address of the next.
    fn page<T: DeserializeOwned>(&self, url: String) -> Result<(T, Option<String>)> {
        let payload = Payload::None;
        let call = Call { method: Method::GET, url, headers: vec![], payload, scope: "pull".to_owned() };
        let mut response = self.send(&call)?;
        if response.status() != StatusCode::OK {
            return Err(refusal(&mut response, &format!("ask {} what it has", self.endpoint.host)));
        }
        // Link: </v2/_catalog?last=b&n=1>; rel="next"
        let next = header(&response, "link").and_then(|link| {
            let (address, rest) = link.strip_prefix('<')?.split_once('>')?;
            rest.contains("next").then(|| absolute(&call.url, address)).flatten()
        });
        let bytes = bounded(&mut response, LONGEST)?;
        let answer = serde_json::from_slice(&bytes)
            .with_context(|| format!("the answer of {} is malformed", self.endpoint.host))?;
        Ok((answer, next))
    }
}

/// Percent-encoding (RFC 3986) of everything but letters, digits and `-._~`.
fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
