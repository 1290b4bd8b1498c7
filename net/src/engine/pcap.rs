//! The frames on the device as a pcap file, readable by their owner only. A write that fails ends the recording, not the
//! network.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::wire::VNET;

pub(crate) struct Pcap {
    file: Option<File>,
}

const SNAP: usize = 65535;

impl Pcap {
    /// Starts a recording. A file or link that is there already is refused.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .with_context(|| format!("cannot record frames in {}", path.display()))?;
        let words = [0xa1b2_c3d4_u32, 2 | 4 << 16, 0, 0, SNAP as u32, 1];
        file.write_all(&words.map(u32::to_ne_bytes).concat())?;
        Ok(Self { file: Some(file) })
    }

    /// Records a frame that has its vnet header still.
    pub(crate) fn record(&mut self, frame: &[u8]) {
        let (Some(file), Some(ethernet)) = (&mut self.file, frame.get(VNET..)) else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let kept = ethernet.get(..ethernet.len().min(SNAP)).unwrap_or(ethernet);
        let words = [now.as_secs() as u32, now.subsec_micros(), kept.len() as u32, ethernet.len() as u32];
        let record = [&words.map(u32::to_ne_bytes).concat(), kept].concat();
        if file.write_all(&record).is_err() {
            self.file = None;
        }
    }
}
