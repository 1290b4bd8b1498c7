"""Start to exit of `true`, and the memory of one idle container: kelp beside its peers.

Rows are started in turn, round after round, by hyperfine without a shell, each as an ordinary user; a row that its
program refuses to run is shown with the reason and has no figures. Ratios are of medians within this one run."""

import json
import os
import pwd
import shlex
import signal
import statistics
import subprocess
import sys
import time

STAGE, CACHE, IDS, ONE, OUT = sys.argv[1:6]
ROUNDS = int(os.environ.get("KELP_BENCH_ROUNDS", "20"))
RUNS = int(os.environ.get("KELP_BENCH_RUNS", "3"))
KELP = f"{STAGE}/kelp"
CGROUP = "/sys/fs/cgroup"
# An image and not `--rootfs`, because podman prepares a foreign folder anew for seconds at each start.
PODMAN = "podman --storage-driver=overlay --cgroup-manager=cgroupfs"

# The bars of the launch work: row, the row it is measured against, and how many times as long it may take.
BARS = [
    ("kelp, one id", "bwrap", 1.5),
    ("kelp, one id", "crun run", 0.6),
    ("kelp --userns=single", "bwrap", 1.5),
    ("kelp, subordinate ids", "unshare --map-auto", 1.3),
]


def rows(homes):
    """Name, user and command of each row; one id first, then subordinate ids."""
    one, ids = f"{CACHE}/root-one", f"{CACHE}/root-ids"
    bundle = {name: f"{homes[ONE]}/{name}" for name in ("crun", "runc")}
    podman = f"{PODMAN} run --rm --network none --cgroups=disabled bench /bin/true"
    return [
        ("/bin/true", ONE, "/bin/true"),
        ("unshare", ONE, f"unshare -UrmpfniuC --root={one} /bin/true"),
        ("bwrap", ONE, f"bwrap --unshare-all --bind {one} / --proc /proc --dev /dev /bin/true"),
        ("crun run", ONE, f"crun --root {homes[ONE]}/crun-state --cgroup-manager=disabled run -b {bundle['crun']} bench-crun"),
        ("runc run", ONE, f"runc --root {homes[ONE]}/runc-state run -b {bundle['runc']} bench-runc"),
        ("kelp, one id", ONE, f"{KELP} run --rm --network none --rootfs {one} /bin/true"),
        ("kelp @host, one id", ONE, f"{KELP} run --rm --network none @host /bin/true"),
        ("kelp --userns=single", IDS, f"{KELP} run --rm --network none --userns=single --rootfs {ids} /bin/true"),
        ("unshare --map-auto", IDS, f"unshare --map-auto --map-root-user -mpfniuC --root={ids} /bin/true"),
        ("kelp, subordinate ids", IDS, f"{KELP} run --rm --network none --rootfs {ids} /bin/true"),
        ("kelp @host, subordinate ids", IDS, f"{KELP} run --rm --network none @host /bin/true"),
        ("podman run", IDS, podman),
    ]


def as_user(user, homes, command):
    """The argv that runs a command as the user, in the user's own cgroup, with a login's environment."""
    home = homes[user]
    enter = f"echo $$ >{CGROUP}/kelp-bench-{user}/cgroup.procs 2>/dev/null; exec \"$@\""
    entry = pwd.getpwnam(user)
    return [
        "bash", "-c", enter, "_",
        "setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--init-groups", "--inh-caps=-all", "--",
        "env", "-i", f"HOME={home}", f"XDG_RUNTIME_DIR={home}/run", f"USER={user}", "LANG=C.UTF-8",
        "PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
    ] + command


