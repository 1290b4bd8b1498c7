//! User-mode networking for users without root: the library behind the program `kelp-net` and kelp's default network.
//! It knows nothing of kelp, of containers or of file systems. The floors, top to bottom: a file uses only lower ones.
//!
//! One engine process a network namespace. `attach` makes the device, routes and listeners inside the namespace and hands
//! out descriptors; `ports` binds published ports on the host; `engine` moves the data with no privilege at all.

#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;

pub mod cli;

pub mod engine;

pub mod trial;

pub mod attach;
pub mod confine;

mod broker;
mod namespace;
pub mod ports;

pub mod policy;

pub mod config;
mod netlink;
mod wire;

mod sys;
