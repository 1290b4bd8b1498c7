//! The only room with unsafe code: one wrapper a system call, named as its man page is, that takes borrowed
//! descriptors and gives back owned ones or an `io::Result`. What `nix` wraps safely is used from `nix`
//! directly by the rooms. It knows nothing of containers.

pub mod clock;
pub mod clone;
pub mod landlock;
pub mod memory;
pub mod mount;
pub mod path;
pub mod process;
pub mod seccomp;
pub mod socket;
pub mod terminal;
pub mod xattr;
