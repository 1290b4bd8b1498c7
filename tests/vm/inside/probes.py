"""What kelp must do in the rows of the virtual machine, through its command line, as the user of the row.

A class is one kind of host; rows.py says which classes hold in which row. Measurements are of the effect, not of a file.
"""
import io
import json
import os
import signal
import subprocess
import tarfile
import time
import unittest


def kelp(*words, **options):
    return subprocess.run(["kelp", *words], capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, **options)


def doctor():
    return json.loads(kelp("doctor", "--json").stdout)


def rung(checks, facility):
    """The rung that is used of a facility."""
    return next((check["rung"] for check in checks if check["facility"] == facility and check["state"] == "used"), None)


class Everywhere(unittest.TestCase):
    """What doctor says is used in each row; the rest of it is in the row's own class."""
    USED = {
        "delegated": ("many ids", "T0 kernel overlay", "systemd user scope"),
        "partly-delegated": ("many ids", "T0 kernel overlay", "systemd user scope"),
        "no-delegation": ("many ids", "T0 kernel overlay", "soft"),
        "delegated-folder": ("one id", "T0 kernel overlay", "delegated cgroup"),
        "no-session": ("one id", "T0 kernel overlay", "soft"),
        "no-session-lingering": ("many ids", "T0 kernel overlay", "systemd user scope"),
        "overlay-barred": ("many ids", "T2 FUSE overlay", "systemd user scope"),
        "no-newuidmap": ("one id", "T0 kernel overlay", "systemd user scope"),
    }

    def test_a_container_runs_and_its_exit_status_is_told(self):
        ended = kelp("run", "--rm", "@host", "sh", "-c", "id -u; echo hello >/tmp/x; cat /tmp/x; exit 7")
        self.assertEqual((ended.returncode, ended.stdout), (7, "0\nhello\n"), ended.stderr)

    def test_doctor_names_the_rungs_that_are_used_and_mends_what_is_refused(self):
        checks = doctor()
        ids, root, limits = self.USED[os.environ["ROW"]]
        self.assertIn(ids, rung(checks, "id maps"), checks)
        self.assertEqual((rung(checks, "root file system"), rung(checks, "limits")), (root, limits), checks)
        for check in checks:
            self.assertTrue(check["state"] != "refused" or check["mend"], check)

    def test_nothing_of_ours_is_left(self):
        """Whatever the other tests of this row did before, and one container that is removed while it runs."""
        kelp("run", "-d", "--name", "left", "-m", "64m", "@host", "sleep", "100")
        kelp("rm", "-f", "left")
        self.assertEqual(leftovers(), [])


def leftovers():
    """Control groups, units and processes of kelp's own, once systemd had the time to forget an empty scope."""
    def found():
        groups = [path for path, _, _ in os.walk("/sys/fs/cgroup") if os.path.basename(path).startswith(("kelp-", "kelp.scope"))]
        return [path for path in groups if not path.endswith(("/kelp-rest", ".service"))] + subprocess.run(
            ["pgrep", "-a", "-u", str(os.getuid()), "^kelp"], capture_output=True, text=True).stdout.split("\n")[:-1]
    return awaited(found, [])


def awaited(look, wanted):
    """What is seen once it is what is wanted, or when a minute has passed: a machine that others use is late."""
    deadline = time.monotonic() + 60
    while (seen := look()) != wanted and time.monotonic() < deadline:
        time.sleep(0.1)
    return seen


def units():
    listed = ["systemctl", "--user", "list-units", "--all", "--plain", "--no-legend", "kelp*"]
    return subprocess.run(listed, capture_output=True, text=True).stdout


def monitor(name):
    """The number of the process that keeps a container: the parent of its first one."""
    pid = kelp("inspect", "-f", "{{.State.Pid}}", name).stdout.strip()
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rsplit(")", 1)[1].split()[1])


class Programs(unittest.TestCase):
    """The container's numbers as real programs see them."""
    SCRIPT = """
free -m | awk '/^Mem/ {print "free", $2}'
echo nproc $(nproc)
top -b -n1 | awk '/^MiB Mem/ {print "top", $4}'
python3 -c 'import os; print("python", os.cpu_count())'
node -e 'console.log("node", os.cpus().length, Math.round(os.totalmem() / 1048576))'
java -Xlog:gc+init -version 2>/dev/null | sed -n 's/.*Memory: /java memory /p; s/.*, \\([0-9]*\\) available/java processors \\1/p'
"""

    def test_free_nproc_top_python_node_and_java(self):
        ended = kelp("run", "--rm", "-m", "256m", "--cpuset-cpus", "0", "@host", "sh", "-c", self.SCRIPT)
        self.assertEqual(ended.stdout.strip().split("\n"), ["free 256", "nproc 1", "top 256.0", "python 1", "node 1 256",
                                                            "java processors 1", "java memory 256M"], ended.stderr)


