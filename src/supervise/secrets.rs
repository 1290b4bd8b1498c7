//! What secrets say, read for a start of a container: files in memory, and variables of the program. Nothing of it
//! is kept: the record has the names.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use anyhow::{Context, Result};

use crate::container::secret;
use crate::error::Error;
use crate::launch::plan::{Hidden, SecretFile};
use crate::paths::Paths;
use crate::spec::request::{Request, SecretPlace, SecretUse};

fn content(paths: &Paths, asked: &SecretUse) -> Result<Vec<u8>> {
    let secret = secret::read(paths, &asked.name)?;
    let missing = || Error::host(format!("there is no secret {} any more", asked.name));
    Ok(secret.ok_or_else(missing).context("cannot give the container its secrets")?.content)
}

/// Those that are files inside.
pub fn files(paths: &Paths, request: &Request) -> Result<Vec<SecretFile>> {
    let mut files = Vec::new();
    for asked in &request.secrets {
        if let SecretPlace::File { target, uid, gid, mode } = &asked.place {
            let content = Hidden(content(paths, asked)?);
            files.push(SecretFile { target: target.clone(), content, uid: *uid, gid: *gid, mode: *mode });
        }
    }
    Ok(files)
}

/// Those that are variables.
pub fn variables(paths: &Paths, request: &Request) -> Result<Vec<(OsString, OsString)>> {
    let mut variables = Vec::new();
    for asked in &request.secrets {
        if let SecretPlace::Variable(name) = &asked.place {
            let value = content(paths, asked)?;
            if value.contains(&0) {
                let sentence = format!("secret {} holds a zero byte, which no variable can", asked.name);
                return Err(Error::usage(sentence).hint("without type=env it is a file").into());
            }
            variables.push((OsString::from(name), OsString::from_vec(value)));
        }
    }
    Ok(variables)
}

/// In the place of variables of the same name.
pub fn add_variables(secrets: &[(OsString, OsString)], environment: &mut Vec<(OsString, OsString)>) {
    environment.retain(|(known, _)| !secrets.iter().any(|(name, _)| name == known));
    environment.extend(secrets.iter().cloned());
}
