//! The block devices that a folder lies on, by the numbers that the kernel knows them by: the partition, its disk, and
//! what a mapped device is made of. A limit of any of them is one of the folder.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor, stat};

/// `MAJOR:MINOR` of each; none where the folder lies on no block device.
pub fn behind(folder: &Path) -> BTreeSet<String> {
    let (mut found, mut waiting) = (BTreeSet::new(), Vec::from_iter(device_of(folder)));
    while let Some(number) = waiting.pop() {
        let place = PathBuf::from("/sys/dev/block").join(&number);
        if !place.exists() || !found.insert(number) {
            continue;
        }
        let above = place.join("partition").exists().then(|| place.join("../dev"));
        let slaves = fs::read_dir(place.join("slaves")).into_iter().flatten().filter_map(Result::ok);
        let files = above.into_iter().chain(slaves.map(|entry| entry.path().join("dev")));
        waiting.extend(files.filter_map(|file| Some(fs::read_to_string(file).ok()?.trim().to_owned())));
    }
    found
}

/// Whether BFQ schedules a disk of this machine: it serves those that wait by their I/O priority (`ioprio_set(2)`).
pub fn some_are_weighed() -> bool {
    let disks = fs::read_dir("/sys/block").into_iter().flatten().filter_map(Result::ok);
    disks
        .map(|disk| disk.path().join("queue/scheduler"))
        .any(|file| fs::read_to_string(file).is_ok_and(|schedulers| schedulers.contains("[bfq]")))
}

/// What `/dev` calls it.
pub fn path(number: &str) -> Option<String> {
    let event = fs::read_to_string(format!("/sys/dev/block/{number}/uevent")).ok()?;
    Some(format!("/dev/{}", event.lines().find_map(|line| line.strip_prefix("DEVNAME="))?))
}

/// Some file systems have a number of their own; then the mount's source says which device it is.
fn device_of(folder: &Path) -> Option<String> {
    let found = stat(folder).ok()?.st_dev;
    let number = numbers(found);
    if major(found) != 0 {
        return Some(number);
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some(&number))?;
    let source = line.split_once(" - ")?.1.split(' ').nth(1)?;
    let source = stat(source).ok().filter(|_| source.starts_with("/dev/"))?;
    Some(numbers(source.st_rdev))
}

fn numbers(device: u64) -> String {
    format!("{}:{}", major(device), minor(device))
}
