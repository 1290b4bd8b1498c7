"""A wire between two network namespaces that is long and bad: what crosses it is late, and some of it is lost or overtaken.

The address at the far end says how: its last number is the round trip in milliseconds (20, 100, 200); one more (21, 101, 201)
loses one frame in a hundred and lets one in fifty be overtaken. Everything shares a link of RATE that queues up to QUEUE seconds.

    shim.py NEAR FAR   names of namespaces; makes the TAP `long0` in each, says `ready`, and ends with its input
"""

import heapq
import os
import random
import select
import socket
import subprocess
import sys
import time

RATE, QUEUE = 100e6 / 8, 0.2
ADDRESSES = {"near": (1,), "far": (20, 21, 100, 101, 200, 201)}
NETS = ("198.18.0.{}/24", "2001:db8:78::{:x}/64")


OPEN = """
import fcntl, os, socket, struct, sys
fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"long0", 0x1002))  # TUNSETIFF with IFF_TAP | IFF_NO_PI
socket.send_fds(socket.socket(fileno=int(sys.argv[1])), [b"x"], [fd])
"""


def tap(namespace):
    """A TAP in a namespace. A device belongs to where it was opened, so a child opens it there."""
    ours, theirs = socket.socketpair()
    subprocess.run(["ip", "netns", "exec", namespace, sys.executable, "-c", OPEN, str(theirs.fileno())], pass_fds=[theirs.fileno()], check=True)
    return socket.recv_fds(ours, 1, 1)[1][0]


def set_up(namespace, numbers):
    """Addresses, and neighbours known for good."""
    mine, other = ("01", "02") if 1 in numbers else ("02", "01")
    rows = [f"link set long0 address 02:00:00:00:01:{mine} mtu 1500 txqueuelen 10000 up"]
    for net in NETS:
        nodad = " nodad" if ":" in net else ""
        rows += [f"addr add {net.format(number)} dev long0{nodad}" for number in numbers]
        others = ADDRESSES["far" if 1 in numbers else "near"]
        rows += [f"neigh replace {net.format(number).split('/')[0]} lladdr 02:00:00:00:01:{other} dev long0 nud permanent" for number in others]
    subprocess.run(["ip", "-n", namespace, "-batch", "-"], input="\n".join(rows), text=True, check=True)


def far_number(frame, outward):
    """The last number of the address at the far end."""
    kind = frame[12:14]
    if kind == b"\x08\x00" and len(frame) >= 34:
        return frame[33] if outward else frame[29]
    if kind == b"\x86\xdd" and len(frame) >= 54:
        return frame[53] if outward else frame[37]
    return 0


def carry(near, far):
    dice, late, free, order = random.Random(4), [], {near: 0.0, far: 0.0}, 0
    while True:
        now = time.monotonic()
        while late and late[0][0] <= now:
            _, _, to, frame = heapq.heappop(late)
            try:
                os.write(to, frame)
            except OSError:
                pass
        wait = max(late[0][0] - time.monotonic(), 0) if late else None
        ready = select.select([near, far, 0], [], [], wait)[0]
        if 0 in ready and not os.read(0, 1):
            return
        for source in ready:
            to = far if source == near else near
            for _ in range(64 if source else 0):
                try:
                    frame = os.read(source, 2048)
                except BlockingIOError:
                    break
                now = time.monotonic()
                number = far_number(frame, source == near)
                # IPv6 writes its numbers in sixteens, and they are the same numbers.
                bad, delay = number % 2 == 1, number // 2 / 1000
                free[to] = max(free[to], now) + len(frame) / RATE
                if free[to] - now > QUEUE:
                    free[to] -= len(frame) / RATE
                    continue
                if bad and dice.random() < 0.01:
                    continue
                overtaken = 0.003 if bad and dice.random() < 0.02 else 0
                order += 1
                heapq.heappush(late, (free[to] + delay + overtaken, order, to, frame))


def main():
    ends = [tap(namespace) for namespace in sys.argv[1:3]]
    for namespace, numbers in zip(sys.argv[1:3], ADDRESSES.values()):
        set_up(namespace, numbers)
    print("ready", flush=True)
    carry(*ends)


if __name__ == "__main__":
    main()
