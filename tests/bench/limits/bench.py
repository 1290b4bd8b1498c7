"""Medians of one run: a start without limits, with them, and with the container's own /proc; the processors' time of the
watcher and of the server of /proc; a read of /proc/meminfo in both views."""
import json
import os
import shutil
import statistics
import subprocess
import sys
import time

KELP, OUT = sys.argv[1:3]
ROUNDS = int(os.environ.get("KELP_BENCH_ROUNDS", "40"))
LIMITS = ["-m", "512m", "--cpus", "1.5", "--pids-limit", "100", "--cpuset-cpus", "0"]
RUN = [KELP, "run", "--rm", "--network", "none"]
READ = """
import time
def read():
    with open('/proc/meminfo') as file:
        file.read()
times = []
for _ in range(2000):
    began = time.perf_counter()
    read()
    times.append(time.perf_counter() - began)
print(sorted(times)[1000] * 1e6)
"""


def bundle(name, resources):
    """A bundle of crun's that does what kelp's rows do, below the same limits."""
    folder = f"/tmp/bench-{os.getpid()}-{name}"
    os.makedirs(folder)
    subprocess.run(["crun", "spec", "--rootless"], cwd=folder, check=True)
    with open(f"{folder}/config.json") as file:
        spec = json.load(file)
    spec["process"] |= {"args": ["true"], "terminal": False}
    spec["root"] = {"path": "/", "readonly": True}
    spec["linux"]["resources"] = resources
    spec["mounts"] = [mount for mount in spec["mounts"] if mount["destination"] in ("/proc", "/dev")]
    with open(f"{folder}/config.json", "w") as file:
        json.dump(spec, file)
    return ["crun", "--systemd-cgroup", "run", "-b", folder, f"bench-{os.getpid()}-{name}"]


def starts():
    rows = {
        "no limits": [*RUN, "@host", "true"],
        "limits, the machine's /proc": [*RUN, *LIMITS, "--view=host", "@host", "true"],
        "limits, the container's /proc": [*RUN, *LIMITS, "@host", "true"],
    }
    if shutil.which("crun") and os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        limits = {"memory": {"limit": 512 << 20}, "cpu": {"quota": 150000, "period": 100000, "cpus": "0"}, "pids": {"limit": 100}}
        rows |= {"crun, no limits": bundle("free", {}), "crun, the same limits": bundle("limited", limits)}
    times = {name: [] for name in rows}
    for number in range(ROUNDS + 1):
        for name, words in rows.items():
            began = time.perf_counter()
            subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
            if number > 0:
                times[name].append((time.perf_counter() - began) * 1000)
    return {name: statistics.median(values) for name, values in times.items()}


def ticks(pid):
    with open(f"/proc/{pid}/schedstat") as file:
        return int(file.read().split()[0]) / 1e9


def watcher(limits, command, seconds=8):
    """The part of a processor that the monitor of a container takes."""
    name = f"bench-{os.getpid()}"
    subprocess.run([KELP, "run", "-d", "--name", name, "--network", "none", *limits, "@host", *command], check=True,
                   stdout=subprocess.DEVNULL)
    record = subprocess.run(["pgrep", "-n", "-x", "kelp-monitor"], capture_output=True, text=True).stdout.split()
    time.sleep(1)
    before = ticks(record[0])
    time.sleep(seconds)
    used = ticks(record[0]) - before
    subprocess.run([KELP, "rm", "-f", name], check=True, stdout=subprocess.DEVNULL)
    return used / seconds * 100


def read(view):
    ended = subprocess.run([*RUN, *LIMITS, f"--view={view}", "@host", "python3", "-c", READ], capture_output=True, text=True, check=True)
    return float(ended.stdout)


def main():
    figures = {"start in ms": starts()}
    if os.environ.get("KELP_BENCH_PARTS") != "start":
        figures["watcher in % of a processor"] = {
            "idle, memory and pids": watcher(["-m", "512m", "--pids-limit", "100"], ["sleep", "1000"]),
            "idle, all": watcher(LIMITS, ["sleep", "1000"]),
            "busy, --cpus 0.5": watcher(["--cpus", "0.5"], ["python3", "-c", "while True: pass"]),
            "busy, memory": watcher(["-m", "512m"], ["python3", "-c", "x = bytearray(400 << 20)\nwhile True: pass"]),
        }
        figures["read of /proc/meminfo in µs"] = {view: read(view) for view in ("host", "container")}
    for heading, rows in figures.items():
        print(heading)
        for name, value in rows.items():
            print(f"  {name:<32}{value:9.2f}")
    with open(OUT, "w") as file:
        json.dump(figures, file, indent=1)


main()
