//! Secrets: podman's words to keep them, files that nobody else can read, what a container sees of them, and that
//! nothing else does.

use crate::dir::Dir;
use crate::kelp::says;
use crate::needs;
use std::os::unix::fs::PermissionsExt;

fn kelp(dir: &Dir, words: &[&str]) -> String {
    dir.kelp(&[&["secret"], words].concat()).ok().out
}

/// A secret named `key`.
fn key(dir: &Dir, text: &str) -> String {
    let file = dir.file("key.txt", text);
    kelp(dir, &["create", "key", &file]).trim().to_owned()
}

#[test]
fn a_secret_is_kept_listed_described_and_removed() {
    let dir = Dir::new();
    let id = key(&dir, "s3cret");
    assert!(id.len() == 25 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    let listed = kelp(&dir, &["ls", "--format", "{{.ID}} {{.Name}} {{.Driver}}"]);
    assert_eq!(listed, format!("{id} key file\n"));
    assert!(kelp(&dir, &["ls"]).starts_with("ID                          NAME   DRIVER   CREATED"));
    let seen = kelp(&dir, &["inspect", "key"]);
    assert!(seen.contains(&id) && !seen.contains("s3cret"), "{seen}");
    let shown = kelp(&dir, &["inspect", "--showsecret", "-f", "{{.SecretData}}", &id[..8]]);
    assert_eq!(shown, "s3cret\n");
    assert_eq!(dir.kelp(&["secret", "exists", "key"]).end().code, 0);
    assert_eq!(kelp(&dir, &["rm", "key"]), format!("{id}\n"));
    assert_eq!(dir.kelp(&["secret", "exists", "key"]).end().code, 1);
    says(&dir.kelp(&["secret", "rm", "key"]).fails(1), &["no such secret"]);
    assert_eq!(kelp(&dir, &["rm", "--ignore", "key"]), "");
}

#[test]
fn a_secret_comes_from_a_file_a_pipe_or_a_variable() {
    let dir = Dir::new();
    let said = |name: &str| kelp(&dir, &["inspect", "--showsecret", "-f", "{{.SecretData}}", name]);
    dir.kelp(&["secret", "create", "piped", "-"]).input(b"by pipe").ok();
    dir.kelp(&["secret", "create", "--env", "named", "WORD"]).env("WORD", "by name").ok();
    assert_eq!((said("piped").as_str(), said("named").as_str()), ("by pipe\n", "by name\n"));
    dir.kelp(&["secret", "create", "--env", "x", "NO_SUCH_WORD"]).fails(125);
    dir.kelp(&["secret", "create", "x", "/no/such"]).fails(125);
    says(&dir.kelp(&["secret", "create", "x", "/dev/null"]).fails(125), &["512000 bytes"]);
}

#[test]
fn the_store_keeps_secrets_from_others() {
    let dir = Dir::new();
    key(&dir, "s3cret");
    let mode = |path: &str| std::fs::metadata(dir.path(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("store/secrets"), mode("store/secrets/key.json")), (0o700, 0o600));
}

#[test]
fn a_secret_is_replaced_only_when_that_is_asked() {
    let dir = Dir::new();
    key(&dir, "old");
    let file = dir.file("new.txt", "new");
    says(&dir.kelp(&["secret", "create", "key", &file]).fails(125), &["already", "--replace"]);
    kelp(&dir, &["create", "--replace", "key", &file]);
    assert_eq!(kelp(&dir, &["inspect", "--showsecret", "-f", "{{.SecretData}}", "key"]), "new\n");
}

/// Every file below a folder that holds the text.
fn holding(folder: &std::path::Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(holding(&path, text));
        } else if std::fs::read(&path)
            .is_ok_and(|bytes| bytes.windows(text.len()).any(|w| w == text.as_bytes()))
        {
            found.push(path.display().to_string());
        }
    }
    found
}

#[test]
fn a_container_gets_a_secret_as_a_file_or_a_variable_and_no_record_has_it() {
    needs!(userns);
    let dir = Dir::new();
    let id = key(&dir, "s3cret");
    dir.root();
    let verbs = [
        "read",
        "/run/secrets/key",
        ",",
        "stat",
        "/run/secrets/key",
        ",",
        "read",
        "/run/secrets/other",
        ",",
        "read",
        "/etc/token",
        ",",
        "write",
        "/etc/token",
        "x",
    ];
    let options =
        ["--secret", "key", "--secret", "key,target=other,mode=0400", "--secret", "key,target=/etc/token"];
    let seen = dir.all(&options, &verbs);
    for at in [0, 2, 3] {
        assert_eq!(seen[at]["text"], "s3cret", "{seen}");
    }
    assert_eq!((&seen[1]["mode"], &seen[1]["uid"]), (&"0444".into(), &0.into()), "{seen}");
    assert_eq!(seen[4]["error"], "EROFS", "{seen}");
    let root = dir.text("root");
    let options = ["--secret", "key,type=env,target=TOKEN", "--secret", &id[..10], "-e", "TOKEN=plain"];
    let run = ["run", "-d", "--name", "web"];
    dir.kelp(&[&run[..], &options, &["--rootfs", &root, "/bin/guest", "sleep", "100"]].concat()).ok();
    let seen: serde_json::Value =
        serde_json::from_str(&dir.kelp(&["exec", "web", "/bin/guest"]).ok().out).unwrap();
    assert!(seen["env"].to_string().contains("s3cret"), "{}", seen["env"]);
    let shown = dir.kelp(&["inspect", "web"]).ok().out;
    assert!(shown.contains(&id) && !shown.contains("s3cret"), "{shown}");
    let text = dir.kelp(&[&["run", "--explain"], &options[..], &["@host", "true"]].concat()).ok().out;
    assert!(!text.contains("s3cret"), "{text}");
    assert_eq!(holding(&dir.path("store/containers"), "s3cret"), Vec::<String>::new());
    dir.kelp(&["rm", "-f", "web"]).ok();
}

#[test]
fn a_secret_belongs_to_whom_is_asked() {
    needs!(userns, many_ids);
    let dir = Dir::new();
    key(&dir, "s3cret");
    let options = ["--secret", "key,uid=1234,gid=1235,mode=0400"];
    let seen = dir.all(&options, &["stat", "/run/secrets/key"]);
    assert_eq!(
        (&seen[0]["uid"], &seen[0]["gid"], &seen[0]["mode"]),
        (&1234.into(), &1235.into(), &"0400".into())
    );
}

#[test]
fn a_secret_that_is_not_there_or_makes_no_sense_is_said() {
    needs!(userns);
    let dir = Dir::new();
    key(&dir, "s3cret");
    dir.kelp(&["secret", "create", "zero", "-"]).input(b"a\0b").ok();
    let run = |word: &str| dir.run(&["--secret", word], &["/bin/guest"]).fails(125);
    says(&run("nope"), &["nope", "no such secret"]);
    says(&run("key,type=env,mode=400"), &["no owner and no mode"]);
    says(&run("key,type=file"), &["mount or env"]);
    says(&run("key,colour=red"), &["colour"]);
    says(&run("key,mode=999"), &["octal"]);
    says(&run("zero,type=env"), &["zero byte"]);
    dir.kelp(&["create", "--name", "web", "--secret", "key", "@host", "true"]).ok();
    kelp(&dir, &["rm", "key"]);
    says(&dir.kelp(&["start", "web"]).fails(1), &["secret key", "any more"]);
}
