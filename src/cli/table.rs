//! Lists as docker prints them: a table, `--format json` (one object a line), or a Go template a row; what `inspect`
//! shows; and the words for sizes and times in them. On a terminal a table keeps to the window.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;

use anyhow::Result;
use clap::Args;
use serde_json::Value;

use crate::cli::report;
use crate::cli::template::Template;
use crate::sys::terminal;

/// A column of the plain table and the field that it shows.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    heading: &'static str,
    field: &'static str,
    /// What it may be cut to where the window is narrow.
    least: Option<usize>,
    /// Which columns are left out first there.
    yields: Option<u8>,
}

impl Column {
    pub const fn new(heading: &'static str, field: &'static str) -> Self {
        Self { heading, field, least: None, yields: None }
    }

    /// May be cut to so many characters.
    pub const fn shrinks(self, least: usize) -> Self {
        Self { least: Some(least), ..self }
    }

    /// May be left out; the lowest rank goes first.
    pub const fn yields(self, rank: u8) -> Self {
        Self { yields: Some(rank), ..self }
    }

    /// Is shown whole, however narrow the window is.
    pub fn keep(&mut self) {
        (self.least, self.yields) = (None, None);
    }
}

/// What all lists of small things are asked: names or ids alone, a format, no heading.
#[derive(Clone, Debug, Args)]
pub struct ListArgs {
    /// Print only names or ids
    #[arg(short, long)]
    pub quiet: bool,
    /// A Go template, `json`, or `table TEMPLATE`
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Print no heading
    #[arg(short = 'n', long)]
    noheading: bool,
}

impl ListArgs {
    /// Prints `rows`, or of each only the field `name`.
    pub fn print(&self, rows: &[Value], columns: &[Column], name: &str) -> Result<()> {
        if !self.quiet {
            return print(rows, columns, self.format.as_deref(), !self.noheading);
        }
        let mut names: Vec<String> = rows.iter().map(|row| text(&row[name])).collect();
        names.dedup();
        let mut out = io::BufWriter::new(io::stdout().lock());
        names.iter().try_for_each(|name| writeln!(out, "{name}"))?;
        Ok(out.flush()?)
    }
}

/// Prints `rows` by `format`.
pub fn print(rows: &[Value], columns: &[Column], format: Option<&str>, heading: bool) -> Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    match format {
        Some("json" | "{{json .}}") => {
            for row in rows {
                writeln!(out, "{row}")?;
            }
        }
        Some(text) if text != "table" => {
            let (aligned, text) = text.strip_prefix("table ").map_or((false, text), |text| (true, text));
            let template = template(text)?;
            let lines: Result<Vec<String>> = rows.iter().map(|row| template.render(row)).collect();
            let mut lines = lines?;
            if aligned && heading {
                lines.insert(0, template.headings(columns.iter().map(|c| (c.field, c.heading))));
            }
            if aligned {
                let cells: Vec<Vec<String>> =
                    lines.iter().map(|line| line.split('\t').map(str::to_owned).collect()).collect();
                lines = align(&cells, GAP);
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
            let gap = match window() {
                Some(width) => fit(&mut cells, columns, width, heading),
                None => GAP,
            };
            for line in align(&cells, gap) {
                writeln!(out, "{line}")?;
            }
        }
    }
    Ok(out.flush()?)
}

fn template(text: &str) -> Result<Template> {
    Template::parse(&text.replace("\\t", "\t").replace("\\n", "\n"))
}

/// Prints what `inspect` found: a JSON list, or a Go template each.
pub fn inspect(values: &[Value], format: Option<&str>) -> Result<()> {
    match format {
        None | Some("json") => println!("{}", serde_json::to_string_pretty(values)?),
        Some(text) => {
            let template = template(text)?;
            for value in values {
                println!("{}", template.render(value)?);
            }
        }
    }
    Ok(())
}

/// Prints what `find` gives for each word; 1 if there is nothing for one, which is said.
pub fn inspect_each(
    words: &[String],
    format: Option<&str>,
    mut find: impl FnMut(&str) -> Result<Value>,
) -> Result<i32> {
    let (mut values, mut status) = (Vec::new(), 0);
    for word in words {
        match find(word) {
            Ok(value) => values.push(value),
            Err(error) => {
                report(&error);
                status = 1;
            }
        }
    }
    inspect(&values, format)?;
    Ok(status)
}

