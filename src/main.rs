//! kelp: containers for people who have no root. The `mod` lines below are the floors of the house, top to
//! bottom: a room uses only rooms of lower floors. `tests/tidy.rs` holds that.

mod error;

fn main() {}
