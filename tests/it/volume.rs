//! `kelp volume`: docker's words for folders that outlive containers; what they hold, who may read it, and that
//! neither crowds nor kill -9 leave anything wrong.

use crate::dir::Dir;
use crate::kelp::says;
use crate::needs;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

fn kelp(dir: &Dir, words: &[&str]) -> String {
    dir.kelp(&[&["volume"], words].concat()).ok().out
}

fn made(dir: &Dir, name: &str) -> String {
    kelp(dir, &["create", name]);
    dir.text(&format!("store/volumes/{name}/_data"))
}

/// What lies in the store beside the volumes themselves.
fn leftovers(dir: &Dir) -> Vec<String> {
    let entries = fs::read_dir(dir.path("store/volumes")).unwrap().flatten();
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    names.filter(|name| name.starts_with('.') && name != ".lock").collect()
}

#[test]
fn a_volume_is_made_listed_described_and_removed() {
    let dir = Dir::new();
    assert_eq!(kelp(&dir, &["create", "--label", "a=b", "--label", "c", "one"]), "one\n");
    assert_eq!(kelp(&dir, &["create", "one"]), "one\n", "docker's create gives the one that is there");
    assert_eq!(kelp(&dir, &["ls"]), "DRIVER   VOLUME NAME\nlocal    one\n");
    assert_eq!(kelp(&dir, &["ls", "-q"]), "one\n");
    let seen: serde_json::Value = serde_json::from_str(&kelp(&dir, &["inspect", "one"])).unwrap();
    assert_eq!(seen[0]["Mountpoint"], dir.text("store/volumes/one/_data"));
    assert_eq!((&seen[0]["Labels"]["a"], &seen[0]["Labels"]["c"]), (&"b".into(), &"".into()));
    assert_eq!((&seen[0]["Driver"], &seen[0]["Scope"]), (&"local".into(), &"local".into()));
    assert_eq!(kelp(&dir, &["inspect", "-f", "{{.Name}} {{.Labels.a}}", "one"]), "one b\n");
    assert_eq!(kelp(&dir, &["rm", "one"]), "one\n");
    assert_eq!(kelp(&dir, &["ls", "-q"]), "");
    assert_eq!(leftovers(&dir), Vec::<String>::new());
}

#[test]
fn a_volume_without_a_name_has_sixty_four_digits() {
    let dir = Dir::new();
    let name = kelp(&dir, &["create"]);
    assert!(name.trim().len() == 64 && name.trim().bytes().all(|b| b.is_ascii_hexdigit()), "{name}");
    assert_eq!(kelp(&dir, &["ls", "-q", "-f", "anonymous=true"]), name);
}

#[test]
fn what_is_not_there_is_said_in_the_exit_status() {
    let dir = Dir::new();
    made(&dir, "one");
    assert_eq!(dir.kelp(&["volume", "exists", "one"]).end().code, 0);
    assert_eq!(dir.kelp(&["volume", "exists", "two"]).end().code, 1);
    says(&dir.kelp(&["volume", "rm", "two"]).fails(1), &["two", "no such volume"]);
    assert_eq!(kelp(&dir, &["rm", "-f", "two", "one"]), "one\n");
    says(&dir.kelp(&["volume", "inspect", "two"]).fails(1), &["no such volume"]);
    for bad in ["../x", ".x", "a/b", ""] {
        dir.kelp(&["volume", "create", bad]).fails(125);
    }
    says(&dir.kelp(&["volume", "create", "-d", "nfs", "x"]).fails(125), &["driver", "local"]);
}

#[test]
fn filters_choose_volumes() {
    let dir = Dir::new();
    kelp(&dir, &["create", "--label", "team=sea", "apple"]);
    kelp(&dir, &["create", "--label", "team=land", "apricot"]);
    kelp(&dir, &["create", "pear"]);
    let listed = |filter: &str| kelp(&dir, &["ls", "-q", "--filter", filter]).replace('\n', " ");
    assert_eq!(listed("name=ap"), "apple apricot ");
    assert_eq!(listed("label=team"), "apple apricot ");
    assert_eq!(listed("label=team=sea"), "apple ");
    assert_eq!(listed("label!=team"), "pear ");
    assert_eq!(listed("dangling=true"), "apple apricot pear ");
    assert_eq!(listed("dangling=false"), "");
    assert_eq!(listed("until=1h"), "");
    says(&dir.kelp(&["volume", "ls", "-f", "size=1"]).fails(125), &["filter"]);
    assert_eq!(
        kelp(&dir, &["ls", "-f", "name=pear", "--format", "{{.Name}} at {{.Mountpoint}}"]),
        format!("pear at {}\n", dir.text("store/volumes/pear/_data"))
    );
}