/// Prints one object by `format`, or else as `plain` has it.
pub fn object(value: &Value, format: Option<&str>, plain: impl FnOnce(&Value)) -> Result<i32> {
    match format {
        None => plain(value),
        Some("json") => println!("{value}"),
        Some(text) => println!("{}", template(text)?.render(value)?),
    }
    Ok(0)
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Between columns, as docker has it; where the window is narrow, less.
const GAP: usize = 3;
const NARROW_GAP: usize = 2;

/// The columns of the terminal that is written to, if it is one.
fn window() -> Option<usize> {
    let out = io::stdout();
    let (_, columns) = out.is_terminal().then(|| terminal::window(out.as_fd()).ok()).flatten()?;
    Some(usize::from(columns)).filter(|columns| *columns > 0)
}

fn width(rows: &[Vec<String>], column: usize) -> usize {
    rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
}

/// Makes the table as narrow as the window, as far as its columns allow: those that are empty or yield are left out,
/// then those that shrink are cut, the widest first. Gives the gap between columns.
fn fit(cells: &mut [Vec<String>], columns: &[Column], window: usize, heading: bool) -> usize {
    let mut columns = columns.to_vec();
    let whole =
        |widths: &[usize], gap: usize| widths.iter().sum::<usize>() + gap * widths.len().saturating_sub(1);
    let measure =
        |cells: &[Vec<String>], count: usize| (0..count).map(|at| width(cells, at)).collect::<Vec<_>>();
    let mut widths = measure(cells, columns.len());
    if whole(&widths, GAP) <= window {
        return GAP;
    }
    loop {
        let least: Vec<usize> = widths
            .iter()
            .zip(&columns)
            .map(|(width, column)| {
                column.least.map_or(*width, |least| least.max(column.heading.len()).min(*width))
            })
            .collect();
        if whole(&least, NARROW_GAP) <= window {
            let gaps = NARROW_GAP * widths.len().saturating_sub(1);
            narrow(&mut widths, &least, window.saturating_sub(gaps));
            break;
        }
        let is_empty = |at: usize| cells.iter().skip(usize::from(heading)).all(|row| row[at].is_empty());
        let rank =
            |at: &usize| if is_empty(*at) { Some(0) } else { columns[*at].yields.map(|rank| rank + 1) };
        let first = (0..columns.len()).filter(|at| rank(at).is_some()).min_by_key(rank);
        let Some(first) = first.filter(|_| columns.len() > 1) else {
            widths = least;
            break;
        };
        columns.remove(first);
        widths.remove(first);
        cells.iter_mut().for_each(|row| drop(row.remove(first)));
    }
    for row in cells {
        for (cell, width) in row.iter_mut().zip(&widths) {
            if cell.chars().count() > *width {
                *cell = cell.chars().take(width.saturating_sub(1)).chain(['…']).collect();
            }
        }
    }
    NARROW_GAP
}

/// Takes from the widest that can give until the sum is `most`.
fn narrow(widths: &mut [usize], least: &[usize], most: usize) {
    while widths.iter().sum::<usize>() > most {
        let widest = (0..widths.len()).filter(|at| widths[*at] > least[*at]).max_by_key(|at| widths[*at]);
        match widest {
            Some(widest) => widths[widest] -= 1,
            None => return,
        }
    }
}

fn align(rows: &[Vec<String>], gap: usize) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(|column| width(rows, column)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(at, cell)| {
            if at + 1 == row.len() {
                cell.clone()
            } else {
                format!("{cell:<width$}", width = widths[at] + gap)
            }
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
    fn a_table_keeps_to_the_window() {
        let columns = [
            Column::new("ID", "a"),
            Column::new("COMMAND", "b").yields(1),
            Column::new("PORTS", "c"),
            Column::new("NAME", "d").shrinks(6),
        ];
        let rows = || -> Vec<Vec<String>> {
            [["ID", "COMMAND", "PORTS", "NAME"], ["123456", "sleep 1000", "", "a-long-name-indeed"]]
                .map(|row| row.map(str::to_owned).to_vec())
                .to_vec()
        };
        let shown = |window: usize| {
            let mut cells = rows();
            let gap = fit(&mut cells, &columns, window, true);
            align(&cells, gap)[1].clone()
        };
        assert_eq!(shown(80), "123456   sleep 1000           a-long-name-indeed");
        assert_eq!(shown(40), "123456  sleep 1000         a-long-name-…");
        assert_eq!(shown(30), "123456  sleep 1000  a-long-na…");
        assert_eq!(shown(20), "123456  a-long-name…");
        assert_eq!(shown(5), "123456  a-lon…", "what can't be cut stays");
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
