//! The states of a container and the moves between them:
//!
//! | from | to |
//! |---|---|
//! | starting | running; created or exited again (the start failed); removed |
//! | created, exited | starting (`start`, `restart`); removed |
//! | running | paused, restarting, exited |
//! | paused | running, exited |
//! | restarting | running, exited |
//! | dead (could not be removed whole) | removed |

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Created,
    /// A kelp holds the container and has not started its program yet; shown as created.
    Starting,
    Running,
    Paused,
    /// Its program has ended and will be started again.
    Restarting,
    Exited,
    Dead,
}

impl State {
    /// Docker's word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Created | Self::Starting => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Exited => "exited",
            Self::Dead => "dead",
        }
    }

    /// Whether a monitor is about: its lock is held in these states, and nobody else changes them.
    pub fn is_live(self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Paused | Self::Restarting)
    }

    /// Whether the move is legal.
    pub fn may_become(self, next: Self) -> bool {
        use State::{Created, Dead, Exited, Paused, Restarting, Running, Starting};
        match self {
            Created => matches!(next, Starting | Dead),
            Starting => matches!(next, Running | Created | Exited),
            Running => matches!(next, Paused | Restarting | Exited),
            Paused => matches!(next, Running | Restarting | Exited),
            Restarting => matches!(next, Running | Exited),
            Exited => matches!(next, Starting | Dead),
            Dead => false,
        }
    }

    /// The next state.
    ///
    /// # Errors
    /// The move is not in the table.
    pub fn moved(self, next: Self) -> Result<Self, Error> {
        if self.may_become(next) {
            return Ok(next);
        }
        let sentence = format!("a container that is {} can't be {}", self.word(), next.word());
        Err(Error::new(Kind::Usage, sentence))
    }
}

#[cfg(test)]
mod tests {
    use super::State::{self, *};

    #[test]
    fn only_the_moves_of_the_table_are_legal() {
        let all = [Created, Starting, Running, Paused, Restarting, Exited, Dead];
        let legal = |from: State| all.into_iter().filter(|to| from.may_become(*to)).count();
        assert_eq!(all.map(legal), [2, 3, 3, 3, 2, 2, 0]);
        assert!(!Created.may_become(Running) && !Exited.may_become(Running) && !Paused.may_become(Paused));
    }
}
