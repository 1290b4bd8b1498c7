//! Faults and crowds: kelp killed at any moment, a thousand containers in a row, fifty at once. Afterwards no
//! process, no mount and no folder is left, and the next command works. These tests run alone.

use crate::dir::Dir;
use crate::host::{below, containers, mounts_below, soon};
use crate::{needs, sys};
use std::fs;
use std::time::{Duration, Instant};

/// Numbers that are the same in every run (xorshift64*), so that a failure can be had again.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % most
    }
}

/// Every process below the test ends by itself.
#[track_caller]
fn nobody_is_left() {
    let me = std::process::id() as i32;
    let gone = soon(|| {
        sys::reap();
        below(me).is_empty()
    });
    assert!(gone, "still there: {:?}", below(me));
}

/// User namespaces of this user's processes other than the test's own.
fn user_namespaces() -> Vec<String> {
    let own = crate::host::namespace("user");
    let all = below(std::process::id() as i32);
    let spaces = all.iter().filter_map(|(pid, _)| fs::read_link(format!("/proc/{pid}/ns/user")).ok());
    spaces.map(|space| space.display().to_string()).filter(|space| *space != own).collect()
}

#[track_caller]
fn nothing_is_left(dir: &Dir) {
    nobody_is_left();
    assert_eq!(user_namespaces(), Vec::<String>::new());
    assert_eq!(mounts_below(&dir.text("")), Vec::<String>::new());
    assert_eq!(containers(dir), Vec::<String>::new());
}

/// Guard: the container dies with its monitor, and the next command clears what the dead one left.
#[test]
fn kelp_killed_at_200_moments_leaves_nothing_that_the_next_command_does_not_clear() {
    needs!(userns);
    sys::adopt_orphans();
    let dir = Dir::new();
    dir.root();
    let started = Instant::now();
    dir.run(&[], &["/bin/guest", "exit", "0"]).ok();
    let whole = started.elapsed().as_micros().max(2000) as u64;
    let mut dice = Dice(0x6b65_6c70);
    for round in 0..200 {
        let options: &[&str] = [&[][..], &["--init"], &["--name", "reef"], &["--userns=single"]][round % 4];
        let mut child = dir.run(options, &["/bin/guest", "sleep", "0.01"]).start();
        std::thread::sleep(Duration::from_micros(dice.below(whole + 12_000)));
        let _ = sys::kill(child.id() as i32, libc::SIGKILL);
        child.wait().unwrap();
        if round % 20 == 19 {
            nobody_is_left();
            assert_eq!(
                dir.run(&["--name", "reef"], &["/bin/guest", "say", "works"]).ok().out,
                "works\n",
                "round {round}"
            );
        }
    }
    nobody_is_left();
    dir.run(&[], &["/bin/guest", "exit", "0"]).ok();
    nothing_is_left(&dir);
}

/// Guard: the first process outlives its monitor for as long as it takes to end the others.
#[test]
fn what_a_program_among_the_hosts_processes_leaves_behind_ends_with_a_killed_kelp() {
    needs!(userns);
    sys::adopt_orphans();
    let dir = Dir::new();
    let left = ["/bin/guest", "all", "spawn-orphan", ",", "sleep"];
    let mut child = dir.run(&["--pid=host"], &left).start();
    let mut ready = [0; 6];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
    let guests = below(child.id() as i32).into_iter().filter(|(_, name)| name == "guest").count();
    assert_eq!(guests, 2, "the program and its orphan: {:?}", below(child.id() as i32));
    sys::kill(child.id() as i32, libc::SIGKILL).unwrap();
    child.wait().unwrap();
    nobody_is_left();
    dir.run(&[], &["/bin/guest", "exit", "0"]).ok();
    nothing_is_left(&dir);
}

