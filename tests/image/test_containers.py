"""What a container changed, as a list, an image and a tar: on kernel overlay and on the user-space overlay alike."""

import io
import itertools
import json
import os
import signal
import tarfile
import unittest

from test_push import Uploads
from world import KELP, KIND, Case, Image, folder, hard, link, tar

BUSYBOX = "/bin/busybox"
DRIVERS = ("overlay", "overlay-on-fuse", "fuse")


def root():
    """A root file system with a shell, and something to change."""
    with open(BUSYBOX, "rb") as file:
        shell = file.read()
    tools = "sh cat chmod chown cp echo ln ls mkdir mv rm rmdir sleep stat test touch mkfifo id find sync".split()
    return tar(folder("bin"), ("bin/busybox", shell, {"mode": 0o755}), *[link(f"bin/{tool}", "busybox") for tool in tools],
               folder("etc"), ("etc/passwd", b"root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"),
               ("etc/shadow", b"secret", {"mode": 0o640, "gid": 42}), folder("tmp", mode=0o1777), folder("d"),
               ("d/one", b"1"), ("d/two", b"2"), folder("d/sub"), ("d/sub/deep", b"deep"), folder("gone"), ("gone/x", b"x"),
               folder("empty"), ("a", b"A"), hard("b", "a"))


class Containers(Case):
    def setUp(self):
        super().setUp()
        self.image = Image(root(), tar(("over", b"second layer")))
        self.name = self.registry().add("base", self.image)
        self.kelp("pull", "-q", self.name)

    def run_in(self, script, name="c", driver="overlay", image=None, flags=()):
        self.kelp("run", "--name", name, "--storage-driver", driver, *flags, image or self.name, "sh", "-c", script)

    def in_image(self, image, script, **options):
        return self.kelp("run", "--rm", image, "sh", "-c", script, **options)[0]


class Diff(Containers):
    def test_changes_are_listed_as_docker_does(self):
        script = """set -e
            echo new > /new; echo more >> /d/one; rm /d/two; rm -r /gone; mkdir /gone; echo y > /gone/y
            mkdir -p /tree/sub; ln -s x /tree/link; chmod 700 /empty; rm /over; mv /d/sub/deep /d/sub/deeper"""
        wanted = ["C /d", "C /d/one", "C /d/sub", "D /d/sub/deep", "A /d/sub/deeper", "D /d/two", "C /empty", "C /gone",
                  "D /gone/x", "A /gone/y", "A /new", "D /over", "A /tree", "A /tree/link", "A /tree/sub"]
        for driver in DRIVERS:
            with self.subTest(driver):
                self.run_in(script, name=driver, driver=driver)
                out, _ = self.kelp("diff", driver)
                self.assertEqual(out.splitlines(), wanted)
                found = json.loads(self.kelp("diff", "--format", "json", driver)[0])
                self.assertEqual(found["deleted"], ["/d/sub/deep", "/d/two", "/gone/x", "/over"])

    def test_nothing_changed_is_an_empty_list(self):
        for driver in DRIVERS:
            with self.subTest(driver):
                self.run_in("true", name=driver, driver=driver)
                self.assertEqual(self.kelp("diff", driver)[0], "")

    def test_an_unknown_container_is_said(self):
        self.assertIn("No such container: nobody", self.refused("diff", "nobody"))


