//! Limits that change while a container runs, each under load: by the kernel where a cgroup is delegated, softly where
//! none is. What a limit of the kernel's files does that has no soft form is in tests/vm.

use crate::dir::Dir;
use crate::disk::{disk, forget, is_free, is_held};
use crate::kelp::{Kelp, says};
use crate::limits::{Gate, enforcer, is_a_fifth, is_soft};
use crate::needs;
use serde_json::Value;
use std::fs;
use std::time::{Duration, Instant};

/// A container that runs `command` under limits that hold nothing back.
struct Running {
    dir: Dir,
}

impl Running {
    fn new(options: &[&str], command: &[&str]) -> Self {
        let dir = Dir::new();
        let root = dir.root();
        Self::within(dir, &root, options, command)
    }

    fn within(dir: Dir, root: &str, options: &[&str], command: &[&str]) -> Self {
        let words = ["run", "-d", "--name", "live", "--network", "none", "-m", "500m"];
        dir.kelp(&[&words, options, &["--rootfs", root, "/bin/guest"], command].concat()).ok();
        Self { dir }
    }

    fn update(&self, options: &[&str]) -> Kelp {
        self.dir.kelp(&[&["update"], options, &["live"]].concat())
    }

    /// What the program said, once it has ended.
    fn said(&self) -> Value {
        assert_eq!(self.dir.kelp(&["wait", "live"]).ok().out, "0\n");
        self.dir.kelp(&["logs", "live"]).ok().json()
    }

    fn exec(&self, command: &[&str]) -> Value {
        self.dir.kelp(&[&["exec", "live", "/bin/guest"], command].concat()).ok().json()
    }

    fn enforced_by(&self, flag: &str) -> String {
        let template = format!("{{{{index .EnforcedBy {flag:?}}}}}");
        self.dir.kelp(&["inspect", "--format", &template, "live"]).ok().out.trim().to_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.dir.kelp(&["rm", "-f", "live"]).end();
    }
}

/// One that waits for its moment.
fn waiting(options: &[&str], seconds: &str) -> (Running, Gate) {
    let dir = Dir::new();
    let (root, gate) = (dir.root(), Gate::new(&dir));
    let volume = gate.volume();
    let options = [options, &["-v", &volume]].concat();
    (Running::within(dir, &root, &options, &["burn", seconds, Gate::INSIDE]), gate)
}

#[test]
fn processors_time_changes() {
    needs!(userns);
    is_a_fifth(|| {
        let (live, gate) = waiting(&["--cpus", "1"], "5");
        live.update(&["--cpus", "0.2"]).ok();
        Gate::open(&[&gate]);
        assert_eq!(live.enforced_by("cpus"), enforcer(&live.dir));
        live.said()
    });
}

#[test]
fn shares_change() {
    needs!(userns);
    let start = || waiting(&["--cpu-shares", "1024", "--cpuset-cpus", "0"], "6");
    let (more, less) = (start(), start());
    less.0.update(&["--cpu-shares", "256"]).ok();
    assert_eq!(less.0.enforced_by("cpu-shares"), enforcer(&less.0.dir));
    Gate::open(&[&more.1, &less.1]);
    let used = |live: &Running| live.said()["used"].as_f64().unwrap();
    let (more, less) = (used(&more.0), used(&less.0));
    assert!((2.5..=6.0).contains(&(more / less)), "{more} s to {less} s");
}

#[test]
fn what_a_container_sees_changes() {
    needs!(userns, fuse);
    let live = Running::new(&["--cpuset-cpus", "0-1"], &["sleep", "600"]);
    live.update(&["-m", "128m", "--cpuset-cpus", "0"]).ok();
    let deadline = Instant::now() + Duration::from_secs(10);
    for (path, wanted) in
        [("/proc/meminfo", "MemTotal:         131072 kB\n"), ("/sys/devices/system/cpu/online", "0\n")]
    {
        let seen = || live.exec(&["read", path])["text"].as_str().unwrap().to_owned();
        while !seen().starts_with(wanted) {
            assert!(Instant::now() < deadline, "{}", seen());
        }
    }
}

