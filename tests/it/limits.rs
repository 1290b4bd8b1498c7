//! Limits under load: the same tests wherever kelp runs, by the kernel where a cgroup is delegated (tests/vm), softly
//! where none is. Which of them is expected is what `kelp doctor` says; effects are measured, not files.

use crate::dir::Dir;
use crate::kelp::says;
use crate::needs;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

/// Who enforces limits here: cgroup, scope or soft.
pub(crate) fn enforcer(dir: &Dir) -> String {
    let checks: Value = serde_json::from_str(&dir.kelp(&["doctor", "--json"]).end().out).unwrap();
    let used =
        checks.as_array().unwrap().iter().find(|row| row["facility"] == "limits" && row["state"] == "used");
    match used.unwrap()["rung"].as_str().unwrap() {
        "delegated cgroup" => "cgroup".to_owned(),
        "systemd user scope" => "scope".to_owned(),
        rung => rung.to_owned(),
    }
}

pub(crate) fn is_soft(dir: &Dir) -> bool {
    enforcer(dir) == "soft"
}

#[track_caller]
fn between(value: &Value, low: f64, high: f64) {
    let number = value.as_f64().unwrap_or_else(|| panic!("no number: {value}"));
    assert!((low..=high).contains(&number), "{number} is not within {low} and {high}");
}

/// No attempt has more than a fifth of a processor; a starved machine may give less, but not always.
#[track_caller]
pub(crate) fn is_a_fifth(mut attempt: impl FnMut() -> Value) {
    let mut parts = Vec::new();
    while parts.len() < 3 && parts.last().is_none_or(|part| *part < 0.15) {
        parts.push(attempt()["part"].as_f64().unwrap());
    }
    assert!(parts.iter().all(|part| *part <= 0.25) && parts.last() >= Some(&0.15), "{parts:?}");
}

/// A folder in which a load waits for its moment.
pub(crate) struct Gate(String);

impl Gate {
    /// What the guest calls it.
    pub(crate) const INSIDE: &str = "/gate";

    pub(crate) fn new(dir: &Dir) -> Self {
        Self(dir.folder("gate"))
    }

    pub(crate) fn volume(&self) -> String {
        format!("{}:{}", self.0, Self::INSIDE)
    }

    /// All loads begin at one moment, once each of them is there.
    pub(crate) fn open(gates: &[&Self]) {
        let deadline = Instant::now() + Duration::from_secs(60);
        for Self(folder) in gates {
            while !fs::exists(format!("{folder}/up")).unwrap() {
                assert!(Instant::now() < deadline, "a load does not start");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let at = (crate::sys::monotonic() + 0.5).to_string();
        for Self(folder) in gates {
            fs::write(format!("{folder}/soon"), &at).unwrap();
            fs::rename(format!("{folder}/soon"), format!("{folder}/at")).unwrap();
        }
    }
}

#[test]
fn a_fifth_of_a_processor_is_a_fifth() {
    needs!(userns);
    let dir = Dir::new();
    is_a_fifth(|| dir.run(&["--cpus", "0.2"], &["/bin/guest", "burn", "5"]).ok().json());
}

#[test]
fn quota_and_period_are_the_same_by_the_names_of_old() {
    needs!(userns);
    let dir = Dir::new();
    let options = ["--cgroup-conf", "cpu.cfs_quota_us=10000", "--cgroup-conf", "cpu.cfs_period_us=50000"];
    is_a_fifth(|| dir.run(&options, &["/bin/guest", "burn", "5"]).ok().json());
}

#[test]
fn a_container_runs_on_the_processors_it_was_given() {
    needs!(userns);
    let dir = Dir::new();
    let given = dir.run(&["--cpuset-cpus", "0"], &["/bin/guest", "processors"]).ok().json();
    assert_eq!(given["allowed"], "0", "{given}");
    let error = dir.run(&["--cpuset-cpus", "1000"], &["/bin/guest", "processors"]).fails(125);
    says(&error, &["--cpuset-cpus 1000", "this machine has"]);
}

#[test]
fn four_times_the_shares_are_about_three_times_the_time() {
    needs!(userns);
    let start = |shares: &str| {
        let dir = Dir::new();
        let gate = Gate::new(&dir);
        let options = ["--cpu-shares", shares, "--cpuset-cpus", "0", "-v", &gate.volume()];
        (dir.run(&options, &["/bin/guest", "burn", "6", Gate::INSIDE]).start(), gate, dir)
    };
    let (more, less) = (start("1024"), start("256"));
    Gate::open(&[&more.1, &less.1]);
    let used = |child: std::process::Child| {
        let ended = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&ended.stdout).into_owned();
        let answer: Value = serde_json::from_str(&text)
            .unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&ended.stderr)));
        answer["used"].as_f64().unwrap()
    };
    let (more, less) = (used(more.0), used(less.0));
    assert!((2.5..=6.0).contains(&(more / less)), "{more} s to {less} s");
}

