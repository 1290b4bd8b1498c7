//! Where the threads of a mount run. A request costs two wake-ups, and waking a CPU that sleeps costs an interrupt (decision
//! 0106). A caretaker, awake only while there are requests, looks every few milliseconds which of two modes is right:
//!
//! | mode   | who reads requests                                     | good for                        |
//! |--------|--------------------------------------------------------|---------------------------------|
//! | spread | the pool, any CPU                                       | more programs than CPUs, bulk data |
//! | near   | one thread, on the CPU of the program that asked last   | few programs, small requests       |
//!
//! The near thread is `SCHED_IDLE` for good: a CPU that runs nothing else counts as idle, so the woken program stays there.
//! It would starve on a busy machine, where the caretaker ends the mode. A thread is held up only after it has answered.

use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, openat};
use rustix::thread::{CpuSet, Pid, gettid, sched_setaffinity};
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often the caretaker looks. Seldom in the near mode: a CPU that it wakes looks for work afterwards, and takes the
/// program away.
const TICK_SPREAD: Duration = Duration::from_millis(1);
const TICK_NEAR: Duration = Duration::from_millis(8);
/// Requests after which the near thread looks where the program is.
const FOLLOW: u32 = 16;
/// Requests in a tick from which on the near mode pays.
const BUSY: u64 = 8;
/// Ticks without a request after which the caretaker sleeps, and with too many runnable threads before it believes it.
const QUIET: u32 = 20;
const CROWDED: u32 = 3;
/// How long the near mode is not tried again after it failed; doubled each time up to the second.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

thread_local! {
    static NEAR: Cell<bool> = const { Cell::new(false) };
    static TRAIL: RefCell<Trail> = const { RefCell::new(Trail { thread: 0, stat: None, cpu: usize::MAX, requests: 0 }) };
}

/// What is asked of the threads of one mount.
pub(crate) struct Placement {
    device: OwnedFd,
    /// Rung when the near thread must look up.
    bell: OwnedFd,
    near: AtomicBool,
    /// The near thread, once there is one.
    thread: AtomicI32,
    /// The thread that asked last.
    client: AtomicU32,
    served: AtomicU64,
    /// Requests that carried much data.
    heavy: AtomicU64,
    /// Requests of threads that were not among the last to ask.
    strange: AtomicU64,
    recent: Mutex<Recent>,
    proc: OwnedFd,
    ended: AtomicBool,
    /// The kernel did not let a thread become the near one.
    refused: AtomicBool,
    turn: Mutex<()>,
    changed: Condvar,
    cpus: usize,
}

/// What the device says without waiting.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Device {
    Empty,
    Waiting,
    Gone,
}

impl Placement {
    /// `proc` is a procfs of the pid namespace that the device was mounted in. `None` where there is only one CPU.
    pub(crate) fn start(device: &OwnedFd, proc: OwnedFd) -> std::io::Result<Option<Arc<Self>>> {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        if cpus < 2 {
            return Ok(None);
        }
        let bell = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
        let placement = Arc::new(Self {
            device: device.try_clone()?,
            bell,
            near: AtomicBool::new(false),
            thread: AtomicI32::new(0),
            client: AtomicU32::new(0),
            served: AtomicU64::new(0),
            heavy: AtomicU64::new(0),
            strange: AtomicU64::new(0),
            recent: Mutex::new(Recent::default()),
            proc,
            ended: AtomicBool::new(false),
            refused: AtomicBool::new(false),
            turn: Mutex::new(()),
            changed: Condvar::new(),
            cpus,
        });
        let care = placement.clone();
        std::thread::Builder::new().name("placement".into()).spawn(move || care.run())?;
        Ok(Some(placement))
    }

