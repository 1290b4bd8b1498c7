//! What may befall a container that lives: anybody killed at any moment of any order, a reboot, folders that vanish or
//! are full, programs that misbehave. The next command finds the truth, and can remove everything. These tests run
//! alone. `KELP_TEST_ROUNDS` is how often each order is disturbed in each way, at moments that `KELP_TEST_SEED` gives.

use crate::dir::Dir;
use crate::faults::Dice;
use crate::host::{below, children_in_containers, containers, soon};
use crate::nested::Nested;
use crate::{needs, sys};
use std::fs;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// An order, and the orders that make what it acts on.
struct Order {
    before: &'static [&'static str],
    words: &'static str,
}

const RUN: &str = "run -d --name reef --network none --rootfs ROOT /bin/guest sleep";
const CREATE: &str = "create --name reef --network none --rootfs ROOT /bin/guest sleep";

const ORDERS: &[Order] = &[
    Order { before: &[], words: RUN },
    Order { before: &[], words: CREATE },
    Order { before: &[CREATE], words: "start reef" },
    Order { before: &[RUN], words: "stop -t 0 reef" },
    Order { before: &[RUN], words: "kill reef" },
    Order { before: &[RUN], words: "restart -t 0 reef" },
    Order { before: &[RUN], words: "rm -f reef" },
    Order { before: &[CREATE], words: "rm reef" },
    Order { before: &[RUN], words: "rename reef shoal" },
    Order { before: &[RUN], words: "wait reef" },
    Order { before: &[RUN], words: "attach reef" },
    Order { before: &[RUN], words: "exec reef /bin/guest exit 0" },
    Order { before: &[RUN], words: "logs -f reef" },
    Order { before: &[RUN], words: "ps -a" },
    Order { before: &[RUN], words: "inspect reef" },
    Order { before: &[RUN], words: "top reef" },
    Order { before: &[RUN], words: "pause reef" },
    Order { before: &[RUN, "pause reef"], words: "unpause reef" },
    Order { before: &[RUN], words: "update --pids-limit 50 reef" },
    Order { before: &[RUN], words: "port reef" },
];

/// Who is killed: whoever gave the order, or a process of this name.
const VICTIMS: [Option<&str>; 3] = [None, Some("kelp-monitor"), Some("guest")];

fn words(dir: &Dir, text: &str) -> Vec<String> {
    text.split(' ').map(|word| if word == "ROOT" { dir.text("root") } else { word.to_owned() }).collect()
}

/// Every container is in a state that can be, and can be removed.
#[track_caller]
fn all_is_well(dir: &Dir, after: &str) {
    let listed = dir.kelp(&["ps", "-a", "--format", "{{.Names}} {{.State}}"]).ok().out;
    for line in listed.lines() {
        let (name, state) = line.split_once(' ').unwrap();
        assert!(
            ["created", "running", "paused", "restarting", "exited"].contains(&state),
            "after {after}: {line}"
        );
        dir.kelp(&["rm", "-f", name]).ok();
    }
}

#[track_caller]
fn nobody_is_left(after: &str) {
    let me = std::process::id() as i32;
    let gone = soon(|| {
        sys::reap();
        below(me).is_empty()
    });
    assert!(gone, "after {after}: {:?}", below(me));
}

