//! One folder a container: made under a lock that its monitor holds for life, with a record of the process, so
//! that any later kelp can tell a living container from the remains of a killed one and put things right.

pub mod files;
pub mod folder;
pub mod secret;
pub mod sweep;
pub mod volume;