class Commit(Containers):
    def test_an_image_of_the_changes_runs_with_them(self):
        script = """set -e
            echo new > /new; chmod 4711 /new; echo more >> /d/one; rm /d/two; rm -r /gone; mkdir /gone; echo y > /gone/y
            rm -r /d/sub; mkdir /d/sub; mkdir /d/sub/inner; ln -s /new /link; ln /new /hard; mkfifo /fifo
            touch -d @1000000000 /d/one; rm /over"""
        look = """set +e; cat /new /d/one; ls -R /d /gone; stat -c %N /link; stat -c '%a %h' /new /hard; stat -c %Y /d/one
            stat -c %F /fifo; ls /over /d/two /gone/x 2>&1; true"""
        for driver in DRIVERS:
            with self.subTest(driver):
                self.run_in(script, name=driver, driver=driver)
                out, _ = self.kelp("commit", "-m", "why", "-a", "who", "-c", "CMD [\"/bin/cat\", \"/new\"]", "-c", "ENV B=2",
                                   driver, f"made:{driver}")
                made = f"made:{driver}"
                self.assertEqual(out.strip(), self.kelp("image", "inspect", "-f", "{{.Id}}", made)[0].strip())
                wanted = self.in_image(self.name, script + "\n" + look)
                found = self.in_image(made, look)
                self.assertEqual(found.splitlines(), wanted.splitlines())
                self.assertEqual(self.kelp("run", "--rm", made)[0], "new\n")
                about = json.loads(self.kelp("image", "inspect", made)[0])[0]
                self.assertEqual((about["Author"], about["Comment"]), ("who", "why"))
                self.assertEqual(about["Config"]["Env"], ["A=1", "B=2"])
                self.assertEqual(len(about["RootFS"]["Layers"]), 3)
                self.sound()

    def test_owners_are_the_containers(self):
        if KIND == "one":
            return  # One id has no other owners.
        for driver in DRIVERS:
            with self.subTest(driver):
                self.run_in("echo x > /mine; chown 1000:2000 /mine; chown nobody /d; echo s >> /etc/shadow",
                            name=driver, driver=driver)
                self.kelp("commit", driver, f"owned:{driver}")
                out = self.in_image(f"owned:{driver}", "stat -c '%n %u %g %a' /mine /d /etc/shadow /etc/passwd")
                self.assertEqual(out.splitlines(), ["/mine 1000 2000 644", "/d 65534 0 755", "/etc/shadow 0 42 640",
                                                    "/etc/passwd 0 0 644"])

    def test_recorded_owners_and_closed_files_come_through(self):
        self.run_in("echo s >> /etc/shadow; echo c > /closed; chmod 0 /closed; mkdir /shut; echo i > /shut/i; chmod 0 /shut")
        self.kelp("commit", "c", "closed:1")
        archive = os.path.join(self.home, "a.tar")
        self.kelp("save", "-o", archive, "closed:1")
        with tarfile.open(archive) as outer:
            layers = json.load(outer.extractfile("manifest.json"))[0]["Layers"]
            with tarfile.open(fileobj=outer.extractfile(layers[-1])) as layer:
                found = {member.name: (member.mode, member.uid, member.gid) for member in layer}
        self.assertEqual(found["closed"], (0, 0, 0))
        self.assertEqual(found["shut"], (0, 0, 0))
        self.assertEqual(found["shut/i"], (0o644, 0, 0))
        self.assertEqual(found["etc/shadow"], (0o640, 0, 42))
        self.sound()

    def test_how_it_was_run_is_how_the_image_runs(self):
        flags = ["-e", "A=2", "-e", "C=3", "-w", "/d", "--user", "0:0", "--label", "l=v", "--stop-signal", "INT", "--entrypoint", "/bin/echo"]
        self.kelp("run", "--name", "c", *flags, self.name, "said", "twice")
        self.kelp("commit", "-c", "ENV D=4", "c", "run:1")
        config = json.loads(self.kelp("image", "inspect", "-f", "{{json .Config}}", "run:1")[0])
        self.assertEqual(config, {"User": "0:0", "Env": ["A=2", "C=3", "D=4"], "Entrypoint": ["/bin/echo"], "Cmd": ["said", "twice"],
                                  "WorkingDir": "/d", "Labels": {"l": "v"}, "StopSignal": "SIGINT"})
        self.assertEqual(self.kelp("run", "--rm", "run:1")[0], "said twice\n")
        self.run_in("true", name="d")
        self.kelp("commit", "d", "run:2")
        config = json.loads(self.kelp("image", "inspect", "-f", "{{json .Config}}", "run:2")[0])
        self.assertEqual(config, {"Env": ["A=1"], "Cmd": ["sh", "-c", "true"]})

    def test_volumes_and_the_health_check_go_along(self):
        health = ["--health-cmd", "test -e /well", "--health-interval", "7s", "--health-retries", "2"]
        self.kelp("run", "--name", "c", "-v", "/data", "-v", self.home + ":/bound", *health, self.name, "sh", "-c", "")
        self.kelp("commit", "-c", "VOLUME /more", "c", "run:1")
        config = json.loads(self.kelp("image", "inspect", "-f", "{{json .Config}}", "run:1")[0])
        self.assertEqual((config["Volumes"], config["Healthcheck"]),
                         ({"/data": {}, "/more": {}},
                          {"Test": ["CMD-SHELL", "test -e /well"], "Interval": 7_000_000_000, "Retries": 2}))
        self.kelp("run", "--name", "d", "--no-healthcheck", "run:1")
        self.kelp("commit", "d", "run:2")
        self.assertEqual(self.kelp("image", "inspect", "-f", "{{json .Config.Healthcheck}}", "run:2")[0], '{"Test":["NONE"]}\n')

    def test_the_images_health_check_is_run(self):
        """As docker has it in the image's configuration; what it finds is seen from outside."""
        health = {"Test": ["CMD-SHELL", "test -e /well || { echo ill; exit 1; }"], "Interval": 50_000_000, "Retries": 1}
        image = Image(root(), config={"architecture": "amd64", "os": "linux",
                                      "config": {"Cmd": ["sh", "-c", "sleep 100"], "Healthcheck": health},
                                      "rootfs": {"type": "layers", "diff_ids": Image(root()).diff_ids}})
        name = self.registry().add("healthy", image)
        with self.start("events", "--since", "1m", "--filter", "container=c", "--format", "{{.Status}}") as events:
            self.kelp("run", "-d", "--name", "c", name)
            told = (line for line in events.stdout if line.startswith(b"health_status"))
            self.assertEqual(next(told), b"health_status: unhealthy\n")
            self.assertIn("ill", self.kelp("inspect", "-f", "{{json .State.Health.Log}}", "c")[0])
            self.kelp("exec", "c", "touch", "/well")
            self.assertEqual(next(told), b"health_status: healthy\n")
            events.kill()
        self.kelp("rm", "-f", "c")
        self.kelp("run", "-d", "--name", "d", "--no-healthcheck", name)
        self.assertEqual(self.kelp("inspect", "-f", "{{json .State.Health}}", "d")[0], "null\n")
        self.kelp("rm", "-f", "d")

    def test_a_killed_commit_lets_the_container_go_on(self):
        self.kelp("run", "-d", "--name", "c", self.name, "sh", "-c", "busybox head -c 300000000 /dev/zero > /large; echo up; while :; do :; done")
        logs = self.start("logs", "-f", "c")
        self.assertEqual(logs.stdout.readline(), b"up\n")
        logs.kill()
        logs.communicate()
        with self.start("events", "--since", "1m", "--filter", "container=c", "--format", "{{.Status}}") as events:
            told = (line for line in events.stdout if line in (b"pause\n", b"unpause\n"))
            commit = self.start("commit", "c", "still:1", start_new_session=True)
            self.assertEqual(next(told), b"pause\n")
            os.killpg(commit.pid, signal.SIGKILL)
            commit.communicate()
            self.assertEqual(next(told), b"unpause\n")
            events.kill()
        self.assertEqual(self.kelp("inspect", "-f", "{{.State.Status}}", "c")[0], "running\n")
        self.kelp("rm", "-f", "c")
        self.sound()

    def test_a_running_container_stands_still_meanwhile(self):
        script = "busybox head -c 300000000 /dev/zero > /large; echo up; while :; do :; done"
        self.kelp("run", "-d", "--name", "c", self.name, "sh", "-c", script)
        logs = self.start("logs", "-f", "c")
        self.assertEqual(logs.stdout.readline(), b"up\n")
        logs.kill()
        logs.communicate()
        state = lambda: self.kelp("inspect", "-f", "{{.State.Status}}", "c")[0].strip()
        for words, wanted in ((["commit", "c", "still:1"], {"running", "paused"}), (["commit", "--pause=false", "c", "still:1"], {"running"})):
            seen, commit = {state()}, self.start(*words)
            while commit.poll() is None:
                seen.add(state())
            self.assertEqual((commit.returncode, seen), (0, wanted), commit.communicate()[1])
            self.assertEqual(state(), "running")
        self.kelp("pause", "c")
        self.kelp("commit", "c", "still:2")
        self.assertEqual(state(), "paused")
        self.kelp("rm", "-f", "c")

    def test_owners_are_those_of_the_containers_own_ids(self):
        script = "echo x > /mine; chown 5:7 /mine; echo x > /roots; stat -c '%n %u %g' /mine /roots"
        if KIND == "one":
            script = "echo x > /tmp/mine; stat -c '%n %u %g' /tmp/mine"
        for driver in DRIVERS:
            with self.subTest(driver):
                flags = ["--userns", "keep-id", *(["--user", "0:0"] if KIND == "ids" else [])]
                wanted, _ = self.kelp("run", "--name", driver, "--storage-driver", driver, *flags, self.name, "sh", "-c", script)
                data, _ = self.kelp("export", driver, text=False)
                with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                    found = {member.name: (member.uid, member.gid) for member in archive}
                self.assertTrue(wanted)
                for line in wanted.splitlines():
                    name, uid, gid = line.split()
                    self.assertEqual(found[name[1:]], (int(uid), int(gid)), line)

    def test_an_images_files_are_the_images_under_other_id_maps(self):
        """Layers lie as the automatic maps have them; servers of ours show their owners to containers with others."""
        if KIND == "one":
            # The one id can be called otherwise, and then all files are its own.
            stat = ["stat", "-c", "%u", "/etc/passwd"]
            return self.assertEqual(self.kelp("run", "--rm", "--userns", "keep-id", self.name, *stat)[0], f"{os.getuid()}\n")
        self.kelp("commit", self.owned(), "owned:1")
        stat = "stat -c '%n %u %g' / /etc/shadow /etc/passwd /mine"
        wanted = "/ 0 0\n/etc/shadow 0 42\n/etc/passwd 0 0\n/mine 5 7\n"
        for userns, driver in itertools.product(("keep-id", "keep-id:uid=200000,gid=200000"), (None, "overlay-on-fuse", "fuse")):
            with self.subTest(userns, driver=driver):
                flags = ["--userns", userns, *(["--storage-driver", driver] if driver else []), "owned:1", "sh", "-c"]
                self.assertEqual(self.kelp("run", "--rm", *flags, stat)[0], wanted)
                # The folder that kelp made its files in, with the image's owner, is no change.
                self.kelp("run", "--name", "k", *flags, "true")
                self.assertEqual(self.kelp("diff", "k")[0], "")
                self.kelp("rm", "k")
                script = "echo x > /tmp/own; echo x > /new; chown 8:9 /new; echo y >> /mine; stat -c '%u %g' /new /mine"
                self.assertEqual(self.kelp("run", "--name", "k", "--user", "0:0", *flags, script)[0], "8 9\n5 7\n")
                self.assertEqual(self.kelp("inspect", "-f", "{{.GraphDriver.Name}}", "k")[0].strip(),
                                 driver or "overlay-on-fuse")
                again = tar(("etc/again", b"again", {"uid": 8, "gid": 9}))
                self.kelp("cp", "-a", "-", "k:/", input=again)
                self.assertEqual(self.kelp("start", "-a", "k")[0], "8 9\n5 7\n")
                self.kelp("commit", "k", "kept:1")
                self.assertEqual(self.in_image("kept:1", stat + " /new"), wanted + "/new 8 9\n")
                with tarfile.open(fileobj=io.BytesIO(self.kelp("export", "k", text=False)[0])) as archive:
                    found = {member.name: (member.uid, member.gid) for member in archive}
                self.assertEqual([found[name] for name in ("new", "mine", "etc/shadow", "etc/again", "etc")],
                                 [(8, 9), (5, 7), (0, 42), (8, 9), (0, 0)])
                self.kelp("rm", "k")
                # What is copied to one that has not started yet lies there in the same way.
                self.kelp("create", "--name", "k", *flags, "stat -c '%u %g' / /mine /etc/copied")
                with open(self.home + "/copied", "w") as file:
                    file.write("copied")
                self.kelp("cp", self.home + "/copied", "k:/etc/copied")
                self.assertEqual(self.kelp("start", "-a", "k")[0], "0 0\n5 7\n0 0\n")
                self.kelp("rm", "k")
        warned = self.kelp("run", "--rm", "--storage-driver", "overlay", "--userns", "keep-id", "owned:1", "sh", "-c", "")[1]
        self.assertIn("other owners", warned)

    def owned(self):
        self.run_in("echo x > /mine; chown 5:7 /mine", name="owned")
        return "owned"

    def test_only_what_changed_is_in_the_layer(self):
        for driver in DRIVERS:
            with self.subTest(driver):
                self.run_in("rm -r /gone; rm /d/one; echo x > /new", name=driver, driver=driver)
                self.kelp("commit", driver, f"small:{driver}")
                archive = os.path.join(self.home, driver + ".tar")
                self.kelp("save", "-o", archive, f"small:{driver}")
                with tarfile.open(archive) as outer:
                    layers = json.load(outer.extractfile("manifest.json"))[0]["Layers"]
                    with tarfile.open(fileobj=outer.extractfile(layers[-1])) as layer:
                        names = [member.name for member in layer]
                self.assertEqual(names, ["d", "d/.wh.one", ".wh.gone", "new"])

    def test_a_container_without_changes_adds_no_layer(self):
        self.run_in("true")
        self.kelp("commit", "c", "same:1")
        layers = json.loads(self.kelp("image", "inspect", "same:1")[0])[0]["RootFS"]["Layers"]
        self.assertEqual(len(layers), 2)

    def test_an_id_beyond_those_of_images_is_kept(self):
        if KIND == "one":
            return  # One id is all that there is.
        flags = ["--userns", "keep-id:uid=200000,gid=200000"]
        for driver in ("fuse", "overlay-on-fuse"):
            with self.subTest(driver):
                self.run_in("echo 1 > /mine; chown 7:8 /a; stat -c %u:%g /mine /a /d", name=f"root-{driver}",
                            flags=[*flags, "--user", "0"], driver=driver)
                self.run_in("cp /over /tmp/mine; stat -c %u:%g /tmp/mine", name=driver, flags=flags, driver=driver)
                with tarfile.open(fileobj=io.BytesIO(self.kelp("export", driver, text=False)[0])) as tree:
                    owners = {member.name: (member.uid, member.gid) for member in tree}
                self.assertEqual((owners["tmp/mine"], owners["a"]), ((200000, 200000), (0, 0)))
                self.kelp("commit", driver, "kept:1")
                archive = os.path.join(self.home, "kept.tar")
                self.kelp("save", "-o", archive, "kept:1")
                with tarfile.open(archive) as outer:
                    top = json.load(outer.extractfile("manifest.json"))[0]["Layers"][-1]
                    with tarfile.open(fileobj=outer.extractfile(top)) as layer:
                        self.assertEqual([(member.uid, member.gid) for member in layer if member.name == "tmp/mine"],
                                         [(200000, 200000)])

    def test_a_commit_in_dockers_words(self):
        self.run_in("echo 1 > /one")
        registry = Uploads()
        self.registries.append(registry)
        for words, kind in ((["--format", "docker"], "application/vnd.docker.distribution.manifest.v2+json"),
                            ([], "application/vnd.oci.image.manifest.v1+json")):
            self.kelp("commit", *words, "c", "said:1")
            self.assertEqual(self.kelp("image", "inspect", "-f", "{{.ManifestType}}", "said:1")[0].strip(), kind)
            self.kelp("push", "--tls-verify=false", "said:1", f"{registry.host}/said:1")
            (manifest,) = registry.manifests.values()
            self.assertEqual(manifest["mediaType"], kind)
            family = kind.split(".distribution")[0].split(".image")[0]
            self.assertEqual([part["mediaType"].startswith(family) for part in [*manifest["layers"], manifest["config"]]],
                             [True] * 4)

    def test_what_is_done_with_images_is_told(self):
        self.run_in("echo 1 > /one")
        archive = os.path.join(self.home, "told.tar")
        self.kelp("commit", "-m", "why", "c", "told:1")
        self.kelp("save", "-o", archive, "told:1")
        self.kelp("rmi", "told:1")
        self.kelp("load", "-i", archive)
        with tarfile.open(os.path.join(self.home, "root.tar"), "w"):
            pass
        self.kelp("import", os.path.join(self.home, "root.tar"), "bare:1")
        self.kelp("untag", "bare:1")
        self.kelp("image", "prune", "-f")
        self.kelp("container", "prune", "-f")
        out, _ = self.kelp("events", "--since", "1h", "--until", "0s", "--format",
                           "{{.Type}} {{.Action}} {{.Name}} {{.Actor.Attributes.comment}}")
        told = [line.replace("<no value>", "").strip() for line in out.splitlines()]
        told = told[next(at for at, line in enumerate(told) if line.startswith("container commit")):]
        bare = told[-4].rsplit(" ", 1)[1]
        self.assertEqual(told, [
            "container commit c why", "image save told:1", "image untag told:1", "image delete told:1",
            "image load told:1", "image import bare:1", "image untag bare:1", f"image delete {bare}", "image prune",
            "container destroy c", "container prune"])

    def test_a_commit_of_a_commit(self):
        self.run_in("echo 1 > /one; rm /a")
        self.kelp("commit", "c", "first:1")
        self.run_in("rm /one; echo 2 > /two", name="d", image="first:1")
        self.kelp("commit", "d", "second:1")
        self.assertEqual(self.in_image("second:1", "ls /one /a /two /b 2>/dev/null; true"), "/b\n/two\n")

    def test_a_bad_change_is_refused_and_leaves_nothing(self):
        self.run_in("echo x > /x")
        self.assertIn("cannot apply the change", self.refused("commit", "-c", "RUN x", "c", "never:1"))
        self.kelp("image", "exists", "never:1", ok=False)
        self.assertEqual(self.left(), [])


