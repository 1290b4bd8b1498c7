"""Medians of one run: a start without limits, with them, and with the container's own /proc; the processors' time of the
watcher; how long a container lives once it has crossed its memory limit; a read of /proc/meminfo in both views. BARS says
what they may be."""
import json
import os
import shutil
import statistics
import subprocess
import sys
import time

KELP, OUT = sys.argv[1:3]
ROUNDS = int(os.environ.get("KELP_BENCH_ROUNDS", "40"))
LIMITS = ["-m", "512m", "--cpus", "1.5", "--pids-limit", "100"]
# An emulated machine is faster on one processor than on two, with limits or without.
LIMITS += [] if "KELP_BENCH_ROOT" in os.environ else ["--cpuset-cpus", "0"]
RUN = [KELP, "run", "--rm", "--network", "none"]
PROGRAM = ["/bin/guest", "exit", "0"] if "KELP_BENCH_ROOT" in os.environ else ["true"]
ROOT = ["--rootfs", os.environ["KELP_BENCH_ROOT"]] if "KELP_BENCH_ROOT" in os.environ else ["@host"]
PARTS = os.environ.get("KELP_BENCH_PARTS", "")
# A machine that leaves only huge pages to its v2 hierarchy: the same folders and the same calls, with one file to write.
HUGE = PARTS == "group"
LIMITS = ["--cgroup-conf", "hugetlb.2MB.max=2097152", "--strict-limits"] if HUGE else LIMITS
SETTLE = 0.3 if PARTS == "start" else 0
BARS = {
    "limits add to a start, ms": 1.0,
    "the container's /proc adds to a start, ms": 1.5,
    "watcher, % of a processor": 0.5,
    "killed after crossing memory, ms": 200,
    "read of /proc/meminfo, µs": 60,
    "the same by Python's open(), µs": 60,
}
GROW = """
import time
held = []
while True:
    held.append(bytearray(2 << 20))
    print(len(held) * 2, time.monotonic(), flush=True)
    time.sleep(0.002)
"""
READ = """
import json, os, time
def plain():
    file = os.open('/proc/meminfo', os.O_RDONLY)
    while os.read(file, 8192):
        pass
    os.close(file)
def python():
    with open('/proc/meminfo') as file:
        file.read()
def median(read, pause=0, count=2000):
    times = []
    for _ in range(count):
        time.sleep(pause)
        began = time.perf_counter()
        read()
        times.append(time.perf_counter() - began)
    return sorted(times)[count // 2] * 1e6
print(json.dumps({"open, read, close": median(plain), "Python's open()": median(python), "every 100 ms": median(plain, 0.1, 20)}))
"""


def bundle(name, resources):
    """A bundle of crun's that does what kelp's rows do, below the same limits."""
    folder = f"/tmp/bench-{os.getpid()}-{name}"
    os.makedirs(folder)
    subprocess.run(["crun", "spec", "--rootless"], cwd=folder, check=True)
    with open(f"{folder}/config.json") as file:
        spec = json.load(file)
    spec["process"] |= {"args": PROGRAM, "terminal": False}
    spec["root"] = {"path": os.environ["KELP_BENCH_ROOT"], "readonly": True}
    spec["linux"]["resources"] = resources
    if parent := os.environ.get("KELP_BENCH_CGROUP"):
        spec["linux"]["cgroupsPath"] = f"{parent}/{name}"
    spec["mounts"] = [mount for mount in spec["mounts"] if mount["destination"] in ("/proc", "/dev")]
    with open(f"{folder}/config.json", "w") as file:
        json.dump(spec, file)
    manager = "cgroupfs" if os.environ.get("KELP_BENCH_CGROUP") else "systemd"
    # It makes a group in any case, if it may.
    manager = manager if resources else "disabled"
    return ["crun", "--root", f"{folder}/run", f"--cgroup-manager={manager}", "run", "-b", folder, f"bench-{os.getpid()}-{name}"]


