//! A person at a terminal: a pseudo-terminal whose far end is kelp's terminal, what has appeared on it, and keys.
//! It knows no kelp verb: any command can be sat down at.

use crate::host::soon;
use crate::kelp::Kelp;
use crate::sys;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};

pub(crate) struct Person {
    keys: File,
    screen: Arc<Mutex<String>>,
    pub(crate) terminal: OwnedFd,
    pub(crate) child: Child,
}

impl Person {
    /// Sits the person down before the command, with a window of 33 rows and 99 columns.
    pub(crate) fn at(kelp: Kelp) -> Self {
        Self::before(kelp, 33, 99)
    }

    pub(crate) fn before(mut kelp: Kelp, rows: u16, columns: u16) -> Self {
        let (ours, theirs) = sys::terminal();
        sys::resize(&ours, rows, columns);
        let end = || Stdio::from(theirs.try_clone().unwrap());
        kelp.command.stdin(end()).stdout(end()).stderr(end());
        sys::own_session(&mut kelp.command);
        let child = kelp.command.spawn().unwrap();
        let screen = Arc::new(Mutex::new(String::new()));
        let (mut eyes, seen) = (File::from(ours.try_clone().unwrap()), screen.clone());
        std::thread::spawn(move || {
            let mut block = [0; 4096];
            while let Ok(count @ 1..) = eyes.read(&mut block) {
                seen.lock().unwrap().push_str(&String::from_utf8_lossy(&block[..count]));
            }
        });
        Self { keys: File::from(ours), screen, terminal: theirs, child }
    }

    pub(crate) fn types(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    pub(crate) fn screen(&self) -> String {
        self.screen.lock().unwrap().clone()
    }

    #[track_caller]
    pub(crate) fn sees(&self, text: &str) {
        assert!(soon(|| self.screen().contains(text)), "no {text:?} on the screen:\n{}", self.screen());
    }

    pub(crate) fn resizes(&self, rows: u16, columns: u16) {
        sys::resize(&self.terminal, rows, columns);
    }

    /// Waits for the command to end; its exit code.
    pub(crate) fn leaves(&mut self) -> i32 {
        let mut code = None;
        soon(|| {
            code = self.child.try_wait().unwrap();
            code.is_some()
        });
        let _ = self.child.kill();
        code.and_then(|status| status.code()).unwrap_or(-1)
    }
}
