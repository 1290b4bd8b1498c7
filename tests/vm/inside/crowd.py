"""Ten thousand connections at once through kelp-net, each proved by two exchanges. An engine needs 20,768 descriptors for
them, more than many hosts allow a user; here root allows it first. Prints what the engine then holds of memory.
"""
import os
import resource
import select
import socket
import subprocess
import sys
import threading
import time

COUNT, DESCRIPTORS, PORT = 10000, 24000, 5202


def resident(pid):
    """Megabytes."""
    with open(f"/proc/{pid}/status") as file:
        return int(next(row for row in file if row.startswith("VmRSS:")).split()[1]) / 1024


def held(folder, words):
    """Seconds until all are there, and the engine's memory."""
    space = subprocess.Popen(["unshare", "-Urn", "sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    space.stdout.readline()
    ready = os.pipe()
    engine = subprocess.Popen([f"{folder}/kelp-net", "-c", f"-r{ready[1]}", *words, str(space.pid), "tap0"], pass_fds=[ready[1]])
    os.close(ready[1])
    try:
        assert os.read(ready[0], 1) == b"1", "the network did not come up"
        inside = ["nsenter", "-U", "--preserve-credentials", "-n", "-t", str(space.pid)]
        start = time.monotonic()
        holder = subprocess.Popen([*inside, f"{folder}/talk", "hold", f"10.0.2.2:{PORT}", str(COUNT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert select.select([holder.stdout], [], [], 200)[0], "not held within 200 s"
        assert holder.stdout.readline() == b"held\n", "a connection failed"
        return time.monotonic() - start, resident(engine.pid)
    finally:
        for process in (engine, space):
            process.kill()
            process.wait()


def echo(listener):
    poll, connections = select.epoll(), {}
    poll.register(listener, select.EPOLLIN)
    while True:
        for number, _ in poll.poll():
            if number == listener.fileno():
                connection = listener.accept()[0]
                connections[connection.fileno()] = connection
                poll.register(connection, select.EPOLLIN)
                continue
            try:
                said = connections[number].recv(4096)
                connections[number].sendall(said)
            except OSError:
                said = b""
            if not said:
                # Closing takes it out of the epoll as well.
                connections.pop(number).close()


def main():
    folder, user = sys.argv[1:]
    subprocess.run("modprobe -q tun; chmod 666 /dev/net/tun", shell=True, check=True)
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    listener = socket.create_server(("0.0.0.0", PORT), backlog=4096)
    threading.Thread(target=echo, args=(listener,), daemon=True).start()
    command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--", sys.executable, "-B", __file__, folder]
    for words in ([], ["--without=divert"]):
        done = subprocess.run([*command, *words], capture_output=True, text=True)
        print(done.stdout.strip() or done.stderr.strip(), flush=True)
        name = "on P2" if words else "on the path that this kernel takes"
        print(f"test ten_thousand_connections_are_held {name} ... {'ok' if done.returncode == 0 else 'FAILED'}", flush=True)


if len(sys.argv) > 2 and not sys.argv[2].startswith("-"):
    main()
else:
    seconds, megabytes = held(sys.argv[1], sys.argv[2:])
    print(f"{COUNT} connections in {seconds:.1f} s, the engine holds {megabytes:.1f} MB")
