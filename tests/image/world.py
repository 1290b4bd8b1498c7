"""What the image tests stand on: a throw-away store, the real binary, tars made by hand, and a registry in this
process that serves what it is given and misbehaves where it is told to."""

import gzip
import hashlib
import http.server
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import threading
import time
import unittest

KELP = os.environ["KELP"]
KIND = os.environ.get("KELP_TEST_KIND", "one")


def sha(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tar(*entries, pad=True):
    """A tar of (name, content-or-None, attributes) tuples."""
    out = io.BytesIO()
    archive = tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT)
    for name, content, *rest in entries:
        member = tarfile.TarInfo(name)
        member.mode = 0o644
        member.mtime = 1_700_000_000
        for key, value in (rest[0] if rest else {}).items():
            setattr(member, key, value)
        if content is not None:
            member.size = len(content)
        archive.addfile(member, io.BytesIO(content) if content is not None else None)
    archive.close()
    return out.getvalue()


def folder(name, **attributes):
    return (name, None, {"type": tarfile.DIRTYPE, "mode": 0o755, **attributes})


def link(name, target, **attributes):
    return (name, None, {"type": tarfile.SYMTYPE, "linkname": target, **attributes})


def hard(name, target, **attributes):
    return (name, None, {"type": tarfile.LNKTYPE, "linkname": target, **attributes})


class Image:
    """An image as blobs: layers are tars."""

    def __init__(self, *layers, pack=lambda data: gzip.compress(data, 1, mtime=0), config=None, kind="oci"):
        oci = kind == "oci"
        layer_type = "application/vnd.oci.image.layer.v1.tar+gzip" if oci else \
            "application/vnd.docker.image.rootfs.diff.tar.gzip"
        self.layers = [pack(layer) for layer in layers]
        self.diff_ids = [sha(layer) for layer in layers]
        self.config = json.dumps(config or {
            "architecture": "amd64", "os": "linux", "created": "2024-02-29T12:00:00Z",
            "config": {"Cmd": ["/bin/sh"], "Env": ["A=1"]},
            "rootfs": {"type": "layers", "diff_ids": self.diff_ids}}).encode()
        self.manifest_type = "application/vnd.oci.image.manifest.v1+json" if oci else \
            "application/vnd.docker.distribution.manifest.v2+json"
        config_type = "application/vnd.oci.image.config.v1+json" if oci else \
            "application/vnd.docker.container.image.v1+json"
        self.manifest = json.dumps({
            "schemaVersion": 2, "mediaType": self.manifest_type,
            "config": {"mediaType": config_type, "digest": sha(self.config), "size": len(self.config)},
            "layers": [{"mediaType": layer_type, "digest": sha(data), "size": len(data)} for data in self.layers],
        }).encode()

    @property
    def id(self):
        return sha(self.config)


