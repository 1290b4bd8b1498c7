//! Images: what they are called, where they come from, and how they lie on the disk. The store is files and
//! folders only, content-addressed and crash-only (docs/store.md). The room knows nothing of containers and
//! of terminals: progress is a callback.

pub mod config;
pub mod manifest;
pub mod reference;
pub mod skeleton;
pub mod sparse;
pub mod tar;
pub mod tree;
pub mod unpack;
pub mod store;
pub mod stream;
pub mod workspace;
pub mod auth;
pub mod names;
pub mod registries_conf;
pub mod registry;
pub mod install;
pub mod policy;
pub mod pull;
