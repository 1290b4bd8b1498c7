"""Measures every carrier in turn, round by round, so that a noisy minute hits all of them; prints medians and ratios."""

import json
import os
import resource
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROUNDS, SECONDS = int(os.environ["BENCH_ROUNDS"]), os.environ["BENCH_SECONDS"]
ROWS = os.environ.get("BENCH_ROWS", "near far crowd").split()
IPERF, TALK, INSIDE, NGINX = 5201, 5202, 5301, 5302
# What is published on the host for these two.
PUBLISHED = {5400: INSIDE, 5402: NGINX}
# Two descriptors a connection, and 768 that the engine keeps for other ends.
HELD = min(10000, (resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 768) // 2 - 10)
# The far end of a wire of 100 ms and 100 Mbit/s, and the same with one frame in a hundred lost and one in fifty overtaken.
FAR = {"100 ms": "198.18.0.100", "100 ms, bad": "198.18.0.101"}
TICKS = os.sysconf("SC_CLK_TCK")


def cpu(pids):
    """CPU seconds that these processes have used."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


def status(pid, field):
    with open(f"/proc/{pid}/status") as file:
        return int(next(row for row in file if row.startswith(field + ":")).split()[1])


class Carrier:
    """Namespaces with one carrier attached; `None` is the host itself."""

    def __init__(self, name):
        self.name, self.target, self.published = name, "127.0.0.1", INSIDE
        self.space = self.engine = None
        self.folder = tempfile.TemporaryDirectory()
        start = time.monotonic()
        if name != "host loopback":
            self.space = subprocess.Popen(["unshare", "-Urn", "sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self.space.stdout.readline()
            start = time.monotonic()
            self.attach()
        self.start_seconds = time.monotonic() - start

    def attach(self):
        pid, ready = str(self.space.pid), os.pipe()
        self.published, self.target = 5400, "10.0.2.2"
        api = f"{self.folder.name}/api"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        if self.name.startswith("kelp"):
            command = [f"{HERE}/kelp-net", "-c", f"-r{ready[1]}"]
            command += [word for host, inside in PUBLISHED.items() for word in ("-p", f"127.0.0.1:{host}:{inside}")]
            command += ["--without=divert"] if "P2" in self.name else []
            self.engine = subprocess.Popen([*command, pid, "tap0"], pass_fds=[ready[1]])
        elif self.name == "slirp4netns":
            command = ["slirp4netns", "-c", "--mtu=65520", f"-r{ready[1]}", "-a", api, pid, "tap0"]
            self.engine = subprocess.Popen(command, pass_fds=[ready[1]], **quiet)
        else:
            command = ["pasta", "-f", "--config-net", "-t", ",".join(f"{host}:{inside}" for host, inside in PUBLISHED.items()), "-u", "none", "-T", "none", "-U", "none"]
            self.target = "203.0.113.7"
            self.engine = subprocess.Popen([*command, pid], **quiet)
        os.close(ready[1])
        if self.name == "pasta":
            while not self.run("ip", "-4", "route", "show", "default").stdout:
                time.sleep(0.005)
        elif not select.select([ready[0]], [], [], 10)[0]:
            raise SystemExit(f"{self.name} did not come up")
        os.close(ready[0])
        if self.name == "slirp4netns":
            self.slirp_publish(api)

    def slirp_publish(self, api):
        for host, inside in PUBLISHED.items():
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(api)
                arguments = {"proto": "tcp", "host_addr": "127.0.0.1", "host_port": host, "guest_port": inside}
                client.sendall(json.dumps({"execute": "add_hostfwd", "arguments": arguments}).encode())
                client.shutdown(socket.SHUT_WR)
                client.recv(4096)

    def enter(self):
        return ["nsenter", "-U", "--preserve-credentials", "-n", "-t", str(self.space.pid)] if self.space else []

    def run(self, *command):
        done = subprocess.run([*self.enter(), *command], capture_output=True, text=True, timeout=60)
        return done

    def background(self, *command):
        return subprocess.Popen([*self.enter(), *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def processes(self):
        return [self.engine.pid, *children(self.engine.pid)] if self.engine else []

    def close(self):
        for process in (self.engine, self.space):
            if process:
                process.kill()
                process.wait()
        self.folder.cleanup()


def iperf(run, host, port, *options):
    done = run("iperf3", "-J", "-c", host, "-p", str(port), *(() if "-t" in options else ("-t", SECONDS)), *options)
    try:
        end = json.loads(done.stdout)["end"]
        return (end.get("sum_received") or end["sum"])["bits_per_second"] / 1e9
    except (KeyError, ValueError):
        return None


def number(done):
    try:
        return float(done.stdout)
    except ValueError:
        return None


def here(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def measure(carrier):
    result = {"start ms": carrier.start_seconds * 1000 if carrier.space else None}
    before = cpu(carrier.processes())
    result["out Gbit/s"] = iperf(carrier.run, carrier.target, IPERF)
    if carrier.engine and result["out Gbit/s"]:
        gigabytes = result["out Gbit/s"] * float(SECONDS) / 8
        result["out CPU s/GB"] = (cpu(carrier.processes()) - before) / gigabytes
    result["in Gbit/s"] = iperf(carrier.run, carrier.target, IPERF, "-R")
    result["out 4 streams"] = iperf(carrier.run, carrier.target, IPERF, "-P4")
    result["UDP 1400 Gbit/s"] = iperf(carrier.run, carrier.target, IPERF, "-u", "-b0", "-l1400")
    talk = f"{HERE}/talk"
    result["connects /s"] = number(carrier.run(talk, "connect", f"{carrier.target}:{TALK}", "2000"))
    result["turn us"] = number(carrier.run(talk, "turns", f"{carrier.target}:{TALK}", "10000"))
    servers = [carrier.background("iperf3", "-s", "-p", str(INSIDE)), None]
    try:
        wait_for(carrier, INSIDE)
        result["published Gbit/s"] = iperf(here, "127.0.0.1", carrier.published)
        servers[0].kill()
        servers[0].wait()
        servers[1] = carrier.background(talk, "serve", f"0.0.0.0:{INSIDE}")
        wait_for(carrier, INSIDE)
        result["published connects /s"] = number(here(talk, "connect", f"127.0.0.1:{carrier.published}", "2000"))
    finally:
        for server in filter(None, servers):
            server.kill()
            server.wait()
    return result


NGINX_CONF = """
daemon off; master_process off; user root; pid {folder}/nginx.pid; error_log /dev/null;
events {{ worker_connections 1024; }}
http {{
    access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
    server {{ listen {port}; location / {{ return 200 "{text}"; }} }}
}}
"""


def web(carrier):
    """wrk against a published nginx: on connections that stay, and on one for each request."""
    path = f"{carrier.folder.name}/nginx.conf"
    with open(path, "w") as file:
        file.write(NGINX_CONF.format(folder=carrier.folder.name, port=NGINX, text="x" * 1024))
    server = carrier.background("nginx", "-p", carrier.folder.name, "-c", path)
    result = {}
    try:
        wait_for(carrier, NGINX)
        url = f"http://127.0.0.1:{5402 if carrier.space else NGINX}/"
        for row, more in (("wrk requests /s", ()), ("wrk, closing /s", ("-H", "Connection: close"))):
            said = here("wrk", "-t1", "-c32", f"-d{SECONDS}s", *more, url).stdout
            rates = [line.split()[1] for line in said.splitlines() if line.startswith("Requests/sec:")]
            result[row] = float(rates[0]) if rates else None
    finally:
        server.terminate()
        server.wait()
    return result


def far(carrier):
    """Throughput over the long wire, once it has found its speed."""
    result = {}
    for row, host in FAR.items():
        result[f"{row}, out Mbit/s"] = scaled(iperf(carrier.run, host, IPERF, "-t", "6", "-O", "3"))
        result[f"{row}, in Mbit/s"] = scaled(iperf(carrier.run, host, IPERF, "-t", "6", "-O", "3", "-R"))
    return result


def scaled(gigabits):
    return gigabits and gigabits * 1000


def crowd(carrier):
    """Many connections at once, each proved by an exchange; then they do nothing."""
    result = {}
    command = [*carrier.enter(), f"{HERE}/talk", "hold", f"{carrier.target}:{TALK}", str(HELD)]
    start = time.monotonic()
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    if select.select([holder.stdout], [], [], 60)[0] and holder.stdout.readline() == b"held\n":
        result[f"{HELD} connections, s"] = time.monotonic() - start
        if carrier.engine:
            result[f"MB with {HELD} idle"] = status(carrier.engine.pid, "VmRSS") / 1024
    holder.kill()
    holder.wait()
    return result


def wait_for(carrier, port):
    deadline = time.monotonic() + 5
    while f":{port} " not in carrier.run("ss", "-Hltn").stdout + " " and time.monotonic() < deadline:
        time.sleep(0.01)


def idle():
    """What kelp-net costs while nothing happens, and with many connections that do nothing."""
    carrier = Carrier("kelp-net")
    engine, broker = carrier.processes()
    time.sleep(1.5)
    switches = status(engine, "voluntary_ctxt_switches")
    time.sleep(3)
    result = {
        "idle wakeups /s": (status(engine, "voluntary_ctxt_switches") - switches) / 3,
        "idle RSS MB, engine": status(engine, "VmRSS") / 1024,
        "idle RSS MB, broker": status(broker, "VmRSS") / 1024,
    }
    carrier.close()
    return result | port_range()


def port_range():
    """Ten thousand ports, from the program's start until its network is up."""
    space = subprocess.Popen(["unshare", "-Urn", "sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    space.stdout.readline()
    ready = os.pipe()
    start = time.monotonic()
    command = [f"{HERE}/kelp-net", "-c", f"-r{ready[1]}", "-p", "0.0.0.0:20000-29999:20000-29999", str(space.pid), "tap0"]
    engine = subprocess.Popen(command, pass_fds=[ready[1]])
    os.close(ready[1])
    os.read(ready[0], 1)
    result = {"10000 ports, s": time.monotonic() - start, "10000 ports, RSS MB": status(engine.pid, "VmRSS") / 1024}
    for process in (engine, space):
        process.kill()
        process.wait()
    return result


def main():
    servers = [
        subprocess.Popen(["iperf3", "-s", "-p", str(IPERF)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL),
        subprocess.Popen([f"{HERE}/talk", "serve", f"0.0.0.0:{TALK}"]),
    ]
    names = ["host loopback", "slirp4netns", "pasta", "kelp-net", "kelp-net P2"]
    rows = {name: [] for name in names}
    try:
        wait_for(Carrier("host loopback"), TALK)
        for number in range(ROUNDS):
            for name in names:
                carrier = Carrier(name)
                try:
                    result = measure(carrier) | web(carrier) if "near" in ROWS else {}
                    # These are long, and a noisy second does little to them.
                    result |= far(carrier) if "far" in ROWS and number == 0 else {}
                    result |= crowd(carrier) if "crowd" in ROWS and number == 0 else {}
                    rows[name].append(result)
                finally:
                    carrier.close()
        report(names, rows, idle())
    finally:
        for server in servers:
            server.kill()


def median(results, key):
    values = [result[key] for result in results if result.get(key) is not None]
    return statistics.median(values) if values else None


def report(names, rows, quiet):
    keys = list(dict.fromkeys(key for results in rows.values() for result in results for key in result))
    table = {key: {name: median(rows[name], key) for name in names} for key in keys}
    show = lambda value: "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    print(f"{'median of ' + str(ROUNDS):24}" + "".join(f"{name:>15}" for name in names) + f"{'kelp/best peer':>16}")
    for key in keys:
        cells = table[key]
        less = key.endswith(("us", "GB", "ms", ", s", "idle"))
        peers = [cells[name] for name in ("slirp4netns", "pasta") if cells[name]]
        best = (min if less else max)(peers) if peers else None
        ratio = cells["kelp-net"] / best if best and cells["kelp-net"] else None
        print(f"{key:24}" + "".join(f"{show(cells[name]):>15}" for name in names) + f"{show(ratio):>16}")
    for key, value in quiet.items():
        print(f"{key:40}{value:10.2f}")
    with open(sys.argv[1], "w") as file:
        json.dump({"rounds": ROUNDS, "table": table, "kelp-net": quiet, "runs": rows}, file, indent=1)


if __name__ == "__main__":
    main()
