//! The benchmark of the union file system: the same work on plain ext4, the kernel's overlay, both fuse-overlayfs
//! programs and ours, in turn, in one run. It prints a table in milliseconds with ratios and writes JSON. It runs as
//! root of a user namespace that `run` makes for an ordinary user.

mod work;

use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use work::{ROWS, Row};

/// A file system that takes part.
struct Peer {
    name: &'static str,
    kind: Kind,
}

enum Kind {
    Plain,
    Kernel,
    /// A program with fuse-overlayfs's command line.
    Program(PathBuf),
}

struct Bench {
    root: PathBuf,
    dir: PathBuf,
    runs: usize,
}

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    let root = PathBuf::from(arguments.next().expect("usage: bench-fs ROOT DIRECTORY OUTPUT.json [ROW...]"));
    let dir = PathBuf::from(arguments.next().expect("a directory to work in"));
    let output = PathBuf::from(arguments.next().expect("a file for the results"));
    let wanted: Vec<String> = arguments.filter_map(|word| word.into_string().ok()).collect();
    let runs = std::env::var("BENCH_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(3);
    let bench = Bench { root, dir, runs };
    let peers = peers();
    let mut results = Vec::new();
    for row in ROWS
        .iter()
        .filter(|row| wanted.is_empty() || wanted.iter().any(|word| row.name.contains(word.as_str())))
    {
        let times: Vec<Option<f64>> = peers.iter().map(|peer| bench.measure(peer, row)).collect();
        println!("{}", line(row.name, &times));
        results.push((row, times));
    }
    summary(&results);
    let names: Vec<_> = peers.iter().map(|peer| peer.name).collect();
    let rows: Vec<_> =
        results.iter().map(|(row, times)| serde_json::json!({"row": row.name, "ms": times})).collect();
    let json = serde_json::json!({"peers": names, "rows": rows});
    // A few rows are no run.
    if wanted.is_empty() {
        fs::write(&output, format!("{json:#}\n")).expect("the results can be written");
    }
}

/// Programs come from the environment; one that is not there takes no part.
fn peers() -> Vec<Peer> {
    let program = |name, variable: &str| {
        let path = PathBuf::from(std::env::var_os(variable).unwrap_or_default());
        path.is_file().then_some(Peer { name, kind: Kind::Program(path) })
    };
    let mut peers =
        vec![Peer { name: "ext4", kind: Kind::Plain }, Peer { name: "kernel", kind: Kind::Kernel }];
    peers.extend(program("fo 1.10", "BENCH_FO1"));
    peers.extend(program("fo 2.0.0", "BENCH_FO2"));
    peers.extend(program("ours", "FUSE_OVERLAY_BIN"));
    println!("{:38}{}", "ms", peers.iter().map(|peer| format!("{:>10}", peer.name)).collect::<String>());
    peers
}

impl Bench {
    /// The least of several runs, each on a fresh upper.
    fn measure(&self, peer: &Peer, row: &Row) -> Option<f64> {
        (0..self.runs).map(|_| self.once(peer, row)).min_by(f64::total_cmp)
    }

    fn once(&self, peer: &Peer, row: &Row) -> f64 {
        let dir = self.dir.join("stand");
        if dir.exists() {
            fs::remove_dir_all(&dir).expect("the last stand can be removed");
        }
        for part in ["upper", "work", "mnt"] {
            fs::create_dir_all(dir.join(part)).expect("a stand can be made");
        }
        let target = self.attach(peer, &dir);
        (row.before)(&target);
        if row.warm {
            (row.work)(&target);
        }
        let start = Instant::now();
        (row.work)(&target);
        let time = start.elapsed().as_secs_f64() * 1000.0;
        if !matches!(peer.kind, Kind::Plain) {
            let lazily = UnmountFlags::DETACH;
            rustix::mount::unmount(&target, lazily).expect("a mount can be taken off");
        }
        time
    }

    fn attach(&self, peer: &Peer, dir: &Path) -> PathBuf {
        let target = dir.join("mnt");
        let (root, dir) = (self.root.display(), dir.display());
        let options = format!("lowerdir={root},upperdir={dir}/upper,workdir={dir}/work");
        match &peer.kind {
            Kind::Plain => {
                let copied =
                    Command::new("cp").args(["-a", "--"]).arg(self.root.join(".")).arg(&target).output();
                // Device nodes cannot be copied, and cp says so of each.
                copied.expect("cp can be started");
            }
            Kind::Kernel => {
                let data = CString::new(format!("{options},userxattr")).expect("no NUL in a path");
                rustix::mount::mount("overlay", &target, "overlay", MountFlags::empty(), data.as_c_str())
                    .expect("the kernel mounts its overlay");
            }
            Kind::Program(path) => {
                let status = Command::new(path).arg("-o").arg(&options).arg(&target).status();
                assert!(status.is_ok_and(|status| status.success()), "{} mounts", path.display());
            }
        }
        target
    }
}

fn line(name: &str, times: &[Option<f64>]) -> String {
    let cells: String =
        times.iter().map(|time| time.map_or("-".into(), |time| format!("{time:10.1}"))).collect();
    let ours = times.last().copied().flatten().unwrap_or(f64::NAN);
    let kernel = times.get(1).copied().flatten().unwrap_or(f64::NAN);
    format!("{name:38}{cells}   {:6.2}x rival {:6.2}x kernel", rival(times) / ours, ours / kernel)
}

/// The better rival's time.
fn rival(times: &[Option<f64>]) -> f64 {
    let rivals = times.get(2..times.len().saturating_sub(1)).unwrap_or_default();
    rivals.iter().flatten().copied().fold(f64::NAN, f64::min)
}

fn summary(results: &[(&Row, Vec<Option<f64>>)]) {
    let mean = |ratio: &dyn Fn(&[Option<f64>]) -> f64| {
        let logs: Vec<f64> =
            results.iter().map(|(_, times)| ratio(times).ln()).filter(|log| log.is_finite()).collect();
        (logs.iter().sum::<f64>() / logs.len().max(1) as f64).exp()
    };
    let ours = |times: &[Option<f64>]| times.last().copied().flatten().unwrap_or(f64::NAN);
    let faster = mean(&|times| rival(times) / ours(times));
    let slower = mean(&|times| ours(times) / times.get(1).copied().flatten().unwrap_or(f64::NAN));
    println!(
        "geometric means: {faster:.2} times faster than the better rival, {slower:.2} times the kernel's time"
    );
}
