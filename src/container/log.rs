//! The log of a container, written by its monitor: docker's json-file, or the kubelet's format, in the container's
//! folder; a file that is full is put aside. A disk that is full costs lines, never the container: a mark says
//! how many bytes were lost.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::image::config::rfc3339_nanos;
use crate::spec::life::{LogDriver, LogFormat, Stream};
use crate::units;

/// The file's name in the container's folder; older ones have `.1`, `.2` and so on behind it.
pub const NAME: &str = "log";

/// The longest line that is kept in one piece (docker's).
const LONGEST: usize = 16 * 1024;

/// An open log.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    driver: LogDriver,
    file: Option<File>,
    size: u64,
    /// The beginning of a line of stdout, and one of stderr.
    begun: [Vec<u8>; 2],
    lost: u64,
}

impl Log {
    /// The log in `folder`; its file is made by the first line.
    pub fn new(folder: &Path, driver: &LogDriver) -> Self {
        Self {
            path: folder.join(NAME),
            driver: driver.clone(),
            file: None,
            size: 0,
            begun: Default::default(),
            lost: 0,
        }
    }

    /// Keeps nothing.
    pub fn none() -> Self {
        Self::new(Path::new(""), &LogDriver { format: LogFormat::None, ..LogDriver::default() })
    }

    fn is_kept(&self) -> bool {
        matches!(self.driver.format, LogFormat::JsonFile | LogFormat::K8sFile)
    }

    /// Takes a piece of a stream; whole lines are written.
    pub fn write(&mut self, stream: Stream, piece: &[u8]) {
        if !self.is_kept() {
            return;
        }
        let time = rfc3339_nanos(units::now());
        let mut text = Vec::with_capacity(piece.len() * 2);
        let begun = &mut self.begun[usize::from(stream == Stream::Stderr)];
        for line in piece.split_inclusive(|byte| *byte == b'\n') {
            begun.extend_from_slice(line);
            while begun.len() >= LONGEST || begun.ends_with(b"\n") {
                let rest = begun.split_off(LONGEST.min(begun.len()));
                entry(&mut text, self.driver.format, stream, &time, begun);
                *begun = rest;
            }
        }
        self.append(&text);
    }

    /// Writes what has no end of line.
    pub fn end(&mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let begun = std::mem::take(&mut self.begun[usize::from(stream == Stream::Stderr)]);
            if !begun.is_empty() {
                let mut text = Vec::new();
                entry(&mut text, self.driver.format, stream, &rfc3339_nanos(units::now()), &begun);
                self.append(&text);
            }
        }
    }

    fn append(&mut self, text: &[u8]) {
        if text.is_empty() {
            return;
        }
        let mut whole = Vec::new();
        if self.lost > 0 {
            let mark = format!("kelp: {} bytes of log were lost here\n", self.lost);
            entry(
                &mut whole,
                self.driver.format,
                Stream::Stderr,
                &rfc3339_nanos(units::now()),
                mark.as_bytes(),
            );
        }
        whole.extend_from_slice(text);
        match self.put(&whole) {
            Ok(()) => self.lost = 0,
            Err(_) => self.lost += text.len() as u64,
        }
    }

    /// A write that was cut short is taken back, so that the file holds whole lines only.
    fn put(&mut self, text: &[u8]) -> io::Result<()> {
        let full =
            self.driver.max_size.is_some_and(|most| self.size > 0 && self.size + text.len() as u64 > most.0);
        if full {
            self.turn_over()?;
        }
        if self.file.is_none() {
            let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path)?;
            self.size = file.metadata()?.len();
            self.file = Some(file);
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        if let Err(error) = file.write_all(text) {
            let _ = file.set_len(self.size);
            return Err(error);
        }
        self.size += text.len() as u64;
        Ok(())
    }

    fn turn_over(&mut self) -> io::Result<()> {
        self.file = None;
        self.size = 0;
        let aside = |number: u32| self.path.with_extension(number.to_string());
        if self.driver.max_file <= 1 {
            return fs::remove_file(&self.path);
        }
        for number in (1..self.driver.max_file - 1).rev() {
            let _ = fs::rename(aside(number), aside(number + 1));
        }
        fs::rename(&self.path, aside(1))
    }
}

fn entry(text: &mut Vec<u8>, format: LogFormat, stream: Stream, time: &str, line: &[u8]) {
    let stream = if stream == Stream::Stderr { "stderr" } else { "stdout" };
    if format == LogFormat::K8sFile {
        let (line, mark) = line.strip_suffix(b"\n").map_or((line, "P"), |line| (line, "F"));
        text.extend_from_slice(format!("{time} {stream} {mark} ").as_bytes());
        text.extend_from_slice(line);
    } else {
        text.extend_from_slice(b"{\"log\":");
        let shown = String::from_utf8_lossy(line);
        let _ = serde_json::to_writer(&mut *text, &shown);
        text.extend_from_slice(format!(",\"stream\":\"{stream}\",\"time\":\"{time}\"}}").as_bytes());
    }
    text.push(b'\n');
}
