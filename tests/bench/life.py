"""The verbs of a container's life: kelp beside podman, and crun where it has the verb.

Each turn takes one container of each program through its life, in turn, and times every command from its start to its
exit; the container runs a shell that ends at SIGTERM. Ratios are of medians within this one run."""

import json
import os
import pwd
import shlex
import statistics
import subprocess
import sys
import time

import launch
from launch import CACHE, IDS, KELP, OUT, PODMAN, as_user

TURNS = int(os.environ.get("KELP_BENCH_TURNS", "15"))
MANY = int(os.environ.get("KELP_BENCH_MANY", "100"))
CROWDS = (50, 100, 200)
PROGRAM = "sh -c 'trap \"exit 0\" TERM; sleep 600 & wait'"
KELP_RUN = f"{KELP} run -d --network none"
PODMAN_RUN = f"{PODMAN} run -d --network none --cgroups=disabled"

# Verb and the commands of kelp and of podman, in the order of a life.
VERBS = [
    ("run -d", f"{KELP_RUN} --name one --rootfs {CACHE}/root-ids {PROGRAM}", f"{PODMAN_RUN} --name one bench {PROGRAM}"),
    ("exec true", f"{KELP} exec one true", f"{PODMAN} exec one true"),
    ("inspect", f"{KELP} inspect one", f"{PODMAN} inspect one"),
    ("ps", f"{KELP} ps", f"{PODMAN} ps"),
    ("stop", f"{KELP} stop one", f"{PODMAN} stop one"),
    ("start", f"{KELP} start one", f"{PODMAN} start one"),
    ("rm -f", f"{KELP} rm -f one", f"{PODMAN} rm -f one"),
]
BAR = 10


# A process of each user's that starts and times what it is told, so that nothing is timed but the command. An alarm ends
# it where a command hangs: with a time-out of `run` Python looks for the end of the command once a millisecond.
TIMER = """
import json, signal, subprocess, sys, time
for line in sys.stdin:
    signal.alarm(60)
    before = time.monotonic()
    ended = subprocess.run(json.loads(line), stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd="/")
    print(json.dumps([(time.monotonic() - before) * 1000, ended.returncode, ended.stderr]), flush=True)
"""
TIMERS = {}