#[test]
fn a_container_that_takes_too_much_memory_ends_with_137() {
    needs!(userns);
    let dir = Dir::new();
    let ended = dir.run(&["-m", "20m", "--memory-swap", "20m"], &["/bin/guest", "fill", "60", "10"]).end();
    assert_eq!(ended.code, 137, "{}{}", ended.out, ended.err);
    let fits = dir.run(&["-m", "100m"], &["/bin/guest", "fill", "20", "0.5"]).end();
    assert_eq!(fits.code, 0, "{}{}", fits.out, fits.err);
}

/// The founding text: `stress --vm 2 --vm-bytes 40M` under 20 MB.
#[test]
fn stress_in_twenty_megabytes_is_ended_whole() {
    needs!(userns, stress);
    let dir = Dir::new();
    let words = ["run", "--rm", "-m", "20971820b", "--memory-swap", "20971820b", "@host", "stress"];
    let ended =
        dir.kelp(&[&words[..], &["--vm", "2", "--vm-bytes", "40M", "--timeout", "20"]].concat()).end();
    assert_eq!(ended.code, 137, "{}{}", ended.out, ended.err);
}

/// How soon exactly is for tests/bench/limits: a busy machine may be late, but is not always.
#[test]
fn memory_is_ended_soon_after_it_crosses_its_limit() {
    needs!(userns);
    let dir = Dir::new();
    let mut late = Vec::new();
    while late.len() < 3 && late.last().is_none_or(|late| *late > 2.0) {
        late.push(lives_beyond_its_limit(&dir));
    }
    assert!(late.last() <= Some(&2.0), "it lived for so many seconds more: {late:?}");
}

/// How many seconds a container that grows lives beyond 100 MB.
fn lives_beyond_its_limit(dir: &Dir) -> f64 {
    let mut child =
        dir.run(&["-m", "100m", "--memory-swap", "100m"], &["/bin/guest", "grow", "5", "0.01"]).start();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let steps: Vec<(f64, f64)> = lines
        .filter_map(|line| {
            let (size, time) = line.split_once(' ')?;
            Some((size.parse().ok()?, time.parse().ok()?))
        })
        .collect();
    assert_eq!(child.wait().unwrap().code(), Some(137));
    let crossed = steps.iter().find(|(size, _)| *size > 100.0).map_or(f64::MAX, |(_, time)| *time);
    steps.last().unwrap().1 - crossed
}

#[test]
fn a_fork_loop_is_stopped() {
    needs!(userns);
    let dir = Dir::new();
    let living = dir.run(&["--pids-limit", "20"], &["/bin/guest", "forks", "60"]).ok().json();
    between(&living["living"], 5.0, 20.0);
    let free = dir.run(&["--pids-limit", "-1"], &["/bin/guest", "forks", "60"]).ok().json();
    between(&free["living"], 60.0, 60.0);
}

