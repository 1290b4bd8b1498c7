//! Images: what they are called, where they come from, and how they lie on the disk. The store is files and
//! folders only, content-addressed and crash-only (docs/store.md). The room knows nothing of containers and
//! of terminals: progress is a callback.

pub mod auth;
pub mod changes;
pub mod check;
pub mod collect;
pub mod commit;
pub mod compose;
pub mod config;
pub mod deflate;
pub mod gzip;
pub mod holding;
pub mod install;
pub mod ledger;
pub mod list;
pub mod load;
pub mod manifest;
pub mod names;
pub mod pack;
pub mod policy;
pub mod pull;
pub mod push;
pub mod reference;
pub mod registries_conf;
pub mod registry;
pub mod save;
pub mod sent;
pub mod skeleton;
pub mod snapshot;
pub mod sparse;
pub mod store;
pub mod stream;
pub mod tar;
pub mod tree;
pub mod unpack;
pub mod workspace;