class Loopback:
    """Answers HTTP on a port of its own, by its `host`."""

    def listen(self, handler):
        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_):
                pass

        self.server = Server(("127.0.0.1", 0), handler)
        self.host = "127.0.0.1:%d" % self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class Registry(Loopback):
    """Serves images; `fault(request, path)` may answer instead, by returning True."""

    def __init__(self):
        self.blobs, self.manifests, self.log = {}, {}, []
        self.fault = lambda request, path: False
        self.lock = threading.Lock()
        registry = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                with registry.lock:
                    registry.log.append((self.path, self.headers.get("Range"), self.headers.get("Authorization")))
                try:
                    if not registry.fault(self, self.path):
                        registry.answer(self)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            do_HEAD = do_GET

        self.listen(Handler)

    def add(self, name, image):
        for data in [image.config, *image.layers]:
            self.blobs[sha(data)] = data
        for selector in ("1", sha(image.manifest)):
            self.manifests[name, selector] = (image.manifest_type, image.manifest)
        return f"{self.host}/{name}:1"

    def answer(self, request):
        parts = request.path.split("?")[0].strip("/").split("/")
        if parts == ["v2"]:
            return self.send(request, 200, b"{}")
        name, kind, selector = "/".join(parts[1:-2]), parts[-2], parts[-1]
        if kind == "manifests" and (name, selector) in self.manifests:
            media_type, data = self.manifests[name, selector]
            return self.send(request, 200, data, {"Content-Type": media_type})
        if kind == "blobs" and selector in self.blobs:
            return self.send_blob(request, self.blobs[selector])
        error = {"errors": [{"code": "NAME_UNKNOWN", "message": "not here"}]}
        return self.send(request, 404, json.dumps(error).encode())

    def send_blob(self, request, data, cut=None, pause=0):
        start = request.headers.get("Range")
        start = int(start.split("=")[1].split("-")[0]) if start else 0
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        part = data[start:]
        request.send_response(206 if start else 200)
        for key, value in headers.items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(part)))
        request.end_headers()
        part = part if cut is None else part[:cut]
        for at in range(0, len(part), 65536):
            request.wfile.write(part[at:at + 65536])
            if pause:
                time.sleep(pause)
        if cut is not None:
            request.wfile.flush()
            request.connection.shutdown(socket.SHUT_RDWR)
            request.close_connection = True

    def send(self, request, status, data, headers=()):
        request.send_response(status)
        for key, value in dict(headers).items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(data)

    def asked(self, digest):
        return [entry for entry in self.log if entry[0].endswith(digest)]


class Case(unittest.TestCase):
    """A store of its own for each test, and nothing else of the user's configuration."""

    maxDiff = None

    def setUp(self):
        self.home = tempfile.mkdtemp(prefix="kelp-image-", dir="/var/tmp")
        self.store = os.path.join(self.home, "store")
        self.env = {"PATH": os.environ["PATH"], "HOME": self.home, "KELP_ROOT": self.store,
                    "KELP_RUNDIR": os.path.join(self.home, "run"), "KELP_REGISTRY_TIMEOUT": "3", "LANG": "C.UTF-8"}
        self.registries = []

    def tearDown(self):
        for registry in self.registries:
            registry.close()
        if os.path.isdir(self.store) and os.path.exists(os.path.join(self.store, "format")):
            self.kelp("system", "reset", "-f", ok=None)
        shutil.rmtree(self.home)

    def registry(self):
        registry = Registry()
        self.registries.append(registry)
        return registry

    def start(self, *words, **options):
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **options}
        return subprocess.Popen([KELP, *words], env={**self.env, **options.pop("env", {})}, **options)

    def kelp(self, *words, ok=True, input=None, env=(), text=True, timeout=60):
        done = subprocess.run([KELP, *words], env={**self.env, **dict(env)}, capture_output=True, timeout=timeout,
                              input=input, **({} if input is not None else {"stdin": subprocess.DEVNULL}))
        out, err = done.stdout, done.stderr.decode(errors="replace")
        if ok is not None:
            self.assertEqual(done.returncode == 0, ok, f"kelp {' '.join(words)}: {done.returncode}\n{err}")
            self.assertNotIn("panicked", err)
        return (out.decode(errors="replace") if text else out), err

    def refused(self, *words, **options):
        """The sentence of a refusal, which is one, within the time-out."""
        _, err = self.kelp(*words, ok=False, **options)
        lines = [line for line in err.splitlines() if line.startswith("kelp: ")]
        self.assertTrue(lines, err)
        self.assertNotIn("panicked", err)
        return lines[-1]

    def sound(self):
        out, _ = self.kelp("system", "fsck", "--verify-layers")
        self.assertIn(" 0 damaged", out)

    def tree(self, image="", layer=-1):
        diff_id = image.diff_ids[layer].split(":")[1]
        return os.path.join(self.store, "layers", diff_id, "tree")

    def left(self):
        """What is in the store besides whole things."""
        found = []
        for part in ("tmp", "partial"):
            found += os.listdir(os.path.join(self.store, part))
        return found