#[test]
fn strict_limits_are_the_kernels_or_an_error() {
    needs!(userns);
    let dir = Dir::new();
    let strict = dir.run(&["--strict-limits", "--pids-limit", "50"], &["/bin/guest", "exit", "0"]);
    if is_soft(&dir) {
        says(&strict.fails(125), &["--strict-limits", "--pids-limit", "doctor"]);
    } else {
        strict.ok();
    }
}

#[test]
fn without_a_cgroup_kelp_holds_the_limits_itself() {
    needs!(userns);
    let dir = Dir::new();
    let options = ["--cgroups=disabled", "-m", "20m", "--memory-swap", "20m"];
    let named = [&options[..], &["--name", "own"]].concat();
    let root = dir.root();
    let program = ["--rootfs", &root, "/bin/guest", "fill", "60", "10"];
    dir.kelp(&[&["run"], &named[..], &program].concat()).fails(137);
    let described: Value = serde_json::from_str(&dir.kelp(&["inspect", "own"]).ok().out).unwrap();
    assert_eq!(described[0]["EnforcedBy"]["memory"], "soft");
    assert_eq!(described[0]["State"]["OOMKilled"], true);
    dir.kelp(&["rm", "own"]).ok();
    let strict = [&options[..], &["--strict-limits"]].concat();
    says(
        &dir.run(&strict, &["/bin/guest", "exit", "0"]).fails(125),
        &["--cgroups=disabled", "--strict-limits"],
    );
}

#[test]
fn a_cgroup_that_is_asked_for_and_cannot_be_made_is_an_error() {
    needs!(userns);
    let dir = Dir::new();
    if is_soft(&dir) {
        for option in ["--cgroups=enabled", "--cgroups=split"] {
            says(&dir.run(&[option], &["/bin/guest", "exit", "0"]).fails(125), &["cannot make a cgroup"]);
        }
        return;
    }
    // The group of another container, below which nobody may make any.
    let root = dir.root();
    let words = ["run", "-d", "--name", "full", "--cgroups=enabled", "--rootfs", &root, "/bin/guest"];
    dir.kelp(&[&words[..], &["sleep", "600"]].concat()).ok();
    let first = dir.kelp(&["inspect", "--format", "{{.State.Pid}}", "full"]).ok().out;
    let stands = fs::read_to_string(format!("/proc/{}/cgroup", first.trim())).unwrap();
    let path = stands.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
    fs::write(format!("/sys/fs/cgroup{path}/cgroup.max.descendants"), "0").unwrap();
    let below = dir.run(&["--cgroups=enabled", "--cgroup-parent", path], &["/bin/guest", "exit", "0"]);
    says(&below.fails(125), &["cannot make a cgroup"]);
    let line = format!(
        "echo $$ >/sys/fs/cgroup{path}/cgroup.procs && exec \"$0\" run --rm --cgroups=split --rootfs {root} /bin/guest exit 0"
    );
    says(&dir.shell(&line).fails(125), &["cannot make a cgroup"]);
    dir.kelp(&["rm", "-f", "full"]).ok();
}

#[test]
fn running_out_of_memory_is_told() {
    needs!(userns);
    let dir = Dir::new();
    let root = dir.root();
    let words =
        ["run", "--name", "big", "-m", "20m", "--memory-swap", "20m", "--rootfs", &root, "/bin/guest"];
    dir.kelp(&[&words[..], &["fill", "60", "10"]].concat()).fails(137);
    let events = ["events", "--since", "1h", "--until", "0s", "--format", "{{.Action}}"];
    assert_eq!(dir.kelp(&events).ok().out, "create\nstart\noom\ndie\n");
    let state = dir.kelp(&["inspect", "--format", "{{json .State}}", "big"]).ok().json();
    assert_eq!((&state["OOMKilled"], &state["ExitCode"]), (&Value::from(true), &Value::from(137)), "{state}");
    // The kernel keeps it since Linux 5.19, for a group.
    if !is_soft(&dir) {
        between(&state["MemoryPeak"], 19e6, 21e6);
    }
    dir.kelp(&["rm", "big"]).ok();
}

