"""The world outside the host: services that containers connect to, and a client that connects to published ports on request.

Runs in a network namespace of its own. One JSON request a connection on the command port; everything else is a service.
"""

import hashlib
import json
import os
import socket
import struct
import sys
import threading

COMMANDS, ECHO, WHOAMI, LATE, RESET, BURST, FULL, SINK, SOURCE = range(9000, 9009)


def listener(family, port, backlog=128):
    server = socket.socket(family, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    server.bind(("", port))
    server.listen(backlog)
    return server


def serve(port, talk):
    for family in (socket.AF_INET, socket.AF_INET6):
        server = listener(family, port)

        def accept(server=server):
            while True:
                connection, peer = server.accept()
                threading.Thread(target=guard, args=(talk, connection, peer), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()


def guard(talk, connection, peer):
    with connection:
        try:
            talk(connection, peer)
        except OSError:
            pass


def read_all(connection):
    return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def echo(connection, _):
    while chunk := connection.recv(1 << 16):
        connection.sendall(chunk)


def whoami(connection, peer):
    connection.sendall(f"{peer[0]} {peer[1]}".encode())


def late(connection, _):
    """Answers only when the client has said all: what a half-closed connection is for."""
    connection.sendall(b"heard " + read_all(connection))


def reset(connection, _):
    connection.recv(1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def pattern(length):
    return (bytes(range(251)) * (length // 251 + 1))[:length]


def burst(connection, _):
    """A megabyte and the end at once, as with `Connection: close`."""
    connection.sendall(pattern(1 << 20))


def sink(connection, _):
    total = 0
    while chunk := connection.recv(1 << 20):
        total += len(chunk)
    connection.sendall(str(total).encode())


def source(connection, _):
    left = int(connection.recv(64))
    block = pattern(251 << 12)
    while left > 0:
        connection.sendall(block[:left])
        left -= len(block)


def udp_echo(family):
    server = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    server.bind(("", ECHO))
    while True:
        message, peer = server.recvfrom(1 << 16)
        server.sendto(f"{peer[0]} ".encode() + message if message == b"whoami" else message, peer)


def rest_of(client):
    """Says the end and reads the other's; of a connection that has been reset the read tells."""
    try:
        client.shutdown(socket.SHUT_WR)
    except OSError:
        pass
    return read_all(client)


def summary(got):
    """Short answers as they are, long ones as length and digest."""
    return got.decode() if len(got) < 100 else f"{len(got)} {hashlib.sha256(got).hexdigest()}"


def command(connection, _):
    """{"protocol", "host", "port", "send"} -> {"reply", "error", "me"}; with "whole" it says its end and waits for the other's."""
    request = json.loads(read_all(connection))
    family = socket.AF_INET6 if ":" in request["host"] else socket.AF_INET
    kind = socket.SOCK_STREAM if request["protocol"] == "tcp" else socket.SOCK_DGRAM
    answer = {"reply": "", "error": None, "me": None}
    with socket.socket(family, kind) as client:
        client.settimeout(5)
        try:
            client.connect((request["host"], request["port"]))
            answer["me"] = client.getsockname()[:2]
            client.sendall(request["send"].encode())
            if request["whole"]:
                answer["reply"] = summary(rest_of(client))
            else:
                answer["reply"] = client.recv(1 << 16).decode()
        except OSError as error:
            answer["error"] = type(error).__name__
    connection.sendall(json.dumps(answer).encode())


def main():
    for port, talk in (
        (ECHO, echo),
        (WHOAMI, whoami),
        (LATE, late),
        (RESET, reset),
        (BURST, burst),
        (SINK, sink),
        (SOURCE, source),
        (COMMANDS, command),
    ):
        serve(port, talk)
    for family in (socket.AF_INET, socket.AF_INET6):
        threading.Thread(target=udp_echo, args=(family,), daemon=True).start()
    # Listeners whose queue is full: their SYNs are dropped, which is what silence looks like.
    kept = []
    for family, loopback in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        server = listener(family, FULL, 0)
        kept.append(server)
        for _ in range(4):
            client = socket.socket(family)
            client.setblocking(False)
            client.connect_ex((loopback, FULL))
            kept.append(client)
    print("ready", flush=True)
    os.read(0, 1)
    sys.exit(0)


if __name__ == "__main__":
    main()
