//! A container's own numbers in /proc and /sys: a small read-only file system of ours, whose files are bound over the
//! kernel's. `numbers` finds out what the container has and uses, `render` writes it as the kernel would, `files` is
//! the file system, `wire` its protocol, `calls` what is asked by system calls, `server` what the monitor holds of it. No program of root's is needed, and
//! nothing is started.

pub mod calls;
pub mod files;
pub mod numbers;
pub mod render;
pub mod server;
pub mod wire;