#[test]
fn what_nothing_enforces_is_said() {
    needs!(userns);
    let dir = Dir::new();
    let ended = dir.run(&["--memory-reservation", "5m"], &["/bin/guest", "exit", "0"]).ok();
    if is_soft(&dir) {
        says(&ended.err, &["warning", "--memory-reservation"]);
    } else {
        assert_eq!(ended.err, "");
    }
}

#[test]
fn limits_that_contradict_each_other_are_refused() {
    needs!(userns);
    let dir = Dir::new();
    for (options, words) in [
        (&["-m", "20m", "--memory-swap", "10m"][..], &["--memory-swap"][..]),
        (&["--memory-swap", "10m"], &["--memory-swap", "--memory"]),
        (&["--cpus", "1", "--cpu-quota", "5000"], &["--cpus", "--cpu-quota"]),
        (&["--oom-kill-disable"], &["--oom-kill-disable", "v2"]),
        (&["--device-read-bps", "/dev/null:1mb"], &["block device"]),
        (&["--cgroup-conf", "cgroup.procs=1"], &["--cgroup-conf"]),
        (&["--cgroups", "some"], &["--cgroups"]),
        (&["--cgroup-parent", "/no/such"], &["cgroup"]),
    ] {
        says(&dir.run(options, &["/bin/guest", "exit", "0"]).fails(125), words);
    }
}

#[test]
fn limits_change_while_a_container_runs() {
    needs!(userns);
    let dir = Dir::new();
    let root = dir.root();
    let words = ["run", "-d", "--name", "live", "-m", "200m", "--memory-swap", "200m", "--rootfs", &root];
    dir.kelp(&[&words[..], &["/bin/guest", "fill", "100", "60"]].concat()).ok();
    let rows = dir.kelp(&["stats", "--no-stream", "--format", "{{.EnforcedBy}}", "live"]).ok().out;
    says(&rows, &[&format!("memory:{}", enforcer(&dir))]);
    let described = |template: &str| dir.kelp(&["inspect", "--format", template, "live"]).ok().out;
    assert_eq!(described("{{.EnforcedBy.memory}}").trim(), enforcer(&dir));
    assert_eq!(described("{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}}").trim(), "209715200 0");
    dir.kelp(&["update", "-m", "30m", "--memory-swap", "30m", "live"]).ok();
    assert_eq!(dir.kelp(&["wait", "live"]).ok().out, "137\n");
    dir.kelp(&["rm", "live"]).ok();
}

/// A quota that changes goes with the period that the container was started with.
#[test]
fn a_quota_changes_within_its_period() {
    needs!(userns);
    let options = ["--cpu-period", "50000", "--cpu-quota", "50000"];
    is_a_fifth(|| {
        let dir = Dir::new();
        let gate = Gate::new(&dir);
        let (root, volume) = (dir.root(), gate.volume());
        let words =
            [&["run", "-d", "--name", "slow", "-v", &volume], &options[..], &["--rootfs", &root]].concat();
        dir.kelp(&[&words[..], &["/bin/guest", "burn", "5", Gate::INSIDE]].concat()).ok();
        dir.kelp(&["update", "--cpu-quota", "10000", "slow"]).ok();
        Gate::open(&[&gate]);
        assert_eq!(dir.kelp(&["wait", "slow"]).ok().out, "0\n");
        let burnt = dir.kelp(&["logs", "slow"]).ok().json();
        dir.kelp(&["rm", "slow"]).ok();
        burnt
    });
}

