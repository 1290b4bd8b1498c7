"""Runs inside the container's namespaces: reads one JSON request a line, answers one JSON object a line.

A request names a function below and its arguments. Errors come back as their errno's name.
"""

import errno
import hashlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time


def family_of(host):
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def connected(host, port, timeout=5):
    client = socket.socket(family_of(host), socket.SOCK_STREAM)
    client.settimeout(timeout)
    client.connect((host, port))
    return client


def read_all(connection):
    return b"".join(iter(lambda: connection.recv(1 << 20), b""))


def talk(host, port, send="", shut=False, timeout=5):
    with connected(host, port, timeout) as client:
        client.sendall(send.encode())
        if shut:
            client.shutdown(socket.SHUT_WR)
            return read_all(client).decode()
        return client.recv(1 << 16).decode() if send else read_all(client).decode()


def attempt(host, port, timeout=5):
    """How a connect ends, and after how many seconds."""
    start = time.monotonic()
    try:
        connected(host, port, timeout).close()
        outcome = "connected"
    except TimeoutError:
        outcome = "timeout"
    except OSError as error:
        outcome = errno.errorcode.get(error.errno, str(error))
    return [outcome, time.monotonic() - start]


def until_reset(host, port):
    with connected(host, port) as client:
        client.sendall(b"x")
        try:
            return "end" if client.recv(1) == b"" else "data"
        except ConnectionResetError:
            return "reset"


def bursts(host, port, count):
    """The digests of what `count` connections bring before they end."""
    digests = set()
    for _ in range(count):
        with connected(host, port) as client:
            digests.add(hashlib.sha256(read_all(client)).hexdigest())
    return sorted(digests)


def upload(host, port, length):
    block = (bytes(range(251)) * (1 << 12))
    with connected(host, port, 60) as client:
        left = length
        while left > 0:
            client.sendall(block[:left])
            left -= len(block)
        client.shutdown(socket.SHUT_WR)
        return int(read_all(client))


def download(host, port, length):
    digest = hashlib.sha256()
    with connected(host, port, 60) as client:
        client.sendall(str(length).encode())
        while chunk := client.recv(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def datagram(host, port, size=0, text=None, timeout=3):
    """Sends one datagram on a connected socket: what comes back, or the error."""
    message = text.encode() if text is not None else bytes(i % 251 for i in range(size))
    with socket.socket(family_of(host), socket.SOCK_DGRAM) as client:
        client.settimeout(timeout)
        try:
            client.connect((host, port))
            client.send(message)
            reply = client.recv(1 << 16)
        except TimeoutError:
            return "timeout"
        except OSError as error:
            return errno.errorcode.get(error.errno, str(error))
        if text is not None:
            return reply.decode()
        return "same" if reply == message else f"different: {len(reply)} bytes"


def service(protocol, host, port):
    """Starts a service that tells each client its address."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    server = socket.socket(family_of(host), kind)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if ":" in host:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    server.bind((host, port))

    def answer_streams():
        server.listen(64)
        while True:
            client, peer = server.accept()
            with client:
                got = client.recv(1 << 16).decode()
                client.sendall(f"{port} {peer[0]} {peer[1]} {got}".encode())

    def answer_datagrams():
        while True:
            got, peer = server.recvfrom(1 << 16)
            server.sendto(f"{port} {peer[0]} {peer[1]} {got.decode()}".encode(), peer)

    if protocol == "tcp":
        server.listen(64)
    threading.Thread(target=answer_streams if protocol == "tcp" else answer_datagrams, daemon=True).start()
    return True


def hold(host, port):
    """Opens a connection, proves it, and reports how it ends."""
    client = connected(host, port)
    client.sendall(b"hold")
    assert client.recv(4) == b"hold"
    client.settimeout(5)
    held.append(client)
    return True


held = []


def how_it_ended():
    try:
        return "end" if held.pop().recv(1) == b"" else "data"
    except TimeoutError:
        return "hung"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))


def frames(device, hexes):
    """Puts frames on the wire as they are."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((device, 0))
        sent = 0
        for text in hexes:
            try:
                raw.send(bytes.fromhex(text))
                sent += 1
            except OSError:
                pass
    return sent


def hardware(device):
    with open(f"/sys/class/net/{device}/address") as file:
        return file.read().strip() if os.path.exists(f"/sys/class/net/{device}/address") else ""


def dns(host, port, name, kind=1, tcp=False, identifier=7, raw=None):
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    query = struct.pack("!6H", identifier, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", kind, 1)
    if raw is not None:
        query = bytes.fromhex(raw)
    if tcp:
        with connected(host, port) as client:
            client.sendall(struct.pack("!H", len(query)) + query)
            head = client.recv(2, socket.MSG_WAITALL)
            reply = client.recv(struct.unpack("!H", head)[0], socket.MSG_WAITALL)
    else:
        with socket.socket(family_of(host), socket.SOCK_DGRAM) as client:
            client.settimeout(8 if raw is None else 0.5)
            client.connect((host, port))
            client.send(query)
            try:
                reply = client.recv(1 << 16)
            except TimeoutError:
                return "timeout"
    code, count = reply[3] & 15, struct.unpack("!H", reply[6:8])[0]
    assert struct.unpack("!H", reply[:2])[0] == identifier
    return [code, count, reply[-4:].hex() if kind == 1 else reply[-16:].hex()]


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    return [done.returncode, done.stdout + done.stderr]


def main():
    print("ready", flush=True)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            answer = {"is": globals()[name](*arguments)}
        except OSError as error:
            answer = {"error": errno.errorcode.get(error.errno, repr(error))}
        except Exception as error:
            answer = {"error": repr(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
