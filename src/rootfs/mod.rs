//! Layers to one root: which rung of the ladder is taken, how the root is mounted, and how a path inside it
//! is opened without leaving it. It knows nothing of the launch protocol.

pub mod check;
pub mod fuse;
pub mod host;
pub mod overlay;
pub mod rung;
pub mod stacked;
pub mod target;
pub mod tree;
pub mod view;