def plain_cgroups():
    """Only cgroup2, in this process's mount namespace, and a group for each user; false where the host refuses."""
    mounted = subprocess.run(["mount", "-t", "cgroup2", "cgroup2", CGROUP], stderr=subprocess.DEVNULL).returncode == 0
    for user in (IDS, ONE) if mounted else ():
        entry = pwd.getpwnam(user)
        group = f"{CGROUP}/kelp-bench-{user}"
        os.makedirs(group, exist_ok=True)
        for name in [group] + [f"{group}/{file}" for file in ("cgroup.procs", "cgroup.subtree_control", "cgroup.threads")]:
            os.chown(name, entry.pw_uid, entry.pw_gid)
    return mounted


def homes():
    """A folder for each user, the bundles that crun and runc start, and podman's image."""
    made = {}
    for user in (IDS, ONE):
        entry = pwd.getpwnam(user)
        home = made[user] = f"{STAGE}/home-{user}"
        # A runtime folder of its own, or podman joins the namespaces of one that runs elsewhere, with its cgroups.
        for folder in (home, f"{home}/run"):
            os.makedirs(folder, mode=0o700)
            os.chown(folder, entry.pw_uid, entry.pw_gid)
    for tool in ("crun", "runc"):
        bundle = f"{made[ONE]}/{tool}"
        made_bundle = as_user(ONE, made, ["sh", "-c", f"mkdir {bundle} && cd {bundle} && {tool} spec --rootless"])
        if subprocess.run(made_bundle, stderr=subprocess.DEVNULL).returncode == 0:
            dress(f"{bundle}/config.json")
    imported = as_user(IDS, made, shlex.split(f"{PODMAN} import -q {CACHE}/root.tar bench"))
    subprocess.run(imported, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", timeout=300)
    return made


def dress(path):
    """The bundle does what the other rows do: `true`, no terminal, no network, every namespace."""
    with open(path) as file:
        spec = json.load(file)
    spec["process"]["args"] = ["/bin/true"]
    spec["process"]["terminal"] = False
    spec["root"] = {"path": f"{CACHE}/root-one", "readonly": False}
    kinds = {space["type"] for space in spec["linux"]["namespaces"]}
    spec["linux"]["namespaces"] += [{"type": kind} for kind in ("network", "cgroup") if kind not in kinds]
    spec["mounts"] = [mount for mount in spec["mounts"] if mount["destination"] != "/sys/fs/cgroup"]
    with open(path, "w") as file:
        json.dump(spec, file)


def measure(table, users):
    """Seconds of each run of each row, and the last line that a refused row said."""
    times, refused = {name: [] for name, _, _ in table}, {}
    for name, user, command in table:
        started = time.monotonic()
        tried = subprocess.run(as_user(user, users, shlex.split(command)), capture_output=True, text=True, cwd="/")
        print(f"first start of {name}: {(time.monotonic() - started) * 1000:.0f} ms, exit {tried.returncode}", flush=True)
        if tried.returncode != 0:
            refused[name] = (tried.stderr.strip().splitlines() or [f"exit {tried.returncode}"])[-1]
    for _ in range(ROUNDS):
        for name, user, command in table:
            if name in refused:
                continue
            figures = f"{users[user]}/figures.json"
            fine = ["hyperfine", "-N", "--warmup", "1", "--runs", str(RUNS), "--style", "none", "--export-json", figures, command]
            ended = subprocess.run(as_user(user, users, fine), capture_output=True, text=True, cwd="/")
            if ended.returncode != 0:
                refused[name] = ended.stderr.strip().splitlines()[-1]
                continue
            with open(figures) as file:
                times[name] += json.load(file)["results"][0]["times"]
    return times, refused


def pss(pid):
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0


def processes():
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}


def parent_chain(pid):
    while pid > 1:
        yield pid
        try:
            with open(f"/proc/{pid}/stat") as file:
                pid = int(file.read().rsplit(")", 1)[1].split()[1])
        except OSError:
            return


def name_of(pid):
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except OSError:
        return ""


def owner(pid):
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return -1


