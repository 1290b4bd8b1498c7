//! Limits of block devices under load: the disk that the store lies on, held by the kernel where `io` is delegated and
//! by the user-space overlay where it is not. A disk stalls when somebody else uses it, so a load that is slow proves
//! nothing by itself: with a limit it is slow each time, and without one it is quick at least once.

use crate::dir::Dir;
use crate::kelp::says;
use crate::limits::enforcer;
use crate::needs;
use serde_json::Value;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

/// The whole disk below a folder, as `/dev` calls it.
pub(crate) fn disk(folder: &str) -> Option<String> {
    let found = Command::new("stat").args(["-c", "%Hd:%Ld", folder]).output().ok()?;
    let number = String::from_utf8(found.stdout).ok()?;
    let mut place = format!("/sys/dev/block/{}", number.trim());
    if fs::exists(format!("{place}/partition")).ok()? {
        place.push_str("/..");
    }
    let event = fs::read_to_string(format!("{place}/uevent")).ok()?;
    let name = event.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
    fs::exists(format!("/dev/{name}")).ok()?.then(|| format!("/dev/{name}"))
}

/// The page cache holds nothing of the file any more.
pub(crate) fn forget(file: &str) {
    let script = "sync \"$0\" && dd if=\"$0\" iflag=nocache count=0 status=none";
    assert!(Command::new("sh").args(["-c", script, file]).status().unwrap().success());
}

/// One attempt of many is quick, so nothing holds the load back; `attempt` says how many seconds its n-th one took, on
/// a file that no cache holds.
#[track_caller]
pub(crate) fn is_free(what: &str, seconds: f64, mut attempt: impl FnMut(usize) -> f64) {
    let began = Instant::now();
    let mut took = Vec::new();
    while took.last().is_none_or(|last| *last >= seconds) {
        assert!(took.is_empty() || began.elapsed() < PATIENCE, "{what}: never within {seconds} s: {took:?}");
        took.push(attempt(took.len()));
    }
}

/// For so long a disk may stall.
const PATIENCE: Duration = Duration::from_secs(60);

/// Each attempt lasts, so something holds the load back and not a disk that stalls.
#[track_caller]
pub(crate) fn is_held(what: &str, seconds: f64, mut attempt: impl FnMut(usize) -> f64) {
    for number in 0..2 {
        let took = attempt(number);
        assert!(took >= seconds, "{what}: {took} s in attempt {number}, less than {seconds}");
    }
}

struct Load {
    dir: Dir,
    disk: String,
}

impl Load {
    /// A root with a file of 3 MB that the page cache does not hold.
    fn new() -> Self {
        let dir = Dir::new();
        let root = dir.root();
        fs::write(format!("{root}/big"), vec![7u8; 3 << 20]).unwrap();
        let disk = disk(&root).unwrap();
        Self { dir, disk }
    }

    /// How long the guest says that it took.
    fn seconds(&self, limit: Option<(&str, &str)>, command: &[&str]) -> f64 {
        forget(&self.dir.text("root/big"));
        let flag = limit.map(|(flag, rate)| [flag.to_owned(), format!("{}:{rate}", self.disk)]);
        let options: Vec<&str> = flag.iter().flatten().map(String::as_str).collect();
        // The same root file system either way: what differs is the limit.
        let options = [&options[..], &["--storage-driver", "fuse"]].concat();
        let ended = self.dir.run(&options, &[&["/bin/guest"], command].concat()).ok();
        assert_eq!(ended.err, "");
        ended.json()["seconds"].as_f64().unwrap()
    }

    /// The limit makes it last for so long, and nothing else does.
    #[track_caller]
    fn lasts(&self, flag: &str, rate: &str, seconds: f64, command: &[&str]) {
        is_held(flag, seconds, |_| self.seconds(Some((flag, rate)), command));
        is_free(flag, seconds / 2.0, |_| self.seconds(None, command));
    }
}

#[test]
fn bytes_written_to_a_disk_are_held() {
    needs!(userns, fuse, disk);
    Load::new().lasts("--device-write-bps", "1mb", 1.8, &["transfer", "/tmp/new", "2"]);
}

#[test]
fn bytes_read_from_a_disk_are_held() {
    needs!(userns, fuse, disk);
    Load::new().lasts("--device-read-bps", "1mb", 2.5, &["read-all", "/big"]);
}

#[test]
fn writes_to_a_disk_are_held() {
    needs!(userns, fuse, disk);
    Load::new().lasts("--device-write-iops", "20", 1.8, &["operations", "write", "/tmp/new", "40"]);
}

#[test]
fn reads_from_a_disk_are_held() {
    needs!(userns, fuse, disk);
    Load::new().lasts("--device-read-iops", "20", 1.8, &["operations", "read", "/big", "40"]);
}

#[test]
fn a_device_below_no_part_of_the_root_has_no_soft_limit_and_that_is_said() {
    needs!(userns, disk);
    let dir = Dir::new();
    let root = dir.root();
    let limit = format!("{}:1mb", disk(&root).unwrap());
    let start = |name: &str, options: &[&str]| {
        let words =
            [&["run", "-d", "--name", name], options, &["--rootfs", &root, "/bin/guest", "sleep", "60"]];
        let started = dir.kelp(&words.concat()).ok();
        let described: Value = serde_json::from_str(&dir.kelp(&["inspect", name]).ok().out).unwrap();
        dir.kelp(&["rm", "-f", name]).ok();
        (started.err, described[0].clone())
    };
    let flag = ["--device-write-bps", &limit];
    let (said, served) = start("served", &[&flag[..], &["--storage-driver", "fuse"]].concat());
    // What our server writes is not the container's, so the kernel does not hold it.
    assert_eq!((&served["EnforcedBy"]["device-write-bps"], said.as_str()), (&Value::from("soft"), ""));
    assert_eq!(served["HostConfig"]["BlkioDeviceWriteBps"][0]["Rate"], 1 << 20);
    assert_eq!(served["HostConfig"]["BlkioDeviceWriteBps"][0]["Path"], limit.trim_end_matches(":1mb"));
    let (said, through) = start("through", &[&flag[..], &["--storage-driver", "copy"]].concat());
    if enforcer(&dir) == "soft" {
        assert_eq!(through["EnforcedBy"]["device-write-bps"], "none");
        says(&said, &["warning", "--device-write-bps"]);
    } else {
        assert_eq!(through["EnforcedBy"]["device-write-bps"], enforcer(&dir));
    }
}
