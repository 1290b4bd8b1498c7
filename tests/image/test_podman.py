"""Podman beside kelp on the same images: ids, names, sizes, digests, templates, and the files of every verb that gives
some. Where docker's words differ from podman's, kelp has docker's, and the test says so."""

import io
import json
import os
import shutil
import subprocess
import tarfile
import unittest

from test_peers import Standing
from world import Image, folder, hard, link, tar

CONFIG = {"Cmd": ["/bin/sh", "-c", "true"], "Env": ["PATH=/bin", "A=1"], "Entrypoint": ["/bin/e"], "WorkingDir": "/d", "User": "0:0",
          "Labels": {"l": "v", "m": "w x"}, "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/v": {}}, "StopSignal": "SIGINT"}


@unittest.skipUnless(shutil.which("podman"), "podman is not installed")
class Beside(Standing):
    def setUp(self):
        super().setUp()
        layers = [tar(folder("bin"), ("bin/sh", b"#!" + b"x" * 50_000, {"mode": 0o755}), folder("etc"), ("etc/passwd", b"root:x:0:0::/:/bin/sh\n"),
                      folder("d"), ("d/one", b"1"), ("d/two", b"2"), folder("d/sub"), ("d/sub/deep", b"deep"), folder("gone"), ("gone/x", b"x"),
                      ("a", b"A" * 1234), hard("b", "a"), link("l", "/d/one")),
                  tar(("over", b"second" * 100, {"mode": 0o600}), ("d/.wh.two", b""))]
        probe = Image(*layers)
        history = [{"created": "2024-02-28T12:00:00Z", "created_by": "/bin/sh -c #(nop) ADD file:1 in /", "comment": "first"},
                   {"created": "2024-02-29T11:00:00Z", "created_by": "/bin/sh -c #(nop) CMD [x]", "empty_layer": True},
                   {"created": "2024-02-29T12:00:00Z", "created_by": "/bin/sh -c rm /d/two && a command that is too long for one column", "author": "me"}]
        config = {"architecture": "amd64", "os": "linux", "created": "2024-02-29T12:00:00Z", "author": "me", "config": CONFIG,
                  "rootfs": {"type": "layers", "diff_ids": probe.diff_ids}, "history": history}
        self.image = Image(*layers, config=config)
        self.host, _ = self.docker_registry()
        self.kelp("pull", "-q", "--keep-blobs", self.registry().add("source", self.image))
        source = self.kelp("images", "--format", "{{.Repository}}:{{.Tag}}")[0].strip()
        self.name = f"{self.host}/team/app:1"
        self.kelp("push", "-q", source, self.name)
        self.kelp("rmi", source)
        base = self.home + "/podman"
        self.words = ["podman", "--root", base, "--runroot", base + "-run", "--storage-driver", "overlay",
                      "--storage-opt", "overlay.ignore_chown_errors=true", "--cgroup-manager", "cgroupfs", "--events-backend", "file"]
        self.kelp("pull", "-q", self.name)
        self.podman("pull", "-q", "--tls-verify=false", self.name)

    def tearDown(self):
        base = self.home + "/podman"
        subprocess.run([*self.words, "unshare", "rm", "-rf", base, base + "-run"], env=self.env, capture_output=True)
        super().tearDown()

    def podman(self, *words, text=True, input=None):
        done = subprocess.run([*self.words, *words], env=self.env, capture_output=True, input=input, timeout=60)
        self.assertEqual(done.returncode, 0, f"podman {' '.join(words)}: {done.stderr.decode()}")
        return done.stdout.decode() if text else done.stdout

    def same(self, *words, change=lambda text: text):
        """Both print the same."""
        ours, theirs = self.kelp(*words)[0], self.podman(*words)
        self.assertEqual(change(ours), change(theirs), words)
        return ours

    def entries(self, data):
        """What a tar has: kind, mode, owner, size, link and content of each name; of a hard link the content."""
        found = {}
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in archive:
                content = archive.extractfile(member).read() if member.isfile() or member.islnk() else None
                kind = tarfile.REGTYPE if member.islnk() else member.type
                target = member.linkname if member.issym() else ""
                name = member.name.rstrip("/").removeprefix("./")
                # Docker has an entry for the folder whose contents are copied, podman has none.
                if name != ".":
                    found[name] = (kind, oct(member.mode & 0o7777), member.uid, member.gid, target, content)
        return found

    def changed(self):
        """A container of both with the same changes, made by cp: podman may not run one on every machine."""
        source = self.home + "/new"
        os.makedirs(source + "/sub")
        for path, text, mode in (("one", "changed", 0o640), ("sub/two", "2", 0o755)):
            with open(f"{source}/{path}", "w") as file:
                file.write(text)
            os.chmod(f"{source}/{path}", mode)
        for run in (self.kelp, self.podman):
            run("create", "--name", "c", "--network", "none", self.name)
            run("cp", source + "/one", "c:/d/one")
            run("cp", source, "c:/tree")

    def test_lists_of_images(self):
        fields = "{{.Repository}} {{.Tag}} {{.ID}} {{.Digest}}"
        self.same("images", "--format", fields)
        self.same("images", "--no-trunc", "--format", fields)
        self.same("images", "-q")
        self.same("images", "-q", "--no-trunc")
        self.same("images", "--noheading", "--format", "table {{.Repository}}")
        self.same("images", "--format", "{{.CreatedSince}}")
        # Docker counts the contents of files; podman the tars and the configuration.
        self.assertEqual(self.kelp("images", "--format", "{{.Size}}")[0], "51.9kB\n")
        self.assertRegex(self.podman("images", "--format", "{{.Size}}"), r"^8[0-9]\S* kB\n$")
        self.kelp("tag", self.name, "other:2")
        self.podman("tag", self.name, "docker.io/library/other:2")
        for filter in ("reference=*/team/app", "label=l=v", "label=l=x", "dangling=true"):
            self.same("images", "-q", "--filter", filter, change=lambda text: sorted(set(text.split())))
        self.same("image", "exists", "other:2")

    def test_inspection_of_images(self):
        ours = json.loads(self.kelp("image", "inspect", self.name)[0])[0]
        theirs = json.loads(self.podman("image", "inspect", self.name))[0]
        for field in ("Digest", "RepoTags", "RepoDigests", "Parent", "Created", "Author", "Config", "Architecture", "Os", "RootFS", "Labels", "History"):
            self.assertEqual(ours[field], theirs[field], field)
        # Docker's comment is the last step's, podman's the first's.
        self.assertEqual((ours["Comment"], theirs["Comment"]), ("", "first"))
        self.assertEqual(ours["Id"], "sha256:" + theirs["Id"])
        for template in ("{{.Config.Cmd}}", "{{json .Config.Env}}", "{{.Config.WorkingDir}} {{.Os}}/{{.Architecture}}", "{{len .RootFS.Layers}}",
                         "{{range .RepoTags}}{{.}} {{end}}", "{{index .Config.Labels \"m\"}}", "{{if .Config.Volumes}}yes{{else}}no{{end}}",
                         "{{range $k, $v := .Config.Labels}}{{$k}}={{$v}};{{end}}", "{{index .RootFS.Layers 0}}", "{{.Author | printf \"%q\"}}",
                         "{{join .Config.Entrypoint \",\"}}", "{{upper .Os}}"):
            self.same("image", "inspect", "--format", template, self.name)

    def test_history(self):
        self.same("history", "--format", "{{.CreatedBy}}|{{.Comment}}|{{.ID}}", "--no-trunc", self.name,
                  change=lambda text: text.replace("sha256:", ""))
        self.same("history", "--format", "{{.CreatedSince}}", self.name)
        self.same("history", "-q", self.name)

    def test_changes_of_a_container(self):
        self.changed()
        self.assertEqual(sorted(self.kelp("diff", "c")[0].split("\n")), sorted(self.podman("diff", "c").split("\n")))
        ours, theirs = (json.loads(run("diff", "--format", "json", "c")) for run in (lambda *words: self.kelp(*words)[0], self.podman))
        self.assertEqual({key: sorted(ours[key]) for key in ours if ours[key]}, {key: sorted(theirs[key]) for key in theirs})

    def test_copies_and_exports(self):
        self.changed()
        # Of a link docker copies the link, podman what it leads to.
        for path in ("/d", "/d/one", "/tree/."):
            ours, theirs = self.kelp("cp", "c:" + path, "-", text=False)[0], self.podman("cp", "c:" + path, "-", text=False)
            self.assertEqual(self.entries(ours), self.entries(theirs), path)
        ours, theirs = self.entries(self.kelp("export", "c", text=False)[0]), self.entries(self.podman("export", "c", text=False))
        self.assertEqual(ours, theirs)
        for run, out in ((self.kelp, "ours"), (self.podman, "theirs")):
            run("cp", "c:/d", f"{self.home}/{out}")
        self.assertEqual(sorted(os.listdir(self.home + "/ours")), sorted(os.listdir(self.home + "/theirs")))

    def test_commits(self):
        self.changed()
        changes = ["-c", "CMD [\"/bin/x\",\"y\"]", "-c", "ENV B=2", "-c", "LABEL n=o", "-c", "WORKDIR /w", "-c", "USER 7", "-c", "EXPOSE 90/udp",
                   "-c", "STOPSIGNAL SIGHUP", "-c", "VOLUME /x", "-a", "who"]
        ours, theirs = self.kelp("commit", *changes, "c", "made:1")[0].strip(), self.podman("commit", "-q", *changes, "c", "made:1").strip()
        # Docker prints the whole digest.
        self.assertEqual((ours[:7], len(ours) - 7), ("sha256:", len(theirs)))
        ours = json.loads(self.kelp("image", "inspect", "made:1")[0])[0]
        theirs = json.loads(self.podman("image", "inspect", "made:1"))[0]
        self.assertEqual(ours["Author"], theirs["Author"])
        self.assertEqual(sorted(ours["Config"].pop("Env")), sorted(name for name in theirs["Config"].pop("Env") if not name.startswith(("container=", "HOME=", "TERM="))))
        # Podman writes the number of a signal whose name it was given.
        self.assertEqual((ours["Config"].pop("StopSignal"), theirs["Config"].pop("StopSignal")), ("SIGHUP", "1"))
        self.assertEqual(ours["Config"], theirs["Config"])
        self.assertEqual(ours["RootFS"]["Layers"][:2], theirs["RootFS"]["Layers"][:2])
        layers = []
        for run, out in ((self.kelp, "ours.tar"), (self.podman, "theirs.tar")):
            run("save", "-q", "-o", f"{self.home}/{out}", "made:1")
            with tarfile.open(f"{self.home}/{out}") as archive:
                manifest = json.load(archive.extractfile("manifest.json"))[0]
                layers.append(self.entries(archive.extractfile(manifest["Layers"][-1]).read()))
        self.assertEqual(*layers)

    def test_archives(self):
        """Each saves, the other loads, and the image has the same id and the same layers."""
        for form in ("docker-archive", "oci-archive"):
            ours, theirs = f"{self.home}/ours-{form}.tar", f"{self.home}/theirs-{form}.tar"
            self.kelp("save", "--format", form, "-o", ours, self.name)
            self.podman("save", "-q", "--format", form, "-o", theirs, self.name)
            if form == "docker-archive":
                found = []
                for path in (ours, theirs):
                    with tarfile.open(path) as archive:
                        found.append(json.load(archive.extractfile("manifest.json")))
                self.assertEqual(*found)
            layers = self.same("image", "inspect", "--format", "{{.RootFS.Layers}}", self.name)
            self.kelp("rmi", "-fa")
            self.podman("rmi", "-fa")
            self.assertIn(self.name, self.kelp("load", "-i", theirs)[0])
            self.assertIn(self.name, self.podman("load", "-q", "-i", ours))
            self.assertEqual(self.same("image", "inspect", "--format", "{{.RootFS.Layers}}", self.name), layers)
            # Podman writes a configuration of its own into an OCI archive; kelp keeps it byte for byte in both.
            self.assertEqual("sha256:" + self.podman("image", "inspect", "--format", "{{.Id}}", self.name).strip(), self.image.id)
            if form == "docker-archive":
                self.assertEqual(self.kelp("image", "inspect", "--format", "{{.Id}}", self.name)[0].strip(), self.image.id)
        with open(f"{self.home}/ours-docker-archive.tar", "rb") as file:
            data = file.read()
        self.assertEqual(self.kelp("load", input=data)[0], self.podman("load", input=data).replace("Loaded image: sha256:", "Loaded image: "))

    def test_lists_of_manifests(self):
        for run, more in ((self.kelp, []), (self.podman, [])):
            run("manifest", "create", "both:1")
            run("manifest", "add", "--tls-verify=false", *more, "--arch", "arm64", "--variant", "v8", "--annotation", "a=b", "both:1", "docker://" + self.name)
        ours, theirs = (json.loads(run("manifest", "inspect", "both:1")) for run in (lambda *words: self.kelp(*words)[0], self.podman))
        self.assertEqual(ours["manifests"], theirs["manifests"])
        for run, name in ((self.kelp, "ours"), (self.podman, "theirs")):
            run("manifest", "push", "--tls-verify=false", "--all", "both:1", f"docker://{self.host}/{name}:1")
        ours, theirs = (self.skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{self.host}/{name}:1") for name in ("ours", "theirs"))
        self.assertEqual(json.loads(ours)["manifests"], json.loads(theirs)["manifests"])

    def test_search(self):
        self.kelp("push", "-q", self.name, f"{self.host}/team/web:2")
        for words in (["--format", "{{.Name}}", f"{self.host}/team"], ["--format", "{{.Name}}", f"{self.host}/"],
                      ["--list-tags", "--format", "{{.Name}} {{.Tag}}", f"{self.host}/team/web"], ["--limit", "1", "--format", "{{.Name}}", f"{self.host}/"]):
            # Podman puts a heading over the rows of this template.
            self.same("search", "--tls-verify=false", *words, change=lambda text: [line.split() for line in text.splitlines() if not line.startswith("NAME")])

    def test_mounts(self):
        script = "set -e; place=$({} image mount {}); cd $place; find . -mindepth 1 ! -type d -printf '%P %y %m %s %l\\n' | sort; cd /; {} image unmount {} >&2"
        kelp, podman = os.environ["KELP"], " ".join(self.words)
        ours, _ = self.kelp("unshare", "sh", "-c", script.format(kelp, self.name, kelp, self.name))
        theirs = self.podman("unshare", "sh", "-c", script.format(podman, self.name, podman, self.name))
        self.assertEqual(ours, theirs)
        self.assertIn("bin/sh f 755", ours)


if __name__ == "__main__":
    unittest.main()
