//! A folder of a test, with a store of its own inside, removed when the test ends; and the small root file
//! system that most tests run: the guest and four text files, so that a fact can't come from anything else.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

pub(crate) struct Dir(PathBuf);

static COUNT: AtomicU32 = AtomicU32::new(0);

impl Dir {
    pub(crate) fn new() -> Self {
        loop {
            let name = format!("k{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
            let path = std::env::temp_dir().join(name);
            match fs::DirBuilder::new().mode(0o755).create(&path) {
                // Of a test that was killed, whose number this one has now.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                made => break made.map(|()| Self(path)).unwrap(),
            }
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_string()
    }

    /// Writes a file, with the folders above it, and gives back its path as text.
    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        write(&self.path(name), text);
        self.text(name)
    }

    pub(crate) fn folder(&self, name: &str) -> String {
        fs::create_dir_all(self.path(name)).unwrap();
        self.text(name)
    }

    /// The small root, made anew as `root` in this folder.
    pub(crate) fn root(&self) -> String {
        self.root_named("root")
    }

    pub(crate) fn root_named(&self, name: &str) -> String {
        let root = self.path(name);
        for folder in ["bin", "etc", "tmp", "root", "var/lib", "proc", "sys", "dev"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::copy(guest(), root.join("bin/guest")).unwrap();
        fs::set_permissions(root.join("bin/guest"), fs::Permissions::from_mode(0o755)).unwrap();
        write(
            &root.join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/guest\nkelpie:x:1234:1235:k:/var/lib:/bin/guest\n",
        );
        write(&root.join("etc/group"), "root:x:0:\nkelpie:x:1235:\nextra:x:4242:kelpie\n");
        write(&root.join("etc/marker"), "lower");
        self.text(name)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// A program of the workspace: named by the environment, or beside the test's own executable.
fn program(variable: &str, name: &str) -> PathBuf {
    let beside = || std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join(name);
    std::env::var_os(variable).map_or_else(beside, PathBuf::from)
}

pub(crate) fn guest() -> PathBuf {
    program("KELP_GUEST", "guest")
}

pub(crate) fn kelp() -> PathBuf {
    program("KELP_BIN", "kelp")
}

/// Every path below a folder with its kind, mode, size and text: what must not change when nothing may.
pub(crate) fn picture(folder: &str) -> Vec<String> {
    fn see(path: &Path, seen: &mut Vec<String>) {
        let meta = fs::symlink_metadata(path).unwrap();
        let text = if meta.is_file() { fs::read(path).unwrap_or_default() } else { Vec::new() };
        let sum = text.iter().fold(7u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
        seen.push(format!("{} {:?} {:o} {sum}", path.display(), meta.file_type(), meta.permissions().mode()));
        if meta.is_dir() {
            let mut names: Vec<PathBuf> = fs::read_dir(path).unwrap().flatten().map(|e| e.path()).collect();
            names.sort();
            names.iter().for_each(|path| see(path, seen));
        }
    }
    let mut seen = Vec::new();
    see(Path::new(folder), &mut seen);
    seen
}
