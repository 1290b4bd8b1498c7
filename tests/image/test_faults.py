"""kill -9 at random moments of everything that changes the store; small, read-only and plain file systems under it."""

import os
import random
import shutil
import signal
import subprocess
import time
import unittest

from test_containers import Containers, root
from test_store import layer
from world import KELP, Case, Image, tar

# How often each verb is killed. A full run has 300.
ROUNDS = int(os.environ.get("KELP_KILL_ROUNDS", "40")) // 2


class Kill(Containers):
    def setUp(self):
        super().setUp()
        self.server = self.registry()
        self.big = Image(root(), layer(1), layer(2), layer(3))
        self.other = self.server.add("other", self.big)
        self.run_in("mkdir /made; for n in $(busybox seq 60); do echo $n > /made/$n; done; rm -r /gone")
        self.archive = os.path.join(self.home, "a.tar")
        self.kelp("pull", "-q", self.other)
        self.kelp("save", "-o", self.archive, self.other)

    def gone(self):
        self.kelp("rmi", "-fi", self.other, "committed:1")
        self.kelp("image", "prune", "-f")

    def here(self):
        self.kelp("pull", "-q", self.other)

    def kill_at_random(self, before, *words):
        before()
        started = time.monotonic()
        self.kelp(*words)
        longest = time.monotonic() - started
        for round in range(ROUNDS):
            before()
            process = self.start(*words, start_new_session=True)
            try:
                process.communicate(timeout=random.uniform(0, longest))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
            out, _ = self.kelp("system", "fsck", "--verify-layers")
            self.assertIn(" 0 damaged", out, f"round {round}")
        before()
        self.kelp(*words)
        self.kelp("system", "fsck", "--verify-layers")
        self.assertEqual(self.left(), [])

    def test_pull(self):
        self.kill_at_random(self.gone, "pull", "-q", self.other)
        self.assertEqual(self.kelp("image", "inspect", "-f", "{{.Id}}", self.other)[0].strip(), self.big.id)

    def test_load(self):
        self.kill_at_random(self.gone, "load", "-i", self.archive)

    def test_load_of_what_is_there(self):
        self.kill_at_random(self.here, "load", "-i", self.archive)

    def test_commit(self):
        self.kill_at_random(self.gone, "commit", "c", "committed:1")
        self.assertEqual(self.in_image("committed:1", "ls /made | busybox wc -l; test -e /gone; echo $?").split(), ["60", "1"])

    def test_rmi(self):
        self.kill_at_random(self.here, "rmi", "-f", self.other)

    def test_prune(self):
        def untagged():
            self.here()
            self.kelp("untag", self.other)

        self.kill_at_random(untagged, "system", "prune", "-f")