fn disturb(victim: Option<&str>) {
    sys::adopt_orphans();
    let dir = Dir::new();
    dir.root();
    let number = |name| std::env::var(name).ok().map(|number| number.parse::<u64>().unwrap());
    let rounds = number("KELP_TEST_ROUNDS").unwrap_or(2);
    let mut dice = Dice(number("KELP_TEST_SEED").unwrap_or(0x7065_7269));
    let me = std::process::id() as i32;
    for order in ORDERS {
        for round in 0..rounds {
            for before in order.before {
                dir.kelp(&words(&dir, before)).ok();
            }
            let mut child = dir.kelp(&words(&dir, order.words)).start();
            std::thread::sleep(Duration::from_micros(dice.below(20_000)));
            match victim {
                None => sys::kill(child.id() as i32, libc::SIGKILL).unwrap(),
                Some(name) => below(me).iter().filter(|(_, called)| called == name).for_each(|(pid, _)| {
                    let _ = sys::kill(*pid, libc::SIGKILL);
                }),
            }
            let lasting = ["wait", "attach", "logs"].iter().any(|verb| order.words.starts_with(verb));
            if lasting && victim.is_some() && below(me).iter().any(|(_, called)| called == "guest") {
                // Nobody was there to be killed.
                let _ = child.kill();
            }
            let ended = soon(|| child.try_wait().unwrap().is_some());
            let _ = child.kill();
            let told = format!("round {round} of {}, {victim:?} killed", order.words);
            assert!(ended, "{told}: it waits for ever");
            as_the_first_process(|| all_is_well(&dir, &told));
            nobody_is_left(&told);
        }
    }
    assert_eq!(containers(&dir), Vec::<String>::new());
}

/// Reaps meanwhile what became ours, as a machine's first process does: a container does not end before each of its
/// processes is reaped, and the program of an `exec` that was killed is ours to reap (`pid_namespaces(7)`).
fn as_the_first_process(work: impl FnOnce()) {
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let me = std::process::id() as i32;
                children_in_containers(me).into_iter().for_each(sys::reap_one);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(work));
        done.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// Guard: what a command has begun, the next one finds whole or takes back.
#[test]
fn a_command_killed_in_the_middle_of_any_order_spoils_nothing() {
    needs!(userns);
    disturb(VICTIMS[0]);
}

/// Guard: the lock of a dead monitor is free, and whoever waits for its answer hears that it is gone.
#[test]
fn a_monitor_killed_in_the_middle_of_any_order_is_noticed() {
    needs!(userns);
    disturb(VICTIMS[1]);
}

#[test]
fn a_first_process_killed_in_the_middle_of_any_order_is_an_end_like_any_other() {
    needs!(userns);
    disturb(VICTIMS[2]);
}

/// Guard: the record names the boot; a process of an earlier one is nobody's.
#[test]
fn after_a_reboot_a_container_has_exited_and_starts_again() {
    needs!(userns);
    sys::adopt_orphans();
    let dir = Dir::new();
    dir.root();
    dir.kelp(&words(&dir, RUN)).ok();
    let me = std::process::id() as i32;
    for (pid, _) in below(me) {
        let _ = sys::kill(pid, libc::SIGKILL);
    }
    nobody_is_left("the end of the machine");
    let _ = fs::remove_dir_all(dir.path("run"));
    let boot = dir.file("boot", "00000000-1111-2222-3333-444444444444\n");
    let line = format!("mount --bind {boot} /proc/sys/kernel/random/boot_id && exec \"$@\"");
    let state = "{{.State.Status}} {{.State.ExitCode}} {{.State.Error}}";
    let seen = Nested::new(&dir).shell(&line).verb(&["inspect", "-f", state, "reef"]).run(&dir).ok();
    assert_eq!(seen.out, "exited 255 the machine went down\n");
    dir.kelp(&["start", "reef"]).ok();
    assert_eq!(dir.kelp(&["inspect", "-f", "{{.State.Status}}", "reef"]).ok().out, "running\n");
    all_is_well(&dir, "a reboot");
}

#[test]
fn a_runtime_folder_that_is_deleted_is_not_missed() {
    needs!(userns);
    let dir = Dir::new();
    dir.root();
    dir.kelp(&words(&dir, RUN)).ok();
    let _ = fs::remove_dir_all(dir.path("run"));
    assert_eq!(dir.kelp(&["exec", "reef", "/bin/guest", "say", "here"]).ok().out, "here\n");
    assert!(soon(|| dir.kelp(&["logs", "reef"]).ok().out == "ready\n"));
    dir.kelp(&["stop", "-t", "0", "reef"]).ok();
    let _ = fs::remove_dir_all(dir.path("run"));
    dir.kelp(&["start", "reef"]).ok();
    all_is_well(&dir, "a deleted runtime folder");
}

