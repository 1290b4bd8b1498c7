//! Moments as docker's `--since` and `--until` name them: RFC 3339, seconds since 1970 with or without a fraction,
//! or a duration before now.

use anyhow::Result;

use crate::image::config::unix_time;
use crate::units;

const SECOND: i64 = 1_000_000_000;

/// In nanoseconds since 1970.
pub fn nanoseconds(word: &str) -> Result<i64> {
    if let Some(seconds) = unix_time(word) {
        let fraction = word.split_once('.').map_or("", |(_, rest)| rest);
        return Ok(seconds.saturating_mul(SECOND).saturating_add(billionths(fraction)));
    }
    let (whole, fraction) = word.split_once('.').unwrap_or((word, ""));
    let is_stamp = fraction.bytes().all(|byte| byte.is_ascii_digit());
    if let Some(seconds) = whole.parse::<i64>().ok().filter(|_| is_stamp) {
        return Ok(seconds.saturating_mul(SECOND).saturating_add(billionths(fraction)));
    }
    let before = units::parse_duration(word)?;
    Ok(units::now() - i64::try_from(before.as_nanos()).unwrap_or(i64::MAX))
}

/// The first nine digits of a fraction.
fn billionths(fraction: &str) -> i64 {
    let digits = fraction.bytes().take_while(u8::is_ascii_digit).chain(std::iter::repeat(b'0')).take(9);
    digits.fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_time_a_stamp_or_an_age() {
        assert_eq!(nanoseconds("1700000000").unwrap(), 1_700_000_000 * SECOND);
        assert_eq!(nanoseconds("1700000000.25").unwrap(), 1_700_000_000 * SECOND + 250_000_000);
        assert_eq!(nanoseconds("1970-01-01T00:00:01.5Z").unwrap(), SECOND + 500_000_000);
        assert!((units::now() - nanoseconds("1m").unwrap() - 60 * SECOND).abs() < SECOND);
        assert!(nanoseconds("tide").is_err());
    }
}
