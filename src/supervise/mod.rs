//! The monitor: what stays beside a running container, moves its streams, passes signals on, keeps the time
//! limit and tells how it ended. It knows nothing of verbs.

pub mod foreground;
pub mod orphans;
pub mod streams;
