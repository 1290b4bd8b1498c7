"""Real servers in the world, for real clients: a Debian mirror and a git repository over http, HTTP/2, sshd, PostgreSQL.

Started by root in the world's network namespace, with a folder and the user whose key sshd takes. Says `ready` when all of
them listen, and ends them when its input ends. Whatever is not installed is left out, and its clients' tests with it.
"""

import functools
import glob
import gzip
import hashlib
import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading
import time

HTTP, HTTP2, SSH, POSTGRES = 9080, 9082, 9022, 9432
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True
    request_queue_size = 128


class Quiet(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass


def mirror(folder):
    """A flat repository with one package of 8 MB."""
    package = f"{folder}/build/tide"
    os.makedirs(f"{package}/DEBIAN")
    os.makedirs(f"{package}/usr/share/tide")
    with open(f"{package}/DEBIAN/control", "w") as file:
        file.write("Package: tide\nVersion: 1.0\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\nDescription: water\n")
    with open(f"{package}/usr/share/tide/water", "wb") as file:
        file.write(os.urandom(8 << 20))
    debian = f"{folder}/www/debian"
    os.makedirs(debian)
    subprocess.run(["dpkg-deb", "-Znone", "--build", "--root-owner-group", package, f"{debian}/tide_1.0_all.deb"], check=True, **QUIET)
    with open(f"{debian}/tide_1.0_all.deb", "rb") as file:
        deb = file.read()
    with open(f"{package}/DEBIAN/control") as file:
        entry = file.read()
    entry += f"Filename: ./tide_1.0_all.deb\nSize: {len(deb)}\nSHA256: {hashlib.sha256(deb).hexdigest()}\n"
    listed = {"Packages": entry.encode(), "Packages.gz": gzip.compress(entry.encode())}
    release = "Origin: kelp\nSuite: stable\nDate: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n"
    for name, text in listed.items():
        with open(f"{debian}/{name}", "wb") as file:
            file.write(text)
        release += f" {hashlib.sha256(text).hexdigest()} {len(text)} {name}\n"
    with open(f"{debian}/Release", "w") as file:
        file.write(release)


def repository(folder):
    """A git repository that any web server can serve."""
    source, environment = f"{folder}/build/source", {**os.environ, "HOME": folder, "GIT_CONFIG_NOSYSTEM": "1"}
    git = lambda *words: subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=n@example.org", *words], check=True, env=environment, **QUIET)
    git("init", "-q", source)
    for number in range(40):
        with open(f"{source}/file{number}", "wb") as file:
            file.write(os.urandom(20000))
        git("-C", source, "add", "-A")
        git("-C", source, "commit", "-qm", f"change {number}")
    git("clone", "-q", "--bare", source, f"{folder}/www/tide.git")
    git("--git-dir", f"{folder}/www/tide.git", "update-server-info")


def sshd(folder, user):
    keys = f"{folder}/ssh"
    os.makedirs(keys)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{keys}/{name}"], check=True)
    shutil.chown(f"{keys}/user", user)
    os.makedirs("/run/sshd", exist_ok=True)
    options = [f"Port={SSH}", f"HostKey={keys}/host", f"AuthorizedKeysFile={keys}/user.pub", "StrictModes=no", "UsePAM=no", "PidFile=none"]
    return subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", *[f"-o{option}" for option in options]], **QUIET)


def postgres(folder):
    programs = sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1]
    place = f"{folder}/postgres"
    os.makedirs(place)
    shutil.chown(place, "postgres", "postgres")
    become = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "env", "-C", place, "LC_ALL=C.UTF-8"]
    subprocess.run([*become, f"{programs}/initdb", "-D", f"{place}/pg", "-A", "trust", "-U", "tide", "--no-sync"], check=True, **QUIET)
    with open(f"{place}/pg/pg_hba.conf", "a") as file:
        file.write("host all all all trust\n")
    settings = ["listen_addresses=*", f"port={POSTGRES}", "max_connections=250", "fsync=off", f"unix_socket_directories={place}"]
    return subprocess.Popen([*become, f"{programs}/postgres", "-D", f"{place}/pg", *[word for one in settings for word in ("-c", one)]], **QUIET)


def await_port(port):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            return socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"nobody listens on {port}")


def main():
    folder, user = sys.argv[1:]
    os.makedirs(f"{folder}/www")
    processes, ports = [], [HTTP]
    mirror(folder)
    repository(folder)
    with open(f"{folder}/www/water", "wb") as file:
        file.write(os.urandom(16 << 20))
    server = Server(("::", HTTP), functools.partial(Quiet, directory=f"{folder}/www"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    if shutil.which("nghttpd"):
        key, certificate = f"{folder}/key.pem", f"{folder}/certificate.pem"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=world.example",
                        "-keyout", key, "-out", certificate], check=True, **QUIET)
        processes.append(subprocess.Popen(["nghttpd", "-d", f"{folder}/www", str(HTTP2), key, certificate], **QUIET))
        ports.append(HTTP2)
    if os.path.exists("/usr/sbin/sshd"):
        processes.append(sshd(folder, user))
        ports.append(SSH)
    if glob.glob("/usr/lib/postgresql/*/bin/postgres"):
        processes.append(postgres(folder))
        ports.append(POSTGRES)
    try:
        for port in ports:
            await_port(port)
        print("ready", flush=True)
        os.read(0, 1)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


if __name__ == "__main__":
    main()
