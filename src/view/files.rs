//! The file system: one folder, one file for each of `render`. A file is written when it is opened, so that a reader
//! sees one moment, whatever pieces it reads.

use std::collections::HashMap;
use std::fs;

use crate::view::numbers::Source;
use crate::view::render::{FILES, Rendered};
use crate::view::wire::{Answer, Asked, FOLDER, Request};

/// The number of the first file.
const FIRST: u64 = FOLDER + 1;

/// Open files.
#[derive(Debug)]
pub struct Files {
    open: HashMap<u64, String>,
    next: u64,
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
            Asked::Attributes(number) => Some(Answer::attributes(unique, number)),
            Asked::List { from, room } => {
                let names = FILES.iter().map(|file| file.name);
                Some(Answer::list(unique, (FIRST..).zip(names), from, room))
            }
            Asked::Open { writes: true, .. } => errno(libc::EACCES),
            Asked::Open { file, .. } => {
                let Some(file) = rendered(file) else { return errno(libc::EIO) };
                let (handle, text) = (self.next, text(file, source));
                self.next += 1;
                self.open.insert(handle, text);
                Some(Answer::opened(unique, handle))
            }
            Asked::Read { handle, from, most } => {
                let text = self.open.get(&handle).map(String::as_bytes).unwrap_or_default();
                let rest = usize::try_from(from).ok().and_then(|from| text.get(from..)).unwrap_or_default();
                Some(Answer::bytes(unique, rest.get(..most).unwrap_or(rest)))
            }
            Asked::Close(handle) => {
                self.open.remove(&handle);
                Some(Answer::empty(unique))
            }
            Asked::Space => Some(Answer::space(unique)),
            Asked::Silent => None,
            Asked::Other => errno(libc::ENOSYS),
        }
    }
}

impl Default for Files {
    fn default() -> Self {
        Self { open: HashMap::new(), next: 1 }
    }
}

fn text(file: &Rendered, source: &mut Source) -> String {
    let numbers = source.numbers();
    // Three files are the machine's with other numbers in them.
    let host = match file.name {
        "cpuinfo" | "diskstats" | "stat" => fs::read_to_string(file.target).unwrap_or_default(),
        _ => String::new(),
    };
    (file.text)(&numbers, &host)
}

fn rendered(number: u64) -> Option<&'static Rendered> {
    FILES.get(usize::try_from(number.checked_sub(FIRST)?).ok()?)
}
