//! The rules of the house that a machine can hold: floors, the one clone, where unsafe and printing may stand,
//! file headers and length, names, pages of documentation, and nothing in the tree that names one machine.
//! It reads text, never compiles: comments and strings are blanked by `code` before anything is judged.
#![allow(clippy::unwrap_used, reason = "a test that meets the unexpected must fail there")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The folders with the product's source; `tests` is judged by fewer rules.
const PRODUCT: &[&str] = &["src", "fuse-overlay/src", "net/src"];
const TESTS: &[&str] = &["tests"];

struct Source {
    path: String,
    text: String,
    /// The text without comments, strings and the tests module.
    code: String,
}

/// The checkout as it is now; not `env!`, because the suite may run away from where it was built.
fn top() -> PathBuf {
    PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets the folder of the package"))
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() && name != "target" && name != ".git" {
            walk(&entry.path(), files);
        } else if kind.is_file() && name != ".git" {
            files.push(entry.path());
        }
    }
}

fn files(folders: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in folders {
        walk(&top().join(folder), &mut found);
    }
    found.sort();
    found
}

fn sources(folders: &[&str]) -> Vec<Source> {
    let rust = files(folders).into_iter().filter(|path| path.extension().is_some_and(|e| e == "rs"));
    let read = rust.map(|path| {
        let text = fs::read_to_string(&path).unwrap();
        let product = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default();
        let code = code(product);
        Source { path: path.strip_prefix(top()).unwrap().to_string_lossy().into_owned(), text, code }
    });
    read.collect()
}