#[test]
fn a_paused_container_uses_no_time_and_goes_on() {
    needs!(userns);
    let dir = Dir::new();
    let root = dir.root();
    dir.kelp(&["run", "-d", "--name", "still", "--rootfs", &root, "/bin/guest", "burn", "60"]).ok();
    let share = || {
        let out = dir.kelp(&["stats", "--no-stream", "--format", "{{.CPUPerc}}", "still"]).ok().out;
        out.trim().trim_end_matches('%').parse::<f64>().unwrap()
    };
    dir.kelp(&["pause", "still"]).ok();
    assert_eq!(share(), 0.0, "it was told to be paused while it ran");
    says(&dir.kelp(&["ps", "--format", "{{.Status}}"]).ok().out, &["Paused"]);
    says(&dir.kelp(&["pause", "still"]).fails(1), &["paused"]);
    dir.kelp(&["unpause", "still"]).ok();
    let deadline = Instant::now() + Duration::from_secs(30);
    while share() == 0.0 {
        assert!(Instant::now() < deadline, "it does not go on");
    }
    dir.kelp(&["rm", "-f", "still"]).ok();
}

#[test]
fn a_container_sees_its_own_memory_and_processors() {
    needs!(userns, fuse);
    let dir = Dir::new();
    let script = "free -m | awk '/^Mem/ {print $2}'; nproc; grep -c ^processor /proc/cpuinfo; \
        python3 -c 'import os; print(os.cpu_count())'; cat /sys/devices/system/cpu/online; grep -c ^cpu[0-9] /proc/stat";
    let words = ["run", "--rm", "-m", "256m", "--cpuset-cpus", "0"];
    let seen = dir.kelp(&[&words[..], &["@host", "sh", "-c", script]].concat()).ok();
    assert_eq!(seen.out.lines().collect::<Vec<_>>(), ["256", "1", "1", "1", "0", "1"], "{}", seen.err);
    let host = dir.kelp(&[&words[..], &["--view=host", "@host", "sh", "-c", script]].concat()).ok();
    assert_ne!(host.out.lines().next(), Some("256"));
}

/// glibc, musl and the JVM ask the kernel itself; whoever may start containers asks the machine's.
#[test]
fn the_kernels_own_answer_is_the_containers_too() {
    needs!(userns, fuse);
    let dir = Dir::new();
    let seen = |options: &[&str]| {
        let words = ["run", "--rm", "-m", "256m", "--network", "none"];
        let program = ["@host", "sh", "-c", "getconf _PHYS_PAGES; uptime -p"];
        dir.kelp(&[&words[..], options, &program].concat()).ok().out
    };
    for options in [&[][..], &["--init"], &["--user", "0:0"], &["--security-opt", "no-new-privileges=false"]]
    {
        assert_eq!(seen(options), "65536\nup 0 minutes\n", "{options:?}");
    }
    for options in ["--view=host", "--cap-add=SYS_ADMIN", "--security-opt=seccomp=unconfined"] {
        assert!(!seen(&[options]).starts_with("65536\n"), "{options}");
    }
}

/// By another way than the first program: nothing of it is a child of that one's. The root is a user-space overlay,
/// into which nobody can look from outside.
#[test]
fn what_joins_is_under_the_limits_too() {
    needs!(userns, fuse);
    let dir = Dir::new();
    let root = dir.root();
    let options = ["-m", "60m", "--memory-swap", "60m", "--cpuset-cpus", "0", "--cpu-shares", "256"];
    for driver in ["fuse", "copy"] {
        let words = [&["run", "-d", "--name", driver, "--storage-driver", driver], &options[..]].concat();
        dir.kelp(&[&words[..], &["--rootfs", &root, "/bin/guest", "sleep", "600"]].concat()).ok();
        let seen = dir.kelp(&["exec", driver, "/bin/guest", "processors"]).ok().json();
        assert_eq!(seen["allowed"], "0", "{driver}");
        assert_eq!(seen["nice"], if is_soft(&dir) { 6 } else { 0 }, "{driver}");
        let filled = dir.kelp(&["exec", driver, "/bin/guest", "fill", "200", "30"]).end();
        assert_eq!(filled.code, 137, "{driver}: {}{}", filled.out, filled.err);
        dir.kelp(&["rm", "-f", driver]).ok();
    }
}