    /// A thread has answered a request of `client` and is about to read the next one.
    pub(crate) fn answered(&self, client: u32, heavy: bool) {
        if client != 0 {
            self.client.store(client, Ordering::Relaxed);
            if self.recent.lock().is_strange(client, self.cpus) {
                self.strange.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.served.fetch_add(1, Ordering::Relaxed);
        if heavy {
            self.heavy.fetch_add(1, Ordering::Relaxed);
        }
        let near = self.near.load(Ordering::Acquire);
        if near && self.thread.load(Ordering::Relaxed) == 0 {
            self.become_near();
        }
        match (NEAR.get(), near) {
            (false, false) => {}
            (true, true) => self.next_near(),
            _ => self.hold(),
        }
    }

    fn become_near(&self) {
        let me = gettid().as_raw_nonzero().get();
        let first = self.thread.compare_exchange(0, me, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if first && crate::sys::become_idle_thread().is_ok() {
            NEAR.set(true);
        } else if first {
            self.refused.store(true, Ordering::Relaxed);
            self.switch(false);
        }
    }

    /// The near thread waits here, not in its read, so that it can be called away.
    fn next_near(&self) {
        let client = self.client.load(Ordering::Relaxed);
        if let Some(cpu) = TRAIL.with_borrow_mut(|trail| trail.moved(&self.proc, client)) {
            self.pin(&[cpu]);
        }
        let mut fds = [PollFd::new(&self.device, PollFlags::IN), PollFd::new(&self.bell, PollFlags::IN)];
        while poll(&mut fds, None).is_err() {}
        if fds.get(1).is_some_and(|bell| !bell.revents().is_empty()) {
            let _rung = rustix::io::read(&self.bell, &mut [0; 8]);
            if !self.near.load(Ordering::Acquire) {
                TRAIL.with_borrow_mut(|trail| trail.cpu = usize::MAX);
                self.hold();
            }
        }
    }

    /// Waits until this thread's mode comes, or the end.
    fn hold(&self) {
        let mut turn = self.turn.lock();
        while self.near.load(Ordering::Acquire) != NEAR.get() && !self.ended.load(Ordering::Acquire) {
            self.changed.wait(&mut turn);
        }
    }

    fn switch(&self, near: bool) {
        let turn = self.turn.lock();
        self.near.store(near, Ordering::Release);
        self.changed.notify_all();
        drop(turn);
        if !near {
            let _full = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
            self.pin((0..self.cpus.min(CpuSet::MAX_CPU)).collect::<Vec<_>>().as_slice());
        }
    }

    fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.switch(false);
    }

    fn device(&self, timeout: Option<&Timespec>) -> Device {
        let mut fds = [PollFd::new(&self.device, PollFlags::IN)];
        let known = poll(&mut fds, timeout).unwrap_or(0);
        match fds.first().map(PollFd::revents).filter(|_| known > 0) {
            None => Device::Empty,
            Some(events) if events.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) => {
                Device::Gone
            }
            Some(_) => Device::Waiting,
        }
    }

    /// The caretaker: sleeps until a request comes, attends while they come.
    fn run(&self) {
        while self.device(None) != Device::Gone && self.attend() != Device::Gone {
            self.switch(false);
        }
        self.end();
    }

    fn attend(&self) -> Device {
        let mut look = Look::default();
        let mut retry = (Instant::now(), PATIENCE.0);
        while look.quiet < QUIET {
            let near = self.near.load(Ordering::Relaxed);
            std::thread::sleep(if near { TICK_NEAR } else { TICK_SPREAD });
            let device = self.device(Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
            if device == Device::Gone {
                return Device::Gone;
            }
            look.take(self, device);
            if near && look.starves(device) {
                self.switch(false);
                retry = (Instant::now() + retry.1, (retry.1 * 2).min(PATIENCE.1));
            } else if !near
                && look.pays()
                && Instant::now() >= retry.0
                && !self.refused.load(Ordering::Relaxed)
            {
                self.switch(true);
            }
        }
        Device::Empty
    }

    fn pin(&self, cpus: &[usize]) {
        let Some(thread) = Pid::from_raw(self.thread.load(Ordering::Relaxed)) else { return };
        let mut set = CpuSet::new();
        cpus.iter().filter(|cpu| **cpu < CpuSet::MAX_CPU).for_each(|cpu| set.set(*cpu));
        let _runs_where_it_may = sched_setaffinity(Some(thread), &set);
    }
}

/// The threads that asked last, the latest first, as many as there are CPUs.
#[derive(Default)]
struct Recent {
    threads: Vec<u32>,
}

impl Recent {
    fn is_strange(&mut self, thread: u32, cpus: usize) -> bool {
        let known = self.threads.iter().position(|known| *known == thread);
        match known {
            Some(0) => return false,
            Some(index) => drop(self.threads.remove(index)),
            None => self.threads.truncate(cpus.saturating_sub(1)),
        }
        self.threads.insert(0, thread);
        known.is_none()
    }
}

/// What the caretaker saw in the last tick.
#[derive(Default)]
struct Look {
    served: u64,
    heavy: u64,
    strange: u64,
    done: u64,
    bulk: bool,
    /// More programs ask in turn than there are CPUs, and one thread would hold them up.
    many: bool,
    quiet: u32,
    crowded: u32,
}

impl Look {
    fn take(&mut self, placement: &Placement, device: Device) {
        let (served, heavy) =
            (placement.served.load(Ordering::Relaxed), placement.heavy.load(Ordering::Relaxed));
        self.done = served - self.served;
        self.bulk = (heavy - self.heavy) * 2 > self.done;
        let strange = placement.strange.load(Ordering::Relaxed);
        self.many = (strange - self.strange) * 3 > self.done;
        (self.served, self.heavy, self.strange) = (served, heavy, strange);
        self.quiet = if self.done == 0 && device == Device::Empty { self.quiet + 1 } else { 0 };
        self.crowded = if runnable() > placement.cpus + 1 { self.crowded + 1 } else { 0 };
    }

    fn starves(&self, device: Device) -> bool {
        (device == Device::Waiting && self.done == 0) || self.bulk || self.many || self.crowded >= CROWDED
    }

    fn pays(&self) -> bool {
        self.done >= BUSY && !self.bulk && !self.many && self.crowded == 0
    }
}

/// Where the program that asks was seen last.
struct Trail {
    thread: u32,
    stat: Option<File>,
    cpu: usize,
    requests: u32,
}

impl Trail {
    /// The CPU that the near thread should move to; asked at every request, looked up at few.
    fn moved(&mut self, proc: &OwnedFd, thread: u32) -> Option<usize> {
        self.requests += 1;
        if self.requests < FOLLOW {
            return None;
        }
        self.requests = 0;
        if thread != self.thread || self.stat.is_none() {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let stat = openat(proc, format!("{thread}/stat"), flags, Mode::empty());
            (self.thread, self.stat) = (thread, stat.ok().map(File::from));
        }
        let cpu = self.stat.as_ref().and_then(cpu_in);
        if cpu.is_none() {
            self.stat = None;
        }
        let cpu = cpu.filter(|cpu| *cpu != self.cpu)?;
        self.cpu = cpu;
        Some(cpu)
    }
}

/// The CPU that a thread ran on last: field 39 of `proc_pid_stat(5)`.
fn cpu_in(stat: &File) -> Option<usize> {
    let mut buffer = [0; 1024];
    let length = stat.read_at(&mut buffer, 0).ok()?;
    let text = std::str::from_utf8(buffer.get(..length)?).ok()?;
    text.rsplit_once(')')?.1.split_whitespace().nth(36)?.parse().ok()
}

/// Threads that run or want to, this one among them (`proc_loadavg(5)`).
fn runnable() -> usize {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let word = text.split_whitespace().nth(3).and_then(|word| word.split_once('/'));
    word.and_then(|(running, _)| running.parse().ok()).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_programs_as_cpus_are_no_strangers_and_one_more_makes_all_strange() {
        let strangers = |threads: u32| {
            let mut recent = Recent::default();
            (0..100 * threads).filter(|i| recent.is_strange(i % threads, 2)).count() as u32
        };
        assert_eq!([strangers(1), strangers(2), strangers(3)], [1, 2, 300]);
    }
}