/// Guard: an interrupted start takes itself back.
#[test]
fn kelp_interrupted_at_60_moments_leaves_nothing() {
    needs!(userns);
    sys::adopt_orphans();
    let dir = Dir::new();
    dir.root();
    let mut dice = Dice(0x7369_676e);
    for round in 0..60 {
        let signal = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP][round % 3];
        let name = ["TERM", "INT", "HUP"][round % 3];
        let mut child = dir.run(&["--init"], &["/bin/guest", "await-signal", name]).start();
        std::thread::sleep(Duration::from_micros(dice.below(25_000)));
        sys::kill(child.id() as i32, signal).unwrap();
        let ended = soon(|| child.try_wait().unwrap().is_some());
        let _ = child.kill();
        assert!(ended, "round {round}: a {name} in the middle of the start was lost");
    }
    dir.run(&[], &["/bin/guest", "exit", "0"]).ok();
    nothing_is_left(&dir);
}

#[test]
fn a_thousand_runs_in_a_row() {
    needs!(userns);
    sys::adopt_orphans();
    let dir = Dir::new();
    dir.root();
    for round in 0..1000 {
        let outcome = dir.run(&[], &["/bin/guest", "exit", "0"]).end();
        assert_eq!(outcome.code, 0, "round {round}: {}", outcome.err);
    }
    nothing_is_left(&dir);
}

#[test]
fn fifty_at_once() {
    needs!(userns);
    sys::adopt_orphans();
    let dir = Dir::new();
    dir.root();
    let crowd: Vec<_> =
        (0..50).map(|number| dir.run(&[], &["/bin/guest", "say", &number.to_string()]).start()).collect();
    for (number, child) in crowd.into_iter().enumerate() {
        let ended = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(String::from_utf8_lossy(&ended.stdout), format!("{number}\n"), "{said}");
    }
    nothing_is_left(&dir);
}

/// Guard: a folder that a kelp is about to make the spare one is not emptied by another that sweeps.
#[test]
fn a_container_that_another_kelp_is_removing_is_left_to_it() {
    needs!(userns);
    let dir = Dir::new();
    dir.run(&[], &["/bin/guest", "exit", "0"]).ok();
    let gone = dir.path("store/containers/.gone-0123456789ab");
    fs::create_dir_all(gone.join("upper")).unwrap();
    let lock = fs::File::create(gone.join("lock")).unwrap();
    lock.lock().unwrap();
    dir.run(&[], &["/bin/guest", "exit", "0"]).ok();
    assert!(gone.join("upper").exists());
    drop(lock);
    dir.run(&[], &["/bin/guest", "exit", "0"]).ok();
    assert!(!gone.exists());
}

#[test]
fn ten_with_the_same_name_are_one_winner_and_nine_sentences() {
    needs!(userns);
    let dir = Dir::new();
    dir.root();
    let crowd: Vec<_> =
        (0..10).map(|_| dir.run(&["--name", "reef"], &["/bin/guest", "sleep", "2"]).start()).collect();
    let outcomes: Vec<_> = crowd.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    let winners = outcomes.iter().filter(|ended| ended.status.success()).count();
    assert_eq!(winners, 1);
    for ended in outcomes.iter().filter(|ended| !ended.status.success()) {
        assert_eq!(ended.status.code(), Some(125));
        crate::kelp::says(&String::from_utf8_lossy(&ended.stderr), &["reef", "in use"]);
    }
}

/// Guard: init going away is seen by the monitor, which ends with a code and clears up.
#[test]
fn every_process_of_a_container_can_be_killed() {
    needs!(userns);
    sys::adopt_orphans();
    let dir = Dir::new();
    dir.root();
    for options in [&["--network=none"][..], &["--network=none", "--init"], &["--network=none", "--pid=host"]]
    {
        let mut at = 0;
        loop {
            let mut child = dir.run(options, &["/bin/guest", "sleep"]).start();
            let mut ready = [0; 6];
            std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
            let inside = below(child.id() as i32);
            let Some((pid, name)) = inside.get(at).cloned() else {
                let _ = child.kill();
                child.wait().unwrap();
                break;
            };
            sys::kill(pid, libc::SIGKILL).unwrap();
            let ended = soon(|| child.try_wait().unwrap().is_some());
            assert!(ended, "kelp waits for ever after {name} was killed");
            nobody_is_left();
            at += 1;
        }
    }
    dir.run(&[], &["/bin/guest", "exit", "0"]).ok();
    nothing_is_left(&dir);
}
