"""The rows of the virtual machine: how each host differs, and which tests prove what kelp makes of it.

Runs as root in the machine. A row puts the host into a state, runs tests as a user in a session, and puts the state back.
A session is a prefix of the command line: `service` is a unit of the lingering user's manager, `bare` has no session at all.
"""
import os
import pwd
import subprocess
import sys
import time

TESTS = os.path.dirname(os.path.abspath(__file__))


def sh(command):
    subprocess.run(command, shell=True, check=True)


def service(user):
    uid = pwd.getpwnam(user).pw_uid
    return bare(user) + ["env", f"XDG_RUNTIME_DIR=/run/user/{uid}", "systemd-run", "--user", "--quiet", "--pipe", "--wait",
                         "--setenv=PATH", "--setenv=ROW", "--setenv=KELP_TEST_KIND", "--setenv=HOME", "--working-directory=/tmp"]


def bare(user):
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--", "env", f"HOME=/home/{user}", f"USER={user}"]


def as_root(user):
    return []


def folder(user):
    """A job of a batch system: processes stand in a step of a folder that belongs to the user."""
    return ["sh", "-c", 'echo $$ >/sys/fs/cgroup/job/step/cgroup.procs && exec "$@"', "sh"] + bare(user)


def give_folder():
    """The folder, and what its limits are measured with: swap, huge pages, a slow disk whose scheduler knows weights."""
    sh("for c in cpu cpuset io memory pids hugetlb; do echo +$c >/sys/fs/cgroup/cgroup.subtree_control; done")
    sh("mkdir -p /sys/fs/cgroup/job/step; cd /sys/fs/cgroup/job; chown bob: . step; for f in procs subtree_control threads; do"
       " chown bob: cgroup.$f step/cgroup.$f; done")
    sh("fallocate -l 256M /swap && chmod 600 /swap && mkswap -q /swap && swapon /swap; sysctl -qw vm.nr_hugepages=8")
    give_disk()


def take_folder():
    sh("pkill -KILL -u bob || true; swapoff /swap; sysctl -qw vm.nr_hugepages=0")
    take_disk()


def give_disk():
    sh("mkdir -p /scratch && mount /dev/vdc /scratch && chmod 1777 /scratch; modprobe -q bfq")
    sh("echo bfq >/sys/block/vdc/queue/scheduler")


def take_disk():
    sh("umount -l /scratch; echo none >/sys/block/vdc/queue/scheduler")


def delegation(words):
    """A manager that is delegated nothing, not even its own folder, does not start: then the user has none."""
    def prepare():
        with open("/etc/systemd/system/user@.service.d/delegate.conf", "w") as file:
            file.write(f"[Service]\nDelegate={words}\n")
        sh("systemctl daemon-reload; systemctl stop user@1000.service; systemctl reset-failed user@1000.service || true")
        started = subprocess.run(["systemctl", "start", "user@1000.service"], capture_output=True).returncode == 0
        if started != (words != "no"):
            raise RuntimeError(f"Delegate={words}: the user's manager {'started' if started else 'did not start'}")
    return prepare


def bar_overlay():
    """The module can't go while somebody uses it, such as what a failed row has left."""
    sh("pkill -KILL -u bob || true; echo 'install overlay /bin/false' >/etc/modprobe.d/bar.conf")
    for _ in range(600):
        if subprocess.run("! grep -q '^overlay ' /proc/modules || rmmod overlay", shell=True, stderr=subprocess.DEVNULL).returncode == 0:
            return
        time.sleep(0.1)
    raise RuntimeError("the overlay module is in use")


def allow_overlay():
    sh("rm -f /etc/modprobe.d/bar.conf")


def set_clock_back():
    """By two hours, while a container of bob's runs and another has ended."""
    as_bob = " ".join(bare("bob"))
    sh(f"PATH=/opt/kelp:$PATH; {as_bob} kelp run -d --network none --name early @host sh -c 'echo before; exec sleep 1000' && "
       f"{as_bob} kelp run -d --network none --name ended @host true && {as_bob} kelp wait ended && "
       f"until {as_bob} kelp logs early | grep -q before; do sleep 0.1; done && date -s '-2 hours'")


def serve_nfs():
    """The kernel's own server, and the kernel's own client over loopback; root is nobody there."""
    sh("mkdir -p /srv/nfs /mnt/nfs; chmod 1777 /srv/nfs; echo '/srv/nfs 127.0.0.1(rw,no_subtree_check,root_squash,fsid=1)' >/etc/exports")
    sh("systemctl start nfs-server.service; mount -t nfs4 127.0.0.1:/srv/nfs /mnt/nfs")


def end_nfs():
    sh("umount -f /mnt/nfs || umount -l /mnt/nfs; systemctl stop nfs-server.service")


def nothing():
    pass


