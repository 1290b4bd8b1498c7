//! The container's network: which mode, what of the host it publishes, and the engine that carries it. The
//! engine is the library kelp-net; here is only what a container needs of it.

pub mod check;
pub mod engine;
pub mod names;
pub mod peer;
