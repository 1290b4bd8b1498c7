//! `--filter KEY=VALUE` and `--filter KEY!=VALUE`, and the two keys that every list and prune has: label and
//! until.

use std::collections::BTreeMap;

use crate::image::config::{now, unix_time};
use crate::units;

/// One filter, taken apart.
#[derive(Clone, Copy, Debug)]
pub struct Filter<'a> {
    pub key: &'a str,
    pub value: &'a str,
    pub is_not: bool,
}

pub fn parse(text: &str) -> Option<Filter<'_>> {
    let (key, value) = text.split_once('=')?;
    Some(match key.strip_suffix('!') {
        Some(key) => Filter { key, value, is_not: true },
        None => Filter { key, value, is_not: false },
    })
}

/// `label=KEY` or `label=KEY=VALUE`.
pub fn has_label(labels: &BTreeMap<String, String>, wanted: &str) -> bool {
    let (name, value) = wanted.split_once('=').map_or((wanted, None), |(name, value)| (name, Some(value)));
    labels.get(name).is_some_and(|found| value.is_none_or(|value| value == found))
}

/// `until=`: whether something was made before the moment, which is seconds since 1970, an RFC 3339 time, or an
/// age such as `10m`.
pub fn until(moment: &str, made: i64) -> bool {
    let age =
        || units::parse_duration(moment).ok().map(|age| now().saturating_sub(age.as_secs().cast_signed()));
    let stamp = moment.parse::<i64>().ok().filter(|seconds| *seconds > 1_000_000_000);
    stamp.or_else(|| unix_time(moment)).or_else(age).is_some_and(|moment| made < moment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_stamp_a_time_or_an_age() {
        assert!(until("1700000000", 1_600_000_000) && !until("1700000000", 1_800_000_000));
        assert!(until("2024-02-29T12:00:00Z", 1_700_000_000));
        assert!(until("10m", now() - 3600) && !until("10m", now()) && !until("x", 0));
    }
}
