//! How an overlay is reached from the kernel. `fuser` translates requests; `mounting` opens the device and mounts.

pub mod counters;
pub mod fuser;
pub mod mounting;
mod pause;