#[test]
fn prune_takes_the_anonymous_and_with_all_the_rest() {
    let dir = Dir::new();
    let anonymous = kelp(&dir, &["create"]);
    fs::write(made(&dir, "named") + "/file", "12345").unwrap();
    says(&dir.kelp(&["volume", "prune"]).fails(125), &["--force"]);
    let said = kelp(&dir, &["prune", "-f"]);
    assert_eq!(said, format!("Deleted Volumes:\n{anonymous}\nTotal reclaimed space: 0B\n"));
    assert_eq!(kelp(&dir, &["ls", "-q"]), "named\n");
    let said = kelp(&dir, &["prune", "-f", "-a"]);
    assert_eq!(said, "Deleted Volumes:\nnamed\n\nTotal reclaimed space: 5B\n");
    assert_eq!(kelp(&dir, &["prune", "-f"]), "Total reclaimed space: 0B\n");
}

#[test]
fn the_owner_reads_a_volume_without_kelp() {
    needs!(userns);
    let dir = Dir::new();
    let data = made(&dir, "v");
    dir.run(&["-v", "v:/x"], &["/bin/guest", "write", "/x/letter", "text"]).ok();
    assert_eq!(fs::read_to_string(data.clone() + "/letter").unwrap(), "text");
    assert_eq!(fs::metadata(data + "/letter").unwrap().uid(), crate::sys::uid());
}

