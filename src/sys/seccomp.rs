//! `seccomp(2)` with `SECCOMP_SET_MODE_FILTER`: installs a program that was compiled in the parent.
//! It knows nothing of profiles.
#![allow(unsafe_code)]

use std::io;

/// One instruction of a classic BPF program (`struct sock_filter`).
pub type Instruction = libc::sock_filter;

/// Installs `program` for the calling thread and all that it starts. Needs no_new_privs or `CAP_SYS_ADMIN`
/// in the caller's user namespace.
pub fn install(program: &[Instruction]) -> io::Result<()> {
    let header = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the header describes `program`, which outlives the call; the kernel only reads both.
    let status =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const header) };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
