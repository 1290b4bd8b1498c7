"""What the environment and the user's files say of registries, and a pull that somebody interrupts."""

import base64
import functools
import json
import os
import signal
import socket
import threading
import time
import unittest
import urllib.parse

from test_store import layer
from world import Case, Image, sha


class Proxy:
    """Carries connections to one registry, whatever the name was that they asked for."""

    def __init__(self, host):
        self.host, self.asked = tuple(host.split(":")), []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = "http://127.0.0.1:%d" % self.listener.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.carry, args=(client,), daemon=True).start()

    def carry(self, client):
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(1)
        method, target, _ = head.split(b"\r\n")[0].decode().split(" ")
        self.asked.append(f"{method} {target}")
        server = socket.create_connection(self.host)
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        back = threading.Thread(target=self.copy, args=(server, client), daemon=True)
        back.start()
        self.copy(client, server)

    @staticmethod
    def copy(source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self):
        self.listener.close()


class Words(Case):
    def setUp(self):
        super().setUp()
        self.server = self.registry()
        self.image = Image(layer(1), layer(2))
        self.name = self.server.add("team/app", self.image)

    def test_a_proxy_of_the_environment_is_used_and_resolves_names(self):
        proxy = Proxy(self.server.host)
        self.registries.append(proxy)
        name = "registry.invalid:5000/team/app:1"
        env = {"HTTP_PROXY": proxy.url, "HTTPS_PROXY": proxy.url}
        self.kelp("pull", "-q", "--tls-verify=false", name, env=env)
        self.assertTrue(proxy.asked)
        self.assertEqual(set(proxy.asked), {"CONNECT registry.invalid:5000"})
        self.assertEqual(self.kelp("image", "inspect", "-f", "{{.Id}}", name)[0].strip(), self.image.id)
        self.refused("pull", "-q", "--retry", "0", "--tls-verify=false", name, env={**env, "NO_PROXY": "registry.invalid"})

    def test_an_identity_token_is_exchanged(self):
        posted = []

        def guarded(request, path):
            if path == "/token":
                body = request.rfile.read(int(request.headers["Content-Length"])).decode()
                posted.append(dict(urllib.parse.parse_qsl(body)))
                self.server.send(request, 200, json.dumps({"access_token": "tok"}).encode())
                return True
            if request.headers.get("Authorization") != "Bearer tok":
                realm = f'Bearer realm="http://{self.server.host}/token",service="s"'
                self.server.send(request, 401, b"", {"WWW-Authenticate": realm})
                return True
            return False

        self.server.fault = guarded
        self.server.server.RequestHandlerClass.do_POST = self.server.server.RequestHandlerClass.do_GET
        authfile = self.home + "/auth.json"
        entry = {"auth": base64.b64encode(b"<token>:").decode(), "identitytoken": "identity"}
        with open(authfile, "w") as file:
            json.dump({"auths": {self.server.host: entry}}, file)
        self.kelp("pull", "-q", "--authfile", authfile, self.name)
        self.assertEqual((posted[0]["grant_type"], posted[0]["refresh_token"], posted[0]["scope"]),
                         ("refresh_token", "identity", "repository:team/app:pull"))

    def test_an_interrupted_pull_says_that_it_can_go_on_and_does(self):
        self.interrupted("pull", self.name)

    def test_an_interrupted_run_too(self):
        self.interrupted("run", "--name", "c", self.name, "true")
        self.assertEqual(self.kelp("ps", "-aq")[0], "")

    def interrupted(self, *words):
        blob = self.image.layers[0]

        def slow(request, path):
            if not path.endswith(sha(blob)):
                return False
            self.server.send_blob(request, blob, pause=0.3)
            return True

        self.server.fault = slow
        part = os.path.join(self.store, "partial", sha(blob).removeprefix("sha256:"))
        # Whoever is started in the background by a shell ignores the signal, and so would all that the tests start.
        heeds = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        pull = self.start(*words, start_new_session=True, preexec_fn=heeds)
        while not (os.path.exists(part) and os.path.getsize(part)):
            self.assertIsNone(pull.poll())
            time.sleep(0.01)
        os.killpg(pull.pid, signal.SIGINT)
        _, err = pull.communicate(timeout=10)
        self.assertEqual(pull.returncode, 130, err)
        self.assertIn(b"the same command goes on from there", err)
        self.server.fault = lambda request, path: False
        self.server.log.clear()
        self.kelp("pull", "-q", self.name)
        self.assertTrue([wanted for _, wanted, _ in self.server.log if wanted], self.server.log)
        self.sound()
        self.assertEqual(self.left(), [])

    def test_the_layers_of_an_image_are_a_tree(self):
        self.kelp("pull", "-q", self.name)
        out, _ = self.kelp("image", "tree", self.name)
        for diff_id in self.image.diff_ids:
            self.assertIn(diff_id.removeprefix("sha256:")[:12], out)


if __name__ == "__main__":
    unittest.main()