def keepers(user, users, command, end):
    """PSS in KiB by name of everything that stays for one idle container, its own `sleep` left out."""
    before = processes()
    started = subprocess.Popen(as_user(user, users, shlex.split(command)), cwd="/", stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    uid = pwd.getpwnam(user).pw_uid
    deadline = time.monotonic() + 20
    mine = lambda: [pid for pid in processes() - before if owner(pid) == uid or started.pid in parent_chain(pid)]
    while time.monotonic() < deadline and not any(name_of(pid) == "sleep" for pid in processes() - before):
        time.sleep(0.05)
    time.sleep(1)
    kept = {}
    for pid in mine():
        if name_of(pid) != "sleep":
            kept[f"{name_of(pid)} {pid}"] = pss(pid)
    if end:
        subprocess.run(as_user(user, users, shlex.split(end)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")
    if started.poll() is None:
        started.send_signal(signal.SIGTERM)
        try:
            started.wait(10)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()
    return kept


def memory(users, refused):
    shown = {}
    root = f"{CACHE}/root-ids"
    if "kelp, subordinate ids" not in refused:
        fuse = "--network user --storage-driver fuse"
        for name, network in (("kelp run -d", "--network none"), ("kelp run -d, network", "--network user"),
                              ("kelp run -d, network, T2", fuse)):
            run = f"{KELP} run -d --name bench-idle {network} --rootfs {root} sleep 600"
            shown[name] = keepers(IDS, users, run, f"{KELP} rm -f bench-idle")
    if "podman run" not in refused:
        for name, network in (("podman run -d", "none"), ("podman run -d, network", "slirp4netns")):
            run = f"{PODMAN} run -d --name bench-idle --network {network} --cgroups=disabled bench sleep 600"
            shown[name] = keepers(IDS, users, run, f"{PODMAN} rm -f -t 0 bench-idle")
    return shown


def show(table, times, refused, idle):
    medians = {name: statistics.median(seconds) * 1000 for name, seconds in times.items() if seconds}
    print(f"\nstart to exit of true, ms, {ROUNDS} rounds of {RUNS}\n")
    print(f"{'':30} {'user':10} {'median':>8} {'least':>8} {'p90':>8}  times bwrap")
    for name, user, _ in table:
        if name not in medians:
            print(f"{name:30} {user:10} refused: {refused.get(name)}")
            continue
        seconds = sorted(times[name])
        ratio = f"{medians[name] / medians['bwrap']:.2f}" if "bwrap" in medians else "-"
        print(f"{name:30} {user:10} {medians[name]:8.2f} {seconds[0] * 1000:8.2f} {seconds[int(len(seconds) * 0.9)] * 1000:8.2f}  {ratio:>11}")
    print("\nbars")
    bars = []
    for name, peer, most in BARS:
        if name in medians and peer in medians:
            ratio = medians[name] / medians[peer]
            bars.append({"row": name, "peer": peer, "ratio": ratio, "most": most, "holds": ratio <= most})
            print(f"{name:30} / {peer:20} {ratio:5.2f}  at most {most}  {'holds' if ratio <= most else 'MISSED'}")
    print("\nPSS kept for one idle container, KiB")
    for name, kept in idle.items():
        print(f"{name:30} {sum(kept.values()):8}  {', '.join(f'{who} {size}' for who, size in kept.items())}")
    return medians, bars


def main():
    cgroups = plain_cgroups()
    users = homes()
    table = rows(users)
    times, refused = measure(table, users)
    idle = memory(users, refused)
    # podman keeps a process for its user namespace, which would outlive the bench.
    subprocess.run(as_user(IDS, users, shlex.split(f"{PODMAN} system migrate")), capture_output=True, cwd="/")
    medians, bars = show(table, times, refused, idle)
    with open(OUT, "w") as file:
        json.dump({"kernel": os.uname().release, "processors": os.cpu_count(), "cgroup2_view": cgroups, "rounds": ROUNDS,
                   "runs": RUNS, "median_ms": medians, "bars": bars, "refused": refused, "idle_pss_kib": idle,
                   "seconds": times}, file, indent=1)
    print(f"\nwritten to {OUT}")


if __name__ == "__main__":
    main()