/// Blanks comments, strings and characters, and keeps every line where it was.
fn code(text: &str) -> String {
    let all: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < all.len() {
        let length = blank_length(&all[at..], at.checked_sub(1).map(|before| all[before]));
        if length == 0 {
            out.push(all[at]);
            at += 1;
            continue;
        }
        out.extend(all[at..at + length].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
        at += length;
    }
    out
}

/// How many characters of a comment, string or character literal begin here.
fn blank_length(rest: &[char], before: Option<char>) -> usize {
    let find = |from: usize, end: &str| {
        let end: Vec<char> = end.chars().collect();
        (from..rest.len()).find(|at| rest[*at..].starts_with(&end)).map_or(rest.len(), |at| at + end.len())
    };
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    match rest {
        ['/', '/', ..] => find(2, "\n").saturating_sub(1).max(2),
        ['/', '*', ..] => find(2, "*/"),
        ['"', ..] => escaped_end(rest, '"'),
        ['r', '"' | '#', ..] if !in_word => {
            let hashes = rest[1..].iter().take_while(|c| **c == '#').count();
            if rest.get(1 + hashes) != Some(&'"') {
                return 0;
            }
            find(2 + hashes, &format!("\"{}", "#".repeat(hashes)))
        }
        ['\'', '\\', ..] => escaped_end(rest, '\''),
        ['\'', _, '\'', ..] => 3,
        _ => 0,
    }
}

fn escaped_end(rest: &[char], quote: char) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

fn judge(faults: Vec<String>) {
    assert!(faults.is_empty(), "\n  {}\n", faults.join("\n  "));
}

/// Each identifier of a text with the line that it stands on.
fn identifiers(code: &str) -> impl Iterator<Item = (usize, &str)> {
    code.lines().enumerate().flat_map(|(number, line)| {
        line.split(|c: char| !c.is_alphanumeric() && c != '_')
            .filter(|w| !w.is_empty())
            .map(move |w| (number + 1, w))
    })
}

/// Room to floor, from the `// floor N` lines of `src/main.rs`.
fn floors() -> BTreeMap<String, u32> {
    let text = fs::read_to_string(top().join("src/main.rs")).unwrap();
    let mut floor = None;
    let mut rooms = BTreeMap::new();
    for line in text.lines().map(str::trim) {
        if let Some(words) = line.strip_prefix("// floor ") {
            let number = words.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
            let next: u32 = number.parse().unwrap_or_else(|_| panic!("src/main.rs: `{line}` has no number"));
            assert!(
                floor.is_none_or(|above| next < above),
                "src/main.rs: floor {next} does not stand below floor {floor:?}"
            );
            floor = Some(next);
        }
        let declared = line.strip_prefix("mod ").or_else(|| line.strip_prefix("pub mod "));
        if let Some(room) = declared.and_then(|rest| rest.strip_suffix(';')) {
            let floor = floor.unwrap_or_else(|| {
                panic!("src/main.rs: `mod {room}` stands before the first `// floor N` line")
            });
            rooms.insert(room.to_string(), floor);
        }
    }
    rooms
}

/// The rooms that a file names: `crate::room`, each of `crate::{a, b::c}`, and `super` where it means the crate.
fn rooms_used(path: &str, code: &str) -> Vec<String> {
    let depth = Path::new(path).components().count() - 2 + usize::from(!path.ends_with("/mod.rs"));
    let above = "super::".repeat(depth.max(1));
    let mut used = Vec::new();
    for root in ["crate::", above.as_str()] {
        for (at, _) in code.match_indices(root) {
            let deeper = root != "crate::"
                && (code[..at].ends_with("super::") || code[at + root.len()..].starts_with("super::"));
            if !deeper {
                used.extend(first_words(&code[at + root.len()..]));
            }
        }
    }
    used
}

fn first_words(rest: &str) -> Vec<String> {
    let word = |text: &str| {
        text.trim_start()
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .next()
            .unwrap_or_default()
            .to_string()
    };
    let Some(list) = rest.strip_prefix('{') else { return vec![word(rest)] };
    let mut depth = 1;
    let mut words = vec![word(list)];
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => words.push(word(&list[at + 1..])),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    words.retain(|word| !word.is_empty() && word != "self");
    words
}

#[test]
fn a_room_uses_only_rooms_of_lower_floors() {
    let floors = floors();
    let mut faults = Vec::new();
    for source in sources(&["src"]).iter().filter(|source| source.path != "src/main.rs") {
        let room = source.path["src/".len()..].split(['/', '.']).next().unwrap().to_string();
        let Some(own) = floors.get(&room) else {
            faults.push(format!("{}: src/main.rs has no `mod {room}`", source.path));
            continue;
        };
        for used in rooms_used(&source.path, &source.code) {
            match floors.get(&used) {
                _ if used == room => {}
                Some(floor) if floor < own => {}
                Some(floor) => {
                    faults.push(format!("{}: floor {own} uses {used} of floor {floor}", source.path))
                }
                None => faults.push(format!("{}: crate::{used} is not a room", source.path)),
            }
        }
    }
    judge(faults);
}

#[test]
fn processes_are_cloned_in_one_place() {
    let calls = [
        "SYS_clone",
        "SYS_fork",
        "SYS_vfork",
        "libc::fork",
        "libc::vfork",
        "libc::clone",
        "libc::forkpty",
        "libc::daemon",
    ];
    let mut faults = Vec::new();
    for source in sources(PRODUCT) {
        let place =
            source.path == "src/sys/clone.rs" || (!source.path.starts_with("src/") && in_sys(&source.path));
        for (number, line) in source.code.lines().enumerate().filter(|_| !place) {
            let named =
                calls.iter().chain(&["unistd::fork", "ForkResult"]).find(|call| line.contains(**call));
            faults.extend(
                named.map(|call| format!("{}:{}: {call} outside src/sys/clone.rs", source.path, number + 1)),
            );
        }
    }
    judge(faults);
}

fn in_sys(path: &str) -> bool {
    path.contains("/sys/") || path.ends_with("/sys.rs")
}

#[test]
fn unsafe_stands_only_in_sys() {
    let mut faults = Vec::new();
    for source in sources(PRODUCT).into_iter().chain(sources(TESTS)) {
        // A file may forbid it; only sys may allow it.
        let code = source.code.replace("forbid(unsafe_code)", "").replace("deny(unsafe_code)", "");
        let named = identifiers(&code).filter(|(_, word)| ["unsafe", "unsafe_code"].contains(word));
        if !in_sys(&source.path) {
            faults.extend(named.map(|(line, word)| format!("{}:{line}: {word} outside sys", source.path)));
        }
    }
    judge(faults);
}

#[test]
fn rooms_do_not_print() {
    let doors = [
        "src/main.rs",
        "src/cli",
        "src/oci",
        "src/api",
        "fuse-overlay/src/main.rs",
        "fuse-overlay/src/cli",
        "net/src/main.rs",
        "net/src/cli",
    ];
    let mut faults = Vec::new();
    for source in
        sources(PRODUCT).iter().filter(|source| !doors.iter().any(|door| source.path.starts_with(door)))
    {
        for (number, line) in source.code.lines().enumerate() {
            if ["print!(", "println!(", "dbg!("].iter().any(|word| line.contains(word)) {
                faults.push(format!("{}:{}: prints", source.path, number + 1));
            }
        }
    }
    judge(faults);
}

#[test]
fn every_file_opens_with_what_it_is() {
    let mut faults = Vec::new();
    for source in sources(PRODUCT).iter().chain(&sources(TESTS)) {
        let text = source.text.lines().skip_while(|line| line.starts_with("#![") || line.is_empty());
        let lines = text.take_while(|line| line.starts_with("//!")).count();
        if !(2..=10).contains(&lines) {
            faults.push(format!("{}: the header has {lines} lines, not 2 to 10", source.path));
        }
    }
    judge(faults);
}

#[test]
fn files_and_functions_fit_on_their_pages() {
    let mut faults = Vec::new();
    for source in sources(PRODUCT) {
        let lines = source.code.lines().count();
        if lines > 500 {
            faults.push(format!("{}: {lines} lines without its tests; the wall is 500", source.path));
        }
        for (name, line, length) in functions(&source.code) {
            if length > 100 {
                faults.push(format!(
                    "{}:{line}: fn {name} has {length} lines; a flat story ends at 100",
                    source.path
                ));
            }
        }
    }
    judge(faults);
}

/// Name, first line and length of each function, by the indentation that rustfmt gives its closing brace.
fn functions(code: &str) -> Vec<(String, usize, usize)> {
    let lines: Vec<&str> = code.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(name) = declared(line, "fn") else { continue };
        let indent = line.len() - line.trim_start().len();
        let close = format!("{}}}", " ".repeat(indent));
        let end = lines[at..].iter().position(|line| {
            line.trim_end() == close || (line.trim_end().ends_with(';') && line.starts_with(&close))
        });
        found.push((name, at + 1, end.unwrap_or(0) + 1));
    }
    found
}