class ClockSetBack(unittest.TestCase):
    """What runs and what has ended began in the future; every order goes on."""
    def test_what_began_in_the_future_lives_and_ends_like_any_other(self):
        listed = kelp("ps", "-a", "--format", "{{.Names}} {{.State}} {{.Status}}")
        self.assertIn("early running Up", listed.stdout, listed.stderr)
        self.assertIn("ended exited Exited (0)", listed.stdout, listed.stderr)
        self.assertEqual(kelp("exec", "early", "echo", "here").stdout, "here\n")
        self.assertEqual(kelp("logs", "--timestamps", "early").stdout.split(" ")[-1], "before\n")
        began = time.monotonic()
        stopped = kelp("stop", "-t", "1", "early")
        self.assertEqual((stopped.returncode, stopped.stdout), (0, "early\n"), stopped.stderr)
        self.assertLess(time.monotonic() - began, 30)
        self.assertEqual(kelp("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "early").stdout, "exited 137\n")
        for name in ("early", "ended"):
            self.assertEqual(kelp("start", name).returncode, 0)
        self.assertEqual(kelp("wait", "ended").stdout, "0\n")
        self.assertEqual(kelp("rm", "-f", "early", "ended").returncode, 0)
        self.assertEqual(kelp("ps", "-aq").stdout, "")


class Limits(unittest.TestCase):
    """Who enforces limits in this row, as doctor says and as the kernel has it."""
    def limits(self, rung_expected, *words):
        checks = [check for check in doctor() if check["facility"] == "limits"]
        used = [check for check in checks if check["state"] == "used"]
        self.assertEqual(used[0]["rung"], rung_expected, checks)
        for word in words:
            self.assertIn(word, json.dumps(checks))
        return checks

    def changes(self, *words):
        ended = kelp("update", *words)
        self.assertEqual((ended.returncode, ended.stdout, ended.stderr), (0, f"{words[-1]}\n", ""))

    def weights_share_a_disk(self, *options):
        with open("/sys/block/vdc/queue/scheduler") as file:
            self.assertIn("[bfq]", file.read())
        for name in "ab":
            subprocess.run(["dd", "if=/dev/zero", f"of=/scratch/{name}", "bs=1M", "count=30", "conv=fsync", "status=none"], check=True)
        script = ("import mmap, os, sys, time\n"
                  "fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)\n"
                  "page, done = mmap.mmap(-1, 262144), 0\n"
                  "while not os.path.exists('/s/go'): pass\n"
                  "end = time.monotonic() + 6\n"
                  "while time.monotonic() < end: done += os.preadv(fd, [page], done % (28 << 20))\n"
                  "print(done)")
        start = lambda weight, name: subprocess.Popen(
            ["kelp", "run", "--rm", "--name", name, "--blkio-weight", weight, *options, "-v", "/scratch:/s", "@host", "python3",
             "-c", f"print('up', flush=True)\n{script}", f"/s/{name}"], stdout=subprocess.PIPE, text=True)
        both = [start("800", "a"), start("800", "b")]
        # One got its weight at its start, the other later.
        self.assertEqual([run.stdout.readline() for run in both], ["up\n", "up\n"])
        self.changes("--blkio-weight", "200", "b")
        with open("/scratch/go", "w"):
            pass
        self.addCleanup(os.unlink, "/scratch/go")
        more, less = (int(run.communicate()[0]) for run in both)
        self.assertTrue(2 <= more / less <= 8, (more, less))


class Scope(Limits):
    """The one scope of a user's containers."""
    def test_many_begin_and_end_in_one_scope(self):
        """Each may be the first, which has it made, or the last, with which it goes."""
        for count in (1, 2, 8, 8, 8):
            running = [subprocess.Popen(["kelp", "run", "--rm", "--strict-limits", "-m", "64m", "--network", "none", "@host", "true"],
                                        stderr=subprocess.PIPE, text=True) for _ in range(count)]
            for process in running:
                _, err = process.communicate(timeout=100)
                self.assertEqual(process.returncode, 0, err)
        self.assertEqual(leftovers(), [])


class Delegated(Scope):
    def test_a_scope_whose_first_process_ended_before_it_was_moved_in_is_used_and_goes(self):
        """The kernel moves no process that is ending, and says that it has: systemd never sees such a scope become empty."""
        ended = subprocess.Popen(["true"])
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        ask = ["busctl", "--user", "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager",
               "StartTransientUnit", "ssa(sv)a(sa(sv))", "kelp.scope", "fail", "2", "PIDs", "au", "1", str(ended.pid), "Delegate", "b", "true", "0"]
        asked = subprocess.run(ask, capture_output=True, text=True)
        self.assertEqual(asked.returncode, 0, asked.stderr)
        show = ["systemctl", "--user", "show", "--value", "-p", "SubState", "kelp.scope"]
        self.assertEqual(awaited(lambda: subprocess.run(show, capture_output=True, text=True).stdout, "running\n"), "running\n")
        ended.wait()
        ran = kelp("run", "--rm", "--strict-limits", "-m", "64m", "@host", "true")
        self.assertEqual((ran.returncode, ran.stderr), (0, ""))
        self.assertEqual(leftovers(), [])

    def test_doctor_finds_every_controller_in_a_scope(self):
        self.limits("systemd user scope", "cpu cpuset io memory pids")

    def test_each_flag_is_written_by_the_kernels_names(self):
        script = "cd /sys/fs/cgroup; for f in memory.max memory.low cpu.max cpu.weight cpuset.cpus pids.max; do cat $f; done"
        ended = kelp("run", "--rm", "-m", "64m", "--memory-reservation", "8m", "--cpus", "0.5", "--cpu-shares", "512",
                     "--cpuset-cpus", "1", "--pids-limit", "33", "--strict-limits", "@host", "sh", "-c", script)
        self.assertEqual(ended.stdout.split("\n")[:6], ["67108864", "8388608", "50000 100000", "59", "1", "33"], ended.stderr)

    def test_a_further_program_is_under_the_containers_limits(self):
        kelp("run", "-d", "--name", "further", "-m", "64m", "@host", "sleep", "100")
        try:
            ended = kelp("exec", "further", "sh", "-c", "cat /proc/self/cgroup; echo told >&2; exit 7")
            self.assertEqual((ended.returncode, ended.stdout, ended.stderr), (7, "0::/\n", "told\n"))
            ended = kelp("exec", "further", "nosuch")
            self.assertEqual(ended.returncode, 127, ended.stderr)
            kelp("exec", "-d", "further", "sh", "-c", "cat /proc/self/cgroup >/root/detached")
            self.assertEqual(awaited(lambda: kelp("exec", "further", "cat", "/root/detached").stdout, "0::/\n"), "0::/\n")
            ended = kelp("exec", "further", "python3", "-c", "bytearray(200 << 20)")
            self.assertEqual(ended.returncode, 137, ended.stderr)
        finally:
            kelp("rm", "-f", "further")

    def test_nothing_is_left_of_a_container(self):
        kelp("run", "--rm", "-m", "64m", "@host", "true")
        self.assertEqual(leftovers(), [])
        self.assertEqual(awaited(units, ""), "")

    def test_nothing_is_left_of_one_in_the_background_that_is_removed_or_whose_monitor_is_killed(self):
        for kill in (False, True):
            kelp("run", "-d", "--name", "gone", "-m", "64m", "@host", "sleep", "100")
            self.assertIn("kelp.scope", units())
            if kill:
                os.kill(monitor("gone"), signal.SIGKILL)
            kelp("rm", "-f", "gone")
            self.assertEqual(leftovers(), [])
            self.assertEqual(awaited(units, ""), "")

    def test_a_file_of_a_controller_that_is_not_delegated_is_an_error(self):
        ended = kelp("run", "--rm", "--cgroup-conf", "hugetlb.2MB.max=0", "@host", "true")
        self.assertEqual(ended.returncode, 125)
        self.assertIn("--cgroup-conf", ended.stderr)

    def test_nothing_is_left_of_a_monitor_that_was_killed(self):
        """Neither of one whose scope goes with it, nor of one that another container shares it with."""
        for beside in (False, True):
            if beside:
                kelp("run", "-d", "--name", "beside", "-m", "64m", "@host", "sleep", "100")
            with subprocess.Popen(["kelp", "run", "-m", "64m", "--name", "killed", "@host", "sh", "-c", "echo up; sleep 100"],
                                  stdout=subprocess.PIPE, text=True) as run:
                self.assertEqual(run.stdout.readline(), "up\n")
                group = self.group("killed")
                self.assertTrue(os.path.isdir(group), group)
                self.assertEqual(os.path.basename(os.path.dirname(group)), "kelp.scope")
                run.kill()
            if beside:
                kelp("rm", "killed")
                self.assertEqual(kelp("exec", "beside", "echo", "lives").stdout, "lives\n")
            self.assertFalse(awaited(lambda: os.path.exists(group), False), group)
            kelp("rm", "-f", "killed", "beside")
        self.assertEqual(leftovers(), [])

    def group(self, name):
        pid = kelp("inspect", "-f", "{{.State.Pid}}", name).stdout.strip()
        with open(f"/proc/{pid}/cgroup") as file:
            return "/sys/fs/cgroup" + file.read().strip().removeprefix("0::")



class Folder(Limits):
    """A folder of the hierarchy without any systemd: every limit, measured, with what the machine has for it."""
    JOB = "/sys/fs/cgroup/job"

    def container(self, *words, **options):
        return kelp("run", "--rm", *words, **options)

    def test_doctor_finds_the_folder_and_its_controllers(self):
        self.limits("delegated cgroup", "cpu cpuset hugetlb io memory pids", self.JOB)

    def test_swap_is_memory_swap_less_memory(self):
        fill = ["--rootfs", "/opt/kelp/root", "/bin/guest", "fill"]
        fits = self.container("-m", "20m", "--memory-swap", "100m", *fill, "60", "0.1")
        self.assertEqual(fits.returncode, 0, fits.stderr)
        for swap, size in (("20m", "60"), ("40m", "80")):
            self.assertEqual(self.container("-m", "20m", "--memory-swap", swap, *fill, size, "0.1").returncode, 137)

    def test_memory_high_makes_a_container_give_its_cache_back(self):
        script = "dd if=/dev/zero of=/s/high bs=1M count=60 status=none; cat /sys/fs/cgroup/memory.current; rm /s/high"
        held = {flag: int(self.container(*flag, "-v", "/var/tmp:/s", "--cgroups=enabled", "@host", "sh", "-c", script).stdout)
                for flag in (("--memory-high", "30m"), ())}
        self.assertLess(held[("--memory-high", "30m")], 34 << 20)
        self.assertGreater(held[()], 55 << 20)

    def pod(self, limit):
        """A parent of containers, with a limit of its own."""
        pod = f"{self.JOB}/pod"
        with open(f"{self.JOB}/cgroup.subtree_control", "w") as file:
            file.write("+memory")
        os.makedirs(pod, exist_ok=True)
        with open(f"{pod}/memory.max", "w") as file:
            file.write(limit)
        self.addCleanup(lambda: os.path.isdir(pod) and os.rmdir(pod))
        return ["--cgroup-parent", "/job/pod"]

    def test_a_child_is_bounded_by_its_parent(self):
        parent = self.pod("30M")
        ended = self.container(*parent, "-m", "200m", "--memory-swap", "200m", "--rootfs", "/opt/kelp/root", "/bin/guest", "fill",
                               "60", "0.1")
        self.assertEqual(ended.returncode, 137, ended.stderr)

    def test_memory_that_is_reserved_is_not_taken_by_others(self):
        """Two containers in a parent of 100 MB: the first holds 40 MB of cache when the second wants 150."""
        kept, reserve = {}, ("--memory-reservation", "50m")
        for way, flag in (("run", reserve), ("update", ()), ("nothing", ())):
            parent = [*self.pod("100M"), "-v", "/var/tmp:/s"]
            write = "dd if=/dev/zero of=/s/$0 bs=1M count=$1 conv=fsync status=none"
            kelp("run", "-d", "--name", "first", *flag, *parent, "@host", "sh", "-c",
                 f"{write}; touch /s/ready; sleep 100", "mine", "40")
            self.assertTrue(awaited(lambda: os.path.exists("/var/tmp/ready"), True))
            if way == "update":
                self.changes(*reserve, "first")
            self.container(*parent, "@host", "sh", "-c", write, "other", "150")
            group = json.loads(kelp("inspect", "first").stdout)[0]["State"]["Pid"]
            with open(f"/proc/{group}/cgroup") as file:
                path = "/sys/fs/cgroup" + file.read().strip().split("::")[1]
            with open(f"{path}/memory.stat") as file:
                kept[way] = next(int(line.split()[1]) for line in file if line.startswith("file ")) >> 20
            kelp("rm", "-f", "first")
            for name in ("mine", "other", "ready"):
                os.unlink(f"/var/tmp/{name}")
        self.assertGreaterEqual(min(kept["run"], kept["update"]), 38, kept)
        self.assertLess(kept["nothing"], 30, kept)

    NODES = ("x = bytearray(20 << 20)\n"
             "print({word[:2] for line in open('/proc/self/numa_maps') if 'anon=' in line and 'heap' not in line"
             " for word in line.split() if word[0] == 'N' and int(word[3:]) > 1000})")
    HUGE = ("import mmap\n"
            "m = mmap.mmap(-1, 4 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)\n"
            "m[0] = 1; m[2 << 20] = 1; print('both')")

    def test_memory_comes_from_the_nodes_that_are_given(self):
        for node in ("0", "1"):
            ended = self.container("--cpuset-mems", node, "@host", "python3", "-c", self.NODES)
            self.assertEqual(ended.stdout, f"{{'N{node}'}}\n", ended.stderr)

    def test_huge_pages_are_counted(self):
        words = ["@host", "python3", "-c", self.HUGE]
        self.assertEqual(self.container("--cgroups=enabled", *words).stdout, "both\n")
        limited = self.container("--cgroup-conf", "hugetlb.2MB.max=2097152", *words)
        self.assertNotEqual(limited.returncode, 0)
        self.assertNotIn("both", limited.stdout)

    WRITE = "dd if=/dev/zero of=/s/file bs={0} count={1} oflag=direct conv=notrunc status=none"
    READ = "dd if=/s/file of=/dev/null bs={0} count={1} iflag=direct status=none"
    RATES = (("--device-write-bps", "1mb", WRITE.format("64k", 64)), ("--device-write-iops", "16", WRITE.format("4k", 64)),
             ("--device-read-bps", "1mb", READ.format("64k", 64)), ("--device-read-iops", "16", READ.format("4k", 64)))

    # The time that it takes, without the container's start.
    TIMED = ["python3", "-c", "import subprocess, sys, time\n"
             "began = time.monotonic()\n"
             "subprocess.run(sys.argv[1], shell=True, check=True)\n"
             "print(time.monotonic() - began)"]

    def seconds(self, ended):
        self.assertEqual(ended.returncode, 0, ended.stderr)
        return float(ended.stdout)

    def rate(self, program, *limits):
        """Seconds that a program takes on the disk of its own, whose file is not in the page cache."""
        return self.seconds(self.container(*limits, "--strict-limits", "-v", "/scratch:/s", "@host", *self.TIMED, program))

    def is_held(self, flag, attempt):
        """Each attempt lasts; a disk that stalls would not stall each time."""
        self.assertGreater(min(attempt(), attempt()), 3.5, flag)

    def is_free(self, flag, attempt):
        """One attempt of many is quick, so nothing holds it back."""
        deadline, took = time.monotonic() + 60, []
        while not took or took[-1] >= 1.75:
            self.assertTrue(not took or time.monotonic() < deadline, (flag, took))
            took.append(attempt())

    def test_each_limit_of_a_device_makes_it_slow(self):
        self.rate(self.WRITE.format("1M", 8))
        for flag, rate, program in self.RATES:
            self.is_held(flag, lambda: self.rate(program, flag, f"/dev/vdc:{rate}"))
            self.is_free(flag, lambda: self.rate(program))

    def test_weights_share_a_disk(self):
        self.weights_share_a_disk("--strict-limits")

    def changing(self):
        """A container that runs already when it gets its limits."""
        kelp("run", "-d", "--name", "changed", "--cgroups=enabled", "-v", "/scratch:/s", "-v", "/var/tmp:/v", "@host", "sleep", "1000")
        self.addCleanup(kelp, "rm", "-f", "changed")

    def changed(self, limits, *program):
        self.changing()
        self.changes(*limits, "changed")
        ended = kelp("exec", "changed", *program)
        kelp("rm", "-f", "changed")
        return ended

    def test_each_limit_of_memory_changes_while_a_container_runs(self):
        script = "dd if=/dev/zero of=/v/high bs=1M count=60 status=none; cat /sys/fs/cgroup/memory.current; rm /v/high"
        ended = self.changed(["--memory-high", "30m"], "sh", "-c", script)
        self.assertLess(int(ended.stdout), 34 << 20)
        fill = ["python3", "-c", "x = bytearray(60 << 20); print(len(x))"]
        for limits, status in ((["-m", "20m", "--memory-swap", "150m"], 0), (["-m", "20m", "--memory-swap", "20m"], 137)):
            self.assertEqual(self.changed(limits, *fill).returncode, status)
        ended = self.changed(["--cpuset-mems", "1"], "python3", "-c", self.NODES)
        self.assertEqual(ended.stdout, "{'N1'}\n", ended.stderr)
        ended = self.changed(["--cgroup-conf", "hugetlb.2MB.max=2097152"], "python3", "-c", self.HUGE)
        self.assertNotIn("both", ended.stdout)

    def test_each_limit_of_a_device_changes_while_a_container_runs(self):
        self.rate(self.WRITE.format("1M", 8))
        for flag, rate, program in self.RATES:
            self.changing()
            attempt = lambda: self.seconds(kelp("exec", "changed", *self.TIMED, program))
            self.is_free(flag, attempt)
            self.changes(flag, f"/dev/vdc:{rate}", "changed")
            self.is_held(flag, attempt)
            kelp("rm", "-f", "changed")

    def test_a_process_that_is_killed_for_memory_is_told_while_its_container_lives(self):
        """One of several, where the user has it so; and the most memory that there was."""
        kelp("run", "-d", "--name", "several", "-m", "20m", "--memory-swap", "20m", "--cgroup-conf", "memory.oom.group=0", "@host",
             "sleep", "1000")
        try:
            with subprocess.Popen(["kelp", "events", "-f", "event=oom", "--format", "{{.Action}}"], stdout=subprocess.PIPE, text=True) as events:
                self.assertEqual(kelp("exec", "several", "python3", "-c", "bytearray(60 << 20)").returncode, 137)
                self.assertEqual(events.stdout.readline(), "oom\n")
                events.kill()
            state = json.loads(kelp("inspect", "several").stdout)[0]["State"]
            self.assertEqual(state["Status"], "running")
            self.assertTrue(19 << 20 <= state["MemoryPeak"] <= 21 << 20, state)
        finally:
            kelp("rm", "-f", "several")

    def test_a_container_that_is_killed_whole_for_memory_is_told_once(self):
        """The kernel counts each of its processes when it comes to it."""
        script = "for i in $(seq 60); do sleep 1000 & done; python3 -c 'bytearray(200 << 20)'"
        for _ in range(2):
            ended = kelp("run", "--name", "whole", "-m", "60m", "--memory-swap", "60m", "@host", "sh", "-c", script)
            self.assertEqual(ended.returncode, 137, ended.stderr)
            told = kelp("events", "--since", "1m", "--until", "0s", "--filter", "container=whole", "--format", "{{.Action}}").stdout
            kelp("rm", "whole")
            self.assertEqual(told.split()[-4:], ["create", "start", "oom", "die"])

    def test_a_group_below_ones_own_is_made_by_split(self):
        own = f"{self.JOB}/split"
        os.mkdir(own)
        script = f"echo $$ >{own}/cgroup.procs; kelp run --rm --cgroups=split -m 50m --cgroupns=host @host cat /proc/self/cgroup"
        ended = subprocess.run(["sh", "-c", script], capture_output=True, text=True)
        self.assertRegex(ended.stdout, "^0::/job/split/kelp-", ended.stderr)
        # Whoever has ended leaves its group a moment later than its parent is told.
        processes = lambda: open(f"{own}/kelp-rest/cgroup.events").read().split("\n")[0]
        self.assertEqual(awaited(processes, "populated 0"), "populated 0")
        os.rmdir(f"{own}/kelp-rest")
        os.rmdir(own)

    def test_what_a_program_leaves_in_the_hosts_pid_namespace_ends_with_its_group(self):
        kelp("run", "--rm", "--pid=host", "-m", "64m", "@host", "sh", "-c", "setsid sleep 4321 & exit 0")
        left = subprocess.run(["pgrep", "-f", "sleep 4321"], capture_output=True, text=True).stdout
        self.assertEqual(left, "")

    def test_running_out_of_memory_is_told(self):
        kelp("run", "--name", "big", "-m", "20m", "--memory-swap", "20m", "--rootfs", "/opt/kelp/root", "/bin/guest", "fill", "60", "1")
        state = json.loads(kelp("inspect", "big").stdout)[0]["State"]
        kelp("rm", "big")
        self.assertEqual((state["OOMKilled"], state["ExitCode"]), (True, 137))

    def test_nothing_is_left_of_a_monitor_that_was_killed_in_the_background(self):
        kelp("run", "-d", "--name", "orphan", "-m", "64m", "@host", "sleep", "100")
        os.kill(monitor("orphan"), signal.SIGKILL)
        kelp("ps")
        kelp("rm", "-f", "orphan")
        self.assertEqual(leftovers(), [])


class PartlyDelegated(Limits):
    def test_doctor_says_which_controllers_stop_where(self):
        self.limits("systemd user scope", "memory pids", "without cpuset io", "does not hand on", "Delegate=")

    def test_the_kernel_and_kelp_share_the_work(self):
        ended = kelp("run", "--rm", "-m", "64m", "--cpuset-cpus", "0", "--strict-limits", "@host", "true")
        self.assertEqual(ended.returncode, 125)
        self.assertIn("--cpuset-cpus", ended.stderr)


class Soft(Limits):
    def test_doctor_says_that_limits_are_soft_and_how_to_mend_it(self):
        self.limits("soft", "enable-linger")


class SoftDisk(Limits):
    def test_weights_share_a_disk_that_bfq_schedules(self):
        self.weights_share_a_disk()

    def test_a_weight_is_said_to_hold_softly_and_what_joins_has_it_too(self):
        kelp("run", "-d", "--name", "weighed", "--blkio-weight", "1000", "@host", "sleep", "1000")
        self.addCleanup(kelp, "rm", "-f", "weighed")
        enforced = lambda: kelp("inspect", "-f", '{{index .EnforcedBy "blkio-weight"}}', "weighed").stdout
        self.assertEqual(enforced(), "soft\n")
        self.assertEqual(kelp("exec", "weighed", "ionice").stdout, "best-effort: prio 0\n")
        self.changes("--blkio-weight", "10", "weighed")
        self.assertEqual(kelp("exec", "weighed", "ionice", "-p", "1").stdout, "best-effort: prio 7\n")
        self.assertEqual(kelp("exec", "weighed", "ionice").stdout, "best-effort: prio 7\n")
        self.assertEqual(enforced(), "soft\n")


class Lingering(Scope):
    def test_a_user_without_a_session_has_a_scope_of_the_manager_that_lingers(self):
        self.limits("systemd user scope", "cpu cpuset io memory pids")
        ended = kelp("run", "--rm", "--pids-limit", "33", "--strict-limits", "@host", "cat", "/sys/fs/cgroup/pids.max")
        self.assertEqual(ended.stdout, "33\n", ended.stderr)


class OverlayBarred(unittest.TestCase):
    def test_the_users_own_overlay_makes_the_root(self):
        checks = doctor()
        self.assertEqual(rung(checks, "root file system"), "T2 FUSE overlay", checks)
        kernel = [check for check in checks if check["rung"] == "T0 kernel overlay"]
        self.assertIn("modprobe overlay", kernel[0]["mend"], checks)
        ended = kelp("run", "--rm", "@host", "sh", "-c", "findmnt -no FSTYPE / || grep ' / ' /proc/mounts")
        self.assertIn("fuse", ended.stdout, ended.stderr)


class BothBarred(unittest.TestCase):
    def test_a_folder_is_copied_and_the_copy_thrown_away(self):
        ended = kelp("run", "--rm", "--rootfs", "/opt/kelp/root", "/bin/guest", "write", "/etc/marker", "new")
        self.assertEqual(ended.returncode, 0, ended.stderr)
        with open("/opt/kelp/root/etc/marker") as file:
            self.assertEqual(file.read(), "old\n")

    def test_the_machines_own_userland_is_not_copied_and_doctor_is_named(self):
        ended = kelp("run", "--rm", "@host", "true")
        self.assertEqual(ended.returncode, 125)
        self.assertIn("kelp doctor", ended.stderr)

    def test_a_copy_makes_the_root_and_doctor_says_why(self):
        checks = doctor()
        self.assertEqual(rung(checks, "root file system"), "T3 copy", checks)
        fuse = [check for check in checks if check["rung"] == "T2 FUSE overlay"]
        self.assertEqual(fuse[0]["state"], "refused", checks)
        self.assertIn("/dev/fuse", fuse[0]["reason"] + str(fuse[0]["mend"]))


class OneId(unittest.TestCase):
    def test_doctor_names_the_missing_program_and_the_package(self):
        checks = doctor()
        refused = [check for check in checks if check["facility"] == "id maps" and check["state"] == "refused"]
        self.assertTrue(any("newuidmap" in check["reason"] for check in refused), checks)
        self.assertTrue(any("uidmap" in (check["mend"] or "") for check in refused), checks)


class NoUserNamespaces(unittest.TestCase):
    """Each of the two sysctls is named where it is the one that refuses."""
    SYSCTL = {"userns-clone-0": "kernel.unprivileged_userns_clone", "max-userns-0": "user.max_user_namespaces"}

    def test_doctor_names_the_sysctl_and_ends_with_1(self):
        ended = kelp("doctor")
        self.assertEqual(ended.returncode, 1, ended.stdout)
        self.assertIn(self.SYSCTL[os.environ["ROW"]], ended.stdout)

    def test_run_names_it_too_and_ends_with_125(self):
        ended = kelp("run", "--rm", "@host", "true")
        self.assertEqual(ended.returncode, 125)
        self.assertIn(self.SYSCTL[os.environ["ROW"]], ended.stderr)


class Nfs(unittest.TestCase):
    """The store on a server of files that gives nobody a file of another's and has no extended attributes of ours."""
    FILES = ["/usr/bin/dash", "/usr/bin/cat", "/usr/bin/rm", "/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6"]

    @classmethod
    def setUpClass(cls):
        cls.home = f"/mnt/nfs/{os.environ['ROW']}"
        os.makedirs(cls.home, exist_ok=True)
        os.environ.update(KELP_ROOT=cls.home + "/store", KELP_RUNDIR=f"/tmp/run-{os.environ['ROW']}")
        cls.archive = f"/tmp/{os.environ['ROW']}.tar"
        with tarfile.open(cls.archive, "w") as archive:
            for path in cls.FILES:
                archive.add(os.path.realpath(path), "bin/sh" if path.endswith("dash") else path[1:])
            for name, uid in (("etc/one", 0), ("etc/two", 7), ("etc/three", 0)):
                member = tarfile.TarInfo(name)
                member.size, member.uid = 3, uid
                archive.addfile(member, io.BytesIO(b"old"))

    def kelp(self, *words):
        ended = kelp(*words)
        self.assertEqual(ended.returncode, 0, ended.stdout + ended.stderr)
        self.assertNotIn("cannot remove", ended.stderr)
        return ended.stdout

    def sound(self):
        self.assertIn(" 0 damaged", self.kelp("system", "fsck", "--verify-layers"))

    def test_it_is_nfs(self):
        out = subprocess.run(["stat", "-f", "-c", "%T", self.home], capture_output=True, text=True).stdout
        self.assertEqual(out, "nfs\n")

    def test_images_and_containers_live_there(self):
        self.kelp("import", self.archive, "base:1")
        self.sound()
        self.assertEqual(self.kelp("run", "--rm", "base:1", "/bin/sh", "-c", "/usr/bin/cat /etc/one"), "old")
        script = "echo new >/etc/new; /usr/bin/rm /etc/one; echo more >>/etc/three"
        self.kelp("run", "--name", "c", "base:1", "/bin/sh", "-c", script)
        self.assertEqual(self.kelp("diff", "c"), "C /etc\nA /etc/new\nD /etc/one\nC /etc/three\n")
        self.kelp("cp", "c:/etc/new", "/tmp/" + os.environ["ROW"])
        self.kelp("cp", "/tmp/" + os.environ["ROW"], "c:/etc/copied")
        self.kelp("commit", "c", "made:1")
        out = self.kelp("run", "--rm", "made:1", "/bin/sh", "-c", "/usr/bin/cat /etc/new /etc/copied /etc/three; echo /etc/o*")
        self.assertEqual(out, "new\nnew\noldmore\n/etc/o*\n")
        self.kelp("save", "-o", self.archive + ".saved", "made:1")
        self.kelp("rm", "c")
        self.kelp("rmi", "made:1", "base:1")
        self.kelp("load", "-i", self.archive + ".saved")
        self.sound()
        self.assertEqual(os.listdir(self.home + "/store/containers"), [])

    def test_many_at_once_wait_for_each_other(self):
        running = [subprocess.Popen(["kelp", "import", self.archive, f"many{at}:1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                   for at in range(4)]
        for process in running:
            _, err = process.communicate(timeout=100)
            self.assertEqual(process.returncode, 0, err)
        self.sound()

    def test_what_is_killed_leaves_a_store_that_is_whole(self):
        for at in range(5):
            process = subprocess.Popen(["kelp", "import", self.archive, "killed:1"], stdout=subprocess.DEVNULL, start_new_session=True)
            try:
                process.wait(0.3 * at)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            self.sound()
        self.kelp("import", self.archive, "killed:1")
        self.assertEqual(os.listdir(self.home + "/store/tmp"), [])

    @classmethod
    def tearDownClass(cls):
        ended = kelp("system", "reset", "-f")
        left = os.listdir(cls.home + "/store")
        assert (ended.returncode, left) == (0, []), (ended.stderr, left)


if __name__ == "__main__":
    unittest.main()
