//! podman's words for the columns of `top`: each is a name, a heading, and what a process shows under it. Ids are those
//! of the container unless the word begins with `h`, for host.

use std::fs;

use anyhow::Result;

use crate::cli::table::{self, Column};
use crate::cli::top;
use crate::error::Error;
use crate::userns::maps::{IdMaps, Line};
use crate::verbs::observe::Seen;

/// A process, and what the kernel says of it besides.
struct Shown<'a> {
    seen: &'a Seen,
    status: String,
    maps: &'a IdMaps,
}

type Show = fn(&Shown<'_>) -> String;

const DESCRIPTORS: [(&str, &str, Show); 17] = [
    ("args", "COMMAND", |it| it.seen.command.clone()),
    ("comm", "COMMAND", |it| it.said("Name:", 0)),
    ("etime", "ELAPSED", |it| format!("{}s", it.seen.age.as_secs())),
    ("group", "GROUP", |it| name(inside(&it.maps.gid, it.said("Gid:", 1)))),
    ("hgroup", "HGROUP", |it| it.said("Gid:", 1)),
    ("hpid", "HPID", |it| it.seen.pid.to_string()),
    ("huser", "HUSER", |it| it.said("Uid:", 1)),
    ("pgid", "PGID", |it| it.last("NSpgid:")),
    ("pid", "PID", |it| it.last("NSpid:")),
    ("ppid", "PPID", |it| parent(it.seen)),
    ("rgroup", "RGROUP", |it| name(inside(&it.maps.gid, it.said("Gid:", 0)))),
    ("ruser", "RUSER", |it| name(inside(&it.maps.uid, it.said("Uid:", 0)))),
    ("state", "STATE", |it| it.said("State:", 0)),
    ("time", "TIME", |it| format!("{}s", it.seen.used.as_secs())),
    ("tty", "TTY", |it| top::terminal(it.seen.terminal)),
    ("user", "USER", |it| name(inside(&it.maps.uid, it.said("Uid:", 1)))),
    ("vsz", "VSZ", |it| it.said("VmSize:", 0)),
];

/// The columns that `words` ask for; `None` if they are options for ps(1).
pub fn asked(words: &[String]) -> Result<Option<Vec<usize>>> {
    if words.first().is_none_or(|word| word.starts_with('-')) {
        return Ok(None);
    }
    let find = |word: &str| {
        let at = DESCRIPTORS.iter().position(|(name, ..)| *name == word.trim());
        at.ok_or_else(|| {
            let known: Vec<&str> = DESCRIPTORS.iter().map(|(name, ..)| *name).collect();
            Error::usage(format!("{word:?} is no column of top"))
                .hint(format!("{} are, and the options of ps(1) with a -", known.join(", ")))
                .into()
        })
    };
    words.iter().flat_map(|word| word.split(',')).map(find).collect::<Result<_>>().map(Some)
}

pub fn print(processes: &[Seen], columns: &[usize], first: i32) -> Result<()> {
    let maps = IdMaps::of_process(first)?;
    let chosen = || columns.iter().filter_map(|at| DESCRIPTORS.get(*at));
    let row = |seen: &Seen| {
        let status = fs::read_to_string(format!("/proc/{}/status", seen.pid)).unwrap_or_default();
        let shown = Shown { seen, status, maps: &maps };
        let cells = chosen().map(|(name, _, show)| ((*name).to_owned(), show(&shown).into()));
        serde_json::Value::Object(cells.collect())
    };
    let rows: Vec<_> = processes.iter().map(row).collect();
    let columns: Vec<Column> = chosen().map(|(name, heading, _)| Column::new(heading, name)).collect();
    table::print(&rows, &columns, None, true)
}

impl Shown<'_> {
    /// A word of a line of `proc_pid_status(5)`.
    fn said(&self, key: &str, at: usize) -> String {
        let line = self.status.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|line| line.split_whitespace().nth(at)).unwrap_or("?").to_owned()
    }

    /// The last, which is the container's own.
    fn last(&self, key: &str) -> String {
        let line = self.status.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|line| line.split_whitespace().last()).unwrap_or("?").to_owned()
    }
}

/// The container's number of the parent, which is 0 if that is outside.
fn parent(seen: &Seen) -> String {
    let numbers = |pid: i32| -> Vec<String> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
        line.split_whitespace().map(str::to_owned).collect()
    };
    let (own, above) = (numbers(seen.pid), numbers(seen.parent));
    above.last().filter(|_| above.len() == own.len()).map_or("0", String::as_str).to_owned()
}

fn inside(lines: &[Line], id: String) -> String {
    let Ok(id) = id.parse::<u32>() else { return id };
    let line =
        lines.iter().find(|line| id.checked_sub(line.host.0).is_some_and(|offset| offset < line.count));
    line.map_or_else(|| "?".to_owned(), |line| (line.container.0 + (id - line.host.0)).to_string())
}

/// The one name that every container knows.
fn name(id: String) -> String {
    if id == "0" { "root".to_owned() } else { id }
}
