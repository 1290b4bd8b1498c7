//! Lists as docker prints them: a table, `--format json` (one object a line), or a Go template a row; and the
//! words for sizes and times in them.

use anyhow::Result;
use serde_json::Value;

use crate::cli::template::Template;

/// A column of the plain table and the field that it shows.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    heading: &'static str,
    field: &'static str,
}

impl Column {
    pub const fn new(heading: &'static str, field: &'static str) -> Self {
        Self { heading, field }
    }
}

/// Prints `rows` by `format`.
pub fn print(rows: &[Value], columns: &[Column], format: Option<&str>, heading: bool) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    match format {
        Some("json" | "{{json .}}") => {
            for row in rows {
                writeln!(out, "{row}")?;
            }
        }
        Some(text) if text != "table" => {
            let (aligned, text) = text.strip_prefix("table ").map_or((false, text), |text| (true, text));
            let template = Template::parse(&text.replace("\\t", "\t").replace("\\n", "\n"))?;
            let lines: Result<Vec<String>> = rows.iter().map(|row| template.render(row)).collect();
            let mut lines = lines?;
            if aligned && heading {
                lines.insert(0, template.headings(columns.iter().map(|c| (c.field, c.heading))));
            }
            if aligned {
                let cells: Vec<Vec<String>> =
                    lines.iter().map(|line| line.split('\t').map(str::to_owned).collect()).collect();
                lines = align(&cells);
            }
            for line in lines {
                writeln!(out, "{line}")?;
            }
        }
        _ => {
            let mut cells = Vec::new();
            if heading {
                cells.push(columns.iter().map(|column| column.heading.to_owned()).collect());
            }
            for row in rows {
                cells.push(columns.iter().map(|column| text(&row[column.field])).collect());
            }
            for line in align(&cells) {
                writeln!(out, "{line}")?;
            }
        }
    }
    Ok(out.flush()?)
}

/// Prints what `inspect` found: a JSON list, or a Go template each.
pub fn inspect(values: &[Value], format: Option<&str>) -> Result<()> {
    match format {
        None | Some("json") => println!("{}", serde_json::to_string_pretty(values)?),
        Some(text) => {
            let template = Template::parse(&text.replace("\\t", "\t").replace("\\n", "\n"))?;
            for value in values {
                println!("{}", template.render(value)?);
            }
        }
    }
    Ok(())
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Columns three spaces apart, as docker has them.
fn align(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(at, cell)| {
            if at + 1 == row.len() { cell.clone() } else { format!("{cell:<width$}   ", width = widths[at]) }
        });
        cells.collect::<String>()
    };
    rows.iter().map(line).collect()
}

/// `77.8MB`: decimal units, four digits, as docker's `units.HumanSizeWithPrecision`.
pub fn size(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    let number = format!("{value:.digits$}");
    let number =
        if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.') } else { &number };
    format!("{number}{}", units[unit])
}

/// `3 weeks`: docker's `units.HumanDuration`.
pub fn duration(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        ..1 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        _ if minutes == 1 => "About a minute".to_owned(),
        _ if minutes < 46 => format!("{minutes} minutes"),
        _ if hours <= 1 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if days < 14 => format!("{days} days"),
        _ if days < 60 => format!("{} weeks", days / 7),
        _ if days < 730 => format!("{} months", days / 30),
        _ => format!("{} years", days / 365),
    }
}

/// Shell patterns with `*` and `?`.
pub fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((at, from)) = star else { return false };
                (p, t, star) = (at + 1, from + 1, Some((at, from + 1)));
            }
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_dockers() {
        for (bytes, text) in
            [(0, "0B"), (999, "999B"), (1000, "1kB"), (77_800_000, "77.8MB"), (1_234_000_000, "1.23GB")]
        {
            assert_eq!(size(bytes), text);
        }
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (61, "About a minute"),
            (600, "10 minutes"),
            (3600, "About an hour"),
            (7200, "2 hours"),
            (86_400 * 3, "3 days"),
            (86_400 * 21, "3 weeks"),
            (86_400 * 90, "3 months"),
            (86_400 * 900, "2 years"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn patterns_match_as_in_a_shell() {
        for (pattern, text) in [("*", ""), ("a*c", "abbc"), ("a?c", "abc"), ("*/b:*", "a/b:1"), ("x", "x")] {
            assert!(glob(pattern, text), "{pattern}");
        }
        for (pattern, text) in [("a", "ab"), ("a*c", "abd"), ("?", "")] {
            assert!(!glob(pattern, text), "{pattern}");
        }
    }
}