class SmallDisk(Case):
    """The store on a file system that an ordinary user can mount in a namespace of his own."""

    def inside(self, script, **options):
        done = subprocess.run(["unshare", "-Urm", "bash", "-c", "set -u\n" + script], env=self.env, capture_output=True,
                              text=True, timeout=240, **options)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def test_load_import_and_commit_on_a_full_disk(self):
        """At every stage: with so much room that each part fails once."""
        server = self.registry()
        image = Image(root(), tar(("a", os.urandom(3 << 20))))
        name = server.add("app", image)
        self.kelp("pull", "-q", name)
        self.kelp("save", "-o", self.home + "/a.tar", name)
        with open(self.home + "/root.tar", "wb") as file:
            file.write(tar(("x", os.urandom(3 << 20)), ("y", os.urandom(2 << 20))))
        self.kelp("system", "reset", "-f")
        os.makedirs(self.store, exist_ok=True)
        out = self.inside(f'''
mount -t tmpfs -o size=30m,mode=700 tmpfs "$KELP_ROOT"
full() {{ head -c $(( 29 * 1048576 - $(du -sb "$KELP_ROOT" | cut -f1) - $1 * 262144 )) /dev/zero > "$KELP_ROOT/ballast" 2>/dev/null; }}
attempt() {{
  for room in 0 1 2 3 4 6 8 10 12 16 20 24 28 36; do
    full $room
    "$@" >"$HOME/out" 2>"$HOME/err" && {{ echo "$2 works with $room"; break; }}
    grep -qi "space" "$HOME/err" || {{ echo "$2 at $room: no word of space: $(cat "$HOME/err")"; exit 1; }}
    rm -f "$KELP_ROOT/ballast"
    "{KELP}" system fsck --verify-layers | grep -q " 0 damaged" || {{ echo "$2: damaged at $room"; exit 1; }}
  done
  rm -f "$KELP_ROOT/ballast"
  "$@" >/dev/null || exit 1
  "{KELP}" system fsck --verify-layers | grep -q " 0 damaged" || exit 1
}}
attempt "{KELP}" load -i "$HOME/a.tar"
attempt "{KELP}" import "$HOME/root.tar" imported:1
"{KELP}" rmi imported:1 >/dev/null
"{KELP}" run --name c "{name}" sh -c 'busybox head -c 3000000 /dev/urandom > /new; rm /a' || exit 1
attempt "{KELP}" commit c committed:1
"{KELP}" run --rm committed:1 test -s /new || exit 1
echo all
''')
        self.assertIn("all", out)
        self.assertIn("load works", out)
        self.assertIn("commit works", out)

    def test_a_disk_that_is_too_small_for_an_archive(self):
        name = self.registry().add("app", Image(root(), tar(("a", os.urandom(3 << 20)))))
        self.kelp("pull", "-q", name)
        self.inside(f'''
out="$HOME/out"; mkdir "$out"; mount -t tmpfs -o size=2m,mode=700 tmpfs "$out" || exit 1
refused() {{
  "$@" 2>"$HOME/err"; status=$?
  [ $status = 125 ] || {{ echo "$*: $status: $(cat "$HOME/err")"; exit 1; }}
  grep -q "No space left on device" "$HOME/err" || {{ echo "$*: $(cat "$HOME/err")"; exit 1; }}
  [ -z "$(ls -A "$out")" ] || {{ echo "$*: left $(ls -A "$out")"; exit 1; }}
}}
refused "{KELP}" save -o "$out/a.tar" "{name}"
refused "{KELP}" save --format oci-archive -o "$out/a.tar" "{name}"
refused "{KELP}" save --format oci-dir -o "$out/a" "{name}"
"{KELP}" run --name c "{name}" true
refused "{KELP}" export -o "$out/c.tar" c
echo old > "$out/a.tar"
"{KELP}" save -o "$out/a.tar" "{name}" 2>/dev/null && exit 1
[ "$(cat "$out"/*)" = old ] || exit 1
"{KELP}" save "{name}" > "$out/a.tar" 2>"$HOME/err"; [ $? = 125 ] && grep -q "No space" "$HOME/err"
''')

    def test_a_read_only_store_is_told_and_can_be_read(self):
        server = self.registry()
        image = Image(root())
        name = server.add("app", image)
        self.kelp("pull", "-q", name)
        out = self.inside(f'''
mount --bind "$KELP_ROOT" "$KELP_ROOT" && mount -o remount,bind,ro "$KELP_ROOT" || exit 1
"{KELP}" images -q || exit 1
"{KELP}" image inspect -f "{{{{.Id}}}}" "{name}" || exit 1
"{KELP}" history -q "{name}" >/dev/null || exit 1
for words in "pull -q {name}" "rmi {name}" "tag {name} x:1" "load -i /dev/null" "system prune -f"; do
  "{KELP}" $words 2>"$HOME/err" && {{ echo "works: $words"; exit 1; }}
  grep -q "Read-only file system" "$HOME/err" || {{ echo "$words: $(cat "$HOME/err")"; exit 1; }}
done
''')
        self.assertEqual(out.split(), [image.id[7:19], image.id])

    def test_a_file_system_without_attributes(self):
        """As an NFS server gives it: no extended attributes, and with one id no other owner."""
        server = self.registry()
        whiteouts = tar(("d/.wh..wh..opq", b""), ("d/new", b"n"), (".wh.a", b""), ("etc/owned", b"o", {"uid": 7, "gid": 7}))
        image = Image(root(), whiteouts)
        name = server.add("app", image)
        os.makedirs(self.store)
        out = self.inside(f'''
mount -t ramfs -o mode=700 ramfs "$KELP_ROOT" || exit 1
touch "$KELP_ROOT/probe"; setfattr -n user.x -v y "$KELP_ROOT/probe" 2>/dev/null && {{ echo "has attributes"; exit 1; }}
rm "$KELP_ROOT/probe"
"{KELP}" pull -q "{name}" || exit 1
"{KELP}" system fsck --verify-layers || exit 1
"{KELP}" save -o "$HOME/a.tar" "{name}" || exit 1
"{KELP}" tag "{name}" again:1 && "{KELP}" rmi again:1 "{name}" || exit 1
"{KELP}" load -i "$HOME/a.tar" || exit 1
"{KELP}" system fsck --verify-layers || exit 1
''')
        self.assertEqual(out.count(" 0 damaged"), 2, out)


