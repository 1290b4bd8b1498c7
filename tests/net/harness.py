"""A container's network as a test sees it: namespaces, the program attached to them, and a hand inside."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import unittest

from world import rest_of, summary

HERE = os.path.dirname(os.path.abspath(__file__))
PROGRAM = os.environ["KELP_NET"]
WORLD = {4: "203.0.113.7", 6: "2001:db8:77::7"}
HOST = {4: "203.0.113.1", 6: "2001:db8:77::1"}
GATEWAY = {4: "10.0.2.2", 6: "fd00::2"}
ADDRESS = {4: "10.0.2.100", 6: "fd00::100"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
DEADLINE = 15
# Why a test does not run here that does as another user or in another part.
ELSEWHERE = "elsewhere"


class Gone(Exception):
    pass


def line(stream, what):
    """One line, or an exception that says what did not come."""
    if not select.select([stream], [], [], 90)[0]:
        raise Gone(f"{what}: no answer")
    text = stream.readline()
    if not text:
        raise Gone(f"{what}: ended")
    return text


class Container:
    """Namespaces with a network. `options` are the program's; `limit` is how many descriptors it may have."""

    def __init__(self, *options, v6=True, loopback=False, limit=None):
        self.folder = tempfile.TemporaryDirectory(prefix="kelpnet-")
        inside = ["unshare", "-Urn", sys.executable, f"{HERE}/inside.py"]
        self.hand = subprocess.Popen(inside, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        line(self.hand.stdout, "the hand inside")
        self.api = f"{self.folder.name}/api"
        ready, theirs = os.pipe()
        exit_end, self.stop = os.pipe()
        command = ["prlimit", f"--nofile={limit}"] if limit else []
        command += [PROGRAM, "--configure", f"--ready-fd={theirs}", f"--exit-fd={exit_end}"]
        command += [f"--api-socket={self.api}", *options]
        command += [] if loopback else ["--disable-host-loopback"]
        command += ["--enable-ipv6"] if v6 else []
        fds = (theirs, exit_end)
        self.errors = tempfile.TemporaryFile("w+")
        self.engine = subprocess.Popen(
            command + [str(self.hand.pid), "tap0"], pass_fds=fds, stdin=subprocess.DEVNULL, stderr=self.errors
        )
        os.close(theirs)
        os.close(exit_end)
        told = os.read(ready, 1) if select.select([ready], [], [], DEADLINE)[0] else b""
        os.close(ready)
        if told != b"1":
            complaint = self.complaint()
            self.close()
            raise Gone(complaint)

    def complaint(self):
        try:
            self.engine.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            pass
        self.errors.seek(0)
        return self.errors.read()

    def __getattr__(self, name):
        """Functions of inside.py by their names."""

        def call(*arguments):
            self.hand.stdin.write(json.dumps([name, *arguments]) + "\n")
            self.hand.stdin.flush()
            answer = json.loads(line(self.hand.stdout, name))
            if "error" in answer:
                raise OSError(answer["error"])
            return answer["is"]

        return call

    def request(self, execute, **arguments):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(DEADLINE)
            client.connect(self.api)
            client.sendall(json.dumps({"execute": execute, "arguments": arguments}).encode())
            client.shutdown(socket.SHUT_WR)
            return json.loads(b"".join(iter(lambda: client.recv(4096), b"")))

    def counters(self):
        return self.request("counters")["return"]

    def close(self):
        os.close(self.stop)
        try:
            status = self.engine.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.engine.send_signal(signal.SIGKILL)
            status = "did not end when told to"
        self.hand.stdin.close()
        self.hand.wait(DEADLINE)
        self.hand.stdout.close()
        self.errors.close()
        self.folder.cleanup()
        return status

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        faults = self.counters()["faults"] if kind is None and self.engine.poll() is None else 0
        killed = self.engine.poll() is not None
        complaint = self.complaint() if killed else ""
        status = self.close()
        if kind is None:
            assert faults == 0, f"{faults} faults in the engine"
            assert killed or status == 0, f"the engine ended with {status}: {complaint}"


def world(protocol, host, port, send="hello", whole=False):
    """Has the world connect to `host`."""
    with socket.create_connection((WORLD[4], 9000), 10) as client:
        request = {"protocol": protocol, "host": host, "port": port, "send": send, "whole": whole}
        client.sendall(json.dumps(request).encode())
        client.shutdown(socket.SHUT_WR)
        return json.loads(b"".join(iter(lambda: client.recv(4096), b"")))


def from_here(protocol, host, port, send="hello", timeout=3, whole=False):
    """The host itself connects; the reply, or the error's name."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(family, kind) as client:
        client.settimeout(timeout)
        try:
            client.connect((host, port))
            client.sendall(send.encode())
            if whole:
                return summary(rest_of(client))
            return client.recv(1 << 16).decode()
        except OSError as error:
            return type(error).__name__


def run_all():
    """Runs the tests of the program's module and notes how each ended, a line each, for `run` to count."""
    ended = {}

    class Result(unittest.TextTestResult):
        def stopTest(self, test):
            super().stopTest(test)
            ended.setdefault(test.id(), "passed")

        def addSkip(self, test, reason):
            super().addSkip(test, reason)
            ended[test.id()] = "elsewhere" if reason == ELSEWHERE else "skipped"

        def wasSuccessful(self):
            for test, _ in self.failures + self.errors:
                # A part of a matrix that failed is its test's failure.
                ended[getattr(test, "test_case", test).id()] = "failed"
            return super().wasSuccessful()

    program = unittest.main(verbosity=1, exit=False, testRunner=unittest.TextTestRunner(resultclass=Result))
    with open(os.environ["KELP_ENDED"], "a") as file:
        file.writelines(f"{how} {name}\n" for name, how in ended.items())
    sys.exit(not program.result.wasSuccessful())
