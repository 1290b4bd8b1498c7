//! Devices by the names of vendors' files: what a CDI file of plain files and nodes puts into a container, which
//! devices are listed, what is refused, and the file that kelp writes for an NVIDIA driver.

use crate::dir::Dir;
use crate::kelp::says;
use crate::needs;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;

/// A folder with one file of a vendor: two devices, and edits for both.
fn vendor(dir: &Dir) -> String {
    dir.file("driver/lib.so", "library");
    let file = json!({
        "cdiVersion": "0.6.0",
        "kind": "sea.com/pearl",
        "devices": [
            { "name": "0", "containerEdits": {
                "env": ["PEARL=0"],
                "deviceNodes": [{ "path": "/dev/pearl0", "hostPath": "/dev/null", "permissions": "rw" }] } },
            { "name": "1", "containerEdits": {
                "env": ["PEARL=1"], "deviceNodes": [{ "path": "/dev/zero", "hostPath": "/dev/zero" }] } },
        ],
        "containerEdits": {
            "env": ["SEA=deep"],
            "mounts": [{ "hostPath": dir.text("driver/lib.so"), "containerPath": "/usr/lib/pearl/lib.so.1",
                "options": ["ro", "nosuid", "nodev", "bind"] }],
            "hooks": [{ "hookName": "createContainer", "path": "/usr/bin/nvidia-ctk", "args":
                ["nvidia-ctk", "hook", "create-symlinks", "--link", "lib.so.1::/usr/lib/pearl/lib.so"] }],
        },
    });
    dir.file("cdi/sea.json", &file.to_string());
    dir.text("cdi")
}

fn variable(seen: &Value, name: &str) -> Option<String> {
    let found = seen["env"].as_object()?.get(name)?.as_str()?.to_owned();
    Some(found)
}

#[test]
fn a_device_comes_with_its_node_its_variables_its_files_and_links() {
    needs!(userns);
    let dir = Dir::new();
    let folder = vendor(&dir);
    let options = ["--cdi-spec-dir", &folder, "--device", "sea.com/pearl=0"];
    let seen = dir.all(
        &options,
        &[
            "report",
            ",",
            "stat",
            "/dev/pearl0",
            ",",
            "read",
            "/usr/lib/pearl/lib.so",
            ",",
            "write",
            "/usr/lib/pearl/lib.so",
            "x",
        ],
    );
    assert_eq!(variable(&seen[0], "SEA").as_deref(), Some("deep"));
    assert_eq!(variable(&seen[0], "PEARL").as_deref(), Some("0"));
    assert_eq!((&seen[1]["kind"], &seen[1]["device"]), (&json!("character"), &json!([1, 3])));
    assert_eq!((&seen[2], &seen[3]), (&json!({"text": "library"}), &json!({"error": "EROFS"})));
}

#[test]
fn the_users_own_words_win_over_the_vendors() {
    needs!(userns);
    let dir = Dir::new();
    let folder = vendor(&dir);
    let mine = dir.file("mine", "mine");
    let volume = format!("{mine}:/usr/lib/pearl/lib.so.1");
    let options =
        ["--cdi-spec-dir", &folder, "--device", "sea.com/pearl=0", "-e", "SEA=shallow", "-v", &volume];
    let seen = dir.all(&options, &["report", ",", "read", "/usr/lib/pearl/lib.so.1"]);
    assert_eq!(variable(&seen[0], "SEA").as_deref(), Some("shallow"));
    assert_eq!(seen[1], json!({"text": "mine"}));
}

#[test]
fn a_file_in_yaml_is_read_as_well() {
    needs!(userns);
    let dir = Dir::new();
    dir.file(
        "cdi/sea.yaml",
        "---\ncdiVersion: 0.5.0\nkind: sea.com/coral\ndevices:\n- name: all\n  containerEdits:\n    env:\n    - REEF=great\n    deviceNodes:\n    - path: /dev/coral\n      hostPath: /dev/null\n",
    );
    let seen = dir.all(
        &["--cdi-spec-dir", &dir.text("cdi"), "--device", "sea.com/coral=all"],
        &["report", ",", "stat", "/dev/coral"],
    );
    assert_eq!(variable(&seen[0], "REEF").as_deref(), Some("great"));
    assert_eq!(seen[1]["kind"], json!("character"));
}

