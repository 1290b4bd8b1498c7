//! Limits that hold: where we may make control groups (`delegation`, `scope`), one group (`group`), what a container
//! uses (`stats`), and what stands in for the kernel where no controller is delegated (`soft`). `hold` decides which
//! of them enforces which limit. It knows nothing of containers: a group has a name, a tree of processes a root.

pub mod bus;
pub mod check;
pub mod delegation;
pub mod device;
pub mod group;
pub mod hold;
pub mod scope;
pub mod soft;
pub mod stats;
pub mod tree;
