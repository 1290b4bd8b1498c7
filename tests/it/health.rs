//! Health checks: what a container is called by them, what is kept of them, and what is done with one that has
//! become unhealthy. The words and numbers are docker's; `healthcheck run` and `--health-on-failure` are podman's.

use crate::dir::Dir;
use crate::host::soon;
use crate::kelp::says;
use crate::needs;
use serde_json::Value;

/// A container whose health is a file.
fn started(dir: &Dir, options: &[&str], test: &str) {
    let words = ["run", "-d", "--name", "reef", "--health-interval", "100ms", "--health-cmd", test];
    dir.kelp(&[&words, options, &["@host", "sleep", "100"]].concat()).ok();
}

const FILE: &str = "test -e /root/well || { echo missing; exit 3; }";

fn status(dir: &Dir) -> String {
    dir.kelp(&["ps", "-a", "--format", "{{.Status}}"]).ok().out.trim().to_owned()
}

fn health(dir: &Dir) -> Value {
    let text = dir.kelp(&["inspect", "-f", "{{json .State.Health}}", "reef"]).ok().out;
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_container_becomes_healthy_and_unhealthy_by_its_check() {
    needs!(userns);
    let dir = Dir::new();
    started(
        &dir,
        &["--health-retries", "2", "--health-start-period", "1h", "--health-start-interval", "50ms"],
        FILE,
    );
    assert!(status(&dir).ends_with("(health: starting)"), "{}", status(&dir));
    // Failures do not count while it comes up.
    assert!(soon(|| health(&dir)["Log"].as_array().unwrap().len() == 5), "{}", health(&dir));
    assert_eq!((&health(&dir)["Status"], &health(&dir)["FailingStreak"]), (&"starting".into(), &0.into()));
    dir.kelp(&["exec", "reef", "touch", "/root/well"]).ok();
    assert!(soon(|| status(&dir).ends_with("(healthy)")), "{}", health(&dir));
    assert_eq!(health(&dir)["Log"].as_array().unwrap().last().unwrap()["ExitCode"], 0);
    // Once it was healthy it has come up, and failures count whatever the period says.
    dir.kelp(&["exec", "reef", "rm", "/root/well"]).ok();
    assert!(soon(|| status(&dir).ends_with("(unhealthy)")), "{}", health(&dir));
    let seen = health(&dir);
    let last = seen["Log"].as_array().unwrap().last().unwrap();
    assert_eq!((&last["ExitCode"], &last["Output"]), (&3.into(), &"missing\n".into()));
    assert!(seen["FailingStreak"].as_u64().unwrap() >= 2, "{seen}");
    let check = dir.kelp(&["inspect", "-f", "{{json .Config.Healthcheck}}", "reef"]).ok().json();
    assert_eq!(
        (&check["Test"][0], &check["Interval"], &check["Retries"]),
        (&"CMD-SHELL".into(), &100_000_000.into(), &2.into())
    );
    dir.kelp(&["rm", "-f", "reef"]).ok();
}

#[test]
fn a_check_that_takes_too_long_has_failed_and_is_ended() {
    needs!(userns);
    let dir = Dir::new();
    started(&dir, &["--health-timeout", "300ms", "--health-retries", "1"], "echo slow; exec sleep 77");
    assert!(soon(|| status(&dir).ends_with("(unhealthy)")), "{}", health(&dir));
    let entry = health(&dir)["Log"][0].clone();
    assert_eq!(entry["ExitCode"], -1);
    says(entry["Output"].as_str().unwrap(), &["exceeded timeout", "300ms", "slow"]);
    dir.kelp(&["pause", "reef"]).ok();
    dir.kelp(&["unpause", "reef"]).ok();
    // At most the one that is under way.
    let sleeping = dir.kelp(&["top", "reef", "-o", "pid,args"]).ok().out.matches("sleep 77").count();
    assert!(sleeping <= 1, "{sleeping}");
    dir.kelp(&["stop", "-t", "0", "reef"]).ok();
    assert!(status(&dir).starts_with("Exited"), "{}", status(&dir));
    dir.kelp(&["rm", "reef"]).ok();
}

#[test]
fn a_check_is_run_on_demand_with_podmans_statuses() {
    needs!(userns);
    let dir = Dir::new();
    started(&dir, &["--health-interval", "1h", "--health-retries", "1"], FILE);
    assert_eq!(dir.kelp(&["healthcheck", "run", "reef"]).end().out, "unhealthy\n");
    dir.kelp(&["exec", "reef", "touch", "/root/well"]).ok();
    assert_eq!(dir.kelp(&["healthcheck", "run", "reef"]).ok().out, "");
    assert!(status(&dir).ends_with("(healthy)"));
    assert_eq!(health(&dir)["Log"].as_array().unwrap().len(), 2);
    dir.kelp(&["exec", "reef", "rm", "/root/well"]).ok();
    dir.kelp(&["healthcheck", "run", "reef"]).fails(1);
    dir.kelp(&["stop", "-t", "0", "reef"]).ok();
    says(&dir.kelp(&["healthcheck", "run", "reef"]).fails(125), &["not running"]);
    says(&dir.kelp(&["healthcheck", "run", "shoal"]).end().err, &["no such container"]);
    dir.kelp(&["run", "-d", "--name", "tide", "--no-healthcheck", "@host", "sleep", "100"]).ok();
    says(&dir.kelp(&["healthcheck", "run", "tide"]).fails(125), &["no defined healthcheck"]);
    let both = ["run", "--no-healthcheck", "--health-cmd", "true", "@host", "true"];
    says(&dir.kelp(&both).fails(125), &["--no-healthcheck conflicts with --health-*"]);
    let without = ["run", "--health-on-failure", "kill", "@host", "true"];
    says(&dir.kelp(&without).fails(125), &["on-failure", "without a health check"]);
    dir.kelp(&["rm", "-f", "reef", "tide"]).ok();
}

#[test]
fn an_unhealthy_container_is_killed_stopped_or_started_again() {
    needs!(userns);
    let dir = Dir::new();
    for (action, end) in [("kill", "Exited (137)"), ("stop", "Exited (")] {
        started(
            &dir,
            &["--health-retries", "1", "--health-on-failure", action, "--stop-timeout", "0"],
            "false",
        );
        assert!(soon(|| status(&dir).starts_with(end)), "{action}: {}", status(&dir));
        dir.kelp(&["rm", "reef"]).ok();
    }
    let text = "echo up; exec sleep 100";
    dir.kelp(&[
        "run",
        "-d",
        "--name",
        "reef",
        "--health-interval",
        "200ms",
        "--health-retries",
        "1",
        "--stop-timeout",
        "0",
        "--health-on-failure",
        "restart",
        "--health-cmd",
        "false",
        "@host",
        "sh",
        "-c",
        text,
    ])
    .ok();
    assert!(soon(|| dir.kelp(&["logs", "reef"]).ok().out.lines().count() >= 2), "{}", status(&dir));
    dir.kelp(&["rm", "-f", "reef"]).ok();
}
