"""Pushing to a registry that breaks off, forgets, refuses for a while and renews its credentials."""

import http.server
import json
import os
import pathlib
import socket
import threading
import time
import unittest

from world import Case, Loopback, sha, tar


class Uploads(Loopback):
    """Takes blobs and manifests. `cuts` are the bytes of an upload after which its connection is cut, once each; with
    `forgets` what had arrived then is gone. `refusals` are answers to the next streams, of which nothing is kept. It is so
    many seconds `away`, there and back."""

    def __init__(self, cuts=(), forgets=False, refusals=(), away=0):
        self.cuts, self.forgets, self.refusals, self.away = list(cuts), forgets, list(refusals), away
        self.blobs, self.manifests, self.open, self.received, self.resumed = {}, {}, {}, 0, []
        self.lock = threading.Lock()
        registry = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def answer(self, status, **headers):
                time.sleep(registry.away)
                self.send_response(status)
                for name, value in {"Content-Length": "0", **headers}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()

            def do_HEAD(self):
                self.answer(200 if self.path.rsplit("/", 1)[1] in registry.blobs else 404)

            def do_GET(self):
                if self.path == "/v2/":
                    return self.answer(200)
                upload = registry.open.get(self.path)
                if upload is None:
                    return self.answer(404)
                registry.resumed.append(len(upload))
                self.answer(204, Range=f"0-{max(len(upload) - 1, 0)}", Location=self.path)

            def do_POST(self):
                with registry.lock:
                    place = f"/v2/upload/{len(registry.open)}"
                    registry.open[place] = bytearray()
                self.answer(202, Location=place)

            def do_PATCH(self):
                refusal = registry.refusals.pop(0) if registry.refusals else None
                upload = bytearray() if refusal else registry.open[self.path]
                while size := int(self.rfile.readline(), 16):
                    upload += self.rfile.read(size)
                    registry.received += size
                    self.rfile.readline()
                    if registry.cuts and len(upload) >= registry.cuts[0]:
                        registry.cuts.pop(0)
                        if registry.forgets:
                            del registry.open[self.path]
                        self.connection.shutdown(socket.SHUT_RDWR)
                        self.close_connection = True
                        return
                self.rfile.readline()
                if refusal:
                    return self.answer(refusal[0], **refusal[1])
                self.answer(202, Location=self.path, Range=f"0-{len(upload) - 1}")

            def do_PUT(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                path, _, digest = self.path.partition("?digest=")
                if not digest:
                    registry.manifests[self.path] = json.loads(body)
                    return self.answer(201)
                blob = bytes(registry.open.pop(path)) + body
                if sha(blob) != digest.replace("%3A", ":"):
                    return self.answer(400)
                registry.blobs[sha(blob)] = blob
                self.answer(201)

        self.listen(Handler)


class Unwilling(Uploads):
    """Answers an upload before it has read any of it, and hangs up."""

    def __init__(self):
        super().__init__()
        handler = self.server.RequestHandlerClass

        def refuse(request, *_):
            body = b'{"errors": [{"code": "DENIED", "message": "the reef is closed"}]}'
            request.wfile.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            request.close_connection = True

        handler.do_PATCH = handler.handle_expect_100 = refuse


class Push(Case):
    def pushed(self, registry, *words, content=None):
        """Pushes an image of one large layer; what arrived is the image, whatever happened on the way."""
        self.registries.append(registry)
        self.archive = self.home + "/root.tar"
        with open(self.archive, "wb") as file:
            file.write(tar(("x", content or os.urandom(6_000_000))))
        self.kelp("import", self.archive, "local:1")
        out, err = self.kelp("push", *words, "local:1", f"{registry.host}/app:1")
        manifest = registry.manifests["/v2/app/manifests/1"]
        for part in [manifest["config"], *manifest["layers"]]:
            self.assertEqual(len(registry.blobs[part["digest"]]), part["size"])
        return manifest

    def test_a_stream_that_breaks_goes_on_where_it_broke(self):
        registry = Uploads(cuts=[2_000_000, 4_000_000, 4_000_001])
        manifest = self.pushed(registry)
        self.assertEqual([place // 1_000_000 for place in registry.resumed], [2, 4, 4])
        # Each byte went over once, but for what was on its way when it broke.
        self.assertLess(registry.received, manifest["layers"][0]["size"] + 3_000_000)

    def test_a_registry_that_is_not_near_gets_fewer_bytes(self):
        text = b"".join(path.read_bytes() for path in sorted(pathlib.Path(os.__file__).parent.glob("*.py")))
        [layer] = self.pushed(Uploads(away=0.02), content=text)["layers"]
        [same] = self.pushed(Uploads(), "--compression-level", "5", content=text)["layers"]
        [more] = self.pushed(Uploads(), "--compression-level", "1", content=text)["layers"]
        self.assertEqual(layer, same)
        self.assertLess(layer["size"], more["size"])

    def test_a_level_that_there_is_not_is_refused(self):
        for words, sentence in (
            (["--compression-level", "10"], "10 is not a level of this compression: 1 to 9 is expected"),
            (["--compression-format", "zstd", "--compression-level", "0"], "1 to 20 is expected"),
            (["--compression-format", "none", "--compression-level", "1"], "what is not packed has no --compression-level"),
        ):
            with self.assertRaisesRegex(AssertionError, sentence):
                self.pushed(Uploads(), *words)

    def test_one_that_the_registry_forgot_begins_anew(self):
        self.pushed(Uploads(cuts=[2_000_000, 1_000_000], forgets=True), "--compression-format", "zstd")

    def test_what_was_kept_as_it_came_goes_on_too(self):
        registry = Uploads(cuts=[1_000_000])
        self.pushed(registry, "--compression-format", "none")
        self.assertEqual(len(registry.resumed), 1)

    def test_passing_refusals_are_waited_for(self):
        self.pushed(Uploads(refusals=[(503, {}), (429, {"Retry_After": "1"})]))

    def test_lasting_ones_are_told(self):
        with self.assertRaisesRegex(AssertionError, "403"):
            self.pushed(Uploads(refusals=[(403, {})] * 9))


    def test_one_that_does_not_even_listen_is_told(self):
        with self.assertRaisesRegex(AssertionError, "the reef is closed"):
            self.pushed(Unwilling())


if __name__ == "__main__":
    unittest.main()
