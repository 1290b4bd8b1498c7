"""What a power cut leaves of an upper, with the real program on a real ext4 whose memory is thrown away (EXT4_IOC_SHUTDOWN).

usage: power.py PROGRAM USER FOLDER    as root of the machine; USER has subordinate ids; the disk is a file in FOLDER
"""
import fcntl
import os
import struct
import subprocess
import sys
import time
import unittest

PROGRAM, USER, FOLDER = (os.path.abspath(word) if "/" in word else word for word in sys.argv[1:4])
DISK, MOUNT = FOLDER + "/disk.ext4", FOLDER + "/disk"
SHUTDOWN, WITHOUT_THE_JOURNAL = 0x8004587D, 2
OLD = b"old content " * 1000
REPLACED = b"new content " * 1000

# Runs as root of the user's namespace; each function of the test's own text comes behind it.
INSIDE = f"""
import os, subprocess, sys
os.chdir({MOUNT!r})
OLD, REPLACED = {OLD!r}, {REPLACED!r}
def mount(options=""):
    return subprocess.run([{PROGRAM!r}, "-o", "lowerdir=lower,upperdir=upper,workdir=work" + options, "mnt"], capture_output=True, text=True)
def write(name, content, flags=os.O_CREAT | os.O_TRUNC, sync=False):
    file = os.open("mnt/" + name, os.O_WRONLY | flags, 0o644)
    os.write(file, content)
    if sync: os.fsync(file)
    os.close(file)
def append(name, content, sync=False):
    write(name, content, os.O_APPEND, sync)
def done():
    print("done", flush=True)
    sys.stdin.read()
"""


def sh(*words):
    subprocess.run(words, check=True)


class PowerCut(unittest.TestCase):
    def setUp(self):
        os.makedirs(MOUNT, exist_ok=True)
        with open(DISK, "wb") as disk:
            disk.truncate(96 << 20)
        sh("mkfs.ext4", "-q", "-F", DISK)
        self.attach()
        for part in ("lower", "upper", "work", "mnt"):
            os.mkdir(f"{MOUNT}/{part}")
        for name in ["appended", "gone", "replaced", "chmod", *(f"f{i}" for i in range(50)), *(f"r{i}" for i in range(50))]:
            with open(f"{MOUNT}/lower/{name}", "wb") as file:
                file.write(OLD)
        sh("chown", "-R", USER, MOUNT)
        os.sync()

    def tearDown(self):
        self.detach()

    def detach(self):
        """The disk has no memory left when its loop device is gone."""
        sh("umount", MOUNT)
        deadline = time.monotonic() + 30
        while subprocess.run(["losetup", "-j", DISK], capture_output=True, text=True).stdout:
            self.assertLess(time.monotonic(), deadline, "somebody holds the disk")

    def end(self, program):
        """With everything that it has started: it is the first process of its namespace."""
        said, _ = program.communicate("")
        return said

    def attach(self):
        sh("mount", "-o", "loop", DISK, MOUNT)

    def start(self, text):
        who = ["setpriv", "--reuid", USER, "--regid", USER, "--init-groups", "--", "unshare", "-Umpf", "--map-root-user", "--map-auto",
               "--mount-proc", "--kill-child", "--"]
        return subprocess.Popen([*who, "python3", "-c", INSIDE + text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def act_and_cut(self, text):
        """Power goes when the text has called done()."""
        program = self.start(text + "\ndone()")
        self.assertEqual(program.stdout.readline(), "done\n")
        held = os.open(MOUNT, os.O_RDONLY)
        fcntl.ioctl(held, SHUTDOWN, struct.pack("I", WITHOUT_THE_JOURNAL))
        os.close(held)
        self.end(program)
        self.detach()
        self.attach()

    def look(self, text):
        program = self.start(text)
        said = self.end(program)
        self.assertEqual(program.returncode, 0)
        return said

    def test_what_was_synced_is_there_and_what_was_not_is_old_or_new_and_never_torn(self):
        self.act_and_cut('''
mount()
write("new", b"n" * 300000, sync=True)
append("appended", b"more", sync=True)
os.unlink("mnt/gone")
os.fsync(os.open("mnt", os.O_RDONLY))
for i in range(50): append(f"f{i}", b"more")
for i in range(50):
    write("beside", REPLACED)
    os.rename("mnt/beside", f"mnt/r{i}")
os.chmod("mnt/chmod", 0o600)
write("mark", b"m", sync=True)
write("lost", b"x" * 5000)
''')
        said = self.look(f'''
assert mount().returncode == 0
old = OLD
content = lambda name: open("mnt/" + name, "rb").read()
assert content("new") == b"n" * 300000
assert content("appended") == old + b"more"
assert not os.path.exists("mnt/gone"), "a removal that was synced"
# What ext4 does to an append itself, copied up or not: the size may be there before the data is.
ends = (b"", b"more", b"\\0" * 4)
torn = [f"f{{i}} {{len(content(f'f{{i}}'))}}" for i in range(50) if content(f"f{{i}}") not in [old + end for end in ends]]
torn += [f"r{{i}} {{len(content(f'r{{i}}'))}}" for i in range(50) if content(f"r{{i}}") not in (old, REPLACED)]
assert content("chmod") == old
print("torn:", torn, "lost:", not os.path.exists("mnt/lost") or content("lost") == b"")
''')
        self.assertEqual(said, "torn: [] lost: True\n")

    def test_a_volatile_mount_is_known_after_it(self):
        self.act_and_cut('''
mount(",volatile")
write("new", b"n" * 300000)
append("appended", b"more")
os.fsync(os.open("somebody-elses", os.O_CREAT | os.O_WRONLY))
''')
        said = self.look('refused = mount(); print(refused.returncode, "volatile" in refused.stderr)')
        self.assertEqual(said, "1 True\n")


if __name__ == "__main__":
    unittest.main(argv=["power.py", "-v"])
