"""A registry that misbehaves: each fault ends in an image or in a sentence, and nothing bad is kept."""

import base64
import json
import os
import signal
import time
import threading
import unittest

from world import Case, Image, sha, tar

RANDOM = os.urandom(3 << 20)


class Faults(Case):
    def setUp(self):
        super().setUp()
        self.server = self.registry()
        self.image = Image(tar(("a", RANDOM)), tar(("b", b"2")))
        self.name = self.server.add("team/app", self.image)
        self.blob = sha(self.image.layers[0])

    def blob_fault(self, fault, times=None):
        """Answers requests for the large layer with `fault`, all or the first few."""
        left = [times]

        def answer(request, path):
            if not path.endswith(self.blob):
                return False
            if left[0] is not None:
                if left[0] == 0:
                    return False
                left[0] -= 1
            fault(request)
            return True

        self.server.fault = answer

    def cut_once_then_down(self):
        """The first connection breaks after 1 MiB, and then the registry is down."""
        calls = []

        def fault(request):
            calls.append(1)
            if len(calls) == 1:
                self.server.send_blob(request, self.image.layers[0], cut=1 << 20)
            else:
                self.server.send(request, 503, b"")

        self.blob_fault(fault)

    def whole(self):
        out, _ = self.kelp("image", "inspect", "-f", "{{.Id}}", self.name)
        self.assertEqual(out.strip(), self.image.id)
        self.assertEqual(self.left(), [])
        self.sound()

    def test_a_cut_connection_is_resumed_where_it_broke(self):
        self.blob_fault(lambda request: self.server.send_blob(request, self.image.layers[0], cut=1 << 20), times=2)
        _, err = self.kelp("pull", self.name)
        self.whole()
        ranges = [entry[1] for entry in self.server.asked(self.blob)]
        self.assertEqual(ranges[0], None)
        self.assertEqual(ranges[-1], "bytes=%d-" % (2 << 20))
        self.assertIn("reconnecting", err)

    def test_a_refused_range_is_passed_over(self):
        def whole(request):
            request.headers.replace_header("Range", "") if request.headers.get("Range") else None
            del request.headers["Range"]
            self.server.send_blob(request, self.image.layers[0])

        calls = []

        def fault(request):
            calls.append(1)
            if len(calls) == 1:
                self.server.send_blob(request, self.image.layers[0], cut=1 << 20)
            else:
                whole(request)

        self.blob_fault(fault)
        self.kelp("pull", self.name)
        self.whole()

    def test_an_interrupted_pull_goes_on_across_runs(self):
        self.cut_once_then_down()
        self.refused("pull", "--retry", "1", self.name)
        kept = os.path.getsize(os.path.join(self.store, "partial", self.blob.split(":")[1]))
        self.assertGreater(kept, 1 << 19)
        self.server.fault = lambda *_: False
        self.server.log.clear()
        self.kelp("pull", self.name)
        self.assertEqual(self.server.asked(self.blob)[0][1], f"bytes={kept}-")
        self.whole()

    def test_a_damaged_partial_file_is_thrown_away(self):
        self.cut_once_then_down()
        self.refused("pull", "--retry", "1", self.name)
        with open(os.path.join(self.store, "partial", self.blob.split(":")[1]), "r+b") as file:
            file.seek(1000)
            file.write(b"damage")
        self.server.fault = lambda *_: False
        self.kelp("pull", self.name)
        self.whole()

    def test_wrong_bytes_are_refused_and_not_kept(self):
        for place in (10, len(self.image.layers[0]) // 2, len(self.image.layers[0]) - 5):
            bad = bytearray(self.image.layers[0])
            bad[place] ^= 1
            self.blob_fault(lambda request: self.server.send_blob(request, bytes(bad)))
            self.refused("pull", self.name)
            self.assertEqual(self.left(), [])
            layers = os.listdir(os.path.join(self.store, "layers"))
            self.assertNotIn(self.image.diff_ids[0].split(":")[1], layers)
        self.server.fault = lambda *_: False
        self.kelp("pull", self.name)
        self.whole()

    def test_a_wrong_length_is_refused(self):
        def longer(request):
            self.server.send_blob(request, self.image.layers[0] + b"more")

        self.blob_fault(longer)
        self.assertIn("longer", self.refused("pull", self.name))

        def claims_more(request):
            request.send_response(200)
            request.send_header("Content-Length", str(len(self.image.layers[0]) + 99))
            request.end_headers()
            request.wfile.write(self.image.layers[0][:1000])
            request.close_connection = True

        self.blob_fault(claims_more)
        started = time.monotonic()
        self.refused("pull", "--retry", "1", self.name)
        self.assertLess(time.monotonic() - started, 30)

    def test_no_length_at_all_is_fine(self):
        def nameless(request):
            request.send_response(200)
            request.send_header("Connection", "close")
            request.end_headers()
            request.wfile.write(self.image.layers[0])
            request.close_connection = True

        self.blob_fault(nameless)
        self.kelp("pull", self.name)
        self.whole()

    def test_passing_failures_are_waited_for(self):
        for status, headers in ((429, {"Retry-After": "1"}), (503, {}), (500, {})):
            self.blob_fault(lambda request: self.server.send(request, status, b"", headers), times=2)
            self.kelp("pull", self.name)
            self.whole()
            self.kelp("rmi", self.name)

    def test_lasting_failures_are_told(self):
        self.blob_fault(lambda request: self.server.send(request, 503, b""))
        self.assertIn("503", self.refused("pull", "--retry", "1", self.name))
        self.blob_fault(lambda request: self.server.send(request, 404, b""))
        self.assertIn("404", self.refused("pull", self.name))
        self.assertIn("not here", self.refused("pull", self.server.host + "/nothing"))

    def test_a_stalled_registry_is_left(self):
        stop = threading.Event()
        self.addCleanup(stop.set)

        def stall(request):
            request.send_response(200)
            request.send_header("Content-Length", str(len(self.image.layers[0])))
            request.end_headers()
            request.wfile.write(self.image.layers[0][:1000])
            request.wfile.flush()
            stop.wait(30)

        self.blob_fault(stall)
        started = time.monotonic()
        self.refused("pull", "--retry", "1", self.name)
        self.assertLess(time.monotonic() - started, 25)

    def test_endless_challenges_end(self):
        def challenge(request, path):
            self.server.send(request, 401, b"", {"WWW-Authenticate": 'Basic realm="x"'})
            return True

        self.server.fault = challenge
        self.assertIn("401", self.refused("pull", "--creds", "u:p", self.name))
        self.assertLess(len(self.server.log), 20)
        self.assertIn("none for it", self.refused("pull", self.name))

    def test_a_bearer_token_is_fetched_and_sent(self):
        def guarded(request, path):
            if path.startswith("/token"):
                self.assertIn("scope=repository%3Ateam%2Fapp%3Apull", path)
                good = request.headers.get("Authorization") == "Basic " + base64.b64encode(b"u:p").decode()
                self.server.send(request, 200 if good else 401, json.dumps({"token": "tok"}).encode())
                return True
            if request.headers.get("Authorization") != "Bearer tok":
                realm = f'Bearer realm="http://{self.server.host}/token",service="s",scope="repository:team/app:pull"'
                self.server.send(request, 401, b"", {"WWW-Authenticate": realm})
                return True
            return False

        self.server.fault = guarded
        self.kelp("pull", "--creds", "u:p", self.name)
        self.whole()
        self.kelp("rmi", self.name)
        self.assertIn("log in", self.refused("pull", "--creds", "u:wrong", self.name))

    def test_credentials_do_not_follow_a_redirect(self):
        other = self.registry()
        other.blobs[self.blob] = self.image.layers[0]

        def redirect(request, path):
            if request.headers.get("Authorization") is None:
                self.server.send(request, 401, b"", {"WWW-Authenticate": 'Basic realm="x"'})
                return True
            if path.endswith(self.blob):
                self.server.send(request, 307, b"", {"Location": f"http://{other.host}/v2/x/blobs/{self.blob}"})
                return True
            return False

        self.server.fault = redirect
        self.kelp("pull", "--creds", "u:p", self.name)
        self.whole()
        self.assertTrue(other.log)
        self.assertEqual([entry[2] for entry in other.log], [None])

    def test_redirects_in_a_circle_end(self):
        self.blob_fault(lambda request: self.server.send(request, 302, b"", {"Location": request.path}))
        self.refused("pull", "--retry", "0", self.name)

    def test_manifests_that_lie_are_refused(self):
        kind = self.image.manifest_type
        real = json.loads(self.image.manifest)

        def serve(data, media_type=kind):
            data = data if isinstance(data, bytes) else json.dumps(data).encode()
            self.server.manifests["lie", "1"] = (media_type, data)
            return self.refused("pull", self.server.host + "/lie:1")

        serve(b"not json")
        serve({"schemaVersion": 1})
        serve({**real, "manifests": []})
        serve(real, "application/vnd.oci.image.index.v1+json")
        serve({**real, "layers": real["layers"][:1]})
        serve({**real, "config": {**real["config"], "digest": "sha256:../../etc"}})
        serve({**real, "config": {**real["config"], "digest": "md5:" + "0" * 32}})
        serve({**real, "config": {**real["config"], "size": 1 << 40}})
        serve({**real, "config": {**real["config"], "digest": sha(self.image.layers[0]),
                                  "size": len(self.image.layers[0])}})
        serve({**real, "layers": [{**real["layers"][0], "mediaType": "application/wasm"}, real["layers"][1]]})
        foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
        self.assertIn("foreign", serve({**real, "layers": [{**layer, "mediaType": foreign} for layer in real["layers"]]}))
        serve(b" " * (5 << 20))
        self.server.manifests["lie", self.blob] = (kind, self.image.manifest)
        self.assertIn("exchanged", self.refused("pull", f"{self.server.host}/lie@{self.blob}"))

    def test_a_wrong_diff_id_is_refused(self):
        config = json.loads(self.image.config)
        config["rootfs"]["diff_ids"][0] = sha(b"other")
        lie = Image(tar(("a", RANDOM)), tar(("b", b"2")), config=config)
        self.assertIn("its image says", self.refused("pull", self.server.add("lie", lie)))
        self.assertEqual(self.left(), [])

    def test_only_missing_layers_are_asked_for(self):
        self.kelp("pull", self.name)
        more = Image(tar(("a", RANDOM)), tar(("b", b"2")), tar(("c", b"3")))
        name = self.server.add("more", more)
        self.server.log.clear()
        self.kelp("pull", name)
        blobs = [entry[0].rsplit("/", 1)[1] for entry in self.server.log if "/blobs/" in entry[0]]
        self.assertEqual(sorted(blobs), sorted([sha(more.config), sha(more.layers[2])]))

    def test_the_platform_is_chosen(self):
        arm = Image(tar(("arm", b"")), config={"architecture": "arm64", "os": "linux", "config": {},
                                              "rootfs": {"type": "layers", "diff_ids": [sha(tar(("arm", b"")))]}})
        self.server.add("multi", arm)
        self.server.add("multi", self.image)
        entries = [{"mediaType": image.manifest_type, "digest": sha(image.manifest), "size": len(image.manifest),
                    "platform": {"os": "linux", "architecture": architecture}}
                   for image, architecture in ((arm, "arm64"), (self.image, "amd64"))]
        index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries}
        self.server.manifests["multi", "1"] = (index["mediaType"], json.dumps(index).encode())
        for platform, image in ((None, self.image), ("linux/arm64", arm)):
            out, _ = self.kelp("pull", "-q", *(["--platform", platform] if platform else []), self.server.host + "/multi:1")
            self.assertEqual(out.strip(), image.id.split(":")[1])
        self.assertIn("arm64", self.refused("pull", "--platform", "linux/s390x", self.server.host + "/multi:1"))

    def test_what_came_of_a_layer_that_is_in_its_place_goes(self):
        """A pull that was killed between the two."""
        self.kelp("pull", "-q", self.name)
        part = os.path.join(self.store, "partial", sha(self.image.layers[0]).removeprefix("sha256:"))
        with open(part, "wb") as file:
            file.write(self.image.layers[0])
        self.kelp("pull", "-q", self.name)
        self.assertEqual(self.left(), [])

    def test_an_image_of_another_platform_is_refused(self):
        """Without an index only the configuration says for which platform it is."""
        for verb in (["pull"], ["run", "--rm"], ["run", "--rm", "--pull", "never"]):
            _, said = self.kelp(*verb[:2], "--platform", "linux/arm64", *verb[2:], self.name, ok=False)
            self.assertIn("does not match the specified platform: wanted linux/arm64/v8, actual: linux/amd64", said)
            self.kelp("pull", "-q", "--platform", "linux/amd64", self.name)

    def test_policies_and_configuration_are_obeyed(self):
        self.assertIn("forbids", self.refused("pull", "--policy", "never", self.name))
        self.kelp("pull", "-q", self.name)
        self.server.log.clear()
        self.kelp("pull", "-q", "--policy", "missing", self.name)
        self.kelp("pull", "-q", "--policy", "never", self.name)
        self.assertEqual(self.server.log, [])
        config = os.path.join(self.home, ".config/containers")
        os.makedirs(config)
        with open(config + "/registries.conf", "w") as file:
            file.write(f'''unqualified-search-registries = ["{self.server.host}"]
[[registry]]
location = "blocked.example"
blocked = true
[[registry]]
prefix = "mirrored.example"
location = "{self.server.host}"
[aliases]
"short" = "{self.server.host}/team/app"
''')
        for name in ("short:1", "team/app:1", "mirrored.example/team/app:1"):
            self.kelp("rmi", "-a")
            self.kelp("pull", name)
        self.assertIn("blocked", self.refused("pull", "blocked.example/x"))
        with open(config + "/policy.json", "w") as file:
            json.dump({"default": [{"type": "reject"}]}, file)
        self.assertIn("rejected", self.refused("pull", self.name))
        with open(config + "/policy.json", "w") as file:
            json.dump({"default": [{"type": "signedBy"}]}, file)
        self.assertIn("signedBy", self.refused("pull", self.name))


if __name__ == "__main__":
    unittest.main()
