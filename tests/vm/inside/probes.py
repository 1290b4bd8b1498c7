"""What kelp must do in the rows of the virtual machine, through its command line, as the user of the row.

A class is one kind of host; rows.py says which classes hold in which row. Measurements are of the effect, not of a file.
"""
import json
import os
import subprocess
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
    def test_a_container_runs_and_its_exit_status_is_told(self):
        ended = kelp("run", "--rm", "@host", "sh", "-c", "id -u; echo hello >/tmp/x; cat /tmp/x; exit 7")
        self.assertEqual((ended.returncode, ended.stdout), (7, "0\nhello\n"), ended.stderr)


class Limits(unittest.TestCase):
    """Who enforces limits in this row, as doctor says and as the kernel has it."""
    def limits(self, rung_expected, *words):
        checks = [check for check in doctor() if check["facility"] == "limits"]
        used = [check for check in checks if check["state"] == "used"]
        self.assertEqual(used[0]["rung"], rung_expected, checks)
        for word in words:
            self.assertIn(word, json.dumps(checks))
        return checks


class Delegated(Limits):
    def test_doctor_finds_every_controller_in_a_scope(self):
        self.limits("systemd user scope", "cpu cpuset io memory pids")

    def test_each_flag_is_written_by_the_kernels_names(self):
        script = "cd /sys/fs/cgroup; for f in memory.max memory.low cpu.max cpu.weight cpuset.cpus pids.max; do cat $f; done"
        ended = kelp("run", "--rm", "-m", "64m", "--memory-reservation", "8m", "--cpus", "0.5", "--cpu-shares", "512",
                     "--cpuset-cpus", "1", "--pids-limit", "33", "--strict-limits", "@host", "sh", "-c", script)
        self.assertEqual(ended.stdout.split("\n")[:6], ["67108864", "8388608", "50000 100000", "59", "1", "33"], ended.stderr)

    def test_nothing_is_left_of_a_container(self):
        kelp("run", "--rm", "-m", "64m", "@host", "true")
        units = subprocess.run(["systemctl", "--user", "list-units", "--all", "kelp-*"], capture_output=True, text=True).stdout
        self.assertNotIn("kelp-", units)

    def test_nothing_is_left_of_a_monitor_that_was_killed(self):
        with subprocess.Popen(["kelp", "run", "--rm", "-m", "64m", "@host", "sh", "-c", "echo up; sleep 100"],
                              stdout=subprocess.PIPE, text=True) as run:
            self.assertEqual(run.stdout.readline(), "up\n")
            with open(f"/proc/{run.pid}/cgroup") as file:
                scope = "/sys/fs/cgroup" + file.read().strip().removeprefix("0::").removesuffix("/monitor")
            self.assertTrue(os.path.isdir(f"{scope}/container"), scope)
            run.kill()
        for _ in range(100):
            if not os.path.exists(scope):
                return
            time.sleep(0.1)
        self.fail(f"{scope} is left")


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


class Lingering(Limits):
    def test_a_user_without_a_session_has_a_scope_of_the_manager_that_lingers(self):
        self.limits("systemd user scope", "cpu cpuset io memory pids")
        ended = kelp("run", "--rm", "--pids-limit", "33", "--strict-limits", "@host", "cat", "/sys/fs/cgroup/pids.max")
        self.assertEqual(ended.stdout, "33\n", ended.stderr)


class OverlayBarred(unittest.TestCase):
    def test_the_users_own_overlay_makes_the_root(self):
        checks = doctor()
        self.assertEqual(rung(checks, "root file system"), "T2 FUSE overlay", checks)
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


if __name__ == "__main__":
    unittest.main()
