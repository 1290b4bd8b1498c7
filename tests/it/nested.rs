//! A host that refuses something, made for real and for one command only: a user namespace of the test's, with
//! a mount namespace, in which a shell line breaks one thing before kelp starts; and a PATH that lacks programs.

use crate::dir::Dir;
use crate::kelp::Kelp;
use std::fs;
use std::os::unix::fs::symlink;

pub(crate) struct Nested {
    shell: String,
    command: Vec<String>,
    before: Vec<String>,
}

impl Nested {
    /// With every id that this user can map, so that the ids rung is still there to be refused.
    pub(crate) fn new(dir: &Dir) -> Self {
        let many = crate::sys::uid() != 0 && !crate::host::subordinate("/etc/subuid").is_empty();
        let maps: &[&str] = if many { &["--map-auto", "--map-root-user"] } else { &["--map-root-user"] };
        let root = if dir.path("root").exists() { dir.text("root") } else { dir.root() };
        let kelp = crate::dir::kelp().to_str().unwrap().to_string();
        let before = [kelp, "run".into(), "--rm".into(), "--rootfs".into(), root];
        let shell = maps.join(" ");
        Self { shell, command: vec!["/bin/guest".into()], before: before.to_vec() }.with_line("exec \"$@\"")
    }

    fn with_line(mut self, line: &str) -> Self {
        self.shell = format!("{}\n{line}", self.shell.lines().next().unwrap());
        self
    }

    /// A line of shell that breaks something and then starts `"$@"`.
    pub(crate) fn shell(self, line: &str) -> Self {
        self.with_line(line)
    }

    pub(crate) fn command(mut self, command: &[&str]) -> Self {
        self.command = command.iter().map(|word| word.to_string()).collect();
        self
    }

    /// Another kelp verb than `run`.
    pub(crate) fn verb(mut self, words: &[&str]) -> Self {
        self.before.truncate(1);
        self.command(words)
    }

    pub(crate) fn run(self, dir: &Dir) -> Kelp {
        let (maps, line) = self.shell.split_once('\n').unwrap();
        let mut kelp = dir.kelp::<&str>(&[]);
        let mut outer = std::process::Command::new("unshare");
        outer.arg("--user").args(maps.split(' ')).args(["--mount", "sh", "-c", line, "sh"]);
        outer
            .args(&self.before)
            .args(&self.command)
            .envs(kelp.command.get_envs().filter_map(|(k, v)| Some((k, v?))));
        kelp.command = outer;
        kelp
    }
}

/// A folder with links to every program of the PATH except these; the PATH to use instead.
pub(crate) fn without(dir: &Dir, names: &[&str]) -> String {
    let folder = dir.folder("path");
    for place in ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"] {
        for entry in fs::read_dir(place).into_iter().flatten().flatten() {
            if !names.iter().any(|name| entry.file_name() == *name) {
                let _ = symlink(entry.path(), dir.path("path").join(entry.file_name()));
            }
        }
    }
    folder
}