/// With a listener above it, a program can have none; it is told so, and what asks a listener goes on without.
#[test]
fn a_program_that_joins_is_answered_by_the_machine_and_the_containers_own_goes_on() {
    needs!(userns, fuse);
    let dir = Dir::new();
    let script = "while [ ! -e /tmp/go ]; do sleep 0.05; done; getconf _PHYS_PAGES";
    dir.kelp(&["run", "-d", "--name", "own", "-m", "256m", "@host", "sh", "-c", script]).ok();
    let joined = dir.kelp(&["exec", "own", "getconf", "_PHYS_PAGES"]).ok().out;
    assert!(joined.trim().parse::<u64>().unwrap() > 65536, "{joined}");
    dir.kelp(&["exec", "own", "touch", "/tmp/go"]).ok();
    dir.kelp(&["wait", "own"]).ok();
    assert_eq!(dir.kelp(&["logs", "own"]).ok().out, "65536\n");
    dir.kelp(&["rm", "own"]).ok();
}

/// The kernel keeps the texts for a moment: nobody sees an old one for long, and nobody a piece of one.
#[test]
fn numbers_are_of_now_however_often_they_are_read() {
    needs!(userns, fuse);
    let dir = Dir::new();
    let script = "import os, time\n\
        read = lambda name: open('/proc/' + name, 'rb').read()\n\
        free = lambda: int(read('meminfo').split()[4])\n\
        moments, end = [], time.monotonic() + 2\n\
        while time.monotonic() < end:\n \
            text = read('uptime')\n \
            assert text.endswith(b'\\n') and len(text) == os.stat('/proc/uptime').st_size, text\n \
            moments.append(float(text.split()[0]))\n\
        assert moments == sorted(moments) and len(set(moments)) >= 10, moments\n\
        before, held = free(), bytearray(b'x') * (50 << 20)\n\
        end = time.monotonic() + 10\n\
        while before - free() < 40 << 10: assert time.monotonic() < end, (before, free())\n\
        print('seen')\n";
    let words = ["run", "--rm", "-m", "256m", "@host", "python3", "-c", script];
    assert_eq!(dir.kelp(&words).ok().out, "seen\n");
    let write = "echo 1 >/proc/meminfo";
    says(&dir.kelp(&["run", "--rm", "-m", "256m", "@host", "sh", "-c", write]).fails(2), &["read-only"]);
}

#[test]
fn nothing_of_the_view_is_left_in_a_container() {
    needs!(userns, fuse);
    let dir = Dir::new();
    let seen = dir.run(&["-m", "256m"], &["/bin/guest", "list", "/dev/pts"]).ok().json();
    assert_eq!(seen["names"], serde_json::json!(["ptmx"]), "{seen}");
}

/// Whoever waits for an answer of the monitor's can't stop, and the monitor waits until everybody has.
#[test]
fn a_container_that_reads_its_numbers_without_end_can_be_paused() {
    needs!(userns, fuse);
    let dir = Dir::new();
    let words = ["run", "-d", "--name", "reader", "-m", "200m", "--cpus", "1.5", "@host", "python3", "-c"];
    dir.kelp(&[&words[..], &["while True: open('/proc/meminfo').read()"]].concat()).ok();
    for _ in 0..5 {
        dir.kelp(&["pause", "reader"]).ok();
        dir.kelp(&["unpause", "reader"]).ok();
    }
    says(&dir.kelp(&["ps", "--format", "{{.State}}"]).ok().out, &["running"]);
    let logged = dir.kelp(&["logs", "reader"]).ok();
    assert_eq!((logged.out.as_str(), logged.err.as_str()), ("", ""), "a reader was refused");
    dir.kelp(&["rm", "-f", "reader"]).ok();
}
