//! Memory: files that lie in it, and what a process that mostly waits gives back to the machine: the pages of its own
//! program, which the kernel counts as its memory though the file has them too.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::ptr;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};

const PAGE: usize = 4096;

/// Whoever has served a container for so long needs little of what started it.
pub const SETTLING: Duration = Duration::from_millis(300);

/// Gives the pages of the program's code and constants back (`madvise(2)`, `MADV_DONTNEED`): what was needed to start
/// counts as memory of a process that then only waits. A page that is used again is mapped again from the file.
pub fn release_code() -> io::Result<()> {
    let mut outcome = Ok(());
    // SAFETY: `release` has the type that dl_iterate_phdr(3) calls, and `outcome` outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(release), (&raw mut outcome).cast()) };
    outcome
}

/// A file in memory with this content, to be read from its beginning (`memfd_create(2)`).
pub fn file(name: &CStr, content: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC)?);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file)
}

/// Gives free heap back (`malloc_trim(3)`).
pub fn release_heap() {
    // SAFETY: the call takes a number and touches nothing that is allocated.
    unsafe { libc::malloc_trim(0) };
}

/// The first object that dl_iterate_phdr(3) shows is the program; the others are not looked at.
unsafe extern "C" fn release(
    object: *mut libc::dl_phdr_info,
    _: libc::size_t,
    outcome: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: the caller passes an object that is valid for the call, whose headers are the program's own.
    let (base, headers) = unsafe {
        let object = &*object;
        (object.dlpi_addr, std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()))
    };
    let read_only =
        |header: &&libc::Elf64_Phdr| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0;
    for header in headers.iter().filter(read_only) {
        let (start, end) = (base + header.p_vaddr, base + header.p_vaddr + header.p_memsz);
        let (start, end) = (start as usize / PAGE * PAGE, end as usize / PAGE * PAGE);
        // SAFETY: the range is the mapping of a segment that is never written, relocations included (no PF_W), so the
        // kernel reads the same bytes again; the code that runs now is mapped again at its next instruction.
        if unsafe { libc::madvise(ptr::with_exposed_provenance_mut(start), end - start, libc::MADV_DONTNEED) }
            < 0
        {
            // SAFETY: `outcome` is what `release_code` passed.
            unsafe { *outcome.cast() = Err::<(), _>(io::Error::last_os_error()) };
        }
    }
    1
}
