//! One folder a container: made under a lock that its monitor holds for life, with a record in the lock's file,
//! so that any later kelp can tell a living container from the remains of a killed one and put things right.

pub mod call;
pub mod files;
pub mod folder;
pub mod health;
pub mod journal;
pub mod lines;
pub mod list;
pub mod log;
pub mod logged;
pub mod names;
pub mod published;
pub mod secret;
pub mod spare;
pub mod state;
pub mod sweep;
pub mod volume;
pub mod watch;
