//! The one error type that reaches a door: what kind of fault it is, the chain of sentences from intent to
//! cause, and a hint that the user can act on. Rooms return `anyhow::Result` and add sentences; only the
//! place that knows the remedy wraps a cause in `Error`. It knows no room and no terminal.

use std::fmt;

/// Who has to act for the error to go away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The command line or a file that the user wrote is wrong.
    Usage,
    /// The host refuses something: a sysctl, a missing helper, a full disk.
    Host,
    /// The container's root file system or program is at fault.
    Container,
    /// kelp is at fault.
    Bug,
}

/// A fault with its kind, its exit status on docker's face, and a remedy if one is known.
#[derive(Debug)]
pub struct Error {
    pub kind: Kind,
    pub sentence: String,
    pub hint: Option<String>,
    /// 125 kelp failed, 126 the program cannot run, 127 it was not found (`podman-run(1)`, "Exit Status").
    pub exit: u8,
}

impl Error {
    pub fn new(kind: Kind, sentence: impl Into<String>) -> Self {
        Self { kind, sentence: sentence.into(), hint: None, exit: 125 }
    }

    pub fn usage(sentence: impl Into<String>) -> Self {
        Self::new(Kind::Usage, sentence)
    }

    pub fn host(sentence: impl Into<String>) -> Self {
        Self::new(Kind::Host, sentence)
    }

    pub fn container(sentence: impl Into<String>) -> Self {
        Self::new(Kind::Container, sentence)
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub fn exit(mut self, exit: u8) -> Self {
        self.exit = exit;
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for Error {}

/// The first `Error` in a chain, if a room named one.
pub fn find(error: &anyhow::Error) -> Option<&Error> {
    error.chain().find_map(|cause| cause.downcast_ref::<Error>())
}
