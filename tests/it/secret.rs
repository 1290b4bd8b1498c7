//! Secrets: podman's words to keep them, files that nobody else can read, and what a container sees of
//! them.

use crate::dir::Dir;
use crate::kelp::says;
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
