//! The ids of files that were laid out under one id map, for a container that has another: how the container is to
//! see each, and how its user namespace numbers the same id of the host. Pure arithmetic on ranges.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::ids::{ContainerId, HostId};
use crate::spec::request::UserNamespace;
use crate::userns::maps::{self, IdMaps, Line};

/// A run of ids: the first as it is shown, the first as files carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    pub shown: u32,
    pub carried: u32,
    pub count: u32,
}

/// For both kinds of ids.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbers {
    pub uid: Vec<Run>,
    pub gid: Vec<Run>,
}

impl Numbers {
    /// Of an image's files, which every container has in common, in one whose maps were asked for as `asked`.
    ///
    /// # Errors
    /// The maps under which images are laid out can't be found out.
    pub fn of_image(asked: &UserNamespace, container: &IdMaps) -> Result<Option<Self>> {
        if *asked == UserNamespace::Auto {
            return Ok(None);
        }
        Ok(Self::between(&maps::choose(&UserNamespace::Auto)?, container))
    }

    /// Of files that were laid out under `files`, in a container with `container`; `None` if its numbers are theirs, or
    /// if it has no id 0 to show.
    fn between(files: &IdMaps, container: &IdMaps) -> Option<Self> {
        let numbers = Self { uid: runs(&files.uid, &container.uid), gid: runs(&files.gid, &container.gid) };
        let differs = |runs: &[Run]| runs.iter().any(|run| run.shown != run.carried);
        (container.has_root() && (differs(&numbers.uid) || differs(&numbers.gid))).then_some(numbers)
    }

    /// The maps under which the files that such a container makes are numbered as it numbers them. They lie as those of
    /// images do; an id that images have not, such as a large one of the user's own, is again the one that was shown.
    pub fn of_made(asked: &UserNamespace) -> Result<IdMaps> {
        Ok(shown_as(maps::choose(&UserNamespace::Auto)?, &maps::choose(asked)?))
    }

    /// The numbers that files of root carry.
    pub fn of_root(&self) -> (u32, u32) {
        let root = |runs: &[Run]| runs.iter().find(|run| run.shown == 0).map_or(0, |run| run.carried);
        (root(&self.uid), root(&self.gid))
    }
}

/// Where files lie that belong to the user's own id, if images have no such id: at the last that they have, which a
/// container that keeps the id shows as it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Places {
    uid: Place,
    gid: Place,
}

#[derive(Clone, Copy, Debug, Default)]
struct Place {
    own: u32,
    last: u32,
}

impl Places {
    /// In the user namespace of this process, whose root is the user.
    pub fn here() -> Self {
        let maps = IdMaps::of_process(std::process::id() as i32);
        maps.map_or_else(
            |_| Self::default(),
            |maps| Self { uid: Place::in_map(&maps.uid), gid: Place::in_map(&maps.gid) },
        )
    }

    /// The owner of a file that can't have this one; `None` if nobody can stand in for it.
    pub fn of(&self, uid: u32, gid: u32) -> Option<(u32, u32)> {
        self.uid.of(uid).zip(self.gid.of(gid))
    }
}

impl Place {
    fn in_map(lines: &[Line]) -> Self {
        let root = lines.iter().find(|line| line.container.0 == 0);
        let last = lines.iter().map(|line| line.container.0.saturating_add(line.count - 1)).max();
        Self { own: root.map_or(0, |line| line.host.0), last: last.unwrap_or(0) }
    }

    fn of(self, id: u32) -> Option<u32> {
        if id <= self.last { Some(id) } else { Some(self.last).filter(|_| id == self.own) }
    }
}

/// First and end.
type Span = (u32, u32);

fn runs(files: &[Line], container: &[Line]) -> Vec<Run> {
    let own = spans(container);
    let mut runs = Vec::new();
    for file in files {
        for line in container {
            let first = file.host.0.max(line.host.0);
            let end = file.host.0.saturating_add(file.count).min(line.host.0.saturating_add(line.count));
            if first < end {
                let shown = file.container.0 + (first - file.host.0);
                let carried = line.container.0 + (first - line.host.0);
                runs.extend(within(Run { shown, carried, count: end - first }, &own));
            }
        }
    }
    // What is left on both sides, such as a large id of the user's own and the last of the files', goes together.
    let mut shown = without(own.clone(), runs.iter().map(|run| (run.shown, run.shown + run.count)));
    let mut carried = without(own, runs.iter().map(|run| (run.carried, run.carried + run.count)));
    while let (Some(to), Some(from)) = (shown.first_mut(), carried.first_mut()) {
        let count = (to.1 - to.0).min(from.1 - from.0);
        runs.push(Run { shown: to.0, carried: from.0, count });
        (to.0, from.0) = (to.0 + count, from.0 + count);
        shown.retain(|span| span.0 < span.1);
        carried.retain(|span| span.0 < span.1);
    }
    runs
}

/// The map of files, but with the container's numbers for what it alone has.
fn shown_as(files: IdMaps, container: &IdMaps) -> IdMaps {
    let lines = |files: &[Line], container: &[Line]| {
        let mut lines = files.to_vec();
        for run in runs(files, container) {
            for line in container {
                let first = run.carried.max(line.container.0);
                let end = (run.carried + run.count).min(line.container.0.saturating_add(line.count));
                if first >= end {
                    continue;
                }
                let host = HostId(line.host.0 + (first - line.container.0));
                let shown = ContainerId(run.shown + (first - run.carried));
                lines = lines.iter().flat_map(|line| beside(*line, host.0, end - first)).collect();
                lines.push(Line { container: shown, host, count: end - first });
            }
        }
        lines
    };
    IdMaps { uid: lines(&files.uid, &container.uid), gid: lines(&files.gid, &container.gid), ..files }
}

