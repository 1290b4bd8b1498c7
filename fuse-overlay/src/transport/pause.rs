//! A queue of replies that a throttle holds back. One thread of its own sends them when they are due, so a worker that
//! serves metadata never waits for somebody else's data.

use fuser::ReplyData;
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

type Reply = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    due: BTreeMap<(Instant, u64), Reply>,
    next: u64,
    closed: bool,
}

#[derive(Clone, Default)]
pub(crate) struct Pause {
    shared: Arc<(Mutex<Queue>, Condvar)>,
}

impl Pause {
    /// Starts the thread; it ends when `close` is called.
    pub(crate) fn start() -> std::io::Result<Self> {
        let pause = Self::default();
        let queue = pause.clone();
        std::thread::Builder::new().name("throttle".into()).spawn(move || queue.run())?;
        Ok(pause)
    }

    pub(crate) fn until(&self, due: Instant, reply: Reply) {
        let (queue, wake) = &*self.shared;
        let mut queue = queue.lock();
        let order = queue.next;
        queue.next += 1;
        queue.due.insert((due, order), reply);
        wake.notify_one();
    }

    /// Sends what was read, now or when it is due.
    pub(crate) fn send(&self, data: &[u8], due: Option<Instant>, reply: ReplyData) {
        let Some(due) = due else { return reply.data(data) };
        let data = data.to_vec();
        self.until(due, Box::new(move || reply.data(&data)));
    }

    pub(crate) fn close(&self) {
        let (queue, wake) = &*self.shared;
        queue.lock().closed = true;
        wake.notify_one();
    }

    fn run(&self) {
        let (queue, wake) = &*self.shared;
        let mut queue = queue.lock();
        while !queue.closed {
            match queue.due.first_key_value().map(|((due, _), _)| *due) {
                None => wake.wait(&mut queue),
                Some(due) if due > Instant::now() => {
                    wake.wait_until(&mut queue, due);
                }
                Some(_) => {
                    if let Some((_, reply)) = queue.due.pop_first() {
                        parking_lot::MutexGuard::unlocked(&mut queue, reply);
                    }
                }
            }
        }
    }
}
