"""The measurements of tests/bench/image/run; see there."""

import contextlib
import hashlib
import io
import itertools
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tarfile
import time

KELP = os.environ["KELP"]
ROOT, ROUNDS = sys.argv[1], int(sys.argv[2])
WORK = os.getcwd()
ENV = {"PATH": os.environ["PATH"], "HOME": WORK, "KELP_ROOT": WORK + "/kelp-store", "KELP_RUNDIR": WORK + "/kelp-run",
       "OTEL_TRACES_EXPORTER": "none"}
# What is measured; the rest of results.json stays as it is.
PARTS = os.environ.get("KELP_BENCH_PARTS", "verbs many large").split()
PODMAN = []
STORES = []
COUNT = itertools.count()


def run(*words, quiet=False, **options):
    """Seconds and megabytes of a command."""
    started = time.monotonic()
    process = subprocess.Popen(words, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **options)
    err = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode and not quiet:
        raise SystemExit(f"{' '.join(words)}: {process.returncode}\n{err.decode()}")
    return time.monotonic() - started, usage.ru_maxrss / 1024


@contextlib.contextmanager
def registry(called):
    """Debian's docker-registry, with a folder of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = "127.0.0.1:%d" % probe.getsockname()[1]
    config = {"version": 0.1, "log": {"level": "error", "accesslog": {"disabled": True}}, "http": {"addr": host},
              "storage": {"filesystem": {"rootdirectory": f"{WORK}/{called}"}}}
    with open(f"{WORK}/{called}.yml", "w") as file:
        json.dump(config, file)
    process = subprocess.Popen(["docker-registry", "serve", f"{WORK}/{called}.yml"], env=ENV, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                socket.create_connection(tuple(host.split(":")), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield host
    finally:
        process.kill()
        process.wait()


def published(host, called, layers):
    """An image of these layers in the registry, put there by umoci and skopeo."""
    layout = f"{WORK}/oci-{called}"
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", layout + ":x")
    for path in layers:
        run("umoci", "raw", "add-layer", "--image", layout + ":x", path)
    name = f"{host}/{called}:1"
    run("skopeo", "copy", "--insecure-policy", "--dest-tls-verify=false", f"oci:{layout}:x", "docker://" + name)
    return name


def layer(called, files, size):
    """A tar of digits that gzip almost halves, as it does programs."""
    path = f"{WORK}/{called}.tar"
    with tarfile.open(path, "w") as archive:
        for at in range(files):
            member = tarfile.TarInfo(f"opt/{called}/{at // 100}/{at}")
            member.size = size
            archive.addfile(member, io.BytesIO(os.urandom(size // 2).hex().encode()))
    return path


def image(host):
    return published(host, "bench", [ROOT, *(layer(f"small{number}", 100, 3000) for number in range(4))])


def large(host):
    """1.5 GB in 20 layers: the Debian one, and 19 of 64 MB in 600 files each."""
    layers = (layer(f"large{number}", 600, 110_000) for number in range(19))
    return published(host, "large", itertools.chain([ROOT], layers))


def forget():
    """New stores on the same file system, and nothing is removed before the end. Emptied ones would measure how ext4 avoids the numbers of files that were
    deleted lately, which costs everybody several seconds (docs/decisions/0403)."""
    global PODMAN
    STORES.append(next(COUNT))
    ENV["KELP_ROOT"] = f"{WORK}/kelp-store-{STORES[-1]}"
    base = f"{WORK}/podman-{STORES[-1]}"
    PODMAN = ["podman", "--root", base, "--runroot", base + "-run", "--storage-driver", "overlay"]
    subprocess.run(["sync"])


def umoci_pull(name):
    copy = f"{WORK}/copy-{STORES[-1]}"
    first, memory = run("skopeo", "copy", "--insecure-policy", "--src-tls-verify=false", "docker://" + name, f"oci:{copy}:x")
    second, more = run("umoci", "unpack", "--rootless", "--image", copy + ":x", copy + "-bundle")
    return first + second, max(memory, more)


def hundred(tool, words, name):
    """A container that has ended and changed a hundred files; podman's is filled by cp, since it may not run here."""
    if tool == "kelp":
        script = "mkdir /new; i=0; while [ $i -lt 100 ]; do head -c 10000 /usr/bin/git > /new/$i; i=$((i+1)); done"
        run(*words, "run", "--network", "none", "--name", "changed", name, "sh", "-c", script)
        return
    folder = WORK + "/hundred"
    os.makedirs(folder, exist_ok=True)
    for at in range(100):
        with open(f"{folder}/{at}", "wb") as file:
            file.write(os.urandom(10000))
    run(*words, "create", "--network", "none", "--name", "changed", name, "sh")
    run(*words, "cp", folder, "changed:/new")