#[test]
fn an_archive_goes_out_and_comes_back_whole() {
    needs!(userns);
    let dir = Dir::new();
    let data = made(&dir, "from");
    fs::create_dir_all(format!("{data}/sub/{}", "deep".repeat(40))).unwrap();
    let long = format!("sub/{}/{}", "deep".repeat(40), "n".repeat(200));
    fs::write(format!("{data}/{long}"), "long").unwrap();
    fs::write(format!("{data}/run"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(format!("{data}/run"), fs::Permissions::from_mode(0o750)).unwrap();
    fs::hard_link(format!("{data}/run"), format!("{data}/twin")).unwrap();
    std::os::unix::fs::symlink("run", format!("{data}/link")).unwrap();
    let archive = dir.text("v.tar");
    kelp(&dir, &["export", "-o", &archive, "from"]);
    let listed = std::process::Command::new("tar").args(["-tf", &archive]).output().unwrap();
    assert!(listed.status.success(), "tar(1) does not read it");
    assert!(String::from_utf8_lossy(&listed.stdout).contains(&long));
    let back = made(&dir, "back");
    kelp(&dir, &["import", "back", &archive]);
    assert_eq!(fs::read_to_string(format!("{back}/{long}")).unwrap(), "long");
    let run = fs::metadata(format!("{back}/run")).unwrap();
    assert_eq!((run.permissions().mode() & 0o7777, run.nlink()), (0o750, 2));
    assert_eq!(run.mtime_nsec(), fs::metadata(format!("{data}/run")).unwrap().mtime_nsec());
    assert_eq!(fs::read_link(format!("{back}/link")).unwrap().to_str(), Some("run"));
}

#[test]
fn an_import_adds_to_what_is_there_and_a_broken_one_changes_nothing() {
    needs!(userns);
    let dir = Dir::new();
    let data = made(&dir, "v");
    fs::create_dir(format!("{data}/sub")).unwrap();
    fs::write(format!("{data}/sub/old"), "old").unwrap();
    fs::write(format!("{data}/same"), "old").unwrap();
    dir.file("new/sub/new", "new");
    dir.file("new/same", "new");
    let archive = dir.text("new.tar");
    let tar =
        |words: &[&str]| assert!(std::process::Command::new("tar").args(words).status().unwrap().success());
    tar(&["-C", &dir.text("new"), "-czf", &archive, "."]);
    let whole = fs::read(&archive).unwrap();
    fs::write(dir.path("half.tar"), &whole[..whole.len() / 2]).unwrap();
    let before = crate::dir::picture(&data);
    dir.kelp(&["volume", "import", "v", &dir.text("half.tar")]).fails(125);
    assert_eq!(crate::dir::picture(&data), before);
    assert_eq!(fs::read_dir(dir.path("store/volumes/v")).unwrap().count(), 3, "something was left beside it");
    dir.kelp(&["volume", "import", "v", "-"]).input(&whole).ok();
    let read = |name: &str| fs::read_to_string(format!("{data}/{name}")).unwrap();
    assert_eq!((read("sub/old"), read("sub/new"), read("same")), ("old".into(), "new".into(), "new".into()));
}

#[test]
fn an_archive_that_leads_outside_is_refused() {
    needs!(userns);
    let dir = Dir::new();
    let data = made(&dir, "v");
    std::os::unix::fs::symlink(dir.text("outside"), format!("{data}/sub")).unwrap();
    dir.folder("outside");
    dir.file("new/sub/file", "x");
    let archive = dir.text("new.tar");
    let made =
        std::process::Command::new("tar").args(["-C", &dir.text("new"), "-cf", &archive, "."]).status();
    assert!(made.unwrap().success());
    kelp(&dir, &["import", "v", &archive]);
    assert!(!dir.path("outside/file").exists(), "the link was followed");
    assert_eq!(fs::read_to_string(format!("{data}/sub/file")).unwrap(), "x");
}

#[test]
fn subordinate_owners_go_out_and_come_back() {
    needs!(userns, overlay, many_ids);
    let dir = Dir::new();
    let (data, back) = (made(&dir, "v"), made(&dir, "w"));
    dir.run(&["-v", "v:/x"], &["/bin/guest", "write", "/x/letter", "text"]).ok();
    dir.kelp(&["run", "--rm", "-v", "v:/x", "@host", "chown", "12:34", "/x/letter"]).ok();
    let archive = dir.text("v.tar");
    kelp(&dir, &["export", "v", "-o", &archive]);
    kelp(&dir, &["import", "w", &archive]);
    let owner = |path: String| fs::metadata(path).map(|found| (found.uid(), found.gid())).unwrap();
    assert_eq!(owner(back + "/letter"), owner(data + "/letter"));
    let inside = dir.run(&["-v", "w:/x"], &["/bin/guest", "stat", "/x/letter"]).ok().json();
    assert_eq!((&inside["uid"], &inside["gid"]), (&12.into(), &34.into()));
    assert_eq!(kelp(&dir, &["rm", "v", "w"]), "v\nw\n");
    assert_eq!(leftovers(&dir), Vec::<String>::new());
}

#[test]
fn twenty_creates_at_once_make_one_volume() {
    let dir = Dir::new();
    let crowd: Vec<_> = (0..20).map(|_| dir.kelp(&["volume", "create", "v"]).start()).collect();
    for child in crowd {
        let ended = child.wait_with_output().unwrap();
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    }
    assert_eq!(kelp(&dir, &["ls", "-q"]), "v\n");
    assert_eq!(leftovers(&dir), Vec::<String>::new());
}

#[test]
fn a_killed_create_or_removal_leaves_nothing_wrong() {
    let dir = Dir::new();
    for turn in 0..40 {
        let data = made(&dir, "v");
        fs::write(format!("{data}/file"), "x").unwrap();
        for verb in ["rm", "create"] {
            let mut child = dir.kelp(&["volume", verb, "v"]).start();
            // Its start takes some milliseconds: the kill meets every part of it over the turns.
            std::thread::sleep(std::time::Duration::from_micros(turn * 250));
            let _ = child.kill();
            child.wait().unwrap();
        }
        let listed = kelp(&dir, &["ls", "-q"]);
        assert!(listed == "v\n" || listed.is_empty(), "{listed}");
        if listed == "v\n" {
            kelp(&dir, &["inspect", "v"]);
        }
    }
    made(&dir, "v");
    kelp(&dir, &["rm", "v"]);
    assert_eq!(leftovers(&dir), Vec::<String>::new());
}

/// A root with files where a volume will be.
fn with_files(dir: &Dir, count: usize) {
    dir.root();
    for number in 0..count {
        dir.file(&format!("root/srv/app/sub/{number}"), "from the image");
    }
    fs::set_permissions(dir.path("root/srv/app"), fs::Permissions::from_mode(0o751)).unwrap();
}

#[test]
fn a_fresh_volume_begins_with_the_images_files_and_only_then() {
    needs!(userns);
    let dir = Dir::new();
    with_files(&dir, 1);
    let read = |options: &[&str]| dir.run(options, &["/bin/guest", "read", "/srv/app/sub/0"]).ok().json();
    let found = serde_json::json!({"text": "from the image"});
    assert_eq!(read(&["-v", "v:/srv/app"]), found);
    let data = dir.path("store/volumes/v/_data");
    assert_eq!(fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o751);
    assert_eq!(fs::read_to_string(data.join("sub/0")).unwrap(), "from the image");
    fs::remove_dir_all(data.join("sub")).unwrap();
    let missing = serde_json::json!({"error": "ENOENT"});
    assert_eq!(read(&["-v", "v:/srv/app"]), missing, "a volume that was emptied is filled again");
    assert_eq!(read(&["-v", "w:/srv/app:nocopy"]), missing);
    assert_eq!(read(&["--mount", "type=volume,source=x,target=/srv/app,volume-nocopy"]), missing);
    assert_eq!(read(&["--mount", "type=volume,source=y,target=/srv/app"]), found);
    says(&dir.run(&["-v", "/tmp:/x:nocopy"], &["/bin/guest"]).fails(125), &["nocopy"]);
}

#[test]
fn a_crowd_that_starts_with_a_fresh_volume_sees_all_of_it() {
    needs!(userns);
    let dir = Dir::new();
    with_files(&dir, 300);
    let crowd: Vec<_> = (0..8)
        .map(|_| dir.run(&["-v", "v:/srv/app"], &["/bin/guest", "list", "/srv/app/sub"]).start())
        .collect();
    for child in crowd {
        let ended = crate::kelp::Outcome::from(child.wait_with_output().unwrap());
        assert_eq!(ended.json()["names"].as_array().map(Vec::len), Some(300), "{}", ended.err);
    }
    let left: Vec<_> =
        fs::read_dir(dir.path("store/volumes/v")).unwrap().flatten().map(|e| e.file_name()).collect();
    assert!(left.iter().all(|name| ["_data", "volume.json"].contains(&name.to_str().unwrap())), "{left:?}");
}

#[test]
fn a_killed_start_does_not_leave_half_of_the_images_files() {
    needs!(userns);
    let dir = Dir::new();
    with_files(&dir, 300);
    for turn in 0..25 {
        let volume = format!("v{turn}:/srv/app");
        let mut child = dir.run(&["-v", &volume], &["/bin/guest", "say", "x"]).start();
        std::thread::sleep(std::time::Duration::from_millis(turn * 2));
        let _ = child.kill();
        child.wait().unwrap();
        let seen = dir.run(&["-v", &volume], &["/bin/guest", "list", "/srv/app/sub"]).ok().json();
        assert_eq!(seen["names"].as_array().map(Vec::len), Some(300), "turn {turn}");
    }
    assert_eq!(leftovers(&dir), Vec::<String>::new());
}

#[test]
fn a_volume_is_given_to_the_containers_user() {
    needs!(userns, many_ids);
    let dir = Dir::new();
    with_files(&dir, 1);
    let options = ["-u", "kelpie", "-v", "v:/srv/app:U"];
    let verbs = ["stat", "/srv/app/sub/0", ",", "stat", "/srv/app", ",", "write", "/srv/app/new", "x"];
    let seen = dir.all(&options, &verbs);
    for at in [0, 1] {
        assert_eq!((&seen[at]["uid"], &seen[at]["gid"]), (&1234.into(), &1235.into()), "{seen}");
    }
    assert_eq!(seen[2], serde_json::json!({"written": true}));
    kelp(&dir, &["rm", "v"]);
}

#[test]
fn giving_a_volume_to_the_user_follows_no_link() {
    needs!(userns, many_ids);
    let dir = Dir::new();
    let outside = dir.file("outside/file", "mine");
    let data = made(&dir, "v");
    std::os::unix::fs::symlink(&outside, format!("{data}/link")).unwrap();
    dir.run(&["-u", "kelpie", "-v", "v:/x:U"], &["/bin/guest", "say", "x"]).ok();
    assert_eq!(fs::metadata(&outside).unwrap().uid(), crate::sys::uid());
    kelp(&dir, &["rm", "v"]);
}

#[test]
fn a_volume_that_a_container_has_stays() {
    needs!(userns);
    let dir = Dir::new();
    let root = dir.root();
    let run = |name: &str| {
        ["run", "--name", name, "-v", "v:/x", "--rootfs", root.as_str(), "/bin/guest", "say", "x"]
            .map(str::to_owned)
    };
    dir.kelp(&run("stays")).ok();
    let sentence = dir.kelp(&["volume", "rm", "v"]).fails(2);
    says(&sentence, &["volume is in use"]);
    assert_eq!(kelp(&dir, &["ls", "-q", "-f", "dangling=false"]), "v\n");
    assert_eq!(kelp(&dir, &["prune", "-a", "-f"]), "Total reclaimed space: 0B\n");
    dir.kelp(&["rm", "stays"]).ok();
    assert_eq!(kelp(&dir, &["rm", "v"]), "v\n");
}