def starts(tag=""):
    rows = {
        "no limits": [*RUN, *ROOT, *PROGRAM],
        "limits, the machine's /proc": [*RUN, *LIMITS, "--view=host", *ROOT, *PROGRAM],
    }
    if not HUGE:
        rows["limits, the container's /proc"] = [*RUN, *LIMITS, *ROOT, *PROGRAM]
    if shutil.which("crun") and "KELP_BENCH_ROOT" in os.environ:
        limits = {"memory": {"limit": 512 << 20}, "cpu": {"quota": 150000, "period": 100000}, "pids": {"limit": 100}}
        if HUGE:
            limits = {"hugepageLimits": [{"pageSize": "2MB", "limit": 2 << 20}]}
        rows |= {"crun, no limits": bundle(f"free{tag}", {}), "crun, the same limits": bundle(f"limited{tag}", limits)}
    times, names = {name: [] for name in rows}, list(rows)
    for number in range(ROUNDS + 1):
        # Each row follows each other one, and not what systemd has to clean up behind it.
        for name in names[number % len(names):] + names[:number % len(names)]:
            time.sleep(SETTLE)
            began = time.perf_counter()
            subprocess.run(rows[name], check=True, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            if number > 0:
                times[name].append((time.perf_counter() - began) * 1000)
    figures = {name: statistics.median(values) for name, values in times.items()}
    pairs = [("limits, the machine's /proc", "no limits"), ("crun, the same limits", "crun, no limits")]
    for limited, free in (pair for pair in pairs if pair[0] in times):
        # Those of one round stand side by side: what the machine does meanwhile is in both.
        low, middle, high = statistics.quantiles([with_ - without for with_, without in zip(times[limited], times[free])], n=4)
        whose = "crun" if limited.startswith("crun") else "kelp"
        figures |= {f"{whose}: limits add, lower quartile": low, f"{whose}: limits add, median of pairs": middle,
                    f"{whose}: limits add, upper quartile": high}
    return figures


def ticks(pid):
    with open(f"/proc/{pid}/schedstat") as file:
        return int(file.read().split()[0]) / 1e9


def watcher(limits, command, seconds=8):
    """The part of a processor that the monitor of a container takes."""
    name = f"bench-{os.getpid()}"
    subprocess.run([KELP, "run", "-d", "--name", name, "--network", "none", *limits, "@host", *command], check=True,
                   stdout=subprocess.DEVNULL)
    described = subprocess.run([KELP, "inspect", "--format", "{{.State.Pid}}", name], capture_output=True, text=True, check=True)
    with open(f"/proc/{described.stdout.strip()}/stat") as file:
        monitor = file.read().rsplit(")", 1)[1].split()[1]
    time.sleep(1)
    before = ticks(monitor)
    time.sleep(seconds)
    used = ticks(monitor) - before
    subprocess.run([KELP, "rm", "-f", name], check=True, stdout=subprocess.DEVNULL)
    return used / seconds * 100


def killed(rounds=10):
    """Milliseconds from the first step beyond 100 MB to the end of the container: the median and the worst."""
    times = []
    for _ in range(rounds):
        words = [*RUN, "-m", "100m", "--memory-swap", "100m", "@host", "python3", "-c", GROW]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as run:
            crossed = None
            for line in run.stdout:
                size, at = line.split()
                if crossed is None and int(size) > 100:
                    crossed = float(at)
            ended = time.monotonic()
        if run.returncode != 137:
            raise RuntimeError(f"it ended with {run.returncode}")
        # The interpreter's own pages count too: it may end before the script's count says so.
        times.append(max(0.0, (ended - (crossed or ended)) * 1000))
    return {"median": statistics.median(times), "worst": max(times)}


def read(view):
    """The median and the worst of ten containers: which processor wakes up for an answer differs from one to the next."""
    words = [*RUN, *LIMITS, f"--view={view}", "@host", "python3", "-c", READ]
    runs = [json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout) for _ in range(10)]
    rows = {way: sorted(run[way] for run in runs) for way in runs[0]}
    return {f"{view}: {way}{word}": value for way, all in rows.items() for word, value in (("", statistics.median(all)), (", worst", all[-1]))}


def beside():
    """The same while another container of the user's runs, which has what they share made already."""
    words = ["run", "-d", "--name", "beside", "--network", "none", "-m", "64m", *ROOT, "/bin/guest", "sleep", "1000"]
    subprocess.run([KELP, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        return starts("-beside")
    finally:
        subprocess.run([KELP, "rm", "-f", "beside"], check=True, stdout=subprocess.DEVNULL)


def main():
    figures = {"start in ms": starts()}
    if PARTS == "start":
        figures["start in ms, beside another container"] = beside()
    if not PARTS:
        figures["watcher in % of a processor"] = {
            "idle, memory and pids": watcher(["-m", "512m", "--pids-limit", "100"], ["sleep", "1000"]),
            "idle, all": watcher(LIMITS, ["sleep", "1000"]),
            "busy, --cpus 0.5": watcher(["--cpus", "0.5"], ["python3", "-c", "while True: pass"]),
            "busy, memory": watcher(["-m", "512m"], ["python3", "-c", "x = bytearray(400 << 20)\nwhile True: pass"]),
        }
        figures["killed after crossing memory, in ms"] = killed()
        figures["read of /proc/meminfo in µs"] = read("host") | read("container")
    for heading, rows in figures.items():
        print(heading)
        for name, value in rows.items():
            print(f"  {name:<40}{value:9.2f}")
    print("bars")
    for name, value in bars(figures).items():
        print(f"  {name:<44}{value:9.2f}{BARS[name]:9.2f}  {'holds' if value <= BARS[name] else 'MISSED'}")
    with open(OUT, "w") as file:
        json.dump({"figures": figures, "bars": {name: [value, BARS[name]] for name, value in bars(figures).items()}}, file, indent=1)


def bars(figures):
    start = figures["start in ms"]
    machine = start["limits, the machine's /proc"]
    found = {"limits add to a start, ms": machine - start["no limits"]}
    if "limits, the container's /proc" in start:
        found["the container's /proc adds to a start, ms"] = start["limits, the container's /proc"] - machine
    if "watcher in % of a processor" in figures:
        watched = figures["watcher in % of a processor"]
        found |= {
            "watcher, % of a processor": max(watched.values()),
            "killed after crossing memory, ms": figures["killed after crossing memory, in ms"]["worst"],
            "read of /proc/meminfo, µs": figures["read of /proc/meminfo in µs"]["container: open, read, close, worst"],
            "the same by Python's open(), µs": figures["read of /proc/meminfo in µs"]["container: Python's open()"],
        }
    return found


main()
