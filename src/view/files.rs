//! The file system: one folder, one file for each of `render`. The kernel keeps a file's text and asks for nothing until
//! its attributes are too old; then it asks for those, and for the text again because its time is another. So whoever
//! reads in a loop waits for nobody, and nobody reads a text that is older than `FRESH`.
//!
//! Nothing is opened here, so nothing says who reads what: a reader that takes a long text in pieces may see its end at
//! another moment than its beginning, but each line whole and once (`render::in_pages`).

use std::fs;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::view::numbers::Source;
use crate::view::render::{FILES, Rendered, in_pages};
use crate::view::wire::{Answer, Asked, Attributes, FOLDER, Request, UNCHANGED};

/// The number of the first file.
const FIRST: u64 = FOLDER + 1;

/// How long a text is given to everybody.
const FRESH: Duration = Duration::from_millis(50);

/// What the kernel has of the files.
#[derive(Debug, Default)]
pub struct Files {
    given: [Option<Given>; FILES.len()],
}

#[derive(Debug)]
struct Given {
    text: String,
    at: Instant,
    changed: Duration,
    processors: Vec<u32>,
}

impl Files {
    /// The answer, with numbers of now, unless the kernel waits for none.
    pub fn answer(&mut self, request: Request, source: &mut Source) -> Option<Answer> {
        let unique = request.unique;
        let errno = |errno| Some(Answer::error(unique, errno));
        match request.asked {
            Asked::Init { major: 7, minor } => Some(Answer::init(unique, minor)),
            Asked::Init { .. } => errno(libc::EPROTO),
            Asked::Lookup(name) => match FILES.iter().position(|file| file.name.as_bytes() == name) {
                Some(at) => Some(Answer::entry(unique, FIRST + at as u64)),
                None => errno(libc::ENOENT),
            },
            Asked::Attributes(FOLDER) => Some(Answer::attributes(unique, FOLDER, UNCHANGED)),
            Asked::Attributes(number) => {
                let Some(given) = self.now(number, source) else { return errno(libc::EIO) };
                let (size, changed) = (given.text.len() as u64, given.changed);
                let holds = FRESH.saturating_sub(given.at.elapsed());
                Some(Answer::attributes(unique, number, Attributes { size, changed, holds }))
            }
            Asked::List { from, room } => {
                let names = FILES.iter().map(|file| file.name);
                Some(Answer::list(unique, (FIRST..).zip(names), from, room))
            }
            Asked::Read { file, from, most } => {
                // As long as the attributes that the kernel has say, so only anew if there is none.
                if self.given(file).is_none() {
                    self.now(file, source);
                }
                let Some(given) = self.given(file) else { return errno(libc::EIO) };
                let text = given.text.as_bytes();
                let rest = usize::try_from(from).ok().and_then(|from| text.get(from..)).unwrap_or_default();
                Some(Answer::bytes(unique, rest.get(..most).unwrap_or(rest)))
            }
            Asked::Space => Some(Answer::space(unique)),
            Asked::Silent => None,
            Asked::Other => errno(libc::ENOSYS),
        }
    }

    fn given(&self, number: u64) -> Option<&Given> {
        self.given.get(place(number)?)?.as_ref()
    }

    /// The text of now: written anew if it is not fresh.
    fn now(&mut self, number: u64, source: &mut Source) -> Option<&Given> {
        let at = place(number)?;
        let (file, given) = (FILES.get(at)?, self.given.get_mut(at)?);
        if given.as_ref().is_none_or(|given| given.at.elapsed() >= FRESH) {
            renew(file, given, source);
        }
        given.as_ref()
    }
}

/// The machine's description of processors is long and takes the kernel long, and of what it says only clocks change:
/// it is written anew when the container has other processors.
fn renew(file: &Rendered, given: &mut Option<Given>, source: &mut Source) {
    let numbers = source.numbers();
    let now = Instant::now();
    if let Some(given) = given
        && file.name == "cpuinfo"
        && given.processors == numbers.processors
    {
        given.at = now;
        return;
    }
    // Three files are the machine's with other numbers in them.
    let host = match file.name {
        "cpuinfo" | "diskstats" | "stat" => fs::read_to_string(file.target).unwrap_or_default(),
        _ => String::new(),
    };
    let text = in_pages((file.text)(&numbers, &host));
    // No time is given twice, whatever is done to the clock.
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let last = given.as_ref().map_or(Duration::ZERO, |given| given.changed);
    let changed = if clock == last { clock + Duration::from_nanos(1) } else { clock };
    *given = Some(Given { text, at: now, changed, processors: numbers.processors });
}

fn place(number: u64) -> Option<usize> {
    usize::try_from(number.checked_sub(FIRST)?).ok().filter(|at| *at < FILES.len())
}
