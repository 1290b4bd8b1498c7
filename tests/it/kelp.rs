//! One kelp command with a store of its own, how it ended, and what it said. `Kelp` is a builder only of
//! arguments: nothing is added to the command line that the test does not write, except `run --rm --rootfs`.

use crate::dir::{self, Dir};
use serde_json::Value;
use std::ffi::OsStr;
use std::io::Write;
use std::process::{Child, Command, Stdio};

pub(crate) struct Kelp {
    pub(crate) command: Command,
    input: Option<Vec<u8>>,
}

pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Dir {
    /// `kelp` with these arguments, its store in this folder.
    pub(crate) fn kelp<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Kelp {
        let mut command = Command::new(dir::kelp());
        command.args(arguments);
        self.with_store(command)
    }

    /// A line of shell to which kelp is `$0`, its store in this folder.
    pub(crate) fn shell(&self, line: &str) -> Kelp {
        let mut command = Command::new("sh");
        command.arg("-c").arg(line).arg(dir::kelp());
        self.with_store(command)
    }

    fn with_store(&self, mut command: Command) -> Kelp {
        command.env("KELP_ROOT", self.path("store")).env("KELP_RUNDIR", self.path("run"));
        command.stdin(Stdio::null());
        Kelp { command, input: None }
    }

    /// `kelp run --rm OPTIONS --rootfs ROOT COMMAND` on the small root, which is made if it is not there.
    pub(crate) fn run(&self, options: &[&str], command: &[&str]) -> Kelp {
        let root = if self.path("root").exists() { self.text("root") } else { self.root() };
        let words = [&["run", "--rm"], options, &["--rootfs", &root], command].concat();
        self.kelp(&words)
    }

    /// What the guest reports inside, run with these options.
    pub(crate) fn report(&self, options: &[&str]) -> Value {
        self.run(options, &["/bin/guest"]).ok().json()
    }

    /// The answers of several guest verbs, separated by `,`.
    pub(crate) fn all(&self, options: &[&str], verbs: &[&str]) -> Value {
        self.run(options, &[&["/bin/guest", "all"], verbs].concat()).ok().json()
    }
}

impl Kelp {
    pub(crate) fn env(mut self, key: &str, value: &str) -> Self {
        self.command.env(key, value);
        self
    }

    pub(crate) fn input(mut self, bytes: &[u8]) -> Self {
        self.input = Some(bytes.to_vec());
        self
    }

    /// Starts it with pipes for its output; the caller waits.
    pub(crate) fn start(mut self) -> Child {
        self.command.stdin(if self.input.is_some() { Stdio::piped() } else { Stdio::null() });
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    pub(crate) fn end(mut self) -> Outcome {
        let input = self.input.take();
        self.command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        let mut child = self.command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let writer = child
            .stdin
            .take()
            .zip(input)
            .map(|(mut pipe, bytes)| std::thread::spawn(move || pipe.write_all(&bytes)));
        let ended = child.wait_with_output().unwrap();
        if let Some(writer) = writer {
            let _ = writer.join();
        }
        ended.into()
    }

    /// The outcome of a command that must succeed.
    #[track_caller]
    pub(crate) fn ok(self) -> Outcome {
        let said = format!("{:?}", self.command);
        let outcome = self.end();
        assert!(outcome.code == 0, "{said}\nended with {}\n{}{}", outcome.code, outcome.out, outcome.err);
        outcome
    }

    /// The sentence of a command that must fail with this code.
    #[track_caller]
    pub(crate) fn fails(self, code: i32) -> String {
        let said = format!("{:?}", self.command);
        let outcome = self.end();
        assert!(
            outcome.code == code,
            "{said}\nended with {}, not {code}\n{}{}",
            outcome.code,
            outcome.out,
            outcome.err
        );
        outcome.err
    }
}

impl From<std::process::Output> for Outcome {
    fn from(ended: std::process::Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let code = ended.status.code().unwrap_or_else(|| -ended.status.signal().unwrap_or(0));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code, out: text(&ended.stdout), err: text(&ended.stderr) }
    }
}

impl Outcome {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        let line = self.out.lines().last().unwrap_or_default();
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {:?}\n{}", self.out, self.err))
    }
}

/// All of these words stand in a sentence; the sentence is shown if not.
#[track_caller]
pub(crate) fn says(sentence: &str, words: &[&str]) {
    let lower = sentence.to_lowercase();
    for word in words {
        assert!(lower.contains(&word.to_lowercase()), "no {word:?} in:\n{sentence}");
    }
    assert!(!sentence.contains("panicked"), "{sentence}");
}
