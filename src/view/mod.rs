//! A container's own numbers in /proc and /sys: a small read-only file system of ours, whose files are bound over the
//! kernel's. `numbers` finds out what the container has and uses, `render` writes it as the kernel would, `files` is
//! the file system, `server` the process that serves it. No program of root's is needed, and nothing is started for a
//! container without limits.

pub mod files;
pub mod numbers;
pub mod render;
pub mod server;