# Name, preparation, session, user, kind (tests/it's word), test cases of probes.py, tests of tests/it, undoing.
ROWS = [
    ("delegated", nothing, service, "ann", "ids", ["Delegated", "Programs", "Everywhere"], ["limits::", "update::", "disk::", "run::", "process::exit"], nothing),
    ("delegated-folder", give_folder, folder, "bob", "one", ["Folder", "Programs", "Everywhere"], [], take_folder),
    ("partly-delegated", delegation("pids memory"), service, "ann", "ids", ["PartlyDelegated", "Everywhere"], [], nothing),
    ("no-delegation", delegation("no"), bare, "ann", "ids", ["Soft", "Everywhere"], [], delegation("cpu cpuset io memory pids")),
    ("no-session", nothing, bare, "bob", "one", ["Soft", "Programs", "Everywhere"], ["limits::", "update::", "disk::"], nothing),
    ("soft-disk", give_disk, bare, "bob", "one", ["SoftDisk"], [], take_disk),
    ("no-session-lingering", nothing, bare, "ann", "ids", ["Lingering", "Everywhere"], [], nothing),
    ("overlay-barred", bar_overlay, service, "ann", "ids", ["OverlayBarred", "Everywhere"], [], allow_overlay),
    ("fuse-and-overlay-barred", lambda: (bar_overlay(), sh("chmod 600 /dev/fuse")), service, "ann", "ids",
     ["BothBarred"], [], lambda: (allow_overlay(), sh("chmod 666 /dev/fuse"))),
    ("no-newuidmap", lambda: sh("mv /usr/bin/newuidmap /root/"), service, "ann", "one", ["OneId", "Everywhere"], [],
     lambda: sh("mv /root/newuidmap /usr/bin/")),
    ("clock-set-back", set_clock_back, bare, "bob", "one", ["ClockSetBack"], [], lambda: sh("date -s '+2 hours'")),
    ("userns-clone-0", lambda: sh("sysctl -qw kernel.unprivileged_userns_clone=0"), bare, "ann", "one", ["NoUserNamespaces"], [],
     lambda: sh("sysctl -qw kernel.unprivileged_userns_clone=1")),
    ("nfs", serve_nfs, bare, "ann", "ids", ["Nfs"], [], end_nfs),
    ("nfs-one-id", serve_nfs, bare, "bob", "one", ["Nfs"], [], end_nfs),
    ("fuse-overlay", nothing, bare, "ann", "ids", [],
     ["run::read_only", "run::writes_go", "run::what_one", "run::host_is", "run::programs_are", "run::the_root", "run::rootfs_rw"], nothing),
    ("overlay-on-fuse", nothing, bare, "ann", "ids", [], ["run::writes_go", "run::host_is", "run::the_root"], nothing),
    ("ten-thousand-connections", nothing, as_root, "root", "ids", [], [], nothing),
    ("power-cut", nothing, as_root, "root", "ids", [], [], nothing),
    ("max-userns-0", lambda: sh("sysctl -qw user.max_user_namespaces=0"), bare, "ann", "one", ["NoUserNamespaces"], [],
     lambda: sh("sysctl -qw user.max_user_namespaces=10000")),
]


# What else a row runs, and what its programs find in the environment.
PROGRAMS = {
    "fuse-overlay": [[f"{TESTS}/union"]],
    "ten-thousand-connections": [["python3", "-B", f"{TESTS}/crowd.py", "/opt/kelp", "ann"]],
    "power-cut": [["sh", "-c", f"mkdir -p /dev/shm/cut && exec python3 -B {TESTS}/power.py /opt/kelp/fuse-overlay ann /dev/shm/cut"]],
}
ENVIRONMENT = {"fuse-overlay": {"KELP_STORAGE_DRIVER": "fuse"}, "overlay-on-fuse": {"KELP_STORAGE_DRIVER": "overlay-on-fuse"}}


# Figures of limits by the kernel, only if they are asked for.
BENCH = "bench"


def run(command, environment):
    """Runs one test program; every line of it is shown; gives passed and failed."""
    passed = failed = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                          env=environment, stdin=subprocess.DEVNULL) as process:
        for line in process.stdout:
            line = line.rstrip()
            if line.endswith(" ... ok"):
                passed += 1
            elif line.endswith((" ... FAILED", " ... FAIL", " ... ERROR")):
                failed += 1
            print("  " + line, flush=True)
    if process.returncode != 0 and failed == 0:
        failed = 1
    return passed, failed


def main():
    wanted = sys.argv[1:]
    passed = failed = 0
    if BENCH in wanted:
        environment = {"PATH": "/opt/kelp:/usr/local/bin:/usr/bin:/bin", "KELP_BENCH_ROUNDS": "15", "KELP_BENCH_PARTS": "start",
                       "KELP_BENCH_ROOT": "/opt/kelp/root"}
        bench = ["python3", "-B", f"{TESTS}/bench.py", "/opt/kelp/kelp", "/tmp/limits.json"]
        pass_on = [f"--setenv={name}" for name in environment if name.startswith("KELP")]
        print("== bench: a scope of the user's systemd", flush=True)
        passed += run(service("ann")[:-1] + pass_on + ["--working-directory=/tmp"] + bench, environment)[1] == 0
        print("== bench: a delegated folder", flush=True)
        give_folder()
        sh("mkdir -p /tmp/bob && chown bob: /tmp/bob")
        bench[-1] = "/tmp/bob/limits.json"
        here = run(folder("bob") + bench, environment | {"KELP_BENCH_CGROUP": "/job"})
        passed, failed = passed + (here[1] == 0), failed + here[1]
        take_folder()
    for name, prepare, session, user, kind, probes, suite, undo in ROWS:
        if wanted and name not in wanted:
            continue
        began = time.monotonic()
        print(f"== {name}", flush=True)
        environment = {"PATH": "/opt/kelp:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "ROW": name, "KELP_TEST_KIND": kind,
                       "LANG": "C.UTF-8", "HOME": f"/home/{user}"} | ENVIRONMENT.get(name, {})
        prepare()
        try:
            commands = [["python3", "-B", f"{TESTS}/probes.py", "-v", *probes]] if probes else []
            commands += PROGRAMS.get(name, [])
            if suite:
                commands.append(["env", "KELP_BIN=/opt/kelp/kelp", "KELP_GUEST=/opt/kelp/guest", "/opt/kelp/it",
                                 "--test-threads=2", *suite])
            for command in commands:
                here = run(session(user) + command, environment)
                passed, failed = passed + here[0], failed + here[1]
        finally:
            undo()
        print(f"   {name}: {time.monotonic() - began:.0f} s", flush=True)
    print(f"{passed} passed, {failed} failed", flush=True)


main()
