//! What loads a container, and what came of it: processors' time, memory, processes, and which of them it was given. It
//! measures itself, so that a test compares effects.

use std::process::{Child, Command};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::sys;

fn number(words: &[String], at: usize) -> f64 {
    words.get(at).and_then(|word| word.parse().ok()).unwrap_or(1.0)
}

/// `burn SECONDS [GATE]`: runs without a pause and tells which part of the time it had a processor; with a folder, it says
/// there that it is `up` and is counted from the time of the monotonic clock on that somebody writes to `at`.
pub(crate) fn burn(words: &[String]) -> Option<Value> {
    if let Some(gate) = words.get(1) {
        std::fs::write(format!("{gate}/up"), "").ok()?;
        let at = loop {
            let said = std::fs::read_to_string(format!("{gate}/at")).ok();
            match said.and_then(|text| text.parse::<f64>().ok()) {
                Some(at) => break at,
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        while sys::clock(libc::CLOCK_MONOTONIC) < at {
            std::hint::spin_loop();
        }
    }
    let (start, time) = (Instant::now(), Duration::from_secs_f64(number(words, 0)));
    let before = sys::clock(libc::CLOCK_PROCESS_CPUTIME_ID);
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
    let used = sys::clock(libc::CLOCK_PROCESS_CPUTIME_ID) - before;
    Some(json!({"part": used / start.elapsed().as_secs_f64(), "used": used}))
}

/// `fill MEGABYTES SECONDS`: holds so much memory for so long, having said `filled` with the clock's time.
pub(crate) fn fill(words: &[String]) -> Option<Value> {
    let held = vec![7u8; (number(words, 0) as usize) << 20];
    println!("filled");
    std::thread::sleep(Duration::from_secs_f64(number(words, 1)));
    Some(json!({"sum": held.iter().step_by(4096).map(|byte| u64::from(*byte)).sum::<u64>()}))
}

/// `grow STEP SECONDS`: takes a page more each turn and prints how many megabytes it has at each step of so many.
pub(crate) fn grow(words: &[String]) -> Option<Value> {
    let step = number(words, 0) as usize;
    let mut held: Vec<Vec<u8>> = Vec::new();
    loop {
        held.push(vec![7u8; step << 20]);
        println!("{} {}", held.len() * step, sys::clock(libc::CLOCK_MONOTONIC));
        std::thread::sleep(Duration::from_secs_f64(number(words, 1)));
    }
}

/// `forks N`: how many of so many children live at once.
pub(crate) fn forks(words: &[String]) -> Option<Value> {
    let wanted = number(words, 0) as usize;
    let start =
        || Command::new("/proc/self/exe").args(["sleep", "30"]).stdout(std::process::Stdio::null()).spawn();
    let mut children: Vec<Child> = (0..wanted).filter_map(|_| start().ok()).collect();
    // Whoever is to be ended from outside has been, by then.
    std::thread::sleep(Duration::from_millis(300));
    let count = children.iter_mut().filter_map(|child| child.try_wait().ok()).filter(Option::is_none).count();
    for child in &mut children {
        let _ = child.kill();
        let _ = child.wait();
    }
    Some(json!({"living": count}))
}

/// `transfer FILE MEGABYTES`: how long it takes to write so much to the disk.
pub(crate) fn transfer(words: &[String]) -> Option<Value> {
    use std::io::Write;
    let path = words.first().map_or("/tmp/transfer", String::as_str);
    let start = Instant::now();
    let written = std::fs::File::create(path).and_then(|mut file| {
        let block = vec![1u8; 1 << 20];
        for _ in 0..number(words, 1) as usize {
            file.write_all(&block)?;
        }
        file.sync_all()
    });
    Some(json!({"ok": written.is_ok(), "seconds": start.elapsed().as_secs_f64()}))
}

/// `read-all FILE`: how long it takes to read all of it.
pub(crate) fn read_all(words: &[String]) -> Option<Value> {
    let start = Instant::now();
    let text = std::fs::read(words.first()?).ok()?;
    Some(json!({"bytes": text.len(), "seconds": start.elapsed().as_secs_f64()}))
}

/// `operations read|write FILE N`: how long N single accesses of a page take, each of which reaches the disk.
pub(crate) fn operations(words: &[String]) -> Option<Value> {
    use std::os::unix::fs::{FileExt, OpenOptionsExt};
    let (way, path, count) = (words.first()?, words.get(1)?, number(words, 2) as u64);
    let mut options = std::fs::OpenOptions::new();
    let file = match way.as_str() {
        "write" => options.write(true).create(true).custom_flags(libc::O_DSYNC).open(path),
        _ => options.read(true).open(path),
    };
    let file = file.ok()?;
    sys::expect_no_order(&file);
    let mut page = [1u8; 4096];
    let start = Instant::now();
    // Backwards and far apart: nothing is read ahead, nothing is put together.
    for at in (0..count).rev() {
        let offset = at * 65536;
        match way.as_str() {
            "write" => file.write_all_at(&page, offset).ok()?,
            _ => file.read_exact_at(&mut page, offset).ok()?,
        }
    }
    Some(json!({"seconds": start.elapsed().as_secs_f64()}))
}

/// The processors that it may run on, and its nice value.
pub(crate) fn processors(_: &[String]) -> Option<Value> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let nice =
        stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(16)?.parse::<i32>().ok());
    Some(json!({"allowed": list.map(str::trim), "nice": nice}))
}
