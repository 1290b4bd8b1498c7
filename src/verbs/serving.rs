//! What serves a container from outside, as its monitor holds it: the server of its root and the engine of its network.
//! They end with the value.

use std::process::Child;

use crate::network::engine::Engine;
use crate::supervise::service::{Server, Service};
use crate::sys::process;

#[derive(Debug)]
pub struct Serving {
    pub root: RootServer,
    pub engine: Option<Engine>,
}

impl Serving {
    /// The processes, to be watched.
    pub fn servers(&self) -> Vec<Server> {
        let pids = [
            (Service::Root, self.root.0.as_ref().map(Child::id)),
            (Service::Network, self.engine.as_ref().map(Engine::pid)),
        ];
        let watched = pids.into_iter().filter_map(|(service, pid)| {
            let pidfd = process::pidfd_open(i32::try_from(pid?).ok()?).ok()?;
            Some(Server { service, pidfd })
        });
        watched.collect()
    }
}

/// The server of a root; it ends with the container.
#[derive(Debug)]
pub struct RootServer(pub Option<Child>);

impl Drop for RootServer {
    fn drop(&mut self) {
        if let Some(server) = &mut self.0 {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}