@unittest.skipUnless(shutil.which("bindfs"), "bindfs is not installed")
class Plain(Containers):
    """The closest to NFS that every machine allows: a file system in user space without extended attributes, in which
    nobody can be given a file, root has no rights, and a file that is removed while it is open keeps its folder."""

    def setUp(self):
        Case.setUp(self)
        real, self.mounted = self.home + "/real", self.home + "/mounted"
        os.mkdir(real)
        os.mkdir(self.mounted)
        subprocess.run(["bindfs", "--xattr-none", "--chown-deny", "--chgrp-deny", "--no-allow-other", real, self.mounted], check=True)
        self.env["KELP_ROOT"] = self.store = self.mounted + "/store"
        self.image = Image(root(), tar(("over", b"second layer"), ("d/.wh.two", b""), ("etc/owned", b"o", {"uid": 7, "gid": 7})))
        self.name = self.registry().add("base", self.image)
        self.kelp("pull", "-q", self.name)

    def tearDown(self):
        self.kelp("system", "reset", "-f")
        left = os.listdir(self.store)
        subprocess.run(["fusermount3", "-u", self.mounted], check=True)
        super().tearDown()
        self.assertEqual(left, [])

    def quietly(self, *words, **options):
        """Nothing is left behind, and nobody is told that something was."""
        out, err = self.kelp(*words, **options)
        self.assertNotIn("cannot remove", err)
        return out

    def test_images_come_and_go(self):
        self.sound()
        archive = self.home + "/a.tar"
        self.kelp("save", "-o", archive, self.name)
        self.kelp("tag", self.name, "again:1")
        self.kelp("rmi", "again:1", self.name)
        self.kelp("load", "-i", archive)
        self.sound()
        self.kelp("system", "prune", "-af")
        self.assertEqual(self.kelp("images", "-q")[0], "")
        self.assertEqual(self.left(), [])

    def test_a_container_lives_and_goes(self):
        self.assertEqual(self.quietly("run", "--rm", self.name, "cat", "/over"), "second layer")
        self.assertEqual(os.listdir(self.store + "/containers"), [])
        script = "echo new > /new; rm /d/one; mkdir /made; mv /a /made; id -u"
        self.assertEqual(self.quietly("run", "--name", "c", self.name, "sh", "-c", script), "0\n")
        wanted = ["D /a", "C /d", "D /d/one", "A /made", "A /made/a", "A /new"]
        self.assertEqual(self.quietly("diff", "c").splitlines(), wanted)
        self.kelp("cp", "c:/new", self.home)
        self.kelp("cp", self.home + "/new", "c:/made/copy")
        self.quietly("start", "c")
        self.quietly("wait", "c")
        self.quietly("commit", "c", "made:1")
        self.assertEqual(self.quietly("run", "--rm", "made:1", "sh", "-c", "cat /new /made/copy; ls /d"), "new\nnew\nsub\n")
        self.quietly("export", "-o", self.home + "/root.tar", "c")
        self.quietly("rm", "c")
        self.assertEqual(os.listdir(self.store + "/containers"), [])
        self.sound()

    def test_a_folder_that_is_made_anew_hides_what_an_image_had(self):
        """No attribute can say so."""
        script = """set -e
            rm -r /gone /d; mkdir /gone /d /d/sub; echo y > /gone/y; ls -a /gone /d /d/sub
            mkdir /other; echo z > /other/z; rm -r /gone; mv /other /gone; rmdir /d/sub; mkdir /d/sub; rm -r /d"""
        self.assertEqual(self.quietly("run", "--name", "c", self.name, "sh", "-c", script),
                         "/d:\n.\n..\nsub\n\n/d/sub:\n.\n..\n\n/gone:\n.\n..\ny\n")
        self.assertEqual(self.quietly("diff", "c").splitlines(), ["D /d", "C /gone", "D /gone/x", "A /gone/z"])
        self.quietly("commit", "c", "made:1")
        for image in ("made:1", self.name):
            seen = self.quietly("run", "--rm", image, "sh", "-c", "ls /gone; test -e /d; echo $?")
            self.assertEqual(seen, "z\n1\n" if image == "made:1" else "x\n0\n")

    def test_a_layer_that_is_not_whole_is_replaced(self):
        """Two names can't be exchanged here."""
        for part in ("layer", "skeleton"):
            os.truncate(os.path.join(os.path.dirname(self.tree(self.image, 0)), part), 0)
        self.kelp("pull", "-q", self.name)
        self.sound()
        self.assertEqual(self.left(), [])

    def test_a_refused_overlay_is_told_once(self):
        """Kernel overlay wants attributes: what is refused for one image of a store is refused for all."""
        other = self.registry().add("other", Image(root(), tar(("other", b"1")), tar(("third", b"1"))))
        self.kelp("pull", "-q", other)
        warned = ["refused" in self.kelp("run", "--rm", name, "sh", "-c", "")[1] for name in (self.name, other, self.name, "@host", other)]
        self.assertEqual(warned, [True, False, False, False, False])

    def test_two_pulls_and_a_kill(self):
        for _ in range(5):
            self.kelp("rmi", self.name)
            pulls = [self.start("pull", "-q", self.name) for _ in range(3)]
            self.assertEqual([pull.wait() for pull in pulls], [0, 0, 0], [pull.communicate() for pull in pulls])
        for _ in range(10):
            self.kelp("rmi", "-fi", self.name)
            self.kelp("system", "prune", "-f")
            process = self.start("pull", "-q", self.name, start_new_session=True)
            try:
                process.communicate(timeout=random.uniform(0, 0.2))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
            self.sound()
        self.kelp("pull", "-q", self.name)
        self.assertEqual(self.left(), [])

    def test_a_reset_ends_what_runs(self):
        self.kelp("run", "-d", "--name", "c", self.name, "sleep", "100")
        pid = int(self.kelp("inspect", "-f", "{{.State.Pid}}", "c")[0])
        self.kelp("system", "reset", "-f")
        self.assertFalse(os.path.exists(f"/proc/{pid}"))
        self.kelp("pull", "-q", self.name)


if __name__ == "__main__":
    unittest.main()
