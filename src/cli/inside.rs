//! Work on the store where its files' owners can be handled: inside a user namespace with all ids that the
//! user has, or right here if that is one id. Called while the program has one thread; the work may start more.

use anyhow::Result;

pub fn run(work: impl FnOnce() -> Result<i32>) -> Result<i32> {
    work()
}
