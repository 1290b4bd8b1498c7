//! From a spec to a running program: the plan as data, the child that carries it out, the parent that watches
//! it, and the messages between them. One clone, one socket; drawn in `message`.

pub mod beside;
pub mod check;
pub mod child;
pub mod credentials;
pub mod device;
pub mod filter;
pub mod hide;
pub mod inherited;
pub mod init;
pub mod join;
pub mod message;
pub mod mounts;
pub mod orphans;
pub mod parent;
pub mod plan;
pub mod program;
pub mod root;
pub mod stage;
pub mod step;
pub mod view;
