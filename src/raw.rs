//! Paths in records and requests as bytes: a path need not be UTF-8, which serde's own form of it demands.
//! `#[serde(with = "crate::raw::path")]`, `paths`, and for other words `word`, `words`, `variables`. It knows no
//! record.

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

/// A path that may be missing.
pub mod maybe_path {
    use std::path::PathBuf;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::raw::path::Form;

    pub fn serialize<S: Serializer>(path: &Option<PathBuf>, to: S) -> Result<S::Ok, S::Error> {
        path.as_deref().map(Form::of).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
        Ok(Option::<Form>::deserialize(from)?.map(Form::path))
    }
}

/// A word that may be missing.
pub mod word {
    use std::ffi::OsString;
    use std::path::Path;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::raw::path::Form;

    pub fn serialize<S: Serializer>(word: &Option<OsString>, to: S) -> Result<S::Ok, S::Error> {
        word.as_deref().map(|word| Form::of(Path::new(word))).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<OsString>, D::Error> {
        Ok(Option::<Form>::deserialize(from)?.map(|form| form.path().into_os_string()))
    }
}

/// Several words.
pub mod words {
    use std::ffi::OsString;
    use std::path::Path;

    use serde::{Deserialize, Deserializer, Serializer};

    use crate::raw::path::Form;

    pub fn serialize<S: Serializer>(words: &[OsString], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(words.iter().map(|word| Form::of(Path::new(word))))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<OsString>, D::Error> {
        Ok(Vec::<Form>::deserialize(from)?.into_iter().map(|form| form.path().into_os_string()).collect())
    }
}

/// Names with values.
pub mod variables {
    use std::ffi::OsString;
    use std::path::Path;

    use serde::{Deserialize, Deserializer, Serializer};

    use crate::raw::path::Form;

    type Variables = Vec<(OsString, OsString)>;

    pub fn serialize<S: Serializer>(variables: &[(OsString, OsString)], to: S) -> Result<S::Ok, S::Error> {
        let form = |word: &OsString| Form::of(Path::new(word));
        to.collect_seq(variables.iter().map(|(name, value)| (form(name), form(value))))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Variables, D::Error> {
        let word = |form: Form| form.path().into_os_string();
        let pairs = Vec::<(Form, Form)>::deserialize(from)?;
        Ok(pairs.into_iter().map(|(name, value)| (word(name), word(value))).collect())
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
        #[serde(with = "super::maybe_path")]
        none: Option<PathBuf>,
        #[serde(with = "super::variables")]
        variables: Vec<(OsString, OsString)>,
        #[serde(with = "super::words")]
        words: Vec<OsString>,
    }

    #[test]
    fn a_path_that_is_not_utf8_comes_back() {
        let odd = PathBuf::from(OsString::from_vec(b"/a\xff".to_vec()));
        let word = odd.clone().into_os_string();
        let both = Both {
            one: odd.clone(),
            many: vec![odd, PathBuf::from("/b")],
            none: None,
            variables: vec![("A".into(), word.clone())],
            words: vec![word],
        };
        let text = serde_json::to_string(&both).unwrap();
        assert!(text.contains("\"/b\""));
        assert_eq!(serde_json::from_str::<Both>(&text).unwrap(), both);
    }
}
