//! Challenges (RFC 7235) and tokens: `Basic`, and the bearer tokens of the distribution specification, with a
//! password or with an identity token (OAuth 2 refresh). Tokens are kept a scope, in memory only.

use std::collections::HashMap;
use std::sync::Mutex;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use ureq::http::Request;
use ureq::{Agent, SendBody};

use crate::error::Error;
use crate::image::auth::Credentials;

/// `Authorization` headers by scope.
#[derive(Debug, Default)]
pub struct Tokens(Mutex<HashMap<String, String>>);

/// What a token is wanted for.
pub struct Asked<'a> {
    pub scope: &'a str,
    /// `repository:NAME:pull`
    pub full: &'a str,
    pub credentials: Option<&'a Credentials>,
}

/// One challenge: its scheme in lower case and its parameters.
#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    scheme: String,
    parameters: HashMap<String, String>,
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
}

impl Tokens {
    pub fn header(&self, scope: &str) -> Option<String> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(scope).cloned()
    }

    /// Answers the best of `challenges`; the next request carries the result.
    pub fn answer(
        &self,
        agent: &Agent,
        challenges: &[&str],
        asked: &Asked<'_>,
        tls_only: bool,
    ) -> Result<()> {
        let parsed: Vec<Challenge> = challenges.iter().flat_map(|text| parse(text)).collect();
        let header = if let Some(bearer) = parsed.iter().find(|challenge| challenge.scheme == "bearer") {
            format!("Bearer {}", fetch(agent, bearer, asked, tls_only)?)
        } else if parsed.iter().any(|challenge| challenge.scheme == "basic") {
            let Some(Credentials::Basic { user, password }) = asked.credentials else {
                return Err(Error::host("it wants a user and a password, and there are none for it")
                    .hint("log in with: kelp login REGISTRY")
                    .into());
            };
            format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
        } else {
            return Err(Error::host("it wants a kind of credentials that kelp does not know").into());
        };
        let mut tokens = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        tokens.insert(asked.scope.to_owned(), header);
        Ok(())
    }
}

fn fetch(agent: &Agent, challenge: &Challenge, asked: &Asked<'_>, tls_only: bool) -> Result<String> {
    let realm = challenge.parameters.get("realm").context("its challenge names no token service")?;
    if tls_only && asked.credentials.is_some() && !realm.starts_with("https://") {
        let sentence = format!("its token service {realm} is not reached by TLS");
        return Err(Error::host(sentence).hint("your password would be readable on the way").into());
    }
    let mut fields = Vec::new();
    if let Some(service) = challenge.parameters.get("service") {
        fields.push(("service", service.as_str()));
    }
    let scope = challenge.parameters.get("scope").map_or(asked.full, String::as_str);
    // The challenge may ask for less than what the next requests need (push after a probing HEAD).
    let scope = if asked.full.is_empty() { scope } else { asked.full };
    if !scope.is_empty() {
        fields.push(("scope", scope));
    }
    let mut response = match asked.credentials {
        Some(Credentials::Identity(token)) => {
            fields.extend([("grant_type", "refresh_token"), ("refresh_token", token), ("client_id", "kelp")]);
            let body = form(&fields);
            let request = Request::post(realm).header("content-type", "application/x-www-form-urlencoded");
            agent.run(request.body(body.as_bytes())?)?
        }
        other => {
            let glue = if realm.contains('?') { '&' } else { '?' };
            let mut request = Request::get(format!("{realm}{glue}{}", form(&fields)));
            if let Some(Credentials::Basic { user, password }) = other {
                let pair = STANDARD.encode(format!("{user}:{password}"));
                request = request.header("authorization", format!("Basic {pair}"));
            }
            agent.run(request.body(SendBody::none())?)?
        }
    };
    if !response.status().is_success() {
        let error = Error::host(format!("its token service answers {}", response.status()));
        return Err(error.hint("check the user and the password, or log in again").into());
    }
    let text = response.body_mut().with_config().limit(1 << 20).read_to_vec()?;
    let answer: Answer = serde_json::from_slice(&text).context("its token service answers no token")?;
    let token = answer.token.or(answer.access_token).context("its token service answers no token")?;
    // A token goes into a header: what can't stand there is none.
    if token.is_empty() || token.bytes().any(|byte| !(0x21..0x7f).contains(&byte)) {
        return Err(Error::host("its token service answers a malformed token").into());
    }
    Ok(token)
}

fn form(fields: &[(&str, &str)]) -> String {
    let escape = |text: &str| {
        text.bytes().fold(String::new(), |mut out, byte| {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                out.push(char::from(byte));
            } else {
                out.push_str(&format!("%{byte:02X}"));
            }
            out
        })
    };
    let pairs: Vec<String> = fields.iter().map(|(key, value)| format!("{key}={}", escape(value))).collect();
    pairs.join("&")
}

/// `Bearer realm="...",scope="a,b", Basic realm=x`: several challenges may share a header.
fn parse(text: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut rest = text.trim_start_matches([' ', ',']);
    while !rest.is_empty() {
        let end = rest.find([' ', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let after = after.trim_start_matches(' ');
        if let Some(value) = after.strip_prefix('=') {
            let (value, next) = parameter(value.trim_start_matches(' '));
            if let Some(challenge) = challenges.last_mut() {
                challenge.parameters.insert(word.to_ascii_lowercase(), value);
            }
            rest = next;
        } else {
            challenges.push(Challenge { scheme: word.to_ascii_lowercase(), parameters: HashMap::new() });
            rest = after;
        }
        rest = rest.trim_start_matches([' ', ',']);
    }
    challenges
}

fn parameter(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let (mut value, mut escaped) = (String::new(), false);
    for (at, c) in quoted.char_indices() {
        match c {
            '\\' if !escaped => escaped = true,
            '"' if !escaped => return (value, &quoted[at + 1..]),
            _ => {
                escaped = false;
                value.push(c);
            }
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_parsed() {
        let found =
            parse(r#"Bearer realm="https://a/t",service="s",scope="repository:x:pull,push", Basic realm=b"#);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].parameters["scope"], "repository:x:pull,push");
        assert_eq!((found[1].scheme.as_str(), found[1].parameters["realm"].as_str()), ("basic", "b"));
        assert_eq!(parse(r#"Bearer realm="a\"b"#)[0].parameters["realm"], "a\"b");
        for odd in ["", ",", "=", "Bearer", "=x", "\"", "Bearer =", "é=\"é"] {
            let _ = parse(odd);
        }
    }

    #[test]
    fn a_form_is_escaped() {
        assert_eq!(form(&[("a", "b c&d"), ("e", "ü")]), "a=b%20c%26d&e=%C3%BC");
    }
}