class Df(Containers):
    def test_what_is_used_is_counted_once(self):
        other = self.registry().add("other", Image(root(), tar(("z", b"z" * 1000))))
        self.kelp("pull", "-q", other)
        self.run_in("busybox head -c 5000 /dev/zero > /new")
        self.kelp("volume", "create", "v")
        rows = [json.loads(line) for line in self.kelp("system", "df", "--format", "json")[0].splitlines()]
        self.assertEqual([(row["Type"], row["TotalCount"], row["Active"]) for row in rows],
                         [("Images", "2", "1"), ("Containers", "1", "0"), ("Local Volumes", "1", "0")])
        self.assertEqual(rows[0]["Reclaimable"], "1kB (0%)")
        self.assertEqual(rows[1]["Size"], "5kB")
        out, _ = self.kelp("system", "df", "-v")
        self.assertRegex(out, r"REPOSITORY +TAG +IMAGE ID +CREATED +SIZE +SHARED SIZE +UNIQUE SIZE +CONTAINERS")
        self.assertRegex(out, r"other +1 +\w{12} +.* ago +\d.*MB +\d.*MB +1kB +0")
        self.assertRegex(out, r"CONTAINER ID .*\n\w{12} +\w{12} +5kB .* Exited \(0\) .* ago +c\n")


