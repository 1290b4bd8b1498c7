//! How an overlay is reached from the kernel. Nothing here decides about files.
//! `fuser` translates requests; `session` serves a device; `mounting` opens the device and mounts.

pub mod counters;
mod fuser;
pub mod mounting;
mod pause;
mod placement;
pub mod session;
mod translate;