/// What is left of a line without `count` ids of the host.
fn beside(line: Line, host: u32, count: u32) -> impl Iterator<Item = Line> {
    let (start, end) = (line.host.0, line.host.0.saturating_add(line.count));
    let part = move |(from, to): (u32, u32)| {
        let container = ContainerId(line.container.0 + (from - start));
        (from < to).then(|| Line { container, host: HostId(from), count: to - from })
    };
    [(start, end.min(host)), (start.max(host.saturating_add(count)), end)]
        .into_iter()
        .filter(move |(from, _)| *from >= start)
        .filter_map(part)
}

/// The ids that the container has, what touches as one.
fn spans(container: &[Line]) -> Vec<Span> {
    let mut all: Vec<Span> = container
        .iter()
        .map(|line| (line.container.0, line.container.0.saturating_add(line.count)))
        .collect();
    all.sort_unstable();
    let mut whole: Vec<Span> = Vec::new();
    for span in all {
        match whole.last_mut() {
            Some(last) if last.1 >= span.0 => last.1 = last.1.max(span.1),
            _ => whole.push(span),
        }
    }
    whole
}

/// The parts of a run that the container can show.
fn within(run: Run, own: &[Span]) -> impl Iterator<Item = Run> {
    own.iter().filter_map(move |(first, end)| {
        let (from, to) = (run.shown.max(*first), (run.shown + run.count).min(*end));
        let part = |()| Run { shown: from, carried: run.carried + (from - run.shown), count: to - from };
        (from < to).then_some(()).map(part)
    })
}

fn without(mut spans: Vec<Span>, taken: impl Iterator<Item = Span>) -> Vec<Span> {
    for (first, end) in taken {
        let cut = |span: Span| [(span.0, span.1.min(first)), (span.0.max(end), span.1)];
        spans = spans.into_iter().flat_map(cut).filter(|span| span.0 < span.1).collect();
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::userns::maps::Writer;

    fn maps(lines: &[(u32, u32, u32)]) -> IdMaps {
        let line = |&(container, host, count): &(u32, u32, u32)| Line {
            container: ContainerId(container),
            host: HostId(host),
            count,
        };
        let lines: Vec<Line> = lines.iter().map(line).collect();
        IdMaps {
            uid: lines.clone(),
            gid: lines,
            writer: Writer::Direct,
            deny_setgroups: false,
            weaker_because: None,
        }
    }

    #[test]
    fn a_kept_id_changes_places_with_root() {
        let files = maps(&[(0, 1000, 1), (1, 100_000, 65_536)]);
        let kept = maps(&[(0, 100_000, 1000), (1000, 1000, 1), (1001, 101_000, 64_536)]);
        let numbers = Numbers::between(&files, &kept).unwrap();
        let run = |shown, carried, count| Run { shown, carried, count };
        assert_eq!(numbers.uid, [run(0, 1000, 1), run(1, 0, 1000), run(1001, 1001, 64_536)]);
        assert_eq!(numbers.of_root(), (1000, 1000));
    }

    #[test]
    fn an_id_beyond_those_of_files_takes_the_place_of_the_last() {
        let files = maps(&[(0, 200_000, 1), (1, 100_000, 65_536)]);
        let kept = maps(&[(0, 100_000, 65_536), (200_000, 200_000, 1)]);
        let numbers = Numbers::between(&files, &kept).unwrap();
        let run = |shown, carried, count| Run { shown, carried, count };
        assert_eq!(numbers.uid, [run(0, 200_000, 1), run(1, 0, 65_535), run(200_000, 65_535, 1)]);
    }

    /// Guard: what the user had made was committed as the last id of images.
    #[test]
    fn what_an_id_beyond_made_is_its_own() {
        let files = maps(&[(0, 200_000, 1), (1, 100_000, 65_536)]);
        let kept = maps(&[(0, 100_000, 65_536), (200_000, 200_000, 1)]);
        let made = shown_as(files.clone(), &kept);
        let number = |host: u32| {
            let line = made.uid.iter().find(|line| host.wrapping_sub(line.host.0) < line.count);
            line.map(|line| line.container.0 + (host - line.host.0))
        };
        assert_eq!(number(200_000), Some(0));
        assert_eq!(number(100_000), Some(1));
        assert_eq!(number(165_534), Some(65_535));
        assert_eq!(number(165_535), Some(200_000));
        assert_eq!(number(165_536), None);
        let near = maps(&[(0, 100_000, 1000), (1000, 1000, 1), (1001, 101_000, 64_536)]);
        let files = maps(&[(0, 1000, 1), (1, 100_000, 65_536)]);
        let made = shown_as(files, &near);
        for (host, number) in [(1000, 0), (100_000, 1), (101_000, 1001), (165_535, 65_536)] {
            let line =
                made.uid.iter().find(|line| u32::wrapping_sub(host, line.host.0) < line.count).unwrap();
            assert_eq!(line.container.0 + (host - line.host.0), number);
        }
    }

    #[test]
    fn the_own_id_has_a_place_among_those_of_images() {
        let place = Place::in_map(&maps(&[(0, 200_000, 1), (1, 100_000, 65_536)]).uid);
        assert_eq!([place.of(7), place.of(200_000), place.of(200_001)], [Some(7), Some(65_536), None]);
    }

    #[test]
    fn the_same_numbers_and_a_namespace_without_root_need_nothing() {
        let files = maps(&[(0, 1000, 1), (1, 100_000, 65_536)]);
        assert_eq!(Numbers::between(&files, &files), None);
        assert_eq!(Numbers::between(&files, &maps(&[(0, 1000, 1)])), None);
        assert_eq!(Numbers::between(&files, &maps(&[(1000, 1000, 1)])), None);
    }
}
