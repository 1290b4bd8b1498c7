"""One script, two programs: each line runs in a shell whose `podman` is the installed one, and in a shell whose
`podman` is kelp, and must give the same.

    podman run --rm reef true                   both succeed and print the same
    podman rm nope              #= 1 no such    both end with 1, and both sentences have the words
    podman start nope           #~ exit-1       they differ, as docs/life.md says under that name

What no two runs have in common (ids, times) is made equal first."""

import os
import re
import subprocess
import tarfile
import unittest

STAGE = os.environ["STAGE"]
HOME = os.path.join(STAGE, "home")
ROOT = os.path.join(HOME, "root.tar")
PROGRAMS = ("kelp", "podman")

# Ends at SIGTERM, which a bare `sleep` as the first process of a container does not.
LOYAL = """sh -c 'trap "exit 0" TERM; echo ready; sleep 1000 & wait'"""

CONFIGURATION = """
[containers]
cgroups = "disabled"
netns = "none"
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
"""

VOLATILE = [
    (re.compile(r"\b[0-9a-f]{64}\b"), "ID"),
    (re.compile(r"\b[0-9a-f]{25}\b"), "ID"),
    (re.compile(r"\b[0-9a-f]{12}\b"), "ID"),
    (re.compile(r"\bsha256:"), ""),
    (re.compile(r"\blocalhost/"), ""),
    (re.compile(r"(Less than a second|About a minute|\d+ (second|minute)s?)( ago)?"), "AGO"),
    (re.compile(r"\b\d{4}-\d\d-\d\d[T ][0-9:.]+ ?(Z|[+-]\d{4} UTC|[+-]\d\d:\d\d)"), "TIME"),
    (re.compile(r" +$", re.M), ""),
    (re.compile(r"  +"), "  "),
]


def meant():
    """The names of the table of differences."""
    with open(os.path.join(STAGE, "life.md")) as file:
        return set(re.findall(r"^\| `([a-z0-9-]+)` \|", file.read(), re.M))


def plain(text):
    for pattern, word in VOLATILE:
        text = pattern.sub(word, text)
    return text


def environment(program):
    folder = os.path.join(STAGE, program)
    return {"PATH": f"{folder}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": HOME, "LANG": "C.UTF-8",
            "XDG_RUNTIME_DIR": os.path.join(HOME, "run"), "KELP_ROOT": os.path.join(HOME, "store"),
            "KELP_RUNDIR": os.path.join(HOME, "run-kelp"), "W": os.path.join(HOME, f"work-{program}"),
            "LOYAL": LOYAL, "USER": os.environ.get("USER", "")}


def shell(program, line, check=False):
    ended = subprocess.run(["bash", "-c", line], env=environment(program), stdin=subprocess.DEVNULL,
                           capture_output=True, timeout=60, cwd=os.path.join(HOME, f"work-{program}"))
    out, err = (text.decode(errors="replace") for text in (ended.stdout, ended.stderr))
    if check and ended.returncode != 0:
        raise RuntimeError(f"{program}: {line}: {ended.returncode}\n{err}")
    return ended.returncode, out, err


def make_root():
    """busybox with its names, as one small tar."""
    root = os.path.join(HOME, "root")
    for folder in ("bin", "etc", "tmp", "root", "srv/app", "proc", "sys", "dev"):
        os.makedirs(os.path.join(root, folder))
    subprocess.run(["cp", "/bin/busybox", f"{root}/bin/busybox"], check=True)
    for name in subprocess.run(["/bin/busybox", "--list"], capture_output=True, text=True).stdout.split():
        if name != "busybox":
            os.symlink("busybox", f"{root}/bin/{name}")
    for name, text in (("passwd", "root:x:0:0:root:/root:/bin/sh\nkelpie:x:12:34::/tmp:/bin/sh\n"),
                       ("group", "root:x:0:\nkelpie:x:34:\n")):
        with open(f"{root}/etc/{name}", "w") as file:
            file.write(text)
    with open(f"{root}/srv/app/mark", "w") as file:
        file.write("mark\n")
    os.chmod(f"{root}/tmp", 0o1777)
    with tarfile.open(ROOT, "w") as archive:
        archive.add(root, arcname=".")


def set_up():
    if not os.path.exists(ROOT):
        make_root()
    os.makedirs(os.path.join(HOME, ".config/containers"), exist_ok=True)
    with open(os.path.join(HOME, ".config/containers/containers.conf"), "w") as file:
        file.write(CONFIGURATION)
    for program in PROGRAMS:
        os.makedirs(os.path.join(HOME, f"work-{program}"), exist_ok=True)
        shell(program, f"podman image exists reef || podman import -q --change 'CMD [\"sh\"]' {ROOT} reef", check=True)


def tear_down():
    # podman keeps a process for its user namespace, which would outlive the tests.
    shell("podman", "podman system migrate")


class Pair(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.meant = meant()
        cls.addClassCleanup(tear_down)

    def setUp(self):
        set_up()

    def tearDown(self):
        for program in PROGRAMS:
            shell(program, "podman rm -f -a -t 0; podman volume rm -f -a; podman secret rm -a; rm -rf \"$W\"/*")
            for name in shell(program, "podman images --format '{{.Repository}}:{{.Tag}}'")[1].split():
                if not name.endswith("reef:latest"):
                    shell(program, f"podman untag {name}" if name.count("<") == 0 else "true")
            shell(program, "podman image prune -f")

    def script(self, text):
        """Every line, in both; all that is wrong is said at the end."""
        lines = filter(None, (line.strip() for line in text.splitlines()))
        faults = [fault for fault in map(self.judge, lines) if fault]
        self.assertFalse(faults, "\n" + "\n".join(faults))

    def judge(self, line):
        command, same, want = line.partition("#=")
        command, differs, key = command.partition("#~")
        code, _, words = (want if same else "0").strip().partition(" ")
        results = {program: shell(program, command) for program in PROGRAMS}
        shown = "".join(f"  {program}: {code}\n{out}{err}" for program, (code, out, err) in results.items())
        story = f"$ {command.strip()}\n{shown}"
        ours, theirs = ((code, plain(out)) for code, out, _ in results.values())
        if "panicked" in results["kelp"][2]:
            return f"kelp panicked: {story}"
        if differs and key.strip() not in self.meant:
            return f"docs/life.md lists no {key.strip()}: {story}"
        if differs:
            return None if ours != theirs else f"they are equal: {story}"
        if (ours[0], theirs[0]) != (int(code), int(code)):
            return f"the exit code is not {code}: {story}"
        if ours[1] != theirs[1]:
            return f"the output differs: {story}"
        lost = [program for program, (_, _, err) in results.items() if words.strip().lower() not in err.lower()]
        return f"{lost} does not say {words.strip()!r}: {story}" if lost else None
