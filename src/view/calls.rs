//! `sysinfo(2)` with the container's numbers: the program's filter asks its listener (`seccomp_unotify(2)`). Whatever
//! can't be answered is left to the kernel, whose answer is the machine's: nothing is kept back by that.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::uio::{RemoteIoVec, process_vm_writev};
use nix::unistd::Pid;

use crate::sys::seccomp::{self, Asked, Outcome};
use crate::view::numbers::{Numbers, Source};

/// The size of `struct sysinfo` on 64-bit machines.
const SIZE: usize = 112;

#[derive(Debug)]
pub struct Calls(pub OwnedFd);

impl Calls {
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Answers one call, which is known to be there; an error says that nobody is left who could ask.
    pub fn answer(&self, source: &mut Source) -> std::io::Result<()> {
        let asked = match seccomp::receive(self.as_fd()) {
            Ok(asked) => asked,
            // The asker was ended meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error),
        };
        let written = self.write(&asked, &sysinfo(&source.numbers()));
        let outcome = if written.is_ok() { Outcome::Done } else { Outcome::Goes };
        // Likewise.
        let _ = seccomp::respond(self.as_fd(), asked.id, outcome);
        Ok(())
    }

    /// The asker's file in /proc is its user's, who may be any of the container's, so it is written to by its number:
    /// numbers are given out in turn, so none is another's so soon after its owner was seen to wait.
    fn write(&self, asked: &Asked, answer: &[u8; SIZE]) -> std::io::Result<()> {
        if !asked.is_native {
            return Err(std::io::ErrorKind::Unsupported.into());
        }
        let base = usize::try_from(asked.argument).unwrap_or(0);
        seccomp::is_valid(self.as_fd(), asked.id)?;
        let asker = Pid::from_raw(asked.pid.cast_signed());
        let written = process_vm_writev(asker, &[IoSlice::new(answer)], &[RemoteIoVec { base, len: SIZE }])?;
        if written == SIZE { Ok(()) } else { Err(std::io::ErrorKind::WriteZero.into()) }
    }
}

/// `struct sysinfo`: uptime, loads, memory, processes.
fn sysinfo(numbers: &Numbers) -> [u8; SIZE] {
    let Numbers { memory, used, shared, swap, swap_used, .. } = *numbers;
    let loads = numbers.load.map(|load| (load * 65536.0) as u64);
    let first = [numbers.uptime as u64].into_iter().chain(loads);
    let words = first.chain([memory, memory - used, shared, 0, swap, swap - swap_used, numbers.threads]);
    let mut answer = [0; SIZE];
    for (place, word) in answer.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    // Behind high memory, which there is none of, the unit of all these: a byte.
    if let Some(unit) = answer.get_mut(104) {
        *unit = 1;
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_where_the_kernel_writes_them() {
        let numbers = Numbers {
            memory: 256 << 20,
            used: 56 << 20,
            uptime: 7.9,
            load: [1.0, 0.5, 0.0],
            threads: 3,
            swap: 100,
            swap_used: 40,
            ..Numbers::default()
        };
        let words: Vec<u64> = sysinfo(&numbers)
            .chunks_exact(8)
            .map(|eight| u64::from_ne_bytes(eight.try_into().unwrap()))
            .collect();
        assert_eq!(words, [7, 65536, 32768, 0, 256 << 20, 200 << 20, 0, 0, 100, 60, 3, 0, 0, 1]);
    }
}
