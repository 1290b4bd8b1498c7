//! Locks of the store that are waited for with patience: whoever holds one has signed it, so that whoever gives
//! up can say whom it waited for.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::error::Error;
use crate::record::Lock;

/// Takes the lock, waiting at most `patience`, and writes the caller's pid and `purpose` into it.
///
/// # Errors
/// After `patience`, a sentence that names the holder.
pub fn wait(path: &Path, purpose: &str, patience: Duration) -> Result<Lock> {
    let deadline = Instant::now() + patience;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(lock) = Lock::now(path)? {
            let words = format!("pid {} ({purpose})\n", std::process::id());
            lock.sign(&words).with_context(|| format!("cannot sign {}", path.display()))?;
            return Ok(lock);
        }
        if Instant::now() >= deadline {
            let holder = fs::read_to_string(path).unwrap_or_default();
            let holder = if holder.trim().is_empty() { "another kelp" } else { holder.trim() };
            let seconds = patience.as_secs();
            let sentence = format!("cannot lock {}: {holder} holds it for {seconds} s", path.display());
            return Err(Error::host(sentence).into());
        }
        // flock(2) has no time-out of its own, and over NFS it may hang where asking does not.
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
