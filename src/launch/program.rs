//! The program: found by the container's own `PATH`, executed, and, when that fails, explained: missing,
//! without permission, for another machine, or with a missing interpreter.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::error::Error;

/// Executes the program; returns only with the reason why it could not be.
pub fn execute(arguments: &[OsString], environment: &[(OsString, OsString)]) -> Error {
    let Some(program) = arguments.first() else {
        return Error::usage("no command was given, and the root names none").hint("add a command");
    };
    if program.is_empty() {
        return not_found(program);
    }
    let search = environment.iter().find(|(name, _)| name == "PATH").map_or(OsStr::new(""), |(_, path)| path);
    let candidates: Vec<PathBuf> = if program.as_bytes().contains(&b'/') {
        vec![PathBuf::from(program)]
    } else {
        std::env::split_paths(search).map(|folder| folder.join(program)).collect()
    };
    let Some((words, variables)) = strings(arguments, environment) else {
        return Error::usage("a word of the command or of the environment holds a NUL byte");
    };
    let mut refused = None;
    for candidate in candidates {
        // A look costs a fifth of an attempt, once the filter is there.
        if is_missing(&candidate) {
            continue;
        }
        let errno = match CString::new(candidate.as_os_str().as_bytes()) {
            Ok(path) => nix::unistd::execve(&path, &words, &variables).err(),
            Err(_) => continue,
        };
        match errno {
            Some(nix::errno::Errno::EACCES) => {
                refused.get_or_insert((candidate, nix::errno::Errno::EACCES));
            }
            Some(errno) => return explain(&candidate, errno),
            None => {}
        }
    }
    match refused {
        Some((candidate, errno)) => explain(&candidate, errno),
        None => not_found(program),
    }
}

fn is_missing(path: &Path) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound};
    path.symlink_metadata().is_err_and(|error| matches!(error.kind(), NotFound | NotADirectory))
}

fn strings(
    arguments: &[OsString],
    environment: &[(OsString, OsString)],
) -> Option<(Vec<CString>, Vec<CString>)> {
    let words: Result<Vec<CString>, _> = arguments.iter().map(|word| CString::new(word.as_bytes())).collect();
    let variables: Result<Vec<CString>, _> = environment
        .iter()
        .map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()))
        .collect();
    words.ok().zip(variables.ok())
}

fn not_found(program: &OsStr) -> Error {
    let sentence = format!("exec {program:?}: executable file not found in the container");
    Error::container(sentence).exit(127).hint("check the spelling, and the PATH inside")
}

fn explain(program: &Path, errno: nix::errno::Errno) -> Error {
    let shown = program.display();
    let error = |why: &str| Error::container(format!("exec {shown}: {why}")).exit(126);
    match errno {
        nix::errno::Errno::ENOENT => match interpreter(program) {
            Some(name) => error(&format!("its interpreter {} does not exist", name.display()))
                .exit(127)
                .hint("the root lacks it, or the program is for another C library"),
            None => error("no such file or directory").exit(127),
        },
        nix::errno::Errno::EACCES if program.is_dir() => error("it is a folder"),
        nix::errno::Errno::EACCES => error("permission denied")
            .hint("the file needs its execute bit, and its mount must not be noexec"),
        nix::errno::Errno::ENOEXEC => no_program(program),
        other => error(other.desc()),
    }
}

fn no_program(program: &Path) -> Error {
    let shown = program.display();
    match machine(program) {
        Some(machine) if machine != std::env::consts::ARCH => Error::container(format!(
            "exec {shown}: it is a program for {machine}, and this machine is {}",
            std::env::consts::ARCH
        ))
        .exit(126)
        .hint("use a root of this machine's architecture, or register an emulator with binfmt_misc"),
        _ => Error::container(format!("exec {shown}: it is no program: neither ELF nor a script with #!"))
            .exit(126),
    }
}

fn head(program: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(program)?.take(4096).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The machine of an ELF header (`elf(5)`, e_machine), in the words of the Rust target names.
fn machine(program: &Path) -> Option<&'static str> {
    let head = head(program).ok()?;
    if !head.starts_with(b"\x7fELF") {
        return None;
    }
    let number = [*head.get(18)?, *head.get(19)?];
    let number =
        if head.get(5) == Some(&2) { u16::from_be_bytes(number) } else { u16::from_le_bytes(number) };
    Some(match number {
        3 => "x86",
        8 => "mips",
        21 => "powerpc64",
        22 => "s390x",
        40 => "arm",
        62 => "x86_64",
        183 => "aarch64",
        243 => "riscv64",
        258 => "loongarch64",
        _ => "an unknown machine",
    })
}

/// The interpreter that a script or a dynamic program names.
fn interpreter(program: &Path) -> Option<PathBuf> {
    let head = head(program).ok()?;
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|byte| *byte == b'\n').next()?;
        let word = line.trim_ascii().split(|byte| byte.is_ascii_whitespace()).next()?;
        return Some(PathBuf::from(OsString::from_vec(word.to_vec())));
    }
    let start = head.windows(4).position(|bytes| bytes == b"/lib")?;
    let name = head.get(start..)?.split(|byte| *byte == 0).next()?;
    head.starts_with(b"\x7fELF").then(|| PathBuf::from(OsString::from_vec(name.to_vec())))
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::spec::Process;
    use crate::spec::capability::CapabilitySet;
    use crate::spec::seccomp::Profile;

    /// A process with nothing in it, for tests of its parts.
    pub fn process() -> Process {
        Process {
            arguments: vec![],
            environment: vec![],
            cwd: PathBuf::from("/"),
            user: String::new(),
            additional_groups: vec![],
            keep_groups: false,
            terminal: false,
            stdin: false,
            capabilities: CapabilitySet::default(),
            no_new_privileges: true,
            rlimits: vec![],
            inherited: Default::default(),
            seccomp: Profile::Unconfined,
            umask: 0o022,
            scope_abstract_sockets: false,
            oom_score_adj: None,
        }
    }

    #[test]
    fn what_cannot_run_is_explained() {
        let words = |word: &str| vec![OsString::from(word)];
        assert_eq!(execute(&words("/nonexistent/x"), &[]).exit, 127);
        assert_eq!(execute(&words("x"), &[("PATH".into(), "/nonexistent".into())]).exit, 127);
        let folder = execute(&words("/tmp"), &[]);
        assert_eq!((folder.exit, folder.sentence.contains("folder")), (126, true));
        let file = std::env::temp_dir().join(format!("kelp-program-{}", std::process::id()));
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(64, 0);
        elf[18] = 183;
        std::fs::write(&file, &elf).unwrap();
        assert_eq!(machine(&file), Some("aarch64"));
        std::fs::write(&file, b"#!/no/such/thing -x\n").unwrap();
        assert_eq!(interpreter(&file), Some(PathBuf::from("/no/such/thing")));
        std::fs::remove_file(&file).unwrap();
    }
}
