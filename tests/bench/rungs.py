"""What a container under other id maps (--userns keep-id) costs on each rung that shows it an image's owners: the user-space
overlay (T2), and kernel overlay over a read-only mount of it (T1); kernel overlay alone (T0), which shows other owners, is
beside them. Each load runs in fresh containers, the rungs in turn.

    python3 tests/bench/rungs.py KELP ROOT.tar PACKAGE.deb [ROUNDS]       as an ordinary user with subordinate ids

ROOT.tar is a Debian root with python3, perl, tar and dpkg; the store is a throw-away one in the working directory."""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

DRIVERS = ("overlay", "overlay-on-fuse", "fuse")
INSIDE = r"""
import os, subprocess, time
def load(name, work):
    began = time.monotonic()
    work()
    print(name, (time.monotonic() - began) * 1000, sep="\t", flush=True)
def sh(line):
    return lambda: subprocess.run(["sh", "-c", line], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
def create():
    os.mkdir("/var/many")
    for at in range(5000):
        with open(f"/var/many/{at}", "w") as file:
            file.write("x" * 100)
def unlink():
    for at in range(5000):
        os.unlink(f"/var/many/{at}")
def append():
    for folder, _, names in os.walk("/usr/share/perl"):
        for name in names:
            path = os.path.join(folder, name)
            if not os.path.islink(path):
                with open(path, "a") as file:
                    file.write("x")
load("dpkg -i of a small package", sh("dpkg -i /package.deb"))
load("python imports, first", sh("python3 -c 'import asyncio, json, http.client, sqlite3, unittest, xml.dom.minidom, ctypes, decimal, email.mime.text'"))
load("find / -ls, first", sh("find / -xdev -ls"))
load("find / -ls, again", sh("find / -xdev -ls"))
load("read /usr/lib/python3, first", sh("tar -C /usr/lib -cf - python3 python3.11 | wc -c"))
load("read /usr/lib/python3, again", sh("tar -C /usr/lib -cf - python3 python3.11 | wc -c"))
load("200 programs", sh("i=0; while [ $i -lt 200 ]; do /bin/true; i=$((i+1)); done"))
load("untar what was read", sh("mkdir /var/tree && tar -C /usr/lib -cf - python3 python3.11 | tar -C /var/tree -xf -"))
load("rm -rf of it", sh("rm -rf /var/tree"))
load("create 5,000 files", create)
load("unlink them", unlink)
load("append to the files of /usr/share/perl", append)
load("rm -rf /usr/share", sh("rm -rf /usr/share"))
"""


def main():
    kelp, root, package = (os.path.abspath(path) for path in sys.argv[1:4])
    rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 5
    home = tempfile.mkdtemp(prefix="rungs.", dir=".")
    environment = os.environ | {"KELP_ROOT": os.path.join(os.path.abspath(home), "store")}

    def run(driver, *words, **more):
        flags = ["--rm", "--network", "none", "--userns", "keep-id", "--user", "0:0", "--storage-driver", driver]
        return subprocess.run([kelp, "run", *flags, "-v", f"{package}:/package.deb:ro", "rungs:1", *words], env=environment,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True, **more).stdout

    times = {}
    try:
        subprocess.run([kelp, "import", root, "rungs:1"], env=environment, check=True, stdout=subprocess.DEVNULL)
        for _ in range(rounds):
            for driver in DRIVERS:
                for _ in range(5):
                    began = time.monotonic()
                    run(driver, "true")
                    times.setdefault("start to end of true", {}).setdefault(driver, []).append((time.monotonic() - began) * 1000)
                for line in run(driver, "python3", "-c", INSIDE).splitlines():
                    if line.count("\t") == 1:
                        name, spent = line.split("\t")
                        times.setdefault(name, {}).setdefault(driver, []).append(float(spent))
    finally:
        subprocess.run([kelp, "rmi", "-f", "rungs:1"], env=environment, stdout=subprocess.DEVNULL, check=False)
        shutil.rmtree(home, ignore_errors=True)
    print(f"{'ms, medians of ' + str(rounds) + ' rounds':42}" + "".join(f"{driver:>18}" for driver in DRIVERS) + f"{'T2/T1':>8}")
    for name, kept in times.items():
        medians = [statistics.median(kept[driver]) for driver in DRIVERS]
        print(f"{name:42}" + "".join(f"{spent:18.1f}" for spent in medians) + f"{medians[2] / medians[1]:8.2f}")


main()
