//! What a process that mostly waits gives back to the machine: the pages of its own code, which the kernel counts as
//! its memory though the file has them too.
#![allow(unsafe_code)]

use std::fs;
use std::io;

/// Gives the pages of the program's own code back (`madvise(2)`, `MADV_DONTNEED`): what was needed to start
/// counts as memory of a process that then only waits. A page that runs again is mapped again from the file.
pub fn release_code() -> io::Result<()> {
    let program = fs::read_link("/proc/self/exe")?;
    let maps = fs::read_to_string("/proc/self/maps")?;
    let is_code = |line: &&str| line.contains(" r-xp ") && line.ends_with(&*program.to_string_lossy());
    for line in maps.lines().filter(is_code) {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let number = |text: &str| usize::from_str_radix(text, 16).map_err(io::Error::other);
        let Some((start, end)) = range else { continue };
        let (start, end) = (number(start)?, number(end)?);
        // SAFETY: the range is a mapping of a file that is never written through it (`r-xp`), so the kernel reads
        // the same bytes again; the code that runs now is mapped again at its next instruction.
        if unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