def timed(user, users, command):
    if user not in TIMERS:
        TIMERS[user] = subprocess.Popen(as_user(user, users, ["python3", "-c", TIMER]), text=True, cwd="/",
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    timer = TIMERS[user]
    timer.stdin.write(json.dumps(shlex.split(command)) + "\n")
    timer.stdin.flush()
    took, code, said = json.loads(timer.stdout.readline())
    if code != 0:
        sys.exit(f"{command}: exit {code}\n{said}")
    return took


def lives(users):
    times = {}
    for _ in range(TURNS):
        for verb, ours, theirs in VERBS:
            for program, command in (("kelp", ours), ("podman", theirs)):
                times.setdefault(verb, {}).setdefault(program, []).append(timed(IDS, users, command))
    return times


def crun_exec(users, times):
    """`exec` beside crun's, into one container of each; crun's user is the one whose bundle `homes` made."""
    user, state = launch.ONE, f"{users[launch.ONE]}/crun-life"
    bundle = f"{users[user]}/crun"
    with open(f"{bundle}/config.json") as file:
        spec = json.load(file)
    spec["process"]["args"] = ["/bin/sleep", "600"]
    with open(f"{bundle}/config.json", "w") as file:
        json.dump(spec, file)
    crun = f"crun --root {state} --cgroup-manager=disabled"
    subprocess.run(as_user(user, users, shlex.split(f"{crun} run -d -b {bundle} life")), cwd="/", check=True,
                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    timed(user, users, f"{KELP_RUN} --name life --rootfs {CACHE}/root-one sleep 600")
    row = times.setdefault("exec true, one id", {"kelp": [], "crun": []})
    for _ in range(TURNS):
        row["kelp"].append(timed(user, users, f"{KELP} exec life true"))
        row["crun"].append(timed(user, users, f"{crun} exec life true"))
    timed(user, users, f"{KELP} rm -f life")
    timed(user, users, f"{crun} delete -f life")


def crowd(users, times):
    """`ps` among many, and all of them removed at once."""
    for program, start in (("kelp", f"{KELP_RUN} --rootfs {CACHE}/root-ids"), ("podman", PODMAN_RUN)):
        tool, root = (KELP, "") if program == "kelp" else (PODMAN, "bench")
        names = [f"many-{number}" for number in range(MANY)]
        for name in names:
            timed(IDS, users, f"{start} --name {name} {root} {PROGRAM}")
        times.setdefault(f"ps, {MANY} containers", {})[program] = [timed(IDS, users, f"{tool} ps") for _ in range(TURNS)]
        times.setdefault(f"rm -f of {MANY}", {})[program] = [timed(IDS, users, f"{tool} rm -f {' '.join(names)}")]


def at_once(users, times):
    """Crowds of growing size started at once, then stopped at once: a row each, so that linear time shows."""
    for count in CROWDS:
        names = [f"crowd-{number}" for number in range(count)]
        starts = [shlex.split(f"{KELP_RUN} --name {name} --rootfs {CACHE}/root-ids {PROGRAM}") for name in names]
        times[f"{count} x run -d at once"] = {"kelp": [together(users, starts)]}
        stops = [shlex.split(f"{KELP} stop {name}") for name in names]
        times[f"{count} x stop at once"] = {"kelp": [together(users, stops)]}
        timed(IDS, users, f"{KELP} rm {' '.join(names)}")
        left = subprocess.run(as_user(IDS, users, shlex.split(f"{KELP} ps -aq")), capture_output=True, text=True, cwd="/")
        if left.stdout:
            sys.exit(f"left of {count}: {left.stdout}")


def together(users, commands):
    before = time.monotonic()
    children = [subprocess.Popen(as_user(IDS, users, command), cwd="/", stdin=subprocess.DEVNULL,
                                 stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for command in commands]
    for child in children:
        said = child.communicate(timeout=300)[1]
        if child.returncode != 0:
            sys.exit(f"{child.args}: exit {child.returncode}\n{said.decode()}")
    return (time.monotonic() - before) * 1000


def logs(users, times):
    """A million lines of a hundred bytes into the log, from the start of the container to its end."""
    flood = f"sh -c 'yes {'x' * 99} | head -n 1000000'"
    row = times.setdefault("a million lines logged", {"kelp": [], "podman": []})
    for _ in range(3):
        row["kelp"].append(timed(IDS, users, f"{KELP_RUN} --name flood --rootfs {CACHE}/root-ids {flood}")
                           + timed(IDS, users, f"{KELP} wait flood"))
        timed(IDS, users, f"{KELP} rm flood")
        row["podman"].append(timed(IDS, users, f"{PODMAN_RUN} --log-driver k8s-file --name flood bench {flood}")
                             + timed(IDS, users, f"{PODMAN} wait flood"))
        timed(IDS, users, f"{PODMAN} rm flood")


def wakeups(users):
    """How often what keeps an idle container with a network woke up in ten seconds."""
    before = launch.processes()
    timed(IDS, users, f"{KELP} run -d --network user --name idle --rootfs {CACHE}/root-ids sleep 600")
    time.sleep(2)
    uid = pwd.getpwnam(IDS).pw_uid
    ours = [pid for pid in launch.processes() - before if launch.owner(pid) == uid and launch.name_of(pid).startswith("kelp")]
    first = sum(map(switches, ours))
    time.sleep(10)
    woken = sum(map(switches, ours)) - first
    timed(IDS, users, f"{KELP} rm -f idle")
    print(f"\n{len(ours)} processes keep an idle container; they woke up {woken} times in 10 s")
    return woken


def switches(pid):
    with open(f"/proc/{pid}/status") as file:
        return sum(int(line.split()[1]) for line in file if "ctxt_switches" in line)


def show(times):
    print(f"\n{'ms, medians of ' + str(TURNS):28} {'kelp':>9} {'peer':>9}        times faster")
    for verb, row in times.items():
        medians = {program: statistics.median(found) for program, found in row.items()}
        peer = next((program for program in medians if program != "kelp"), None)
        if peer is None:
            print(f"{verb:28} {medians['kelp']:9.1f}")
            continue
        print(f"{verb:28} {medians['kelp']:9.1f} {medians[peer]:9.1f} {peer:7} {medians[peer] / medians['kelp']:10.1f}")
    print(f"\nbar: {BAR} times faster than podman; exec at most twice crun's time")


def main():
    launch.plain_cgroups()
    users = launch.homes()
    times = lives(users)
    crun_exec(users, times)
    crowd(users, times)
    at_once(users, times)
    logs(users, times)
    woken = wakeups(users)
    subprocess.run(as_user(IDS, users, shlex.split(f"{PODMAN} system migrate")), capture_output=True, cwd="/")
    show(times)
    with open(OUT, "w") as file:
        json.dump({"kernel": os.uname().release, "processors": os.cpu_count(), "milliseconds": times, "wakeups": woken}, file, indent=1)
    print(f"\nwritten to {OUT}")


main()
