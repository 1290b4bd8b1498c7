//! The monitor: what stays beside a running container, moves its streams, passes signals on, keeps the time
//! limit and tells how it ended; and the terminal that is attached to one. It knows nothing of verbs.

pub mod attached;
pub mod callers;
pub mod health;
pub mod keys;
pub mod member;
pub mod monitor;
pub mod orders;
pub mod restraint;
pub mod secrets;
pub mod service;
pub mod session;
pub mod signals;
pub mod streams;
pub mod unreaped;
