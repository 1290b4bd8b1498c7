//! One fact about the host that kelp relies on, tried for real: which facility, which rung of its ladder, what
//! came of it, and what an administrator can change. The rooms make checks beside the code that needs them;
//! `doctor` collects them.

use serde::Serialize;

/// What a trial showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The best rung that works: kelp takes it.
    Used,
    /// It works too.
    Works,
    Refused,
}

#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Such as "id maps".
    pub facility: &'static str,
    /// Such as "ranges through newuidmap".
    pub rung: &'static str,
    pub state: State,
    /// What was seen, or why it was refused.
    pub reason: String,
    /// One line that mends it, for whoever may.
    pub mend: Option<String>,
}

impl Check {
    pub fn works(facility: &'static str, rung: &'static str, reason: impl Into<String>) -> Self {
        Self { facility, rung, state: State::Works, reason: reason.into(), mend: None }
    }

    pub fn refused(facility: &'static str, rung: &'static str, reason: impl Into<String>) -> Self {
        Self { facility, rung, state: State::Refused, reason: reason.into(), mend: None }
    }

    pub fn mend(mut self, mend: impl Into<String>) -> Self {
        self.mend = Some(mend.into());
        self
    }

    /// A check from an error that may carry its mend as a hint.
    pub fn from_error(facility: &'static str, rung: &'static str, error: &anyhow::Error) -> Self {
        let mend = crate::error::find(error).and_then(|error| error.hint.clone());
        Self { mend, ..Self::refused(facility, rung, format!("{error:#}")) }
    }
}

/// Marks the first rung of each facility that works as the one that is used, unless the user has chosen one already.
pub fn choose(checks: &mut [Check]) {
    let used = checks.iter().filter(|check| check.state == State::Used);
    let mut chosen: Vec<&'static str> = used.map(|check| check.facility).collect();
    for check in checks.iter_mut().filter(|check| check.state == State::Works) {
        if !chosen.contains(&check.facility) {
            chosen.push(check.facility);
            check.state = State::Used;
        }
    }
}
