//! Volumes without a name: who makes them, what they begin with, who shares them, and with whom they go; and that
//! a copy of an image's files is whole.

use crate::dir::Dir;
use crate::host::soon;
use crate::kelp::says;
use crate::{needs, sys};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

fn volumes(dir: &Dir) -> Vec<String> {
    dir.kelp(&["volume", "ls", "-q"]).ok().out.lines().map(str::to_owned).collect()
}

/// A root with one file where volumes will be.
fn rooted(dir: &Dir) -> String {
    let root = dir.root();
    dir.file("root/srv/app/letter", "from the image");
    root
}

/// A container that is made and not started, with these options.
fn created(dir: &Dir, name: &str, options: &[&str]) {
    let root = dir.text("root");
    let command = ["--rootfs", &root, "/bin/guest", "all", "read", "/srv/app/letter", ",", "list", "/srv"];
    dir.kelp(&[&["create", "--name", name], options, &command].concat()).ok();
}

fn mounts(dir: &Dir, name: &str) -> Vec<Value> {
    let text = dir.kelp(&["inspect", "--format", "{{json .Mounts}}", name]).ok().out;
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_volume_without_a_name_is_made_filled_and_goes_only_when_that_is_asked() {
    needs!(userns);
    let dir = Dir::new();
    rooted(&dir);
    for options in [&["-v", "/srv/app"][..], &["--mount", "type=volume,dst=/srv/app"]] {
        created(&dir, "reef", options);
        let [name] = &volumes(&dir)[..] else { panic!("{:?}", volumes(&dir)) };
        assert_eq!(name.len(), 64, "{name}");
        let mount = &mounts(&dir, "reef")[0];
        assert_eq!((&mount["Name"], &mount["Type"]), (&name.as_str().into(), &"volume".into()), "{mount}");
        says(&dir.kelp(&["volume", "rm", name]).fails(2), &["in use"]);
        dir.kelp(&["start", "reef"]).ok();
        assert!(soon(|| dir.kelp(&["logs", "reef"]).ok().out.contains("from the image")));
        let kept = dir.path(&format!("store/volumes/{name}/_data/letter"));
        assert_eq!(fs::read_to_string(&kept).unwrap(), "from the image");
        dir.kelp(&["wait", "reef"]).ok();
        dir.kelp(&["rm", "reef"]).ok();
        assert_eq!(dir.kelp(&["volume", "ls", "-q", "-f", "dangling=true"]).ok().out.trim(), name);
        dir.kelp(&["volume", "prune", "-f"]).ok();
        created(&dir, "reef", options);
        dir.kelp(&["rm", "-v", "reef"]).ok();
        assert_eq!(volumes(&dir), Vec::<String>::new());
    }
}

#[test]
fn a_container_that_goes_by_itself_takes_its_anonymous_volumes_along_and_no_others() {
    needs!(userns);
    let dir = Dir::new();
    rooted(&dir);
    let seen = dir.run(&["-v", "/srv/app", "-v", "named:/n"], &["/bin/guest", "read", "/srv/app/letter"]);
    assert_eq!(seen.ok().json()["text"], "from the image");
    assert_eq!(volumes(&dir), ["named"]);
    dir.kelp(&["run", "-d", "--rm", "-v", "/x", "--name", "reef", "@host", "sleep", "100"]).ok();
    assert_eq!(volumes(&dir).len(), 2);
    dir.kelp(&["rm", "-f", "reef"]).ok();
    assert_eq!(volumes(&dir), ["named"]);
}

/// Guard: the monitor is gone, so the next command that looks at volumes puts its container right first.
#[test]
fn a_killed_container_has_no_volume_any_more() {
    needs!(userns);
    sys::adopt_orphans();
    let dir = Dir::new();
    let run = ["run", "-d", "--rm", "-v", "named:/n", "-v", "/x", "@host", "sleep", "100"];
    let id = dir.kelp(&run).ok().out.trim().to_owned();
    let text = fs::read_to_string(dir.path(&format!("store/containers/{id}/lock"))).unwrap();
    let page: Value = serde_json::from_str(text[17..4096].trim()).unwrap();
    sys::kill(page["monitor"]["pid"].as_i64().unwrap() as i32, libc::SIGKILL).unwrap();
    let removed = soon(|| {
        sys::reap();
        dir.kelp(&["volume", "rm", "named"]).end().code == 0
    });
    assert!(removed, "{}", dir.kelp(&["volume", "rm", "named"]).fails(2));
    assert_eq!(volumes(&dir), Vec::<String>::new());
}

#[test]
fn a_killed_removal_is_finished_by_the_next_command() {
    needs!(userns);
    let dir = Dir::new();
    rooted(&dir);
    for turn in 0..30 {
        created(&dir, "reef", &["-v", "/srv/app", "-v", "/y"]);
        let mut child = dir.kelp(&["rm", "-v", "reef"]).start();
        std::thread::sleep(std::time::Duration::from_micros(turn * 300));
        let _ = child.kill();
        child.wait().unwrap();
        let left = dir.kelp(&["ps", "-a", "-q"]).ok().out;
        assert_eq!(volumes(&dir).len(), if left.is_empty() { 0 } else { 2 }, "turn {turn}");
        dir.kelp(&["rm", "-f", "-v", "reef"]).ok();
    }
    assert_eq!(volumes(&dir), Vec::<String>::new());
}

#[test]
fn a_container_takes_over_what_another_has_from_outside() {
    needs!(userns);
    let dir = Dir::new();
    rooted(&dir);
    let (outside, other) = (dir.folder("outside"), dir.folder("other"));
    dir.file("outside/mark", "bound");
    dir.file("other/mark", "other");
    created(
        &dir,
        "reef",
        &["-v", "/srv/app", "-v", "named:/n:ro", "-v", &format!("{outside}:/b"), "--tmpfs", "/t"],
    );
    let verbs = [
        "write",
        "/srv/app/new",
        "x",
        ",",
        "write",
        "/n/new",
        "x",
        ",",
        "read",
        "/b/mark",
        ",",
        "list",
        "/t",
    ];
    let seen = dir.all(&["--volumes-from", "reef"], &verbs);
    assert_eq!((&seen[0]["written"], &seen[1]["error"]), (&true.into(), &"EROFS".into()), "{seen}");
    assert_eq!((&seen[2]["text"], &seen[3]["error"]), (&"bound".into(), &"ENOENT".into()), "{seen}");
    let bind = format!("{other}:/b");
    let seen = dir.all(
        &["--volumes-from", "reef:ro", "-v", &bind],
        &["write", "/srv/app/more", "x", ",", "read", "/b/mark"],
    );
    assert_eq!((&seen[0]["error"], &seen[1]["text"]), (&"EROFS".into(), &"other".into()), "{seen}");
    assert_eq!(dir.all(&["--volumes-from", "reef"], &["read", "/srv/app/new"])[0]["text"], "x");
    let run = |words: &[&str]| dir.run(words, &["/bin/guest"]).fails(125);
    says(&run(&["--volumes-from", "shoal"]), &["no such container", "shoal"]);
    says(&run(&["--volumes-from", "reef:sync"]), &["sync", "ro or rw"]);
}

#[test]
fn a_shared_anonymous_volume_goes_with_the_last_that_has_it() {
    needs!(userns);
    let dir = Dir::new();
    rooted(&dir);
    created(&dir, "reef", &["-v", "/srv/app"]);
    created(&dir, "shoal", &["--volumes-from", "reef"]);
    assert_eq!(mounts(&dir, "shoal")[0]["Name"], mounts(&dir, "reef")[0]["Name"]);
    dir.kelp(&["rm", "-v", "reef"]).ok();
    assert_eq!(volumes(&dir).len(), 1);
    dir.kelp(&["rm", "-v", "shoal"]).ok();
    assert_eq!(volumes(&dir), Vec::<String>::new());
}

#[test]
fn the_volumes_of_an_image_are_made_for_each_container() {
    needs!(userns);
    let dir = Dir::new();
    let root = rooted(&dir);
    let archive = dir.text("root.tar");
    let packed = Command::new("tar").args(["-C", &root, "-cf", &archive, "."]).status();
    assert!(packed.unwrap().success());
    dir.kelp(&["import", "--change", "VOLUME /srv/app", &archive, "reef"]).ok();
    let run = |options: &[&str], verbs: &[&str]| {
        let words = [&["run", "--network", "none"], options, &["reef", "/bin/guest"], verbs].concat();
        dir.kelp(&words).ok().json()
    };
    assert_eq!(run(&["--name", "one"], &["read", "/srv/app/letter"])["text"], "from the image");
    let kept = volumes(&dir);
    assert_eq!(kept.len(), 1);
    assert_eq!(run(&["--rm"], &["read", "/srv/app/letter"])["text"], "from the image");
    assert_eq!(run(&["--rm", "--image-volume", "tmpfs"], &["read", "/srv/app/letter"])["error"], "ENOENT");
    assert_eq!(
        run(&["--rm", "--image-volume", "ignore"], &["read", "/srv/app/letter"])["text"],
        "from the image"
    );
    assert_eq!(
        run(&["--rm", "-v", "named:/srv/app:nocopy"], &["read", "/srv/app/letter"])["error"],
        "ENOENT"
    );
    assert_eq!(volumes(&dir).iter().filter(|name| *name != "named").collect::<Vec<_>>(), [&kept[0]]);
}

/// `user.kelp` of a file, by a program that is not kelp.
fn attribute(path: &str) -> String {
    let script = "import os, sys; print(os.getxattr(sys.argv[1], 'user.kelp').decode())";
    let said = Command::new("python3").args(["-c", script, path]).output().unwrap();
    String::from_utf8_lossy(&said.stdout).trim().to_owned()
}

#[test]
fn a_copy_of_an_images_files_keeps_links_and_attributes() {
    needs!(userns);
    let dir = Dir::new();
    let root = rooted(&dir);
    fs::hard_link(format!("{root}/srv/app/letter"), format!("{root}/srv/app/twin")).unwrap();
    fs::hard_link(format!("{root}/srv/app/letter"), format!("{root}/srv/third")).unwrap();
    let link = format!("{root}/srv/app/way");
    std::os::unix::fs::symlink("letter", &link).unwrap();
    assert!(Command::new("touch").args(["-h", "-d", "@978307200.5", &link]).status().unwrap().success());
    let script = "import os, sys; [os.setxattr(path, 'user.kelp', b'kept') for path in sys.argv[1:]]";
    let paths = ["srv/app/letter", "srv/app"].map(|path| format!("{root}/{path}"));
    assert!(Command::new("python3").args(["-c", script]).args(&paths).status().unwrap().success());
    dir.run(&["-v", "v:/srv/app"], &["/bin/guest", "say", "x"]).ok();
    let options =
        ["run", "--name", "reef", "--storage-driver", "copy", "--rootfs", &root, "/bin/guest", "say", "x"];
    dir.kelp(&options).ok();
    let id = dir.kelp(&["ps", "-a", "-q", "--no-trunc"]).ok().out;
    let copied = dir.text(&format!("store/containers/{}/copy/srv/app", id.trim()));
    for (copy, names) in [(dir.text("store/volumes/v/_data"), 2), (copied, 3)] {
        let seen = fs::metadata(format!("{copy}/letter")).unwrap();
        assert_eq!(seen.ino(), fs::metadata(format!("{copy}/twin")).unwrap().ino(), "{copy}");
        assert_eq!(seen.nlink(), names, "{copy}");
        let way = fs::symlink_metadata(format!("{copy}/way")).unwrap();
        assert_eq!((way.mtime(), way.mtime_nsec()), (978_307_200, 500_000_000), "{copy}");
        assert_eq!((attribute(&format!("{copy}/letter")), attribute(&copy)), ("kept".into(), "kept".into()));
    }
}
