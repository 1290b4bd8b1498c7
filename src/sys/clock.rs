//! The clock on the wall, which only the C library knows: it reads the zone's rules. It knows nothing of
//! formats.
#![allow(unsafe_code)]

/// Hour and minute of the user's day at a moment in seconds since 1970 (`localtime_r(3)`).
pub fn local(seconds: i64) -> (i32, i32) {
    // SAFETY: a tm of zeros is a valid value; its pointer may be null.
    let mut time: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both outlive the call, which keeps neither.
    unsafe { libc::localtime_r(&raw const seconds, &raw mut time) };
    (time.tm_hour, time.tm_min)
}
