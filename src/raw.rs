//! Paths in records and requests as bytes: a path need not be UTF-8, which serde's own form of it demands.
//! `#[serde(with = "crate::raw::path")]` and `paths`. It knows no record.

/// One path.
pub mod path {
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
        Form::of(path).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        Form::deserialize(from).map(Form::path)
    }

    /// Text where that is possible, so that people can read it.
    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    pub enum Form {
        Text(String),
        Bytes(Vec<u8>),
    }

    impl Form {
        pub fn of(path: &Path) -> Self {
            match path.to_str() {
                Some(text) => Self::Text(text.to_owned()),
                None => Self::Bytes(path.as_os_str().as_bytes().to_vec()),
            }
        }

        pub fn path(self) -> PathBuf {
            match self {
                Self::Text(text) => PathBuf::from(text),
                Self::Bytes(bytes) => PathBuf::from(OsString::from_vec(bytes)),
            }
        }
    }
}

/// Several paths.
pub mod paths {
    use std::path::PathBuf;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::raw::path::Form;

    pub fn serialize<S: Serializer>(paths: &[PathBuf], to: S) -> Result<S::Ok, S::Error> {
        paths.iter().map(|path| Form::of(path)).collect::<Vec<_>>().serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<PathBuf>, D::Error> {
        Vec::<Form>::deserialize(from).map(|forms| forms.into_iter().map(Form::path).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    use std::path::PathBuf;

    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Both {
        #[serde(with = "super::path")]
        one: PathBuf,
        #[serde(with = "super::paths")]
        many: Vec<PathBuf>,
    }

    #[test]
    fn a_path_that_is_not_utf8_comes_back() {
        let odd = PathBuf::from(OsString::from_vec(b"/a\xff".to_vec()));
        let both = Both { one: odd.clone(), many: vec![odd, PathBuf::from("/b")] };
        let text = serde_json::to_string(&both).unwrap();
        assert!(text.contains("\"/b\""));
        assert_eq!(serde_json::from_str::<Both>(&text).unwrap(), both);
    }
}