/// The name behind a keyword that stands at the start of a declaration.
fn declared(line: &str, keyword: &str) -> Option<String> {
    let mut words = line.split_whitespace();
    let first = words.find(|word| {
        !(word.starts_with("pub")
            || ["async", "unsafe", "const", "extern"].contains(word) && *word != keyword)
    })?;
    let name = if first == keyword { words.next()? } else { return None };
    let end = name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len());
    (end > 0).then(|| name[..end].to_string())
}

#[test]
fn names_say_something() {
    let mut faults = Vec::new();
    for source in sources(PRODUCT).iter().chain(&sources(&["tests"])) {
        let stem = Path::new(&source.path).file_stem().unwrap().to_string_lossy().into_owned();
        if let Some(word) = empty_word(&stem, false) {
            faults.push(format!("{}: a file named {word}", source.path));
        }
        let mut foreign = false;
        for (number, line) in source.code.lines().enumerate() {
            foreign = if line.starts_with("impl") { line.contains(" for ") } else { foreign && line != "}" };
            for keyword in ["fn", "mod", "struct", "enum", "trait", "type", "const", "static", "union"] {
                // A test is named by a sentence, and a sentence may speak of data.
                let sentence = keyword == "fn" && source.path.starts_with("tests/");
                let Some(name) = declared(line, keyword).filter(|_| !foreign && !sentence) else { continue };
                if let Some(word) = empty_word(&name, keyword == "fn") {
                    faults.push(format!(
                        "{}:{}: {keyword} {name}: {word} says nothing",
                        source.path,
                        number + 1
                    ));
                }
            }
        }
    }
    judge(faults);
}