def many():
    """500 images of one small layer each."""
    root = io.BytesIO()
    with tarfile.open(fileobj=root, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("f"), io.BytesIO())
    layer = root.getvalue()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        def add(name, data):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))

        add("layer.tar", layer)
        entries = []
        for number in range(500):
            config = json.dumps({"architecture": "amd64", "os": "linux", "config": {"Labels": {"n": str(number)}},
                                 "rootfs": {"type": "layers",
                                            "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]}}).encode()
            add(f"{number}.json", config)
            entries.append({"Config": f"{number}.json", "RepoTags": [f"many{number}:1"], "Layers": ["layer.tar"]})
        add("manifest.json", json.dumps(entries).encode())
    with open(WORK + "/many.tar", "wb") as file:
        file.write(out.getvalue())
    run(KELP, "load", "-i", WORK + "/many.tar")


RESULTS = {}


def note(work, tool, pair):
    print(f"{work}: {tool}: {pair[0]:.2f} s, {pair[1]:.0f} MB", file=sys.stderr, flush=True)
    RESULTS.setdefault(work, {}).setdefault(tool, []).append(pair)


def tools():
    return ("kelp", [KELP], []), ("podman", PODMAN, ["--tls-verify=false"])


def verbs(host, name, round):
    forget()
    note("pull", "kelp", run(KELP, "pull", "-q", name))
    note("pull", "podman", run(*PODMAN, "pull", "-q", "--tls-verify=false", name))
    note("disk, unpacked", "kelp", used(ENV["KELP_ROOT"]))
    note("disk, unpacked", "podman", used(PODMAN[2]))
    note("pull", "skopeo+umoci", umoci_pull(name))
    for tool, words, tls in tools():
        archive = f"{WORK}/{tool}.tar"
        if os.path.exists(archive):
            os.remove(archive)
        note("save", tool, run(*words, "save", "-q", "-o", archive, name))
        target = f"{host}/pushed-{tool}-{round}:1"
        note("push (blobs known)", tool, run(*words, "push", "-q", *tls, name, target))
    for tool, words, tls in tools():
        with registry(f"empty-{tool}-{round}") as empty:
            note("push (empty registry)", tool, run(*words, "push", "-q", *tls, name, f"{empty}/bench:1"))
    kept_push(name, round)
    for tool, words, _ in tools():
        hundred(tool, words, name)
        note("commit of 100 files", tool, run(*words, "commit", "-q", "changed", f"made-{tool}:{round}"))
    forget()
    for tool, words, _ in tools():
        note("load", tool, run(*words, "load", "-q", "-i", f"{WORK}/{tool}.tar"))


def kept_push(name, round):
    """Layers go as they came where their blobs were kept; podman keeps none, and packs them as before."""
    work, own = "push of kept blobs (empty registry)", ENV["KELP_ROOT"]
    ENV["KELP_ROOT"] += "-kept"
    run(KELP, "pull", "-q", "--keep-blobs", name)
    with registry(f"empty-kept-{round}") as empty:
        note(work, "kelp", run(KELP, "push", "-q", name, f"{empty}/bench:1"))
    note(work, "podman", RESULTS["push (empty registry)"]["podman"][-1])
    run(KELP, "system", "reset", "-f", quiet=True)
    ENV["KELP_ROOT"] = own


def used(folder):
    """Megabytes on the disk, as the second of a pair."""
    words = ["podman", "unshare", "du", "-s", "--block-size=1000000", folder]
    return 0, float(subprocess.run(words, env=ENV, capture_output=True, text=True).stdout.split()[0])


def five_hundred(name):
    forget()
    many()
    for _ in range(10):
        note("images, 500 in the store", "kelp", run(KELP, "images"))
    start = [KELP, "run", "--rm", "--network", "none", name, "true"]
    run(KELP, "pull", "-q", name)
    for _ in range(10):
        note("run, 500 images in the store", "kelp", run(*start))
    forget()
    run(KELP, "pull", "-q", name)
    for _ in range(10):
        note("run, one image in the store", "kelp", run(*start))


def large_pull(name):
    forget()
    note("pull of 20 layers, 1.5 GB", "kelp", run(KELP, "pull", "-q", name))
    note("pull of 20 layers, 1.5 GB", "podman", run(*PODMAN, "pull", "-q", "--tls-verify=false", name))
    note("pull of 20 layers, 1.5 GB", "skopeo+umoci", umoci_pull(name))


def clear():
    for store in STORES:
        ENV["KELP_ROOT"] = f"{WORK}/kelp-store-{store}"
        run(KELP, "system", "reset", "-f", quiet=True)
        run("podman", "unshare", "rm", "-rf", f"{WORK}/podman-{store}", quiet=True)
    STORES.clear()


def main():
    try:
        with registry("registry") as host:
            name = image(host)
            for round in range(ROUNDS if "verbs" in PARTS else 0):
                verbs(host, name, round)
            if "many" in PARTS:
                five_hundred(name)
            if "large" in PARTS:
                name = large(host)
                for _ in range(min(ROUNDS, 2)):
                    large_pull(name)
    finally:
        clear()
    report(RESULTS)


def report(results):
    table = []
    for work, tools in results.items():
        # What takes no time is compared by its megabytes.
        timed = any(pair[0] for pair in tools["kelp"])
        middle = lambda tool: statistics.median(pair[0] if timed else pair[1] for pair in tools[tool])
        for tool, pairs in tools.items():
            seconds = statistics.median(pair[0] for pair in pairs)
            table.append({"work": work, "tool": tool, "seconds": round(seconds, 3), "ratio": round(middle(tool) / middle("kelp"), 2),
                          "megabytes": round(max(pair[1] for pair in pairs), 1)})
    print(f"{'work':<36} {'tool':<14} {'seconds':>8} {'x kelp':>7} {'MB':>7}")
    for row in table:
        print(f"{row['work']:<36} {row['tool']:<14} {row['seconds']:>8} {row['ratio']:>7} {row['megabytes']:>7}")
    with open(sys.argv[3]) as file:
        table = [row for row in json.load(file) if row["work"] not in results] + table
    with open("results.json", "w") as file:
        json.dump(table, file, indent=1)


main()
