"""Runs inside the container's namespaces: reads one JSON request a line, answers one JSON object a line.

A request names a function below and its arguments. Errors come back as their errno's name.
"""

import errno
import fcntl
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
        with connected(host, port, timeout) as client:
            # One in a thousand connects that an ICMP error ends is told as a success, by a kernel that knows no peer and has the
            # error still to tell.
            client.getpeername()
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


def offer(kind, host, port):
    """Starts a service that ends its connections in one way: `late` answers when all has been said, `burst` sends a megabyte and
    its end at once, `reset` breaks off, `source` sends as many bytes as it is told."""
    server = socket.socket(family_of(host), socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if ":" in host:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    server.bind((host, port))
    server.listen(64)
    block = bytes(range(251)) * (1 << 12)

    def serve():
        while True:
            client, _ = server.accept()
            with client:
                if kind == "late":
                    client.sendall(b"heard " + read_all(client))
                elif kind == "burst":
                    client.sendall((block * 2)[: 1 << 20])
                elif kind == "reset":
                    client.recv(1)
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                else:
                    left = int(read_all(client))
                    while left > 0:
                        client.sendall(block[:left])
                        left -= len(block)

    threading.Thread(target=serve, daemon=True).start()
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


def transfers(wanted):
    """Uploads and downloads that run side by side: what each came to, in their order."""
    outcomes = [None] * len(wanted)

    def carry(at, direction, host, port, length):
        try:
            outcomes[at] = (upload if direction == "up" else download)(host, port, length)
        except OSError as error:
            outcomes[at] = repr(error)

    threads = [threading.Thread(target=carry, args=(at, *one)) for at, one in enumerate(wanted)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def frames(device, hexes, vnet=False):
    """Puts frames on the wire as they are; with `vnet` each begins with a vnet header of its own."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        if vnet:
            raw.setsockopt(263, 15, 1)  # SOL_PACKET, PACKET_VNET_HDR
        raw.bind((device, 0))
        sent = 0
        for text in hexes:
            try:
                raw.send(bytes.fromhex(text))
                sent += 1
            except OSError:
                pass
    return sent


def lease(device, kind, asked=None):
    """Asks by DHCP as a client without an address does: the answer's kind, its address and its options."""
    mac = bytes.fromhex(hardware(device).replace(":", ""))
    options = bytes([53, 1, kind]) + (b"\x32\x04" + socket.inet_aton(asked) if asked else b"") + b"\xff"
    body = struct.pack("!4sI2H16s16s192x", b"\1\1\6\0", 7, 0, 0x8000, b"", mac) + b"\x63\x82\x53\x63" + options
    udp = struct.pack("!4H", 68, 67, 8 + len(body), 0) + body
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, bytes(4), b"\xff" * 4)
    total = sum(struct.unpack("!10H", head))
    checksum = 0xFFFF - (total % 0xFFFF or 0xFFFF)
    head = head[:10] + struct.pack("!H", checksum) + head[12:]
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as raw:
        raw.bind((device, 0x0800))
        raw.settimeout(3)
        raw.send(b"\xff" * 6 + mac + b"\x08\x00" + head + udp)
        while True:
            frame = raw.recv(2048)
            if frame[23] == 17 and frame[36:38] == b"\0\x44":
                answer, found = frame[42:], {}
                at = 240
                while answer[at] != 255:
                    found[answer[at]] = answer[at + 2 : at + 2 + answer[at + 1]].hex()
                    at += 2 + answer[at + 1]
                return [found[53], socket.inet_ntoa(answer[16:20]), found.get(3), found.get(6), found.get(1)]


def router(device):
    """Asks for a router: the advertisement's source, and whether it names the network and the name server."""
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        raw.settimeout(3)
        raw.sendto(b"\x85" + bytes(7), ("ff02::2", 0, 0, socket.if_nametoindex(device)))
        while True:
            answer, source = raw.recvfrom(2048)
            if answer[0] == 134:
                named = [bytes([0xFD]) + bytes(15) in answer, bytes([0xFD]) + bytes(14) + b"\3" in answer]
                return [source[0].split("%")[0], *named]


def flood(device, seed, count):
    """Frames that were broken on purpose, `count` of them, the same for the same seed."""
    import random

    dice = random.Random(seed)
    mac = bytes.fromhex(hardware(device).replace(":", ""))
    v4, v6 = socket.inet_aton("10.0.2.100"), socket.inet_pton(socket.AF_INET6, "fd00::100")
    far4, far6 = socket.inet_aton("203.0.113.7"), socket.inet_pton(socket.AF_INET6, "2001:db8:77::7")
    tcp = struct.pack("!HHIIHHHH", 4000, 9001, 1, 0, 0x5002, 65535, 0, 0)
    bodies = []
    for payload, protocol in ((tcp, 6), (struct.pack("!4H", 4001, 53, 20, 0) + bytes(12), 17), (b"\x08\0\0\0\0\1\0\1", 1)):
        bodies.append(b"\x08\0" + struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 7, 0, 64, protocol, 0) + v4 + far4 + payload)
        bodies.append(b"\x86\xdd" + struct.pack("!IHBB", 6 << 28, len(payload), 58 if protocol == 1 else protocol, 64) + v6 + far6 + payload)
    bodies.append(b"\x08\x06" + bytes.fromhex("0001080006040001") + mac + v4 + bytes(6) + socket.inet_aton("10.0.2.2"))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((device, 0))
        for _ in range(count):
            frame = bytearray(b"\2\x6b\x65\x6c\x70\1" + mac + dice.choice(bodies))
            for _ in range(dice.randrange(1, 6)):
                frame[dice.randrange(12, len(frame))] = dice.choice((0, 1, 0x40, 0x7F, 0x80, 0xFF, dice.randrange(256)))
            if dice.random() < 0.3:
                del frame[dice.randrange(14, len(frame)) :]
            try:
                raw.send(bytes(frame))
            except OSError:
                pass
    return True


def hardware(device):
    with socket.socket() as any_socket:
        answer = fcntl.ioctl(any_socket, 0x8927, struct.pack("256s", device.encode()))  # SIOCGIFHWADDR
    return answer[18:24].hex(":")


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
