"""The store: many processes at once, kill -9 at any moment, a full disk, damage, and what the verbs print."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
import unittest

from world import KELP, Case, Image, folder, hard, sha, tar

ROUNDS = int(os.environ.get("KELP_KILL_ROUNDS", "40"))


def layer(seed, files=60):
    fill = random.Random(seed)
    return tar(folder("d%s" % seed), *[(f"d{seed}/f{n}", fill.randbytes(5000)) for n in range(files)])


class Store(Case):
    def setUp(self):
        super().setUp()
        self.server = self.registry()
        self.image = Image(layer(1), layer(2), layer(3))
        self.name = self.server.add("app", self.image)

    def whole(self):
        out, _ = self.kelp("image", "inspect", "-f", "{{.Id}}", self.name)
        self.assertEqual(out.strip(), self.image.id)
        self.sound()

    def slowly(self, pause):
        def fault(request, path):
            if "/blobs/" not in path:
                return False
            data = self.server.blobs.get(path.rsplit("/", 1)[1])
            self.server.send_blob(request, data, pause=pause)
            return True

        self.server.fault = fault

    def interrupt(self, words, longest, **options):
        """Starts kelp and kills it, children and all, after a random time; says whether it had ended."""
        process = self.start(*words, start_new_session=True, **options)
        try:
            process.communicate(timeout=random.uniform(0, longest))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        return process.returncode

    def test_kill_at_random_moments(self):
        archive = os.path.join(self.home, "a.tar")
        self.kelp("pull", "-q", self.name)
        self.kelp("save", "-o", archive, self.name)
        self.kelp("rmi", self.name)
        jobs = [["pull", "-q", self.name], ["load", "-i", archive], ["rmi", "-f", self.name],
                ["system", "prune", "-af"], ["pull", "-q", self.name]]
        for round in range(ROUNDS):
            self.interrupt(jobs[round % len(jobs)], 0.12)
            out, _ = self.kelp("system", "fsck", "--verify-layers")
            self.assertIn(" 0 damaged", out)
        self.kelp("pull", "-q", self.name)
        self.whole()
        self.kelp("system", "prune", "-af")
        for part in ("layers", "blobs", "images", "names", "tmp", "partial"):
            self.assertEqual(os.listdir(os.path.join(self.store, part)), [], part)

    def test_prune_removes_what_a_killed_kelp_was_writing(self):
        self.kelp("pull", "-q", self.name)
        parts = ("blobs", "images", "names")
        for part in parts:
            for writer in (999999999, os.getpid()):
                with open(os.path.join(self.store, part, f".record.{writer}"), "w") as file:
                    file.write("half")
        self.kelp("system", "prune", "-af")
        for part in parts:
            self.assertEqual(os.listdir(os.path.join(self.store, part)), [f".record.{os.getpid()}"], part)

    def test_two_pulls_download_once(self):
        self.slowly(0.02)
        pulls = [self.start("pull", "-q", self.name) for _ in range(4)]
        for pull in pulls:
            out, err = pull.communicate(timeout=60)
            self.assertEqual((pull.returncode, out.decode().strip()), (0, self.image.id.split(":")[1]), err)
        for data in self.image.layers:
            self.assertEqual(len(self.server.asked(sha(data))), 1)
        self.whole()

    def test_pulling_while_removing(self):
        stop = threading.Event()
        failures = []

        def remove():
            while not stop.is_set():
                for words in (["rmi", "-f", self.name], ["system", "prune", "-af"]):
                    process = self.start(*words)
                    _, err = process.communicate(timeout=60)
                    if process.returncode and b"no such image" not in err:
                        failures.append(err)

        thread = threading.Thread(target=remove)
        thread.start()
        try:
            for _ in range(15):
                process = self.start("pull", "-q", self.name)
                _, err = process.communicate(timeout=60)
                if process.returncode and b"removed it meanwhile" not in err:
                    failures.append(err)
        finally:
            stop.set()
            thread.join()
        self.assertEqual(failures, [])
        self.kelp("pull", "-q", self.name)
        self.whole()

    def test_interrupted_workspaces_are_swept(self):
        self.slowly(0.05)
        process = self.start("pull", "-q", self.name, start_new_session=True)
        deadline = time.monotonic() + 20
        while not [name for name in (os.listdir(self.store + "/tmp") if os.path.isdir(self.store + "/tmp") else [])
                   if not name.endswith(".lock")]:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        self.server.fault = lambda *_: False
        self.kelp("pull", "-q", self.name)
        self.assertEqual(self.left(), [])
        self.whole()

    def test_damage_is_found_and_mended_by_a_pull(self):
        def tree_file():
            return os.path.join(self.tree(self.image, 0), "d1", "f3")

        def flip(path):
            with open(path, "r+b") as file:
                first = file.read(1)
                file.seek(0)
                file.write(bytes([first[0] ^ 1]))

        def truncate(path):
            os.truncate(path, 10)

        config = os.path.join(self.store, "blobs", self.image.id.split(":")[1])
        for path in (tree_file(), config):
            for damage in (flip, truncate, os.remove):
                with self.subTest(f"{damage.__name__} {path}"):
                    self.kelp("pull", "-q", self.name)
                    damage(path)
                    out, _ = self.kelp("system", "fsck", "--verify-layers", ok=False)
                    self.assertIn("damaged", out)
                    self.kelp("system", "fsck", "--verify-layers", "--repair")
                    self.kelp("pull", "-q", self.name)
                    self.whole()

    def test_a_newer_store_is_refused(self):
        self.kelp("images")
        with open(os.path.join(self.store, "format"), "w") as file:
            json.dump({"format": 99}, file)
        self.assertIn("format 99", self.refused("images"))
        self.assertIn("format 99", self.refused("pull", self.name))
        with open(os.path.join(self.store, "format"), "w") as file:
            json.dump({"format": 1}, file)

    def test_a_read_only_store_is_looked_into(self):
        self.kelp("pull", "-q", self.name)
        other = {"KELP_ROOT": os.path.join(self.home, "second"), "KELP_IMAGE_PATH": self.store}
        out, _ = self.kelp("images", "-q", env=other)
        self.assertEqual(out.strip(), self.image.id.split(":")[1][:12])
        self.server.log.clear()
        self.kelp("pull", "-q", "--policy", "missing", self.name, env=other)
        self.assertEqual(self.server.log, [])
        self.kelp("system", "reset", "-f", env=other)

    def test_layers_of_another_boot_are_read_before_they_count(self):
        self.kelp("pull", "-q", self.name)
        for layer in (0, 1):
            record = os.path.join(os.path.dirname(self.tree(self.image, layer)), "layer")
            with open(record) as file:
                value = json.load(file)
            value["boot"] = "another"
            with open(record, "w") as file:
                json.dump(value, file)
        os.truncate(os.path.join(self.tree(self.image, 0), "d1", "f3"), 0)
        self.server.log.clear()
        self.kelp("pull", "-q", "--policy", "missing", self.name)
        self.assertEqual(len(self.server.asked(sha(self.image.layers[0]))), 1)
        self.assertEqual(len(self.server.asked(sha(self.image.layers[1]))), 0)
        with open(record) as file:
            self.assertTrue(json.load(file)["settled"])
        self.whole()

    def test_an_emptied_layer_record_is_replaced_by_the_next_pull(self):
        self.kelp("pull", "-q", self.name)
        os.truncate(os.path.join(os.path.dirname(self.tree(self.image, 0)), "layer"), 0)
        self.kelp("pull", "-q", self.name)
        self.whole()

    def test_a_layer_that_is_there_stays_when_it_comes_again(self):
        """Else a kill between its going and the coming of the new one takes it from the images that have it."""
        archive = self.home + "/a.tar"
        with open(archive, "wb") as file:
            file.write(self.image.layers[0])
        self.kelp("import", archive, "first:1")
        found = os.stat(self.tree(self.image, 0)).st_ino
        self.kelp("import", archive, "second:1")
        self.assertEqual(os.stat(self.tree(self.image, 0)).st_ino, found)
        self.sound()

    def test_a_layer_whose_replacement_was_killed_is_given_back(self):
        self.kelp("pull", "-q", self.name)
        layer = os.path.dirname(self.tree(self.image, 0))
        os.mkdir(self.store + "/tmp/1-0")
        os.rename(layer, self.store + "/tmp/1-0/" + os.path.basename(layer))
        open(self.store + "/tmp/1-0.lock", "w").close()
        self.whole()
        self.assertEqual(os.listdir(self.store + "/tmp"), [])

    def test_tags_ids_and_removal(self):
        self.kelp("pull", "-q", self.name)
        self.kelp("tag", self.name, "one", "two:2")
        out, _ = self.kelp("images", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}")
        short = self.image.id.split(":")[1][:12]
        self.assertEqual(sorted(out.split("\n")[:-1]),
                         sorted([f"{self.name} {short}", f"one:latest {short}", f"two:2 {short}"]))
        self.assertIn("several names", self.refused("rmi", short))
        out, _ = self.kelp("rmi", "one")
        self.assertEqual(out, "Untagged: one:latest\n")
        out, _ = self.kelp("rmi", "-f", short)
        self.assertIn(f"Deleted: {self.image.id}", out)
        self.assertEqual(os.listdir(self.store + "/layers"), [])
        self.assertIn("no such image", self.refused("rmi", "one"))
        self.kelp("rmi", "-i", "one")

    def test_shared_layers_outlive_one_of_their_images(self):
        other = self.server.add("other", Image(layer(1), layer(9)))
        self.kelp("pull", "-q", self.name)
        self.kelp("pull", "-q", other)
        self.assertEqual(len(os.listdir(self.store + "/layers")), 4)
        self.kelp("rmi", self.name)
        self.assertEqual(len(os.listdir(self.store + "/layers")), 2)
        self.sound()

    def test_what_is_printed_is_dockers(self):
        self.kelp("pull", "-q", self.name)
        out, _ = self.kelp("images", "--format", "json")
        row = json.loads(out)
        self.assertEqual((row["Repository"], row["Tag"]), (f"{self.server.host}/app", "1"))
        out, _ = self.kelp("images", "--format", "table {{.Repository}}\t{{.Size}}")
        self.assertRegex(out, r"^REPOSITORY +SIZE\n127\S+app +900kB\n$")
        out, _ = self.kelp("images")
        self.assertRegex(out.splitlines()[0], r"^REPOSITORY +TAG +IMAGE ID +CREATED +SIZE$")
        self.assertRegex(out.splitlines()[1], r" 1 +[0-9a-f]{12} +\d+ (months|years) ago +900kB$")
        out, _ = self.kelp("image", "inspect", "--format", "{{json .Config.Cmd}} {{.Os}}/{{.Architecture}}", self.name)
        self.assertEqual(out, '["/bin/sh"] linux/amd64\n')
        for pattern, count in (("app", 0), (f"{self.server.host}/app", 1), ("*/app", 1), ("*app:1", 1), ("*:2", 0)):
            out, _ = self.kelp("images", "-q", "--filter", f"reference={pattern}")
            self.assertEqual(len(out.split()), count, pattern)
        self.refused("images", "--format", "{{.Nonsense}}")
        self.refused("images", "--filter", "nonsense=1")

    def test_without_a_session_and_with_a_clock_set_back(self):
        env = {"KELP_RUNDIR": "", "KELP_ROOT": "", "XDG_DATA_HOME": os.path.join(self.home, "store")}
        self.kelp("pull", "-q", self.name, env=env)
        self.kelp("system", "reset", "-f", env=env)
        self.kelp("pull", "-q", self.name)
        for path, _, files in os.walk(self.store):
            for name in files:
                if name in ("layer", "format"):
                    os.utime(os.path.join(path, name), (4_000_000_000, 4_000_000_000))
        self.kelp("pull", "-q", self.name)
        self.whole()


class FullDisk(Case):
    """A store on a small tmpfs, in a mount namespace that an ordinary user can make."""

    def test_a_full_disk_is_told_and_the_same_command_works_after(self):
        if subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode:
            self.skipTest("user namespaces are refused here")
        server = self.registry()
        image = Image(tar(("a", os.urandom(6 << 20))), tar(("b", os.urandom(6 << 20))))
        name = server.add("app", image)
        os.makedirs(self.store)
        script = f'''
set -u
mount -t tmpfs -o size=30m,mode=700 tmpfs "$KELP_ROOT"
for free in 0 1 3 5 7 9 11 13 15 17; do
  head -c $(( (29 - free) * 1048576 )) /dev/zero > "$KELP_ROOT/ballast" 2>/dev/null
  "{KELP}" pull -q "{name}" 2>"$HOME/err" && {{ echo "works with $free MB"; break; }}
  grep -qi "space" "$HOME/err" || {{ echo "no word of space: $(cat "$HOME/err")"; exit 1; }}
  rm -f "$KELP_ROOT/ballast"
  "{KELP}" system fsck --verify-layers | grep -q " 0 damaged" || {{ echo "damaged at $free"; exit 1; }}
done
rm -f "$KELP_ROOT/ballast"
"{KELP}" pull -q "{name}" || exit 1
head -c 40m /dev/zero > "$KELP_ROOT/ballast" 2>/dev/null
"{KELP}" rmi "{name}" || {{ echo "rmi fails on a full disk"; exit 1; }}
rm -f "$KELP_ROOT/ballast"
"{KELP}" pull -q "{name}" && "{KELP}" system fsck --verify-layers | grep " 0 damaged"
'''
        done = subprocess.run(["unshare", "-Urm", "bash", "-c", script], env=self.env, capture_output=True, text=True,
                              timeout=120)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("0 damaged", done.stdout)


if __name__ == "__main__":
    unittest.main()
