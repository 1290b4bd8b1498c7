//! podman's words for the columns of `top`: each is a name, a heading, and what a process shows under it. Ids are those
//! of the container unless the word begins with `h`, for host.

use std::fs;

use anyhow::Result;

use crate::cli::table::{self, Column};
use crate::cli::top;
use crate::error::Error;
use crate::ids::HostId;
use crate::userns::maps::{IdMaps, Line, maps_from};
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
    ("ppid", "PPID", |it| it.parent()),
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
        let shown = Shown { seen, status: status(seen.pid), maps: &maps };
        let cells = chosen().map(|(name, _, show)| ((*name).to_owned(), show(&shown).into()));
        serde_json::Value::Object(cells.collect())
    };
    let rows: Vec<_> = processes.iter().map(row).collect();
    let columns: Vec<Column> = chosen().map(|(name, heading, _)| Column::new(heading, name)).collect();
    table::print(&rows, &columns, None, true)
}

impl Shown<'_> {
    /// The words of a line of `proc_pid_status(5)`.
    fn words(&self, key: &str) -> Vec<&str> {
        words(&self.status, key)
    }

    fn said(&self, key: &str, at: usize) -> String {
        self.words(key).get(at).copied().unwrap_or("?").to_owned()
    }

    /// The last, which is the container's own.
    fn last(&self, key: &str) -> String {
        self.words(key).last().copied().unwrap_or("?").to_owned()
    }

    /// The container's number of the parent, which is 0 if that is outside.
    fn parent(&self) -> String {
        let status = status(self.seen.parent);
        let (own, above) = (self.words("NSpid:"), words(&status, "NSpid:"));
        above.last().filter(|_| above.len() == own.len()).map_or("0", |number| *number).to_owned()
    }
}

fn status(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default()
}

fn words<'a>(status: &'a str, key: &str) -> Vec<&'a str> {
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    line.split_whitespace().collect()
}

fn inside(lines: &[Line], id: String) -> String {
    let Ok(id) = id.parse() else { return id };
    maps_from(lines, HostId(id)).map_or_else(|| "?".to_owned(), |id| id.to_string())
}

/// The one name that every container knows.
fn name(id: String) -> String {
    if id == "0" { "root".to_owned() } else { id }
}
