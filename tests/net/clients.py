"""Programs that people run in containers, against real servers in the world: they must not notice what carries them. Run by
`run`, as a user. podman runs on the program as it would on slirp4netns."""

import functools
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import unittest

from harness import ELSEWHERE, HOST, PROGRAM, WORLD, Container, run_all, world
from servers import HTTP, HTTP2, POSTGRES, SSH
import suite
from suite import SERVER, WHOAMI, NameServer

# The packet socket is met by every program where the device is hidden.
PATHS = {path: options for path, options in suite.PATHS.items() if "packet" not in path}
SERVED = os.environ["KELP_SERVED"]


def digest(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def needs(*programs):
    missing = [program for program in programs if not shutil.which(program) and not os.path.exists(program)]
    return unittest.skipIf(missing, f"not installed: {' '.join(missing)}")


def each_path(test):
    """Runs a test for each path, with a folder of its own."""

    @functools.wraps(test)
    def matrix(self):
        for path, options in PATHS.items():
            with self.subTest(path=path), tempfile.TemporaryDirectory() as folder, Container(*options) as container:
                test(self, container, folder)

    return matrix


class Clients(unittest.TestCase):
    def succeeds(self, container, *command):
        status, output = container.run(*command)
        self.assertEqual(status, 0, output)
        return output

    @each_path
    def test_apt_updates_and_downloads_from_a_mirror(self, container, folder):
        for place in ("lists/partial", "cache/archives/partial", "etc"):
            os.makedirs(f"{folder}/{place}")
        with open(f"{folder}/etc/sources.list", "w") as file:
            file.write(f"deb [trusted=yes] http://{WORLD[4]}:{HTTP}/debian ./\n")
        open(f"{folder}/status", "w").close()
        options = [f"Dir::Etc::sourcelist={folder}/etc/sources.list", "Dir::Etc::sourceparts=/dev/null", f"Dir::State::lists={folder}/lists",
                   f"Dir::State::status={folder}/status", f"Dir::Cache={folder}/cache", "APT::Sandbox::User=root", "Acquire::Retries=0"]
        apt = ["apt-get", *[word for option in options for word in ("-o", option)]]
        self.succeeds(container, *apt, "update")
        self.succeeds(container, "sh", "-c", f"cd {folder} && exec \"$@\"", "sh", *apt, "download", "tide")
        self.assertEqual(digest(f"{folder}/tide_1.0_all.deb"), digest(f"{SERVED}/www/debian/tide_1.0_all.deb"))

    @needs("git")
    @each_path
    def test_git_clones_over_http(self, container, folder):
        for family, host in ((4, WORLD[4]), (6, f"[{WORLD[6]}]")):
            self.succeeds(container, "git", "clone", "-q", f"http://{host}:{HTTP}/tide.git", f"{folder}/{family}")
            log = subprocess.run(["git", "-C", f"{folder}/{family}", "log", "--oneline"], capture_output=True, text=True)
            self.assertEqual(len(log.stdout.splitlines()), 40, log.stderr)

    @needs("curl", "nghttpd")
    @each_path
    def test_curl_speaks_http_2(self, container, folder):
        for host in (WORLD[4], f"[{WORLD[6]}]"):
            url = f"https://world.example:{HTTP2}/water"
            many = [word for number in range(8) for word in ("-o", f"{folder}/{number}", url)]
            output = self.succeeds(container, "curl", "-sS", "--http2", "--parallel", "--cacert", f"{SERVED}/certificate.pem", "--resolve", f"world.example:{HTTP2}:{host}", "-w", "%{http_version} %{http_code}\n", *many)
            self.assertEqual(output.split("\n")[:8], ["2 200"] * 8)
            self.assertEqual({digest(f"{folder}/{number}") for number in range(8)}, {digest(f"{SERVED}/www/water")})

    @needs("dig")
    def test_dig_asks_the_engine(self):
        for path, options in PATHS.items():
            with self.subTest(path=path), NameServer() as _, Container("--dns", "127.0.0.53", *options) as container:
                for server in SERVER.values():
                    for more in ((), ("+tcp",), ("+edns=0", "+bufsize=1232")):
                        output = self.succeeds(container, "dig", f"@{server}", "+tries=1", "+time=3", "+short", *more, "a.example")
                        self.assertEqual(output, "192.0.2.9\n")
                output = self.succeeds(container, "dig", f"@{SERVER[4]}", "+tries=1", "+time=3", "+keepopen", "+tcp", "+short", "b.example", "c.example")
                self.assertEqual(output, "192.0.2.9\n" * 2)
                self.assertIn("status: NXDOMAIN", self.succeeds(container, "dig", f"@{SERVER[4]}", "+tries=1", "+time=3", "missing.example"))

    @needs("ssh", "/usr/sbin/sshd")
    @each_path
    def test_an_ssh_session_types_and_carries_files(self, container, folder):
        ssh = ["ssh", "-F", "/dev/null", "-i", f"{SERVED}/ssh/user", "-p", str(SSH), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
               "-o", "LogLevel=ERROR", "-o", "BatchMode=yes", f"{os.environ['USER']}@{WORLD[4]}"]
        typed = "for word in one two three; do echo $word; sleep 0.1; done; tty"
        output = self.succeeds(container, *ssh[:1], "-tt", *ssh[1:], typed)
        self.assertRegex(output.replace("\r", ""), r"^one\ntwo\nthree\n/dev/pts/\d+\n")
        line = f"cat {SERVED}/www/water | \"$@\" 'cat' > {folder}/back"
        self.succeeds(container, "sh", "-c", line, "sh", *ssh)
        self.assertEqual(digest(f"{folder}/back"), digest(f"{SERVED}/www/water"))

    @needs("pgbench")
    @each_path
    def test_two_hundred_clients_talk_to_postgres(self, container, _):
        base = ["-h", WORLD[4], "-p", str(POSTGRES), "-U", "tide"]
        self.succeeds(container, "pgbench", *base, "-i", "-q", "-s", "1", "postgres")
        output = self.succeeds(container, "pgbench", *base, "-c", "200", "-j", "2", "-t", "5", "-S", "postgres")
        self.assertIn("number of transactions actually processed: 1000/1000", output)
        self.assertNotIn("aborted", output.replace("number of failed transactions: 0", ""))
        output = self.succeeds(container, "psql", *base, "-At", "-c", "select count(*), sum(length(repeat('x', 1000))) from generate_series(1, 20000)", "postgres")
        self.assertEqual(output, "20000|20000000\n")


CONTAINERS = """
[containers]
cgroups = "disabled"
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
network_cmd_path = "{program}"
"""


@needs("podman", "busybox")
@unittest.skipUnless("KELP_PODMAN" in os.environ, ELSEWHERE)
class Podman(unittest.TestCase):
    """podman with network_cmd_path: it can't tell the program from slirp4netns."""

    @classmethod
    def setUpClass(cls):
        cls.home = tempfile.mkdtemp(prefix="kp-", dir="/tmp")
        for folder in ("run", "config/containers", "root/bin", "bin"):
            os.makedirs(f"{cls.home}/{folder}")
        with open(f"{cls.home}/config/containers/containers.conf", "w") as file:
            file.write(CONTAINERS.format(program=PROGRAM))
        with open(f"{cls.home}/config/containers/storage.conf", "w") as file:
            file.write('[storage]\ndriver = "vfs"\n')
        with open(f"{cls.home}/config/containers/policy.json", "w") as file:
            file.write('{"default": [{"type": "insecureAcceptAnything"}]}')
        # podman's build does not ask for network_cmd_path.
        os.symlink(PROGRAM, f"{cls.home}/bin/slirp4netns")
        shutil.copy(shutil.which("busybox"), f"{cls.home}/root/bin/busybox")
        for name in ("sh", "nc", "ip", "cat", "sleep", "echo", "nslookup", "timeout"):
            os.symlink("busybox", f"{cls.home}/root/bin/{name}")
        cls.environment = {"PATH": f"{cls.home}/bin:{os.environ['PATH']}", "HOME": cls.home, "XDG_RUNTIME_DIR": f"{cls.home}/run", "XDG_CONFIG_HOME": f"{cls.home}/config",
                           "CONTAINERS_CONF": f"{cls.home}/config/containers/containers.conf", "TMPDIR": cls.home}
        subprocess.run(["tar", "-C", f"{cls.home}/root", "-cf", f"{cls.home}/root.tar", "."], check=True)
        cls.podman("import", "-q", f"{cls.home}/root.tar", "sea")

    @classmethod
    def tearDownClass(cls):
        cls.podman("rm", "-f", "-a", "-t", "0")
        with open(f"{cls.home}/run/libpod/tmp/pause.pid") as file:
            keeper = int(file.read())
        subprocess.run(["podman", "unshare", "sh", "-c", "umount -R \"$0/run/netns\" 2>/dev/null; rm -rf \"$0\"", cls.home], env=cls.environment, timeout=60)
        # It keeps the user namespace for the next command, and nobody else ends it.
        os.kill(keeper, signal.SIGTERM)

    @classmethod
    def podman(cls, *words):
        done = subprocess.run(["podman", *words], env=cls.environment, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, f"podman {' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    def test_run_reaches_the_world(self):
        said = self.podman("run", "--rm", "--network", "slirp4netns", "sea", "nc", WORLD[4], str(WHOAMI))
        self.assertEqual(said.split()[0], HOST[4])
        said = self.podman("run", "--rm", "--network", "slirp4netns", "sea", "cat", "/etc/resolv.conf")
        self.assertIn("nameserver 10.0.2.3", said)

    def test_the_program_that_was_named_is_the_one_that_runs(self):
        self.podman("run", "-d", "--name", "reef", "--network", "slirp4netns", "sea", "sleep", "100")
        try:
            running = subprocess.run(["pgrep", "-u", str(os.getuid()), "-f", f"^{PROGRAM} .*tap0"], capture_output=True, text=True).stdout.split()
            self.assertEqual(len(running), 2, running)
        finally:
            self.podman("rm", "-f", "-t", "0", "reef")

    def test_build_reaches_the_world(self):
        with open(f"{self.home}/Containerfile", "w") as file:
            file.write(f"FROM sea\nRUN nc {WORLD[4]} {WHOAMI} > /who\n")
        self.podman("build", "-q", "-t", "shoal", "-f", f"{self.home}/Containerfile", f"{self.home}/config")
        said = self.podman("run", "--rm", "--network", "none", "shoal", "cat", "/who")
        self.assertEqual(said.split()[0], HOST[4])

    def test_published_ports_lead_inside_and_show_the_client(self):
        # The service says whom the kernel sees at the other end, in its notation.
        serve = "while true; do nc -l -p 80 -e sh -c 'x=$(cat /proc/net/tcp /proc/net/tcp6); echo \"$x\"'; done"
        client = socket.inet_aton(WORLD[4])[::-1].hex().upper()
        for network, kept in (("slirp4netns", False), ("slirp4netns:port_handler=slirp4netns", True)):
            with self.subTest(network=network):
                self.podman("run", "-d", "--name", "reef", "--network", network, "-p", "8090:80", "sea", "sh", "-c", serve)
                try:
                    deadline = time.monotonic() + 10
                    answer = world("tcp", HOST[4], 8090)
                    while "local_address" not in answer["reply"] and time.monotonic() < deadline:
                        time.sleep(0.1)
                        answer = world("tcp", HOST[4], 8090)
                    self.assertIn("local_address", answer["reply"], answer)
                    if kept:
                        self.assertIn(client, answer["reply"])
                finally:
                    self.podman("rm", "-f", "-t", "0", "reef")


if __name__ == "__main__":
    run_all()