#[test]
fn a_runtime_folder_that_is_missing_or_anothers_is_replaced() {
    needs!(userns);
    let dir = Dir::new();
    dir.root();
    for place in ["/nowhere/at/all", "/proc", ""] {
        let run = |text: &str| {
            let mut kelp =
                dir.kelp(&words(&dir, text)).env("XDG_RUNTIME_DIR", place).env("TMPDIR", &dir.text(""));
            kelp.command.env_remove("KELP_RUNDIR");
            kelp
        };
        run(RUN).ok();
        assert_eq!(run("exec reef /bin/guest say here").ok().out, "here\n");
        run("rm -f reef").ok();
    }
}

/// Guard: the record is a page that is there already, so an end is kept on a full disk.
#[test]
fn a_full_disk_costs_neither_the_container_nor_its_end() {
    needs!(userns);
    let dir = Dir::new();
    dir.root();
    let full = dir.folder("full");
    let kelp = "KELP_ROOT=$full/store \"$kelp\"";
    let line = format!(
        "kelp=$1 root=$5; full={full}; mount -t tmpfs -o size=4m none $full && mkdir $full/store && \
         {kelp} run -d --name reef --network none --rootfs \"$root\" /bin/guest await-signal TERM >/dev/null && \
         {{ cat /dev/zero >$full/fill 2>/dev/null; {kelp} ps --format '{{{{.State}}}}' && \
         {kelp} exec reef /bin/guest say inside && {kelp} stop reef && \
         {kelp} inspect -f '{{{{.State.Status}}}} {{{{.State.ExitCode}}}}' reef && {kelp} rm reef; }}",
    );
    let seen = Nested::new(&dir).shell(&line).run(&dir).ok();
    assert_eq!(seen.out, "running\ninside\nreef\nexited 7\nreef\n", "{}", seen.err);
}

#[test]
fn a_full_tmp_is_no_obstacle() {
    needs!(userns);
    let dir = Dir::new();
    dir.root();
    let line = "kelp=$1 root=$5; unset KELP_RUNDIR XDG_RUNTIME_DIR TMPDIR; mount -t tmpfs none /dev/shm && mount -t tmpfs -o size=64k,nr_inodes=2 none /tmp && \
                { cat /dev/zero >/tmp/fill 2>/dev/null; \
                \"$kelp\" run -d --name reef --network none --rootfs \"$root\" /bin/guest sleep 100 >/dev/null && \
                \"$kelp\" exec reef /bin/guest say inside && \"$kelp\" stop -t 0 reef && \"$kelp\" rm reef; }";
    let seen = Nested::new(&dir).shell(line).run(&dir).ok();
    assert_eq!(seen.out, "inside\nreef\nreef\n", "{}", seen.err);
}

fn kill_all(name: &str) {
    let found = below(std::process::id() as i32);
    let called = found.iter().filter(|(_, called)| called == name);
    assert!(called.clone().count() > 0, "no {name} in {found:?}");
    called.for_each(|(pid, _)| sys::kill(*pid, libc::SIGKILL).unwrap());
}

#[test]
fn a_killed_network_engine_is_told_and_the_container_goes_on() {
    needs!(userns);
    sys::adopt_orphans();
    let dir = Dir::new();
    dir.root();
    dir.kelp(&words(&dir, &RUN.replace(" --network none", ""))).ok();
    kill_all("kelp-network");
    let state = || dir.kelp(&["inspect", "-f", "{{.State.Status}} {{.State.Error}}", "reef"]).ok().out;
    assert!(soon(|| state().starts_with("running its network engine was killed")), "{}", state());
    dir.kelp(&["exec", "reef", "/bin/guest", "exit", "0"]).ok();
    assert!(dir.kelp(&["logs", "reef"]).ok().err.contains("its network engine was killed"));
    let told = dir
        .kelp(&[
            "events",
            "--since",
            "1h",
            "--until",
            "0s",
            "-f",
            "event=lost",
            "--format",
            "{{.Actor.Attributes.service}}",
        ])
        .ok()
        .out;
    assert_eq!(told, "network\n");
    all_is_well(&dir, "a killed network engine");
}