class Export(Containers):
    def names(self, data):
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            return {member.name: member for member in archive}

    def test_the_whole_root_is_in_the_tar(self):
        for driver in DRIVERS:
            with self.subTest(driver):
                self.run_in("rm -r /gone /over; echo new > /new; chmod 600 /new", name=driver, driver=driver)
                data, _ = self.kelp("export", driver, text=False)
                found = self.names(data)
                for name in ("bin/busybox", "d/one", "a", "b", "new"):
                    self.assertIn(name, found)
                for name in ("gone", "gone/x", "over"):
                    self.assertNotIn(name, found)
                self.assertEqual(found["new"].mode, 0o600)
                self.assertEqual(found["b"].linkname, "a")
                self.assertFalse([name for name in found if ".wh." in name])

    def test_a_running_container_is_read_as_it_is(self):
        for driver in DRIVERS:
            with self.subTest(driver):
                script = "echo fresh > /new; rm /d/two; echo up; exec sleep 100"
                running = self.start("run", "--name", driver, "--storage-driver", driver, self.name, "sh", "-c", script)
                try:
                    self.assertEqual(running.stdout.readline(), b"up\n")
                    self.assertEqual(self.kelp("diff", driver)[0].splitlines(), ["C /d", "D /d/two", "A /new"])
                    data, _ = self.kelp("export", driver, text=False)
                    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                        self.assertEqual(archive.extractfile("new").read(), b"fresh\n")
                    self.kelp("commit", driver, f"alive:{driver}")
                    self.assertEqual(self.in_image(f"alive:{driver}", "cat /new; ls /d"), "fresh\none\nsub\n")
                finally:
                    running.kill()
                    running.communicate()

    def test_an_export_can_be_imported(self):
        self.run_in("echo new > /new; rm /d/two")
        archive = os.path.join(self.home, "root.tar")
        self.kelp("export", "-o", archive, "c")
        self.kelp("import", archive, "again:1")
        self.assertEqual(self.in_image("again:1", "cat /new; ls /d"), "new\none\nsub\n")


