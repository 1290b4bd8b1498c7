"""What kelp-net promises, checked from both ends: inside the container and out in the world. Run by `run`, as a user."""

import contextlib
import functools
import hashlib
import os
import select
import signal
import socket
import struct
import subprocess
import threading
import time
import unittest

from harness import ADDRESS, ELSEWHERE, GATEWAY, HOST, LOOPBACK, WORLD, Container, Gone, from_here, run_all, world

QUICK = "KELP_QUICK" in os.environ
FAMILIES = (4, 6)
COMMANDS, ECHO, WHOAMI, LATE, RESET, BURST, FULL, SINK, SOURCE, CLOSED = range(9000, 9010)
# The round trip in milliseconds is the last number; one more is a wire that loses and reorders. See shim.py.
FAR = {4: "198.18.0.{}", 6: "2001:db8:78::{:x}"}
DELAYS = (20, 100, 200)
HIDDEN = not os.path.exists("/dev/net/tun")
PATHS = {
    "divert": (),
    "mirror": ("--without=divert",),
}
# Where the device is hidden these two are all there is.
if not HIDDEN and not QUICK:
    PATHS |= {"packet": ("--without=tap",), "packet, mirror": ("--without=tap,divert",)}


def digest(length):
    block = bytes(range(251))
    return hashlib.sha256((block * (length // 251 + 1))[:length]).hexdigest()


def each(test):
    """Runs a test for each path and family."""

    @functools.wraps(test)
    def matrix(self):
        for path, options in PATHS.items():
            with Container(*options) as container:
                for family in FAMILIES:
                    with self.subTest(path=path, family=family):
                        test(self, container, family)

    return matrix


class Outbound(unittest.TestCase):
    """The matrix: each path, each family."""

    @each
    def test_a_stream_reaches_the_world_from_the_hosts_address(self, container, family):
        self.assertEqual(container.talk(WORLD[family], ECHO, "hello"), "hello")
        self.assertEqual(container.talk(WORLD[family], WHOAMI).split()[0], HOST[family])

    def test_the_path_that_was_asked_for_is_the_one_that_carries(self):
        for path, options in PATHS.items():
            with self.subTest(path=path), Container(*options) as container:
                for family in FAMILIES:
                    container.talk(WORLD[family], ECHO, "hello")
                counters = container.counters()
                mirrored, diverted = (2, 0) if "mirror" in path else (0, 2)
                self.assertEqual((counters["mirrored"], counters["diverted"]), (mirrored, diverted))

    @each
    def test_refused_is_refused_at_once(self, container, family):
        outcome, seconds = container.attempt(WORLD[family], CLOSED)
        self.assertEqual(outcome, "ECONNREFUSED")
        self.assertLess(seconds, 0.5)

    @each
    def test_no_route_is_told_at_once(self, container, family):
        outcome, seconds = container.attempt({4: "198.51.100.1", 6: "2001:db8:99::1"}[family], 80)
        self.assertIn(outcome, ("ENETUNREACH", "EHOSTUNREACH"))
        self.assertLess(seconds, 0.5)

    @each
    def test_silence_is_silence(self, container, family):
        self.assertEqual(container.attempt(WORLD[family], FULL, 0.7)[0], "timeout")

    @each
    def test_a_half_closed_connection_still_answers(self, container, family):
        self.assertEqual(container.talk(WORLD[family], LATE, "all", True), "heard all")

    @each
    def test_a_reset_arrives_as_a_reset(self, container, family):
        self.assertEqual(container.until_reset(WORLD[family], RESET), "reset")

    @each
    def test_a_close_behind_the_data_loses_no_byte(self, container, family):
        self.assertEqual(container.bursts(WORLD[family], BURST, 20), [digest(1 << 20)])

    @each
    def test_many_bytes_arrive_exactly(self, container, family):
        length = (8 << 20) if QUICK else (128 << 20) + 77
        self.assertEqual(container.upload(WORLD[family], SINK, length), length)
        self.assertEqual(container.download(WORLD[family], SOURCE, length), digest(length))

    @unittest.skipIf(QUICK, ELSEWHERE)
    def test_a_gigabyte_arrives_exactly(self):
        with Container() as container:
            self.assertEqual(container.download(WORLD[4], SOURCE, 1 << 30), digest(1 << 30))

    @each
    def test_datagrams_of_every_size_come_back(self, container, family):
        for size in (1, 1200, 1472, 9000, 60000):
            self.assertEqual(container.datagram(WORLD[family], ECHO, size), "same", size)
        self.assertEqual(container.datagram(WORLD[family], ECHO, 0, "whoami"), f"{HOST[family]} whoami")

    def test_datagrams_in_fragments_come_back(self):
        for path in ((), ("--without=tap",)):
            with self.subTest(path=path), Container("--mtu", "1500", *path) as container:
                for family in FAMILIES:
                    for size in (1452, 1453, 1472, 1473, 9000, 60000):
                        self.assertEqual(container.datagram(WORLD[family], ECHO, size), "same", (family, size))

    @each
    def test_a_datagram_to_a_closed_port_is_refused(self, container, family):
        self.assertEqual(container.datagram(WORLD[family], CLOSED, 1), "ECONNREFUSED")

    @each
    def test_ping_reaches_the_world_and_the_gateway(self, container, family):
        for target in (WORLD[family], GATEWAY[family]):
            status, output = container.run("ping", f"-{family}", "-c1", "-W3", target)
            self.assertEqual(status, 0, output)

    def test_a_long_and_bad_wire_loses_no_byte(self):
        containers = {path: Container(*options) for path, options in PATHS.items()}
        outcomes = {}
        wanted = [(direction, FAR[family].format(delay + 1), SINK if direction == "up" else SOURCE, (20 << 20) // delay + 77)
                  for family in FAMILIES for delay in DELAYS for direction in ("up", "down")]

        def carry(path, container):
            outcomes[path] = container.transfers(wanted), container.talk(FAR[4].format(200), LATE, "all", True)

        threads = [threading.Thread(target=carry, args=one) for one in containers.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = [length if direction == "up" else digest(length) for direction, _, _, length in wanted]
        for path, container in containers.items():
            with self.subTest(path=path), container:
                self.assertEqual(outcomes[path], (expected, "heard all"))

    def test_without_ipv6_there_is_none(self):
        with Container(v6=False) as container:
            self.assertEqual(container.talk(WORLD[4], ECHO, "hello"), "hello")
            self.assertEqual(container.attempt(WORLD[6], ECHO)[0], "ENETUNREACH")


class Published(unittest.TestCase):
    """Ports of the host that lead into the container."""

    def test_a_service_sees_the_clients_own_address(self):
        for path, options in PATHS.items():
            ports = ("-p", "8080:80", "-p", "8053:53/udp")
            with Container(*ports, *options) as container:
                for family in FAMILIES:
                    container.service("tcp", {4: "0.0.0.0", 6: "::"}[family], 80)
                    container.service("udp", {4: "0.0.0.0", 6: "::"}[family], 53)
                for family in FAMILIES:
                    for protocol, host, inside in (("tcp", 8080, 80), ("udp", 8053, 53)):
                        with self.subTest(path=path, family=family, protocol=protocol):
                            answer = world(protocol, HOST[family], host)
                            self.assertIsNone(answer["error"])
                            address, port = answer["me"]
                            self.assertEqual(answer["reply"], f"{inside} {address} {port} hello")

    def test_a_client_on_the_hosts_loopback_comes_from_the_gateway(self):
        for path, options in PATHS.items():
            with Container("-p", "8080:80", "-p", "8053:53/udp", *options) as container:
                for family in FAMILIES:
                    container.service("tcp", {4: "0.0.0.0", 6: "::"}[family], 80)
                    container.service("udp", {4: "0.0.0.0", 6: "::"}[family], 53)
                for family in FAMILIES:
                    for protocol, host, inside in (("tcp", 8080, 80), ("udp", 8053, 53)):
                        with self.subTest(path=path, family=family, protocol=protocol):
                            words = from_here(protocol, LOOPBACK[family], host).split()
                            self.assertEqual((words[:2], words[3:]), ([str(inside), GATEWAY[family]], ["hello"]))

    def test_a_client_on_the_hosts_loopback_keeps_its_port(self):
        """A search for another is long once many are used: 9,000 clients took 30 s instead of one."""
        for path, options in PATHS.items():
            with Container("-p", "8080:80", *options) as container:
                for family in FAMILIES:
                    container.service("tcp", {4: "0.0.0.0", 6: "::"}[family], 80)
                for family in FAMILIES:
                    with self.subTest(path=path, family=family), socket.create_connection((LOOPBACK[family], 8080)) as client:
                        client.sendall(b"hello")
                        self.assertEqual(client.recv(100).decode(), f"80 {GATEWAY[family]} {client.getsockname()[1]} hello")

    def test_every_kind_of_port_leads_inside_from_everywhere(self):
        """Of each kind of port: where it is on the host and inside, and who may reach it. `None` is every address."""
        any_address = {4: "0.0.0.0", 6: "::"}
        kinds = {
            "single": (None, 8200, 8200),
            "translated": (None, 8080, 80),
            "range": (None, 8215, 9215),
            "bound to an address": (HOST, 8300, 8301),
            "bound to loopback": (LOOPBACK, 8310, 8311),
        }
        published = ["8200:8200", "8080:80", "8210-8219:9210-9219"]
        published += [f"{HOST[4]}:8300:8301", f"[{HOST[6]}]:8300:8301", "127.0.0.1:8310:8311", "[::1]:8310:8311"]
        ports = [f"--publish={word}{protocol}" for word in published for protocol in ("", "/udp")]
        for path, options in PATHS.items():
            with Container(*ports, *options) as container:
                for family in FAMILIES:
                    for _, _, inside in kinds.values():
                        for protocol in ("tcp", "udp"):
                            container.service(protocol, any_address[family], inside)
                cells = [(f, p, k) for f in FAMILIES for p in ("tcp", "udp") for k in kinds]
                for family, protocol, kind in cells:
                    with self.subTest(path=path, family=family, protocol=protocol, kind=kind):
                        address, port, inside = kinds[kind]
                        here = from_here(protocol, LOOPBACK[family], port)
                        if address is HOST:
                            self.assertEqual(here, "ConnectionRefusedError")
                        else:
                            words = here.split()
                            self.assertEqual((words[:2], words[3:]), ([str(inside), GATEWAY[family]], ["hello"]))
                        there = world(protocol, HOST[family], port)
                        if address is LOOPBACK:
                            self.assertEqual(there["error"], "ConnectionRefusedError")
                        else:
                            self.assertEqual(there["reply"], "{} {} {} hello".format(inside, *there["me"]))

    def test_connections_from_outside_end_as_the_service_ends_them(self):
        length = (8 << 20) if QUICK else (128 << 20) + 77
        wanted = {
            "late": ("all", "heard all"),
            "burst": ("", f"{1 << 20} {digest(1 << 20)}"),
            "reset": ("x", "ConnectionResetError"),
            "source": (str(length), f"{length} {digest(length)}"),
            "nothing": ("x", ("ConnectionResetError", "BrokenPipeError")),
        }
        for path, options in PATHS.items():
            with Container("-p", "8400-8404:8400-8404", *options) as container:
                for at, kind in enumerate(wanted):
                    for host in ("0.0.0.0", "::") if kind != "nothing" else ():
                        container.offer(kind, host, 8400 + at)
                for family in FAMILIES:
                    for at, (kind, (send, outcome)) in enumerate(wanted.items()):
                        with self.subTest(path=path, family=family, kind=kind):
                            outcomes = outcome if isinstance(outcome, tuple) else (outcome,)
                            self.assertIn(from_here("tcp", LOOPBACK[family], 8400 + at, send, 30, True), outcomes)
                            answer = world("tcp", HOST[family], 8400 + at, send, True)
                            self.assertIn(answer["error"] or answer["reply"], outcomes)

    def test_a_port_bound_to_one_address_is_open_on_that_only(self):
        with Container("-p", "127.0.0.1:8080:80", "-p", "[::1]:8081:80") as container:
            container.service("tcp", "0.0.0.0", 80)
            container.service("tcp", "::", 80)
            self.assertTrue(from_here("tcp", "127.0.0.1", 8080).startswith("80 "))
            self.assertTrue(from_here("tcp", "::1", 8081).startswith("80 "))
            self.assertEqual(from_here("tcp", "::1", 8080), "ConnectionRefusedError")
            self.assertEqual(world("tcp", HOST[4], 8080)["error"], "ConnectionRefusedError")

    def test_a_service_that_is_not_there_resets_its_client(self):
        with Container("-p", "8080:80"):
            self.assertIn(from_here("tcp", "127.0.0.1", 8080), ("ConnectionResetError", "BrokenPipeError"))

    def test_a_service_on_the_containers_loopback_is_not_published(self):
        with Container("-p", "8080:80") as container:
            container.service("tcp", "127.0.0.1", 80)
            self.assertIn(from_here("tcp", "127.0.0.1", 8080), ("ConnectionResetError", "BrokenPipeError"))

    def test_ports_come_and_go_while_it_runs(self):
        with Container() as container:
            container.service("tcp", "0.0.0.0", 80)
            container.service("udp", "0.0.0.0", 53)
            ids = []
            for protocol, port, inside in (("tcp", 8080, 80), ("udp", 8053, 53)):
                answer = container.request(
                    "add_hostfwd", proto=protocol, host_addr="0.0.0.0", host_port=port, guest_addr="10.0.2.100", guest_port=inside
                )
                ids.append(answer["return"]["id"])
                reply = world(protocol, HOST[4], port)["reply"]
                self.assertTrue(reply.startswith(f"{inside} {WORLD[4]} "), reply)
            entries = container.request("list_hostfwd")["return"]["entries"]
            self.assertEqual([entry["id"] for entry in entries], ids)
            self.assertEqual(entries[0]["guest_addr"], "10.0.2.100")
            for one in ids:
                self.assertEqual(container.request("remove_hostfwd", id=one), {"return": {}})
            self.assertEqual(container.request("list_hostfwd")["return"]["entries"], [])
            self.assertEqual(from_here("tcp", "127.0.0.1", 8080), "ConnectionRefusedError")

    def test_a_port_that_is_taken_is_refused_with_a_sentence(self):
        with socket.create_server(("0.0.0.0", 8080)):
            with self.assertRaisesRegex(Gone, "cannot publish 0.0.0.0:8080/tcp: the port is taken"):
                Container("-p", "8080:80")
            with Container() as container:
                answer = container.request("add_hostfwd", proto="tcp", host_port=8080, guest_port=80)
                self.assertIn("the port is taken", answer["error"]["desc"])

    def test_a_port_of_another_network_is_not_shared(self):
        for kind in ("tcp", "udp"):
            with Container("-p", f"8080:80/{kind}"):
                with self.assertRaisesRegex(Gone, "the port is taken"):
                    Container("-p", f"8080:80/{kind}")

    def test_a_reserved_port_is_refused_with_the_sysctls_name(self):
        with self.assertRaisesRegex(Gone, "net.ipv4.ip_unprivileged_port_start to 25"):
            Container("-p", "25:25")

    def test_garbage_on_the_api_socket_is_answered_and_survived(self):
        with Container() as container:
            for text in (b"{", b"[]", b"{}", b'{"execute": 1}', b'{"execute":"x"}', b"\xff\xfe", b'{"execute":"add_hostfwd"}',
                         b'{"execute":"remove_hostfwd","arguments":{"id":99}}', b"[" * 100000):
                with socket.socket(socket.AF_UNIX) as client:
                    client.settimeout(5)
                    client.connect(container.api)
                    try:
                        client.sendall(text)
                        client.shutdown(socket.SHUT_WR)
                    except BrokenPipeError:
                        pass
                    self.assertIn(b'"error"', client.recv(4096), text[:40])
            self.assertEqual(container.talk(WORLD[4], ECHO, "hello"), "hello")


class Policy(unittest.TestCase):
    """What must not be reached, by each path, with root inside the container at liberty to change its own rules."""

    def targets(self):
        yield 4, "127.0.0.1", "own loopback"
        yield 4, GATEWAY[4], "gateway"
        yield 6, GATEWAY[6], "gateway"
        yield 4, HOST[4], "host address"
        yield 6, HOST[6], "host address"
        yield 4, "169.254.169.254", "metadata"
        yield 6, "fd00:ec2::254", "metadata"
        yield 6, "::ffff:127.0.0.1", "mapped"
        yield 6, "64:ff9b::7f00:1", "translated"
        yield 6, "::", "unspecified"
        yield 6, "fe80::1%tap0", "link-local"
        yield 4, "0.0.0.0", "unspecified"
        yield 4, "169.254.7.7", "link-local"
        yield 4, "224.0.0.1", "multicast"
        yield 6, "ff02::1%tap0", "multicast"
        yield 4, "255.255.255.255", "broadcast"
        yield 4, "10.0.2.255", "broadcast"

    def test_what_is_the_hosts_own_is_refused_by_every_path(self):
        streams = [socket.create_server((LOOPBACK[f], 7777), family=k) for f, k in ((4, socket.AF_INET), (6, socket.AF_INET6))]
        streams += [socket.create_server((HOST[f], 7777), family=k) for f, k in ((4, socket.AF_INET), (6, socket.AF_INET6))]
        datagrams = []
        for address in (LOOPBACK[4], LOOPBACK[6], HOST[4], HOST[6]):
            made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
            made.bind((address, 7777))
            datagrams.append(made)
        try:
            for path, options in PATHS.items():
                for flushed in (False, True):
                    with Container(*options) as container:
                        if flushed:
                            container.run("nft", "flush", "ruleset")
                            for family in "46":
                                container.run("ip", f"-{family}", "rule", "del", "pref", "10702")
                        for _, address, what in self.targets():
                            with self.subTest(path=path, flushed=flushed, target=what, address=address):
                                self.assertNotEqual(container.attempt(address, 7777, 0.3)[0], "connected")
                                container.datagram(address, 7777, 0, "x", 0.05)
            for server in streams + datagrams:
                server.setblocking(False)
                with self.assertRaises(BlockingIOError):
                    server.accept() if server.type == socket.SOCK_STREAM else server.recv(1)
        finally:
            for server in streams + datagrams:
                server.close()

    def test_a_published_port_is_no_way_round_by_the_host(self):
        for path, options in PATHS.items():
            with Container("-p", "8080:80", "-p", "8053:53/udp", *options) as container:
                container.service("tcp", "0.0.0.0", 80)
                container.service("udp", "0.0.0.0", 53)
                for host in (HOST[4], GATEWAY[4], HOST[6], GATEWAY[6]):
                    with self.subTest(path=path, host=host):
                        self.assertNotEqual(container.attempt(host, 8080, 0.3)[0], "connected")
                        self.assertNotIn("53 ", container.datagram(host, 8053, 0, "x", 0.1))
                self.assertTrue(world("tcp", HOST[4], 8080)["reply"].startswith("80 "))

    def test_the_hosts_loopback_is_reached_where_it_is_allowed(self):
        places = [(family, port) for family in FAMILIES for port in (7777, 7778)]
        streams = [socket.create_server((LOOPBACK[f], port), family=socket.AF_INET6 if f == 6 else socket.AF_INET) for f, port in places]
        datagrams = []
        for family, port in places:
            made = socket.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, socket.SOCK_DGRAM)
            made.bind((LOOPBACK[family], port))
            datagrams.append(made)
        with contextlib.ExitStack() as stack:
            for server in streams + datagrams:
                stack.enter_context(server)
            for path, options in PATHS.items():
                for allowed, ports in (("=7777", (7777,)), ("", (7777, 7778))):
                    with Container(*([f"--allow-host-loopback{allowed}"] if allowed else []), *options, loopback=True) as container:
                        for server, (family, port) in zip(datagrams, places):
                            with self.subTest(path=path, allowed=allowed, family=family, port=port):
                                outcome = container.attempt(GATEWAY[family], port, 0.5)[0]
                                self.assertEqual(outcome == "connected", port in ports, outcome)
                                container.datagram(GATEWAY[family], port, 0, "x", 0.05)
                                arrived = select.select([server], [], [], 1 if port in ports else 0)[0]
                                self.assertEqual(bool(arrived), port in ports)
                                if arrived:
                                    server.recv(1)

    def test_the_engines_own_listener_can_not_be_used_directly(self):
        for path, options in PATHS.items():
            with self.subTest(path=path), Container(*options) as container:
                status, output = container.run("ss", "-Hltn")
                ports = [int(row.split()[3].rsplit(":", 1)[1]) for row in output.splitlines()]
                self.assertEqual(len(ports), 2, output)
                for family in FAMILIES:
                    host = ADDRESS[family] if "mirror" in path else LOOPBACK[family]
                    try:
                        self.assertEqual(container.talk(host, ports[0], "x"), "")
                    except OSError as error:
                        self.assertIn(str(error), ("ECONNRESET", "EPIPE", "ECONNREFUSED"))

    def test_the_lists_of_destinations_are_kept(self):
        for path, options in PATHS.items():
            allow, deny = ("--allow", f"203.0.113.0/24:{ECHO}"), ("--deny", f"{WORLD[4]}:{WHOAMI}")
            with self.subTest(path=path), Container(*allow, *deny, *options) as container:
                self.assertEqual(container.talk(WORLD[4], ECHO, "hello"), "hello")
                self.assertEqual(container.datagram(WORLD[4], ECHO, 10), "same")
                for host, port in ((WORLD[4], WHOAMI), (WORLD[4], LATE), (WORLD[6], ECHO)):
                    self.assertNotEqual(container.attempt(host, port)[0], "connected")
                self.assertNotEqual(container.datagram(WORLD[6], ECHO, 10), "same")
            with self.subTest(path=path), Container("--deny", "203.0.113.7", *options) as container:
                self.assertNotEqual(container.attempt(WORLD[4], ECHO)[0], "connected")
                self.assertNotEqual(container.datagram(WORLD[4], ECHO, 10), "same")
                self.assertEqual(container.talk(WORLD[6], ECHO, "hello"), "hello")


class NameServer:
    """A DNS server on a loopback address of the host that counts what it is asked."""

    def __init__(self, address="127.0.0.53", answer="192.0.2.9", silent=False, garbage=()):
        self.asked, self.answer_with, self.silent, self.garbage = [], socket.inet_aton(answer), silent, garbage
        self.stopper = None
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind((address, 53))
        self.tcp = socket.create_server((address, 53))
        self.threads = [threading.Thread(target=self.datagrams), threading.Thread(target=self.streams)]
        for thread in self.threads:
            thread.start()

    def reply(self, query):
        self.asked.append(query)
        end = query.index(b"\0", 12) + 5
        if b"missing" in query:
            return query[:2] + b"\x81\x83" + query[4:6] + b"\0\0\0\0\0\0" + query[12:end]
        record = b"\xc0\x0c\0\x01\0\x01" + struct.pack("!IH", 60, 4) + self.answer_with
        return query[:2] + b"\x81\x80" + query[4:6] + b"\0\x01\0\0\0\0" + query[12:end] + record

    def datagrams(self):
        while True:
            query, peer = self.udp.recvfrom(4096)
            if query == b"stop":
                return
            reply = self.reply(query)
            for garbage in self.garbage:
                self.udp.sendto(garbage(query, reply), peer)
            if not self.silent:
                self.udp.sendto(reply, peer)

    def streams(self):
        while True:
            client, peer = self.tcp.accept()
            with client:
                if peer[1] == self.stopper:
                    return
                length = struct.unpack("!H", client.recv(2, socket.MSG_WAITALL))[0]
                reply = self.reply(client.recv(length, socket.MSG_WAITALL))
                client.sendall(struct.pack("!H", len(reply)) + reply)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        address = self.udp.getsockname()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stop:
            stop.sendto(b"stop", address)
        with socket.socket() as stop:
            stop.bind(("127.0.0.1", 0))
            self.stopper = stop.getsockname()[1]
            stop.connect(address)
        for thread in self.threads:
            thread.join()
        self.udp.close()
        self.tcp.close()


SERVER = {4: "10.0.2.3", 6: "fd00::3"}


class Names(unittest.TestCase):
    def test_a_name_is_asked_of_the_hosts_server_and_remembered(self):
        for path, options in PATHS.items():
            with NameServer() as server, Container("--dns", "127.0.0.53", *options) as container:
                for family in FAMILIES:
                    for tcp in (False, True):
                        with self.subTest(path=path, family=family, tcp=tcp):
                            name = f"a{family}{tcp}.example".lower()
                            self.assertEqual(container.dns(SERVER[family], 53, name, 1, tcp), [0, 1, "c0000209"])
                            self.assertEqual(container.dns(SERVER[family], 53, name, 1, tcp, 9), [0, 1, "c0000209"])
                self.assertEqual(len(server.asked), 4)

    def test_a_name_that_does_not_exist_does_not_exist(self):
        with NameServer(), Container("--dns", "127.0.0.53") as container:
            self.assertEqual(container.dns(SERVER[4], 53, "missing.example")[:2], [3, 0])

    def test_a_server_that_is_silent_is_passed_over(self):
        with NameServer("127.0.0.54", silent=True), NameServer() as second:
            with Container("--dns", "127.0.0.54", "--dns", "127.0.0.53") as container:
                self.assertEqual(container.dns(SERVER[4], 53, "b.example")[:2], [0, 1])
                self.assertEqual(len(second.asked), 1)

    def test_what_is_no_answer_to_the_question_is_not_passed_on(self):
        garbage = (
            lambda query, reply: b"",
            lambda query, reply: reply[:11],
            lambda query, reply: bytes([reply[0] ^ 1]) + reply[1:],
            lambda query, reply: query,
            lambda query, reply: reply.replace(b"\x07example", b"\x07elpmaxe"),
            lambda query, reply: b"\xff" * 400,
        )
        with NameServer(garbage=garbage) as server, Container("--dns", "127.0.0.53") as container:
            self.assertEqual(container.dns(SERVER[4], 53, "a.example"), [0, 1, "c0000209"])
            self.assertEqual(container.dns(SERVER[4], 53, "a.example"), [0, 1, "c0000209"])
            self.assertEqual(len(server.asked), 1)

    def test_a_server_that_is_not_there_is_a_failure_not_a_silence(self):
        with Container("--dns", "127.0.0.55") as container:
            self.assertEqual(container.dns(SERVER[4], 53, "b.example")[:2], [2, 0])

    def test_what_is_no_question_is_not_passed_on(self):
        with NameServer() as server, Container("--dns", "127.0.0.53") as container:
            for raw in ("", "00", "ff" * 12, "0007810000010000000000000161000001 0001", "00070100000200000000000001610000010001"):
                self.assertEqual(container.dns(SERVER[4], 53, "", 1, False, 7, raw.replace(" ", "") or "aa"), "timeout")
            self.assertEqual(server.asked, [])
            self.assertEqual(container.dns(SERVER[4], 53, "c.example")[:2], [0, 1])

    def test_the_hosts_name_is_the_gateway(self):
        with Container() as container:
            for name in ("host.docker.internal", "Host.Containers.Internal"):
                self.assertEqual(container.dns(SERVER[4], 53, name), [0, 1, "0a000202"])
                self.assertEqual(container.dns(SERVER[4], 53, name, 28), [0, 1, "fd" + "00" * 14 + "02"])

    def test_a_change_of_resolv_conf_is_followed(self):
        with NameServer() as first, NameServer("127.0.0.54") as second:
            path = os.path.join(os.environ.get("TMPDIR", "/tmp"), f"kelpnet-resolv-{os.getpid()}")
            with open(path, "w") as file:
                file.write("nameserver 127.0.0.53\n")
            try:
                with Container("--resolv-conf", path) as container:
                    container.dns(SERVER[4], 53, "a.example")
                    with open(path + ".new", "w") as file:
                        file.write("nameserver 127.0.0.54\n")
                    os.rename(path + ".new", path)
                    container.dns(SERVER[4], 53, "b.example")
            finally:
                os.unlink(path)
            self.assertEqual((len(first.asked), len(second.asked)), (1, 1))


class Addresses(unittest.TestCase):
    """What a client inside is told that asks for what it has already."""

    def test_a_dhcp_client_is_given_the_address_that_it_has(self):
        for options in ((), ("--without=tap",)):
            with Container(*options) as container:
                told = ["10.0.2.100", "0a000202", "0a000203", "ffffff00"]
                self.assertEqual(container.lease("tap0", 1), ["02", *told])
                self.assertEqual(container.lease("tap0", 3, "10.0.2.100"), ["05", *told])
                self.assertEqual(container.lease("tap0", 3, "10.0.2.9"), ["06", "0.0.0.0", None, None, None])
                self.assertEqual(container.talk(WORLD[4], ECHO, "hello"), "hello")

    def test_a_router_is_advertised_to_who_asks_for_one(self):
        with Container() as container:
            self.assertEqual(container.router("tap0"), ["fe80::2", True, True])
            self.assertEqual(container.talk(WORLD[6], ECHO, "hello"), "hello")


ETHERNET = bytes.fromhex("026b656c7001" + "020000000001")


def broken_kinds():
    """A good frame of each kind that the engine knows, and where its IP length stands: offset, headers, what it counts from."""
    v4 = lambda protocol, payload: struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0) + bytes.fromhex("0a000264cb007107") + payload
    v6 = lambda kind, payload: struct.pack("!IHBB", 6 << 28, len(payload), kind, 64) + bytes.fromhex("fd00" + "00" * 12 + "0100") + socket.inet_pton(socket.AF_INET6, WORLD[6]) + payload
    udp = struct.pack("!4H", 4096, 53, 9, 0) + b"A"
    tcp = lambda flags, urgent=0: struct.pack("!HHIIBBHHH", 4096, 9001, 1, 0, 0x60, flags, 1024, 0, urgent) + b"\2\4\5\xb4"
    query = struct.pack("!4H", 4097, 53, 8 + 27, 0) + struct.pack("!6H", 7, 0x0100, 1, 0, 0, 0) + b"\1a\7example\0\0\1\0\1"
    dhcp = struct.pack("!4H", 68, 67, 8 + 244, 0) + b"\1\1\6\0" + bytes(24) + ETHERNET[6:] + bytes(202) + b"\x63\x82\x53\x63\x35\1\1\xff"
    asked = b"\x87" + bytes(7) + bytes.fromhex("fd00" + "00" * 13 + "02")
    echo = b"\x08\0\0\0\0\1\0\1hello"
    fragment = struct.pack("!BBHI", 17, 0, 1, 1) + udp
    options = bytes.fromhex("1100010400000000") + udp
    yield ETHERNET + bytes.fromhex("0806" + "0001080006040001" + "020000000001" + "0a000264" + "000000000000" + "0a000203"), None
    for protocol, payload in ((17, udp), (17, query), (17, dhcp), (1, echo), (6, tcp(2)), (6, tcp(0x22, 0xFFFF)), (6, tcp(0x38, 1)), (6, tcp(0x38, 0x8000))):
        yield ETHERNET + b"\x08\0" + v4(protocol, payload), (16, 34, 14)
    whole = bytearray(ETHERNET + b"\x08\0" + v4(17, udp))
    for place in (b"\x20\0", b"\xff\xff", b"\0\1"):
        whole[20:22] = place
        yield bytes(whole), (16, 34, 14)
    for kind, payload in ((17, udp), (17, query), (6, tcp(2)), (6, tcp(0x38, 0xFFFF)), (58, b"\x80" + echo[1:]), (58, asked), (58, b"\x85" + bytes(7)), (44, fragment), (0, options)):
        yield ETHERNET + b"\x86\xdd" + v6(kind, payload), (18, 54, 54)


def relengthened(frame, offset, _, base):
    return frame[:offset] + struct.pack("!H", len(frame) - base) + frame[offset + 2 :]


class Hardness(unittest.TestCase):
    def test_a_flood_of_broken_frames_is_survived(self):
        for path, options in PATHS.items():
            with self.subTest(path=path), Container(*options) as container:
                for seed in range(1 if QUICK else 4):
                    container.flood("tap0", seed, 5000)
                for family in FAMILIES:
                    self.assertEqual(container.talk(WORLD[family], ECHO, "hello"), "hello")
                self.assertEqual(container.counters()["faults"], 0)

    def test_malformed_frames_are_survived(self):
        frames = []
        for whole, length_at in broken_kinds():
            frames += [whole[:end] for end in range(14, len(whole))]
            # Cut off, with an IP length that hides it.
            for end in range(length_at[1], len(whole)) if length_at else ():
                frames.append(relengthened(whole[:end], *length_at))
            for at in range(14, len(whole)):
                frames += [whole[:at] + byte + whole[at + 1 :] for byte in (b"\0", b"\xff", b"\x7f", b"\x80")]
        frames = [frame.hex() for frame in frames]
        for path, options in PATHS.items():
            with self.subTest(path=path), Container(*options) as container:
                self.assertGreater(container.frames("tap0", frames), len(frames) // 2)
                self.assertEqual(container.talk(WORLD[4], ECHO, "hello"), "hello")
                self.assertEqual(container.counters()["faults"], 0)
                self.assertGreater(container.counters()["malformed"], 100)

    def test_headers_of_the_device_that_lie_are_survived(self):
        frames = []
        for whole, _ in broken_kinds():
            for flags in (0, 1, 2, 0xFF):
                for kind in (0, 1, 3, 4, 5, 0x81, 0xFF):
                    for header, size, start, offset in ((54, 1448, 34, 16), (0, 0, 0, 0), (0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF), (14, 1, 13, 1), (54, 1, 34, 6)):
                        frames.append((struct.pack("<BBHHHH", flags, kind, header, size, start, offset) + whole).hex())
        for path, options in PATHS.items():
            with self.subTest(path=path), Container(*options) as container:
                # The kernel refuses most of them, and hands on the rest.
                self.assertGreater(container.frames("tap0", frames, True), 20)
                for family in FAMILIES:
                    self.assertEqual(container.talk(WORLD[family], ECHO, "hello"), "hello")
                self.assertEqual(container.counters()["faults"], 0)

    def test_parts_that_overlap_or_reach_too_far_make_no_datagram(self):
        def part(identity, offset, more, payload):
            head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), identity, (0x2000 if more else 0) | offset // 8, 64, 17, 0)
            return (ETHERNET + b"\x08\0" + head + socket.inet_aton("10.0.2.100") + socket.inet_aton(WORLD[4]) + payload).hex()

        datagram = struct.pack("!4H", 4096, ECHO, 40, 0) + bytes(32)
        good = [part(1, 0, True, datagram[:16]), part(1, 16, True, datagram[16:32]), part(1, 32, False, datagram[32:])]
        odd = {
            "overlaps": [part(2, 0, True, datagram[:24]), part(2, 16, True, datagram[16:32]), part(2, 32, False, datagram[32:])],
            "covers": [part(3, 8, True, datagram[8:16]), part(3, 0, True, datagram[:32]), part(3, 32, False, datagram[32:])],
            "two ends": [part(4, 32, False, datagram[32:]), part(4, 40, False, bytes(8)), part(4, 0, True, datagram[:32])],
            "past the end": [part(5, 0, True, datagram[:32]), part(5, 65528, False, bytes(64)), part(5, 32, False, datagram[32:])],
        }
        for path, options in (("tap", ()), ("packet", ("--without=tap",))):
            with Container(*options) as container:
                for what, parts in odd.items():
                    before = container.counters()["bytes_up"]
                    self.assertEqual(container.frames("tap0", parts), 3)
                    container.datagram(WORLD[4], ECHO, 100)
                    with self.subTest(path=path, what=what):
                        self.assertEqual(container.counters()["bytes_up"] - before, 100)
                before = container.counters()["bytes_up"]
                self.assertEqual(container.frames("tap0", good), 3)
                container.datagram(WORLD[4], ECHO, 100)
                self.assertEqual(container.counters()["bytes_up"] - before, 132, path)

    def test_urgent_data_is_no_way_in(self):
        for path, options in PATHS.items():
            with self.subTest(path=path), Container(*options) as container:
                urgent = (
                    "import socket; s = socket.create_connection(('%s', %d)); s.send(b'!', socket.MSG_OOB);"
                    "s.sendall(b'hello'); got = b''\nwhile len(got) < 5: got += s.recv(9)\nprint(got)" % (WORLD[4], ECHO)
                )
                status, output = container.run("python3", "-c", urgent)
                self.assertEqual(status, 0, output)
                self.assertIn("hello", output)

    def test_the_engine_holds_no_privilege(self):
        with Container("-p", "8080:80") as container:
            self.assertEqual(from_here("tcp", "127.0.0.1", 8080), "ConnectionResetError")
            with open(f"/proc/{container.engine.pid}/status") as file:
                status = dict(row.split(":\t", 1) for row in file.read().splitlines() if ":\t" in row)
            for kind in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
                self.assertEqual(int(status[kind], 16), 0, kind)
            self.assertEqual((status["NoNewPrivs"], status["Seccomp"], status["Threads"]), ("1", "2", "1"))
            with self.assertRaises(PermissionError):
                os.listdir(f"/proc/{container.engine.pid}/fd")
            refused = ["no TAP device: No such file or directory (os error 2)"] if HIDDEN else []
            self.assertEqual(container.request("facts")["return"]["notes"], refused)

    def test_an_engine_that_is_killed_leaves_no_connection_hanging(self):
        for path, options in PATHS.items():
            with self.subTest(path=path), Container(*options) as container:
                container.hold(WORLD[4], ECHO)
                container.engine.send_signal(signal.SIGKILL)
                container.engine.wait(5)
                self.assertIn(container.how_it_ended(), ("ECONNRESET", "ECONNABORTED"))
                for family in FAMILIES:
                    outcome, seconds = container.attempt(WORLD[family], ECHO)
                    self.assertIn(outcome, ("ECONNREFUSED", "ECONNABORTED", "ENETUNREACH", "EHOSTUNREACH"))
                    self.assertLess(seconds, 2)

    def test_a_connect_that_waits_is_ended_when_the_engine_is_killed(self):
        for path, options in PATHS.items():
            with self.subTest(path=path), Container(*options) as container:
                killer = threading.Timer(0.3, container.engine.send_signal, [signal.SIGKILL])
                killer.start()
                outcome, seconds = container.attempt(WORLD[4], FULL, 8)
                killer.join()
                container.engine.wait(5)
                self.assertIn(outcome, ("ECONNREFUSED", "ECONNABORTED", "ENETUNREACH", "EHOSTUNREACH"))
                self.assertLess(seconds, 4)

    def test_the_engine_ends_when_it_is_told_to_and_takes_its_helper_along(self):
        container = Container()
        children = [entry for entry in os.listdir("/proc") if entry.isdigit() and parent(entry) == container.engine.pid]
        self.assertEqual(len(children), 1)
        self.assertEqual(container.close(), 0)
        deadline = time.monotonic() + 5
        while os.path.exists(f"/proc/{children[0]}") and time.monotonic() < deadline:
            if state(children[0]) == "Z":
                break
            time.sleep(0.02)
        self.assertTrue(not os.path.exists(f"/proc/{children[0]}") or state(children[0]) == "Z")

    def test_a_thousand_connections_at_once_are_carried(self):
        with Container() as container:
            script = (
                "import socket\n"
                "kept = [socket.create_connection(('%s', %d)) for _ in range(1000)]\n"
                "for i, s in enumerate(kept): s.sendall(b'%%06d' %% i)\n"
                "print(all(s.recv(6) == b'%%06d' %% i for i, s in enumerate(kept)))" % (WORLD[4], ECHO)
            )
            status, output = container.run("python3", "-c", script)
            self.assertEqual((status, output), (0, "True\n"))

    def test_bulk_goes_on_where_pipes_are_small_or_none_are_to_be_had(self):
        # Nobody reads before all have been asked: a user's 64 MiB of pipes are used up by half of these, and so are few descriptors.
        script = (
            "import socket\n"
            "kept = [socket.create_connection(('%s', %d)) for _ in range(125)]\n"
            "for s in kept: s.sendall(b'%d')\n"
            "for s in kept[::-1]:\n"
            "    s.settimeout(10); got = 0\n"
            "    while chunk := s.recv(1 << 20): got += len(chunk)\n"
            "    assert got == %d, got\n" % (WORLD[4], SOURCE, 3 << 20, 3 << 20)
        )
        for limit in (None, 520):
            with self.subTest(limit=limit), Container(limit=limit) as container:
                self.assertEqual(container.run("python3", "-c", script), [0, ""])

    def test_tcp_inside_is_not_paced(self):
        with Container() as container:
            self.assertEqual(container.run("cat", "/proc/sys/net/ipv4/tcp_congestion_control"), [0, "reno\n"])

    def test_ports_of_ended_connections_can_soon_be_used_again(self):
        """With the host's default they rest for a minute, and a container has 470 connections a second to one service."""
        script = (
            "import errno, socket, time\n"
            "open('/proc/sys/net/ipv4/ip_local_port_range', 'w').write('40000 40019')\n"
            "made, until = 0, time.monotonic() + 20\n"
            "while made < 60 and time.monotonic() < until:\n"
            "    try:\n"
            "        with socket.create_connection(('%s', %d)) as s: s.sendall(b'x'); made += len(s.recv(1))\n"
            "    except OSError as error:\n"
            "        if error.errno != errno.EADDRNOTAVAIL: raise\n"
            "        time.sleep(0.02)\n"
            "assert made == 60, made\n" % (WORLD[4], ECHO)
        )
        for path, options in PATHS.items():
            with self.subTest(path=path), Container(*options) as container:
                self.assertEqual(container.run("python3", "-c", script), [0, ""])

    def test_only_tcp_that_leaves_the_host_is_sent_as_the_host_would(self):
        def control(peer, port):
            status = subprocess.run(["ss", "-Htin", "dst", f"{peer}:{port}"], capture_output=True, text=True, check=True).stdout
            return [line.split()[0] for line in status.splitlines()[1::2]]

        with open("/proc/sys/net/ipv4/tcp_congestion_control") as file:
            hosts = file.read().strip()
        with socket.create_server(("127.0.0.1", 7777)) as server, Container("--allow-host-loopback=7777", "-p", "8080:80", loopback=True) as container:
            echo = threading.Thread(target=lambda: (kept := server.accept()[0]).send(kept.recv(4)))
            echo.start()
            container.hold(GATEWAY[4], 7777)
            echo.join()
            container.hold(WORLD[4], ECHO)
            self.assertEqual(control("127.0.0.1", 7777), ["reno"])
            self.assertEqual(control(WORLD[4], ECHO), [hosts])
            container.service("tcp", "0.0.0.0", 80)
            with socket.create_connection(("127.0.0.1", 8080)) as client:
                # The kernel has taken the client; the engine takes it on its next turn.
                deadline = time.monotonic() + 5
                while container.counters()["published"] < 1 and time.monotonic() < deadline:
                    pass
                self.assertEqual(control("127.0.0.1", client.getsockname()[1]), ["reno"])

    def test_a_rate_is_kept(self):
        with Container("--rate", "up=4000000,down=4000000") as container:
            for carry in (lambda: container.upload(WORLD[4], SINK, 4 << 20), lambda: container.download(WORLD[4], SOURCE, 4 << 20)):
                start = time.monotonic()
                carry()
                seconds = time.monotonic() - start
                self.assertGreater(seconds, 0.85)
                self.assertLess(seconds, 3)

    def test_frames_are_recorded_for_their_owner_only(self):
        path = os.path.join(os.environ.get("TMPDIR", "/tmp"), f"kelpnet-pcap-{os.getpid()}")
        try:
            with Container("--pcap", path) as container:
                container.datagram(WORLD[4], ECHO, 100)
            self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
            with open(path, "rb") as file:
                recorded = file.read()
            self.assertEqual(recorded[:4], b"\xd4\xc3\xb2\xa1")
            self.assertIn(bytes(range(100)), recorded)
            with self.assertRaisesRegex(Gone, "cannot record frames"):
                Container("--pcap", path)
        finally:
            os.unlink(path)


def parent(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rsplit(")", 1)[1].split()[1])
    except (OSError, IndexError):
        return 0


def state(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "gone"


if __name__ == "__main__":
    run_all()
