//! A union file system for users without root: the library behind the program `fuse-overlay` and kelp's rung T2.
//! It knows nothing of kelp, of containers or of networking.
//!
//! An `Overlay` merges read-only directories (lowers) with a writable one (the upper) and answers the questions of a
//! file system in plain values. The rule behind its speed: the kernel caches everything for ever, because lowers never
//! change and the upper changes only through the mount, so a request is sent only for what is new. There is no open:
//! a file is opened when its first byte is asked for, and copied up when its first byte is written.
//!
//! The `mod` lines below are floors, top to bottom: a module uses only those of lower floors, the operations of an
//! `Overlay` (one floor) apart, which call each other's methods.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic))]

pub mod check;
pub mod transport;

pub mod contents;
mod copyup;
pub mod create;
mod deferred;
pub mod directory;
mod find;
mod metadata;
pub mod overlay;
mod remove;
pub mod rename;
mod xattr;

mod layers;
mod node;
mod upper;

mod place;
mod records;

mod limits;
mod listing;
mod owners;
mod stored_owner;
mod sweep;
mod transfer;

mod acl;
pub mod attr;
mod cache;
pub mod config;
mod number;
pub mod sys;

pub use limits::Usage;
pub use overlay::Overlay;