class Copy(Containers):
    """Each case on a container that has ended, on both overlays, and on one that runs."""

    def containers(self):
        for driver in DRIVERS:
            with self.subTest(driver):
                self.run_in("echo in > /in; chmod 640 /in; ln -s /etc/passwd /link; ln -s /nowhere/x /dangling", name=driver,
                            driver=driver)
                yield driver
        with self.subTest("running"):
            script = "echo in > /in; chmod 640 /in; ln -s /etc/passwd /link; ln -s /nowhere/x /dangling; echo up; exec sleep 100"
            running = self.start("run", "--name", "running", self.name, "sh", "-c", script)
            try:
                self.assertEqual(running.stdout.readline(), b"up\n")
                yield "running"
            finally:
                running.kill()
                running.communicate()

    def look(self, container, path):
        data, _ = self.kelp("cp", f"{container}:{path}", "-", text=False)
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            return {member.name: (archive.extractfile(member).read() if member.isreg() else None, member) for member in archive}

    def host(self, name, text="host"):
        path = os.path.join(self.home, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text)
        return path

    def test_files_go_out(self):
        for c in self.containers():
            out = os.path.join(self.home, "out-" + c)
            os.mkdir(out)
            self.kelp("cp", f"{c}:/in", out)
            self.kelp("cp", f"{c}:in", out + "/named")
            self.kelp("cp", f"{c}:/d", out)
            self.kelp("cp", f"{c}:/d/.", out + "/contents")
            self.kelp("cp", f"{c}:/link", out)
            self.kelp("cp", "-L", f"{c}:/link", out + "/followed")
            for path, text in (("in", "in\n"), ("named", "in\n"), ("d/sub/deep", "deep"), ("contents/sub/deep", "deep")):
                with open(os.path.join(out, path)) as file:
                    self.assertEqual(file.read(), text)
            self.assertEqual(os.stat(out + "/in").st_mode & 0o777, 0o640)
            self.assertEqual(os.stat(out + "/in").st_uid, os.getuid())
            self.assertEqual(os.readlink(out + "/link"), "/etc/passwd")
            with open(out + "/followed") as file:
                self.assertIn("root:x:0:0", file.read())

    def test_files_go_in(self):
        source = self.host("src/one", "1")
        self.host("src/sub/two", "2")
        folder = os.path.dirname(source)
        os.chmod(source, 0o604)
        for c in self.containers():
            self.kelp("cp", source, f"{c}:/")
            self.kelp("cp", source, f"{c}:/d/one")
            self.kelp("cp", folder, f"{c}:/new")
            self.kelp("cp", folder, f"{c}:/new")
            self.kelp("cp", folder + "/.", f"{c}:/empty")
            self.kelp("cp", source, f"{c}:/tmp/named")
            found = self.look(c, "/.")
            for path in ("one", "d/one", "new/one", "new/src/one", "empty/one", "tmp/named"):
                self.assertEqual(found["./" + path][0], b"1", path)
            self.assertEqual(found["./empty/sub/two"][0], b"2")
            member = found["./one"][1]
            self.assertEqual((member.mode, member.uid, member.gid), (0o604, 0, 0))
            self.assertEqual(found["./d/two"][0], b"2")

    def test_a_container_that_was_never_started(self):
        source = self.host("src/one", "1")
        flags = ["--userns", "keep-id"] if KIND == "ids" else []
        drivers = ((None, []), ("overlay", []), ("fuse", []), ("overlay", flags), ("overlay-on-fuse", []), ("overlay-on-fuse", flags))
        for driver, more in drivers:
            with self.subTest(driver, more=more):
                options = [*(["--storage-driver", driver] if driver else []), *more]
                self.kelp("create", "--name", "c", *options, self.name, "cat", "/d/new")
                self.assertEqual(self.kelp("diff", "c")[0], "")
                self.assertIn("d/one", self.look("c", "/.")["./d/one"][1].name)
                self.kelp("commit", "c", "unchanged:1")
                with tarfile.open(fileobj=io.BytesIO(self.kelp("export", "c", text=False)[0])) as archive:
                    self.assertIn("d/one", archive.getnames())
                self.kelp("cp", source, "c:/d/new")
                self.kelp("cp", "-", "c:/tmp", input=tar(("owned", b"o", {"uid": 3, "gid": 4})))
                self.assertEqual(self.kelp("diff", "c")[0].splitlines(), ["C /d", "A /d/new", "C /tmp", "A /tmp/owned"])
                self.assertEqual(self.kelp("start", "-a", "c")[0], "1")
                self.assertEqual(self.look("c", "/d/new")["new"][0], b"1")
                wanted = driver or "overlay"
                self.assertEqual(self.kelp("inspect", "-f", "{{.GraphDriver.Name}}", "c")[0].strip(), wanted)
                self.kelp("rm", "c")
                self.assertEqual(os.listdir(os.path.join(self.store, "containers")), [])

    def test_streams(self):
        for c in self.containers():
            found = self.look(c, "/d")
            self.assertEqual(sorted(found), ["d", "d/one", "d/sub", "d/sub/deep", "d/two"])
            data = tar(folder("x"), ("x/y", b"y", {"mode": 0o600}), ("d", b"no folder"))
            self.kelp("cp", "-", f"{c}:/tmp", input=data)
            self.assertEqual(self.look(c, "/tmp/x")["x/y"][0], b"y")
            self.assertIn("needs a folder", self.refused("cp", "-", f"{c}:/in", input=data))

    def test_what_does_not_fit_is_refused(self):
        source = self.host("src/one", "1")
        folder = os.path.dirname(source)
        for c in self.containers():
            for words, sentence in (
                    ((f"{c}:/nothing", self.home), "no such file"), ((source, f"{c}:/no/where"), "No such file"),
                    ((source, f"{c}:/nofolder/"), "no such folder"), ((folder, f"{c}:/in"), "onto something that is none"),
                    ((f"{c}:/in/", self.home), ""), ((folder + "/nothing", f"{c}:/"), "no such file"),
                    ((source, self.home), "one of the two"), (("nobody:/x", self.home), "No such container")):
                self.assertIn(sentence, self.refused("cp", *words), words)
            self.assertEqual(self.look(c, "/in")["in"][0], b"in\n")

    def test_between_containers(self):
        self.run_in("echo first > /f", name="first")
        for c in self.containers():
            self.kelp("cp", "first:/f", f"{c}:/tmp/f")
            self.assertEqual(self.look(c, "/tmp/f")["f"][0], b"first\n")

    def test_links_do_not_lead_outside(self):
        """The shapes of CVE-2018-15664 and of symlinks in the way: everything is inside the root."""
        secret = self.host("secret/file", "host secret")
        shared = os.path.dirname(secret)
        script = f"mkdir -p /abs; ln -s {shared} /abs/out; ln -s ../../../../../..{shared} /abs/up; ln -s /proc/self/root /abs/proc"
        for driver in DRIVERS:
            with self.subTest(driver):
                self.run_in(script, name=driver, driver=driver)
                for way in ("out", "up"):
                    self.refused("cp", f"{driver}:/abs/{way}/file", self.home)
                    self.refused("cp", secret, f"{driver}:/abs/{way}/new")
                    self.kelp("cp", "-", f"{driver}:/abs", input=tar((f"{way}/evil", b"x")), ok=None)
                self.assertEqual(os.listdir(shared), ["file"])
                with open(secret) as file:
                    self.assertEqual(file.read(), "host secret")

    def test_a_link_that_is_swapped_does_not_lead_outside(self):
        shared = os.path.dirname(self.host("secret/file", "host secret"))
        source = self.host("src/evil", "x" * 100)
        script = f"""mkdir /dir; echo mine > /dir/file; ln -s {shared} /bad; echo up
            while true; do mv /dir /real; mv /bad /dir; mv /dir /bad; mv /real /dir; done"""
        running = self.start("run", "--name", "racer", self.name, "sh", "-c", script)
        try:
            self.assertEqual(running.stdout.readline(), b"up\n")
            for _ in range(60):
                self.kelp("cp", source, "racer:/dir/evil", ok=None)
                out, _ = self.kelp("cp", "racer:/dir/file", "-", ok=None)
                self.assertNotIn("host secret", out)
        finally:
            running.kill()
            running.communicate()
        self.assertEqual(os.listdir(shared), ["file"])

    def test_nothing_of_the_container_is_loaded(self):
        """CVE-2019-14271: a library of the container's must not come into the process that copies."""
        files = [(f"lib/x86_64-linux-gnu/libnss_{name}.so.2", b"not a library") for name in ("files", "compat", "dns")]
        image = Image(root(), tar(*files, ("etc/nsswitch.conf", b"passwd: files compat\n"), ("etc/ld.so.preload", b"/evil.so\n"),
                                  ("evil.so", b"not a library")))
        name = self.registry().add("nss", image)
        self.kelp("pull", "-q", name)
        self.run_in("true", image=name)
        _, err = self.kelp("cp", "-a", "c:/etc/passwd", self.home)
        self.assertEqual(err, "")

    def test_a_hostile_stream_stays_below_its_folder(self):
        outside = self.host("outside/file", "host")
        out = os.path.join(self.home, "out")
        os.mkdir(out)
        self.run_in("true")
        for data in (tar(("../evil", b"x")), tar(link("l", "/"), ("l/etc/evil", b"x")), tar(hard("h", "../../etc/passwd"))):
            self.kelp("cp", "-", "c:/tmp", input=data, ok=None)
        found = self.look("c", "/.")
        self.assertFalse([name for name in found if name.endswith("evil") and not name.startswith("./tmp/")], found.keys())
        with open(outside) as file:
            self.assertEqual(file.read(), "host")


class Mount(Containers):
    def test_an_image_is_mounted_inside_unshare(self):
        script = f"""set -e; place=$({KELP} image mount {self.name}); cat $place/over; ls $place/d; {KELP} image mount
            test -w $place/over && touch $place/over 2>/dev/null && echo writable
            {KELP} image unmount {self.name}; ls $place 2>/dev/null; {KELP} image mount"""
        out, _ = self.kelp("unshare", "sh", "-c", script, ok=None)
        lines = out.splitlines()
        self.assertEqual(lines[0], "second layerone")
        self.assertEqual(lines[1:3], ["sub", "two"])
        self.assertTrue(lines[3].startswith(self.name), lines)
        self.assertEqual(lines[4:], [self.image.id.split(":")[1]])

    def test_outside_it_says_what_to_do(self):
        self.assertIn("outside of a mount namespace", self.refused("image", "mount", self.name))


if __name__ == "__main__":
    unittest.main()
