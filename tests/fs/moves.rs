//! Renaming directories that lowers hold (`redirect_dir=on`): the same operations in the mount and in a plain
//! directory, compared at every step and over remounts; and what becomes of such an upper elsewhere.

use fs_tests::{Mounted, Stand, differences, program, tree, write};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const ON: &str = ",redirect_dir=on";

/// Names and what they hold; what a rename must carry along.
fn contents(root: &Path) -> BTreeMap<PathBuf, Option<String>> {
    fn visit(root: &Path, at: &Path, found: &mut BTreeMap<PathBuf, Option<String>>) {
        for entry in fs::read_dir(root.join(at)).expect("a directory is read") {
            let entry = entry.expect("an entry is read");
            let path = at.join(entry.file_name());
            if entry.file_type().expect("a type").is_dir() {
                visit(root, &path, found);
                found.insert(path, None);
            } else {
                let text = fs::read_to_string(root.join(&path)).expect("a file is read");
                found.insert(path, Some(text));
            }
        }
    }
    let mut found = BTreeMap::new();
    visit(root, Path::new(""), &mut found);
    found
}

fn rename(root: &Path, from: &str, to: &str, flags: RenameFlags) -> Result<(), Errno> {
    renameat_with(CWD, root.join(from), CWD, root.join(to), flags)
}

#[test]
fn a_directory_of_a_lower_keeps_its_files_and_number_and_the_kernel_refuses_the_upper() {
    let stand = Stand::new("redirect");
    fs::create_dir_all(stand.lower("dir/sub")).expect("a directory");
    fs::create_dir_all(stand.path("lower2/dir/deep")).expect("a directory");
    write(stand.lower("dir/sub/f"), "low");
    write(stand.path("lower2/dir/deep/g"), "lowest");
    let before = ["lower", "lower2"].map(|part| tree(&stand.path(part)));
    let mounted = stand.mount(ON);
    let number = fs::metadata(stand.mnt("dir")).expect("a directory").ino();
    fs::create_dir(stand.mnt("new")).expect("a directory");
    rename(&stand.path("mnt"), "dir", "new/home", RenameFlags::empty()).expect("a rename");
    rename(&stand.path("mnt"), "new/home/sub", "sub", RenameFlags::empty()).expect("a rename");
    fs::create_dir(stand.mnt("dir")).expect("the old name is free");
    let holds = |when: &str| {
        let names: Vec<_> = contents(&stand.path("mnt"))
            .into_iter()
            .map(|(path, text)| format!("{} {}", path.display(), text.unwrap_or_default()))
            .collect();
        let wanted =
            ["dir ", "new ", "new/home ", "new/home/deep ", "new/home/deep/g lowest", "sub ", "sub/f low"];
        assert_eq!(names, wanted, "{when}");
        assert_eq!(fs::metadata(stand.mnt("new/home")).expect("a directory").ino(), number, "{when}");
    };
    holds("after the renames");
    drop(mounted);
    let mounted = stand.mount("");
    holds("after a remount without the option");
    assert_eq!(rename(&stand.path("mnt"), "sub", "sub2", RenameFlags::empty()), Err(Errno::XDEV));
    drop(mounted);
    let data = CString::new(format!("{},userxattr", stand.layers())).expect("no NUL in a path");
    let kernel =
        rustix::mount::mount("overlay", stand.path("mnt"), "overlay", MountFlags::empty(), data.as_c_str());
    assert_eq!(kernel, Err(Errno::INVAL), "the kernel would show these directories without their files");
    let checked = Command::new(program()).arg("check").arg(stand.path("upper")).output().expect("it starts");
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(!checked.status.success() && said.contains("renamed by a redirect"), "{said}");
    for (part, before) in ["lower", "lower2"].iter().zip(before) {
        let touched = differences(&before, &tree(&stand.path(part)));
        assert!(touched.is_empty(), "{touched:?}");
    }
}

