"""Independent producers and consumers: Debian's docker-registry, skopeo, umoci, podman. What they write kelp reads,
what kelp writes they read, digest for digest."""

import contextlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import tarfile
import time
import unittest
import urllib.request

from world import Case, Image, folder, hard, link, sha, tar


PORTS = itertools.count(20_000 if os.environ.get("KELP_TEST_KIND") == "one" else 26_000)


def free_port():
    """Below those that the kernel gives to others, each once, so that nobody takes it before the registry does."""
    for port in PORTS:
        with contextlib.closing(socket.socket()) as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Standing(Case):
    """An image, and what other programs do with it."""

    def setUp(self):
        super().setUp()
        self.image = Image(tar(folder("bin"), ("bin/sh", b"#!", {"mode": 0o755}), ("f", os.urandom(100_000))),
                           tar(("bin/.wh.sh", b""), ("g", b"2", {"uid": 10})))
        server = self.registry()
        self.source = server.add("app", self.image)

    def docker_registry(self, tls=False, password=None):
        port = free_port()
        host = f"127.0.0.1:{port}"
        base = os.path.join(self.home, f"registry-{port}")
        os.makedirs(base)
        config = {"version": 0.1, "log": {"level": "error", "accesslog": {"disabled": True}},
                  "storage": {"filesystem": {"rootdirectory": base + "/data"}}, "http": {"addr": host}}
        if tls:
            fresh = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
            subprocess.run([*fresh, "-subj", "/CN=ca", "-keyout", base + "/ca.key", "-out", base + "/ca.crt"], check=True,
                           capture_output=True)
            subprocess.run([*fresh, "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1", "-addext",
                            "basicConstraints=critical,CA:FALSE", "-CA", base + "/ca.crt", "-CAkey", base + "/ca.key",
                            "-keyout", base + "/key", "-out", base + "/crt"], check=True, capture_output=True)
            config["http"]["tls"] = {"certificate": base + "/crt", "key": base + "/key"}
        if password:
            line = subprocess.run(["htpasswd", "-Bbn", "user", password], check=True, capture_output=True).stdout
            with open(base + "/htpasswd", "wb") as file:
                file.write(line)
            config["auth"] = {"htpasswd": {"realm": "test", "path": base + "/htpasswd"}}
        with open(base + "/config", "w") as file:
            json.dump(config, file)
        process = subprocess.Popen(["docker-registry", "serve", base + "/config"], env={**self.env, "OTEL_TRACES_EXPORTER": "none"},
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(lambda: (process.kill(), process.wait()))
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return host, base
            except OSError:
                self.assertLess(time.monotonic(), deadline, "docker-registry does not start")
                time.sleep(0.02)

    def skopeo(self, *words):
        policy = ["--insecure-policy"]
        done = subprocess.run(["skopeo", *policy, *words], env=self.env, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout


class Peers(Standing):
    def test_what_kelp_pushes_skopeo_copies_and_kelp_pulls_again(self):
        host, _ = self.docker_registry()
        self.kelp("pull", "-q", self.source)
        digestfile = os.path.join(self.home, "digest")
        for words, name in (([], "a"), (["--compression-format", "zstd"], "b"), (["--compression-format", "none"], "c"), (["--compression-level", "9"], "d")):
            target = f"{host}/{name}:1"
            self.kelp("push", "-q", "--digestfile", digestfile, *words, self.source, target)
            layout = os.path.join(self.home, name)
            self.skopeo("copy", "--src-tls-verify=false", f"docker://{target}", f"oci:{layout}:1")
            shown = json.loads(self.skopeo("inspect", "--tls-verify=false", f"docker://{target}"))
            with open(digestfile) as file:
                self.assertEqual(shown["Digest"], file.read())
            self.kelp("rmi", "-a")
            out, _ = self.kelp("pull", "-q", target)
            self.assertEqual("sha256:" + out.strip(), self.image.id)
            self.sound()
            self.kelp("tag", target, self.source)

    def test_an_image_keeps_its_digest_where_its_blobs_are(self):
        host, _ = self.docker_registry()
        self.kelp("pull", "-q", "--keep-blobs", self.source)
        out, _ = self.kelp("push", self.source, f"{host}/team/a:1")
        self.assertIn(sha(self.image.manifest), out)
        self.kelp("rmi", "-a")
        self.kelp("pull", "-q", f"{host}/team/a:1")
        out, err = self.kelp("push", f"{host}/team/a:1", f"{host}/team/b:1")
        self.assertIn(sha(self.image.manifest), out)
        self.assertEqual(err.count("mounted"), 2, err)
        out, err = self.kelp("push", f"{host}/team/a:1", f"{host}/team/b:2")
        self.assertEqual(err.count("already there"), 2, err)

    def test_a_layer_that_was_made_here_is_packed_once(self):
        host, _ = self.docker_registry()
        archive = self.home + "/root.tar"
        with open(archive, "wb") as file:
            file.write(tar(("x", os.urandom(50_000))))
        self.kelp("import", archive, "local:1")
        words = [("a:1", "pushed"), ("a:2", "already there"), ("b:1", "mounted")]
        for name, word in words:
            self.assertIn(word, self.kelp("push", "local:1", f"{host}/{name}")[1])
        digests = {json.loads(self.skopeo("inspect", "--tls-verify=false", f"docker://{host}/{name}"))["Digest"] for name, _ in words}
        self.assertEqual(len(digests), 1)
        # Packed in another way it is another blob, and a registry that has lost it gets it again.
        self.assertIn("pushed", self.kelp("push", "--compression-format", "zstd", "local:1", f"{host}/a:3")[1])
        other, _ = self.docker_registry()
        self.assertIn("pushed", self.kelp("push", "local:1", f"{other}/a:1")[1])
        self.sound()

    def test_archives_go_both_ways(self):
        self.kelp("pull", "-q", self.source)
        home = self.home
        for form, transport in (("docker-archive", "docker-archive"), ("oci-archive", "oci-archive"), ("oci-dir", "oci")):
            ours, theirs = f"{home}/ours-{form}", f"{home}/theirs-{form}"
            self.kelp("save", "--format", form, "-o", ours, self.source)
            self.skopeo("copy", f"{transport}:{ours}", f"{transport}:{theirs}:{self.source}")
            raw = json.loads(self.skopeo("inspect", "--config", "--raw", f"{transport}:{theirs}"))
            self.assertEqual(raw["rootfs"]["diff_ids"], self.image.diff_ids)
            self.kelp("rmi", "-a")
            self.kelp("load", "-i", theirs)
            out, _ = self.kelp("images", "-q", "--no-trunc")
            if form != "docker-archive":
                self.assertEqual(out.split(), [self.image.id])
            self.sound()
            self.kelp("system", "prune", "-af")
            self.kelp("pull", "-q", self.source)

    def test_umoci_unpacks_what_kelp_saves_and_kelp_loads_what_umoci_writes(self):
        self.kelp("pull", "-q", self.source)
        layout = os.path.join(self.home, "layout")
        self.kelp("save", "--format", "oci-dir", "--compression-format", "gzip", "-o", layout, self.source)
        with open(layout + "/index.json") as file:
            index = json.load(file)
        index["manifests"][0]["annotations"] = {"org.opencontainers.image.ref.name": "x"}
        with open(layout + "/index.json", "w") as file:
            json.dump(index, file)
        bundle = os.path.join(self.home, "bundle")
        subprocess.run(["umoci", "unpack", "--rootless", "--image", f"{layout}:x", bundle], check=True,
                       capture_output=True, env=self.env)
        self.assertEqual(sorted(os.listdir(bundle + "/rootfs")), ["bin", "f", "g"])
        self.assertEqual(os.listdir(bundle + "/rootfs/bin"), [])
        with open(bundle + "/rootfs/new", "w") as file:
            file.write("new")
        os.remove(bundle + "/rootfs/f")
        subprocess.run(["umoci", "repack", "--image", f"{layout}:y", bundle], check=True, capture_output=True,
                       env=self.env)
        out, _ = self.kelp("load", "-i", layout)
        self.assertEqual(len(out.splitlines()), 2)
        self.sound()
        subprocess.run(["chmod", "-R", "u+rwX", bundle])

    def test_podman_and_kelp_agree_on_ids_and_templates(self):
        if not shutil.which("podman"):
            self.skipTest("podman is not installed")
        host, _ = self.docker_registry()
        self.kelp("pull", "-q", "--keep-blobs", self.source)
        target = f"{host}/app:1"
        self.kelp("push", "-q", self.source, target)
        self.kelp("pull", "-q", target)
        podman = ["podman", "--root", self.home + "/podman", "--runroot", self.home + "/podman-run",
                  "--storage-driver", "overlay", "--storage-opt", "overlay.ignore_chown_errors=true"]

        def run(*words):
            done = subprocess.run([*podman, *words], env=self.env, capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr)
            return done.stdout

        try:
            self.compare_with_podman(run, target)
        finally:
            subprocess.run(["podman", "unshare", "rm", "-rf", self.home + "/podman"], env=self.env, capture_output=True)

    def compare_with_podman(self, run, target):
        run("pull", "-q", "--tls-verify=false", target)
        for words in (["images", "--no-trunc", "--format", "{{.ID}} {{.Repository}} {{.Tag}} {{.Digest}}", target.rsplit(":", 1)[0]],
                      ["image", "inspect", "--format", "{{.Os}} {{.Architecture}} {{json .Config.Env}} {{.RootFS.Layers}}", target]):
            self.assertEqual(self.kelp(*words)[0], run(*words), words)
        archive = os.path.join(self.home, "podman.tar")
        run("save", "-q", "-o", archive, target)
        self.kelp("system", "prune", "-af")
        self.kelp("load", "-i", archive)
        out, _ = self.kelp("images", "-q", "--no-trunc")
        self.assertEqual(out.split(), [self.image.id])

    def test_tls_with_a_private_ca(self):
        host, base = self.docker_registry(tls=True)
        self.kelp("pull", "-q", self.source)
        self.assertIn("certificate", self.refused("push", self.source, f"{host}/a:1"))
        self.kelp("push", "--tls-verify=false", self.source, f"{host}/a:1")
        certificates = os.path.join(self.home, ".config/containers/certs.d", host)
        os.makedirs(certificates)
        shutil.copy(base + "/ca.crt", certificates + "/ca.crt")
        self.kelp("push", self.source, f"{host}/b:1")
        self.kelp("pull", f"{host}/b:1")

    def test_login_is_tried_kept_and_forgotten(self):
        host, _ = self.docker_registry(password="secret")
        self.kelp("pull", "-q", self.source)
        self.assertIn("cannot log in", self.refused("push", self.source, f"{host}/a:1"))
        self.refused("login", "-u", "user", "--password-stdin", host, input=b"wrong\n")
        out, _ = self.kelp("login", "-u", "user", "--password-stdin", host, input=b"secret\n")
        self.assertEqual(out, "Login Succeeded\n")
        path = os.path.join(self.home, ".config/containers/auth.json")
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
        self.kelp("push", self.source, f"{host}/a:1")
        self.skopeo("inspect", "--tls-verify=false", "--authfile", path, f"docker://{host}/a:1")
        self.kelp("logout", host)
        self.refused("push", self.source, f"{host}/a:1")
        os.makedirs(os.path.join(self.home, ".docker"))
        shutil.copy(path, os.path.join(self.home, ".docker/config.json"))
        helper = os.path.join(self.home, "bin")
        os.makedirs(helper)
        with open(helper + "/docker-credential-test", "w") as file:
            file.write('#!/bin/sh\nread server\n[ "$1 $server" = "get %s" ] && '
                       'echo \'{"Username":"user","Secret":"secret"}\'\n' % host)
        os.chmod(helper + "/docker-credential-test", 0o755)
        with open(os.path.join(self.home, ".docker/config.json"), "w") as file:
            json.dump({"credHelpers": {host: "test"}}, file)
        self.kelp("push", self.source, f"{host}/a:2", env={"PATH": helper + ":" + self.env["PATH"]})

    def test_import_makes_an_image_of_a_tar(self):
        root = tar(folder("bin"), ("bin/sh", b"#!", {"mode": 0o755}))
        changes = ["-c", 'CMD ["/bin/sh","-c","x"]', "-c", "ENV A=b", "-c", "EXPOSE 80", "-c", "WORKDIR /w", "-c", "LABEL l=v"]
        self.kelp("import", *changes, "-", "made:1", input=root)
        out, _ = self.kelp("image", "inspect", "-f", "{{json .Config}} {{.RootFS.Layers}}", "made:1")
        config, layers = out.split("} [")
        self.assertEqual(json.loads(config + "}"), {"Cmd": ["/bin/sh", "-c", "x"], "Env": ["A=b"], "WorkingDir": "/w",
                                                    "ExposedPorts": {"80/tcp": {}}, "Labels": {"l": "v"}})
        self.assertEqual(layers.strip("]\n"), sha(root))
        self.refused("import", "-c", "RUN x", "-", input=root)
        self.refused("load", input=root)


if __name__ == "__main__":
    unittest.main()