#[test]
fn devices_are_listed_and_a_later_folder_hides_an_earlier_one() {
    let dir = Dir::new();
    let folder = vendor(&dir);
    let list = |folders: &[&str]| {
        let flags = folders.iter().flat_map(|folder| ["--cdi-spec-dir", folder]);
        dir.kelp(&["cdi", "list", "-q"].into_iter().chain(flags).collect::<Vec<_>>()).ok().out
    };
    assert_eq!(list(&[&folder]), "sea.com/pearl=0\nsea.com/pearl=1\n");
    dir.file("later/own.json", r#"{"cdiVersion":"0.3.0","kind":"sea.com/pearl","devices":[{"name":"1"}]}"#);
    dir.file("later/broken.json", "{");
    let said =
        dir.kelp(&["cdi", "list", "--cdi-spec-dir", &folder, "--cdi-spec-dir", &dir.text("later")]).ok();
    says(&said.err, &["broken.json"]);
    let line = said.out.lines().find(|line| line.starts_with("sea.com/pearl=1")).unwrap().to_owned();
    assert!(line.ends_with("later/own.json"), "{line}");
}

#[test]
fn what_cannot_be_given_is_refused_with_the_reason() {
    needs!(userns);
    let dir = Dir::new();
    let folder = vendor(&dir);
    let run = |options: &[&str]| {
        dir.run(&[&["--cdi-spec-dir", folder.as_str()], options].concat(), &["/bin/guest", "say", "x"])
            .fails(125)
    };
    says(&run(&["--device", "sea.com/pearl=7"]), &["sea.com/pearl=7", "no cdi file", "kelp cdi list"]);
    says(&run(&["--gpus", "all"]), &["nvidia.com/gpu=all", "kelp cdi generate"]);
    let edits = [
        (
            json!({ "hooks": [{ "hookName": "createRuntime", "path": "/bin/sh", "args": ["sh", "-c", "id"] }] }),
            "hook",
        ),
        (json!({ "intelRdt": { "closID": "x" } }), "intelRdt"),
        (
            json!({ "deviceNodes": [{ "path": "/dev/x", "hostPath": dir.text("driver/lib.so") }] }),
            "not a device node",
        ),
        (json!({ "deviceNodes": [{ "path": "/dev/x", "hostPath": "/dev/no-such" }] }), "/dev/no-such"),
        (json!({ "mounts": [{ "hostPath": "/no/such", "containerPath": "/x" }] }), "/no/such"),
        (json!({ "mounts": [{ "hostPath": "/etc", "containerPath": "x" }] }), "absolute"),
    ];
    for (edit, word) in edits {
        let file = json!({ "cdiVersion": "0.6.0", "kind": "sea.com/wreck", "devices": [{ "name": "0", "containerEdits": edit }] });
        fs::write(dir.path("cdi/wreck.json"), file.to_string()).unwrap();
        says(&run(&["--device", "sea.com/wreck=0"]), &[word]);
    }
}

#[test]
fn a_file_for_nvidia_is_made_from_what_is_seen_and_works() {
    needs!(userns);
    let dir = Dir::new();
    dir.folder("host/dev");
    symlink("/dev/null", dir.path("host/dev/nvidia0")).unwrap();
    symlink("/dev/null", dir.path("host/dev/nvidia1")).unwrap();
    symlink("/dev/zero", dir.path("host/dev/nvidiactl")).unwrap();
    dir.file("host/usr/lib64/libcuda.so.1", "cuda");
    dir.file("host/usr/bin/nvidia-smi", "smi");
    dir.folder("cdi");
    let root = dir.text("host");
    dir.kelp(&["cdi", "generate", "--root", &root, "-o", &dir.text("cdi/nvidia.json")]).ok();
    let options = ["--cdi-spec-dir", &dir.text("cdi"), "--gpus", "all"];
    let seen = dir.all(
        &options,
        &[
            "report",
            ",",
            "stat",
            "/dev/nvidia1",
            ",",
            "stat",
            "/dev/nvidiactl",
            ",",
            "read",
            "/usr/lib64/libcuda.so.1",
            ",",
            "read",
            "/usr/bin/nvidia-smi",
        ],
    );
    assert_eq!(variable(&seen[0], "LD_LIBRARY_PATH").as_deref(), Some("/usr/lib64"));
    assert_eq!((&seen[1]["device"], &seen[2]["device"]), (&json!([1, 3]), &json!([1, 5])));
    assert_eq!((&seen[3], &seen[4]), (&json!({"text": "cuda"}), &json!({"text": "smi"})));
    says(&dir.kelp(&["cdi", "generate", "--root", &dir.folder("empty")]).fails(125), &["no nvidia device"]);
}
