//! Orders about what a container may use: update, pause, unpause; and what it uses. A running container's monitor
//! carries them out.

use std::fs;

use anyhow::Result;

use crate::cgroup::hold;
use crate::cgroup::stats::Usage;
use crate::cgroup::tree::Processes;
use crate::container::call::{FromMonitor, Line, ToMonitor};
use crate::container::folder::{Container, Known};
use crate::container::list;
use crate::paths::Paths;
use crate::spec::life::Restart;
use crate::spec::resources::Limits;
use crate::verbs::order::{reach, refusal};

/// Changes limits: at once where the container runs, else from its next start; `warn` is told which of them nobody
/// enforces until then. A restart policy holds at once in either case.
pub fn update(
    paths: &Paths,
    word: &str,
    limits: &Limits,
    restart: Option<Restart>,
    warn: &mut dyn FnMut(&str),
) -> Result<()> {
    let (known, line) = reach(paths, word)?;
    let mut together = known.made.request.resources.limits.clone();
    together.update(&known.status.limits);
    together.update(limits);
    together.check()?;
    if known.status.remove && restart.is_some_and(|policy| policy != Restart::No) {
        return Err(refusal(format!(
            "{word}: Restart policy cannot be updated because AutoRemove is enabled for the container"
        )));
    }
    let Some(line) = line else {
        let mut container = Container::wait(&known.folder)?.ok_or_else(|| list::no_such(word))?;
        container.status.limits.update(limits);
        container.status.restart = restart.or(container.status.restart);
        return container.keep();
    };
    heard(word, line.ask(&ToMonitor::Update(limits.clone(), restart))?)?;
    let enforced = Known::read(&known.folder)?.map(|(known, _)| known.status.enforced).unwrap_or_default();
    for flag in hold::unenforced(&enforced).into_iter().filter(|flag| limits.0.contains_key(*flag)) {
        warn(&format!("nothing enforces --{flag} while {word} runs: see `kelp doctor`"));
    }
    Ok(())
}

pub fn pause(paths: &Paths, word: &str) -> Result<()> {
    order(paths, word, &ToMonitor::Pause)
}

pub fn unpause(paths: &Paths, word: &str) -> Result<()> {
    order(paths, word, &ToMonitor::Unpause)
}

/// Pauses it until the line is closed, or `go_on`, whoever ends this process and how.
pub fn stand_still(paths: &Paths, word: &str) -> Result<Line> {
    let (known, line) = reach(paths, word)?;
    let line = line.ok_or_else(|| refusal(format!("container {} is not running", known.name())))?;
    heard(word, line.ask(&ToMonitor::StandStill)?)?;
    Ok(line)
}

pub fn go_on(line: &Line) -> Result<()> {
    line.ask(&ToMonitor::Unpause).map(drop)
}

fn order(paths: &Paths, word: &str, order: &ToMonitor) -> Result<()> {
    let (known, line) = reach(paths, word)?;
    let not_running = || refusal(format!("container {} is not running", known.name()));
    heard(word, line.ok_or_else(not_running)?.ask(order)?)
}

fn heard(word: &str, answer: Option<FromMonitor>) -> Result<()> {
    match answer {
        Some(FromMonitor::Refused(sentence)) => Err(refusal(format!("{word}: {sentence}"))),
        Some(_) => Ok(()),
        None => Err(refusal(format!("container {word} has ended meanwhile"))),
    }
}

/// What a container uses now, and what it has received and sent over its network; `None` if it does not run.
pub fn usage(known: &Known) -> Option<(Usage, (u64, u64))> {
    let first = known.status.process.as_ref().filter(|process| process.lives())?;
    let processes = Processes::of(first.pid).ok()?;
    let usage = match &known.status.group {
        Some(group) => Usage::of_group(group, &processes),
        None => Usage::of_processes(&processes),
    };
    Some((usage, network(first.pid)))
}

/// `/proc/PID/net/dev`: bytes received and sent by all interfaces but lo.
fn network(first: i32) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{first}/net/dev")).unwrap_or_default();
    let mut sum = (0, 0);
    for line in text.lines() {
        let Some((name, counters)) = line.split_once(':') else { continue };
        let number =
            |at| counters.split_whitespace().nth(at).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        if name.trim() != "lo" {
            sum = (sum.0 + number(0), sum.1 + number(8));
        }
    }
    sum
}