#[test]
fn a_redirect_out_of_the_layers_leads_nowhere() {
    let stand = Stand::new("redirect-out");
    fs::create_dir_all(stand.path("outside")).expect("a directory");
    write(stand.path("outside/secret"), "x");
    fs::create_dir(stand.lower("d")).expect("a directory");
    let mounted = stand.mount(ON);
    rename(&stand.path("mnt"), "d", "e", RenameFlags::empty()).expect("a rename");
    drop(mounted);
    let mark = "user.overlay.redirect";
    for path in ["/../outside", "/d/../../outside", "../outside"] {
        rustix::fs::setxattr(stand.upper("e"), mark, path.as_bytes(), rustix::fs::XattrFlags::empty())
            .expect("an attribute");
        let _mounted = stand.mount("");
        let seen = fs::metadata(stand.mnt("e/secret")).err().and_then(|error| error.raw_os_error());
        assert_eq!(seen, Some(Errno::IO.raw_os_error()), "{path}");
    }
}

/// A generator that repeats itself for a seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, count: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % count
    }

    fn path(&mut self) -> String {
        let depth = 1 + self.below(3);
        let names: Vec<_> = (0..depth).map(|_| ["a", "b", "c", "d"][self.below(4) as usize]).collect();
        names.join("/")
    }
}

/// Does one operation below `root`, and says how it ended.
fn act(root: &Path, kind: u64, one: &str, two: &str, text: &str) -> Result<(), i32> {
    let code = |error: std::io::Error| error.raw_os_error().unwrap_or(0);
    let errno = |error: Errno| error.raw_os_error();
    match kind {
        0 | 1 => fs::create_dir(root.join(one)).map_err(code),
        2 => fs::write(root.join(one), text).map_err(code),
        3 => fs::remove_dir(root.join(one)).map_err(code),
        4 if fs::symlink_metadata(root.join(one)).is_ok_and(|meta| meta.is_dir()) => {
            fs::remove_dir_all(root.join(one)).map_err(code)
        }
        4 => fs::remove_file(root.join(one)).map_err(code),
        5 => rename(root, one, two, RenameFlags::EXCHANGE).map_err(errno),
        6 => rename(root, one, two, RenameFlags::NOREPLACE).map_err(errno),
        _ => rename(root, one, two, RenameFlags::empty()).map_err(errno),
    }
}

fn fill(root: &Path, chance: &mut Chance, layer: &str) {
    for index in 0..24 {
        let path = root.join(chance.path());
        let _taken = fs::create_dir_all(&path);
        if path.is_dir() {
            write(path.join(format!("f{}", index % 5)), format!("{layer} {index}"));
        }
    }
}

#[test]
fn renamed_directories_are_what_they_are_on_a_disk_whatever_is_done_to_them() {
    let seeds = std::env::var("MOVES_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(25);
    for seed in 1..=seeds {
        let stand = Stand::new("moves");
        let chance = &mut Chance(0x9e37_79b9_7f4a_7c15u64.wrapping_mul(seed));
        fill(&stand.path("lower2"), chance, "lowest");
        fill(&stand.path("lower"), chance, "low");
        // What the layers show together is where the disk begins.
        let plain = stand.path("plain");
        let mut mounted: Option<Mounted> = Some(stand.mount(ON));
        let copied = Command::new("cp").arg("-a").arg(stand.path("mnt")).arg(&plain).status();
        assert!(copied.expect("cp starts").success());
        let mut done = Vec::new();
        for step in 0..120 {
            let (kind, one, two) = (chance.below(12), chance.path(), chance.path());
            let text = format!("{seed} {step}");
            done.push(format!("{kind} {one} {two}"));
            let expected = act(&plain, kind, &one, &two, &text);
            let outcome = act(&stand.path("mnt"), kind, &one, &two, &text);
            assert_eq!(outcome, expected, "seed {seed}: {}", done.join(", "));
            if step % 40 == 39 {
                drop(mounted.take());
                mounted = Some(stand.mount(ON));
            }
            if step % 8 == 7 {
                let (disk, ours) = (contents(&plain), contents(&stand.path("mnt")));
                assert!(disk == ours, "seed {seed}: {}\n{disk:?}\n{ours:?}", done.join(", "));
            }
        }
    }
}