#[test]
fn the_processors_to_run_on_change() {
    needs!(userns);
    let live = Running::new(&[], &["sleep", "600"]);
    live.update(&["--cpuset-cpus", "0"]).ok();
    let first = live.exec(&["read", "/proc/1/status"]);
    says(first["text"].as_str().unwrap(), &["Cpus_allowed_list:\t0\n"]);
    says(&live.update(&["--cpuset-cpus", "1000"]).fails(1), &["--cpuset-cpus 1000", "this machine has"]);
}

#[test]
fn the_number_of_processes_changes() {
    needs!(userns);
    let live = Running::new(&["--pids-limit", "200"], &["sleep", "600"]);
    let forks = || live.exec(&["forks", "60"])["living"].as_u64().unwrap();
    assert_eq!(forks(), 60);
    live.update(&["--pids-limit", "20"]).ok();
    let living = forks();
    assert!((5..=20).contains(&living), "{living}");
}

/// What has no soft form is said not to hold; what is unlimited again is.
#[test]
fn what_nothing_enforces_is_said_of_a_change_too() {
    needs!(userns);
    let live = Running::new(&["--pids-limit", "200"], &["sleep", "600"]);
    for (flag, value) in [("memory-reservation", "8m"), ("memory-high", "400m")] {
        let changed = live.update(&[&format!("--{flag}"), value]).ok();
        let described: Value = serde_json::from_str(&live.dir.kelp(&["inspect", "live"]).ok().out).unwrap();
        let by = described[0]["EnforcedBy"][flag].as_str().unwrap();
        if is_soft(&live.dir) {
            assert_eq!(by, "none");
            says(&changed.err, &["warning", flag]);
        } else {
            assert_eq!((by, changed.err.as_str()), (enforcer(&live.dir).as_str(), ""), "{flag}");
        }
    }
    live.update(&["--pids-limit", "-1"]).ok();
    assert_eq!(live.exec(&["forks", "300"])["living"], 300);
}

#[test]
fn the_rates_of_a_disk_change() {
    needs!(userns, fuse, disk);
    let dir = Dir::new();
    let root = dir.root();
    let device = disk(&root).unwrap();
    let live = Running::within(dir, &root, &["--storage-driver", "fuse"], &["sleep", "600"]);
    for (flag, rate, least, command) in [
        ("device-write-bps", "512kb", 3.6, &["transfer", "", "2"][..]),
        ("device-write-iops", "10", 3.6, &["operations", "write", "", "40"]),
        ("device-read-bps", "512kb", 5.0, &["read-all", ""]),
        ("device-read-iops", "10", 3.6, &["operations", "read", "", "40"]),
    ] {
        // Each time another file of 3 MB, which no cache holds.
        let seconds = |when: &str, number: usize| {
            let name = format!("{flag}-{when}-{number}");
            let path = format!("{root}/{name}");
            fs::write(&path, vec![7u8; 3 << 20]).unwrap();
            forget(&path);
            let file = format!("/{name}");
            let command: Vec<&str> =
                command.iter().map(|word| if word.is_empty() { file.as_str() } else { word }).collect();
            live.exec(&command)["seconds"].as_f64().unwrap()
        };
        is_free(flag, least / 2.0, |number| seconds("before", number));
        live.update(&[&format!("--{flag}"), &format!("{device}:{rate}")]).ok();
        is_held(flag, least, |number| seconds("held", number));
        assert_eq!(live.enforced_by(flag), "soft", "what our server writes is not the container's");
        live.update(&[&format!("--{flag}"), &format!("{device}:{}", unlimited(flag))]).ok();
        is_free(flag, least / 2.0, |number| seconds("after", number));
    }
}

#[test]
fn the_rates_of_what_the_kernel_writes_are_not_the_servers() {
    needs!(userns, overlay, fuse, disk);
    let said = ["overlay", "overlay-on-fuse"].map(|driver| {
        let dir = Dir::new();
        let root = dir.root();
        let device = disk(&root).unwrap();
        let live = Running::within(dir, &root, &["--storage-driver", driver], &["sleep", "600"]);
        let told = live.update(&["--device-write-bps", &format!("{device}:512kb")]).end();
        (told.code, told.err, live.enforced_by("device-write-bps"))
    });
    assert_eq!(said[0], said[1]);
}

/// A rate that holds nothing back.
fn unlimited(flag: &str) -> &'static str {
    if flag.ends_with("bps") { "1gb" } else { "1000000" }
}
