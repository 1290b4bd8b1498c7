//! Who talks with the monitor: commands that give an order or wait for the container's end, and terminals that
//! are attached. A caller who is gone is forgotten, and nobody waits for a slow one.

use std::os::fd::OwnedFd;

use crate::container::call::{Condition, FromMonitor, Line, Then, ToMonitor};
use crate::ids::Name;
use crate::spec::exec::Exec;
use crate::spec::life::{Restart, Stream};
use crate::spec::resources::Limits;
use crate::supervise::monitor::End;

/// Everybody on the line.
#[derive(Debug, Default)]
pub struct Callers {
    callers: Vec<Caller>,
    next: u64,
}

#[derive(Debug)]
struct Caller {
    number: u64,
    line: Line,
    streams: Vec<(Stream, OwnedFd)>,
    waits: Option<Condition>,
}

/// What a caller wants of the monitor.
#[derive(Debug)]
pub enum Order {
    Exec { exec: Box<Exec>, streams: Vec<(Stream, OwnedFd)> },
    CheckHealth,
    Attach { stdin: Option<OwnedFd>, sinks: Vec<(Stream, OwnedFd)> },
    Leave,
    Resize((u16, u16)),
    Signal { signal: i32, for_good: bool },
    Stop { signal: Option<i32>, seconds: Option<i64>, end: End },
    Rename(Name),
    Update(Limits, Option<Restart>),
    Pause,
    StandStill,
    Unpause,
    Begin,
    Nothing,
}

impl Callers {
    /// Its number.
    pub fn admit(&mut self, line: Line) -> u64 {
        self.next += 1;
        self.callers.push(Caller { number: self.next, line, streams: Vec::new(), waits: None });
        self.next
    }

    pub fn lines(&self) -> impl Iterator<Item = (u64, &Line)> {
        self.callers.iter().map(|caller| (caller.number, &caller.line))
    }

    /// The next word of a caller; `None` once it is gone.
    pub fn hear(&mut self, number: u64) -> Option<Order> {
        let at = self.callers.iter().position(|caller| caller.number == number)?;
        let caller = self.callers.get_mut(at)?;
        let Ok(Some((words, fd))) = caller.line.hear::<ToMonitor>() else {
            self.callers.remove(at);
            return None;
        };
        Some(match words {
            ToMonitor::Begin => Order::Begin,
            ToMonitor::Stream(stream) => {
                caller.streams.extend(fd.map(|fd| (stream, fd)));
                Order::Nothing
            }
            ToMonitor::Attach => {
                caller.waits = Some(Condition::NotRunning);
                let (mut stdin, mut sinks) = (None, Vec::new());
                for (stream, fd) in caller.streams.drain(..) {
                    if stream == Stream::Stdin { stdin = Some(fd) } else { sinks.push((stream, fd)) }
                }
                Order::Attach { stdin, sinks }
            }
            ToMonitor::Leave => Order::Leave,
            ToMonitor::Resize { rows, columns } => Order::Resize((rows, columns)),
            ToMonitor::Signal { signal, for_good } => Order::Signal { signal, for_good },
            ToMonitor::Stop { signal, seconds, then } => {
                let end = match then {
                    Then::Restart => End::Restart,
                    Then::Stay => End::Stopped,
                    Then::Die => End::Killed,
                };
                caller.waits = Some(Condition::NotRunning);
                Order::Stop { signal, seconds, end }
            }
            ToMonitor::Wait(condition) => {
                caller.waits = Some(condition);
                Order::Nothing
            }
            ToMonitor::Rename(name) => Order::Rename(name),
            ToMonitor::Update(limits, restart) => Order::Update(limits, restart),
            ToMonitor::Pause => Order::Pause,
            ToMonitor::StandStill => Order::StandStill,
            ToMonitor::Unpause => Order::Unpause,
            ToMonitor::Exec(exec) => Order::Exec { exec, streams: std::mem::take(&mut caller.streams) },
            ToMonitor::CheckHealth => Order::CheckHealth,
        })
    }

    /// Takes the caller's line for somebody else to talk on.
    pub fn dismiss(&mut self, number: u64) -> Option<Line> {
        let at = self.callers.iter().position(|caller| caller.number == number)?;
        Some(self.callers.remove(at).line)
    }

    pub fn tell(&mut self, number: u64, words: &FromMonitor) {
        if let Some(caller) = self.callers.iter().find(|caller| caller.number == number) {
            let _ = caller.line.say(words, None);
        }
    }

    /// Tells everybody.
    pub fn tell_all(&self, words: &FromMonitor) {
        for caller in &self.callers {
            let _ = caller.line.say(words, None);
        }
    }

    /// The program has ended with `status`; whoever waits for `reached` is told and dismissed.
    pub fn announce(&mut self, status: i32, reached: &[Condition]) {
        self.callers.retain(|caller| {
            let told = caller.waits.is_some_and(|waits| reached.contains(&waits));
            if told {
                let _ = caller.line.say(&FromMonitor::Ended(status), None);
            }
            !told
        });
    }
}