#[test]
fn a_container_whose_root_is_served_no_more_ends_and_says_why() {
    needs!(userns, fuse);
    sys::adopt_orphans();
    for driver in ["fuse", "overlay-on-fuse"] {
        let dir = Dir::new();
        dir.root();
        let flags = format!("--storage-driver {driver} --network");
        dir.kelp(&words(&dir, &RUN.replace("--network", &flags))).ok();
        kill_all("kelp-fuse");
        let state = || dir.kelp(&["inspect", "-f", "{{.State.Status}} {{.State.Error}}", "reef"]).ok().out;
        let said = "exited the server of its root file system was killed";
        assert!(soon(|| state().starts_with(said)), "{driver}: {}", state());
        dir.kelp(&["start", "reef"]).ok();
        dir.kelp(&["exec", "reef", "/bin/guest", "exit", "0"]).ok();
        all_is_well(&dir, "a killed server of the root");
    }
}

#[test]
fn a_thousand_zombies_are_the_programs_own_affair() {
    needs!(userns);
    let dir = Dir::new();
    let zombies = "i=0; while [ $i -lt 1000 ]; do true & i=$((i+1)); done; echo made; exec sleep 100";
    dir.kelp(&["run", "-d", "--name", "reef", "--ulimit", "nproc=4000", "@host", "sh", "-c", zombies]).ok();
    assert!(
        soon(|| dir.kelp(&["logs", "reef"]).ok().out == "made\n"),
        "{}",
        dir.kelp(&["logs", "reef"]).ok().err
    );
    dir.kelp(&["exec", "reef", "true"]).ok();
    dir.kelp(&["top", "reef"]).ok();
    dir.kelp(&["stop", "-t", "0", "reef"]).ok();
    all_is_well(&dir, "a thousand zombies");
}

#[test]
fn a_program_that_ignores_its_stop_signal_is_killed_when_its_time_is_up() {
    needs!(userns);
    let dir = Dir::new();
    dir.kelp(&[
        "run",
        "-d",
        "--name",
        "reef",
        "@host",
        "sh",
        "-c",
        "trap '' TERM; echo deaf; sleep 100 & wait; wait",
    ])
    .ok();
    assert!(soon(|| dir.kelp(&["logs", "reef"]).ok().out == "deaf\n"));
    let begun = Instant::now();
    dir.kelp(&["stop", "-t", "1", "reef"]).ok();
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert_eq!(dir.kelp(&["inspect", "-f", "{{.State.ExitCode}}", "reef"]).ok().out, "137\n");
    dir.kelp(&["rm", "reef"]).ok();
}

#[test]
fn a_program_that_goes_into_the_background_ends_its_container() {
    needs!(userns);
    sys::adopt_orphans();
    let dir = Dir::new();
    dir.kelp(&["run", "-d", "--name", "reef", "@host", "sh", "-c", "setsid sleep 100 & exit 4"]).ok();
    assert_eq!(dir.kelp(&["wait", "reef"]).ok().out, "4\n");
    dir.kelp(&["rm", "reef"]).ok();
    nobody_is_left("a program that forks twice");
}

#[test]
fn closed_standard_streams_are_no_obstacle() {
    needs!(userns);
    let dir = Dir::new();
    dir.root();
    let line = format!("exec \"$0\" run --rm --rootfs {} /bin/guest exit 3 <&- >&- 2>&-", dir.text("root"));
    dir.shell(&line).fails(3);
}