/// The word of a name that could stand in any program, if it has one.
fn empty_word(name: &str, function: bool) -> Option<String> {
    const EMPTY: &[&str] = &[
        "util", "utils", "helper", "helpers", "common", "misc", "manager", "handler", "impl", "inner",
        "data", "info",
    ];
    if function
        && !["try_from", "get_mut"].contains(&name)
        && ["get_", "do_", "try_"].iter().any(|prefix| name.starts_with(prefix))
    {
        return name.split('_').next().map(str::to_string);
    }
    let mut spaced = String::new();
    for (at, c) in name.char_indices() {
        if c.is_uppercase() && at > 0 && !name[..at].ends_with(char::is_uppercase) {
            spaced.push('_');
        }
        spaced.extend(c.to_lowercase());
    }
    spaced.split('_').find(|word| EMPTY.contains(word)).map(str::to_string)
}

#[test]
fn the_documentation_knows_every_room() {
    let mut faults = Vec::new();
    for page in ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/launch.md", "docs/security.md"]
    {
        if !top().join(page).is_file() {
            faults.push(format!("{page} is missing"));
        }
    }
    let page = fs::read_to_string(top().join("docs/architecture.md")).unwrap_or_default();
    for room in floors().keys() {
        if !page.contains(&format!("`{room}`")) && !page.contains(&format!("`{room}/`")) {
            faults.push(format!("docs/architecture.md does not name the room `{room}`"));
        }
    }
    judge(faults);
}

#[test]
fn decisions_have_numbers_of_their_own() {
    let mut numbers: BTreeMap<String, String> = BTreeMap::new();
    let mut faults = Vec::new();
    for path in files(&["docs/decisions"]) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let number = name.split('-').next().unwrap_or_default().to_string();
        if number.len() != 4 || !number.bytes().all(|b| b.is_ascii_digit()) || !name.ends_with(".md") {
            faults.push(format!("docs/decisions/{name} is not NNNN-title.md"));
        } else if let Some(other) = numbers.insert(number, name.clone()) {
            faults.push(format!("docs/decisions/{name} has the number of {other}"));
        }
    }
    judge(faults);
}

#[test]
fn the_tree_names_no_machine_and_no_registry() {
    // Docker's default registry is part of the grammar of image names and stands where that is kept.
    let default_registry = ["docker", "io"].join(".");
    let grammar = ["src/image", "docs/store.md", "tests/image", "tests/bench/image"];
    // In pieces, so that this file does not name them either.
    let hosts = [
        ["crates", "io"],
        ["deb.debian", "org"],
        ["pypi", "org"],
        ["npmjs", "org"],
        ["quay", "io"],
        ["ghcr", "io"],
    ];
    let places = [
        ["/home", "k"],
        ["/work", "main"],
        ["/srv", "kelp"],
        ["/root", "brief"],
        ["/root", ".cargo"],
        ["/work", "shared"],
    ];
    let words: Vec<String> =
        hosts.map(|w| w.join(".")).into_iter().chain(places.map(|w| w.join("/"))).collect();
    let mut faults = Vec::new();
    for path in files(&["."]).iter().filter(|path| !path.ends_with("Cargo.lock")) {
        let Ok(text) = fs::read_to_string(path) else { continue };
        let is_grammar = grammar.iter().any(|place| path.to_string_lossy().contains(place));
        for (number, line) in text.lines().enumerate() {
            if !is_grammar && line.contains(&default_registry) {
                faults.push(format!("{}:{}: {default_registry}", path.display(), number + 1));
            }
            for word in words.iter().filter(|word| line.contains(word.as_str())) {
                faults.push(format!("{}:{}: {word}", path.display(), number + 1));
            }
        }
    }
    judge(faults);
}

#[test]
fn no_work_is_left_in_comments() {
    // In pieces, so that this file passes its own rule.
    let marks = [["TO", "DO"], ["FIX", "ME"], ["XX", "X"], ["#[ign", "ore"]].map(|pieces| pieces.concat());
    let mut faults = Vec::new();
    for source in sources(PRODUCT).iter().chain(&sources(TESTS)) {
        for (number, line) in source.text.lines().enumerate() {
            for mark in marks.iter().filter(|mark| line.contains(mark.as_str())) {
                faults.push(format!("{}:{}: {mark}", source.path, number + 1));
            }
        }
    }
    judge(faults);
}
