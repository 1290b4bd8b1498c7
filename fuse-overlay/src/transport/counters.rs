//! Requests by kind, for `--stats`: what the kernel really asked. Relaxed counters, so that they cost nothing.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! requests {
    ($($name:ident),*) => {
        /// A kind of request.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Request { $($name),* }
        const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}

requests! {
    Lookup, Forget, GetAttr, SetAttr, ReadLink, Create, Unlink, RmDir, Rename, Link, Read, Write, Sync, ReadDir,
    ReadDirPlus, StatFs, GetXattr, ListXattr, SetXattr, RemoveXattr, Allocate, Seek, CopyRange, Open, Missed
}

#[derive(Debug, Default)]
pub struct Counters {
    counts: [AtomicU64; NAMES.len()],
}

impl Counters {
    pub(crate) fn count(&self, request: Request) {
        if let Some(counter) = self.counts.get(request as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut total = 0;
        for (name, count) in NAMES.iter().zip(&self.counts) {
            let count = count.load(Ordering::Relaxed);
            if count > 0 {
                writeln!(f, "{name:12} {count}")?;
            }
            total += if *name == "Missed" { 0 } else { count };
        }
        writeln!(f, "{:12} {total}", "total")
    }
}
