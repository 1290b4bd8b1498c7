//! User namespaces: which ids the container gets, by the ladder (ranges through newuidmap and newgidmap; full
//! maps when we may; one id), how they are written, and why a host refuses. It knows nothing of containers.

pub mod check;
pub mod maps;
pub mod numbers;
pub mod refusal;
pub mod setuid;
pub mod subordinate;
pub mod within;
