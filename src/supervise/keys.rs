//! The keys that leave an attached container running (`--detach-keys`, docker's grammar): a sequence of
//! characters and `ctrl-` keys, by default ctrl-p ctrl-q. Pure.

use anyhow::Result;

use crate::error::Error;

/// The sequence, and how much of it was typed.
#[derive(Clone, Debug)]
pub struct Keys {
    sequence: Vec<u8>,
    typed: usize,
}

/// Docker's default.
pub const DEFAULT: &str = "ctrl-p,ctrl-q";

impl Keys {
    /// `ctrl-p,ctrl-q`, `a,b`, or nothing for no such keys.
    pub fn parse(text: &str) -> Result<Self> {
        let unknown = |word: &str| Error::usage(format!("--detach-keys {text}: unknown character: '{word}'"));
        let mut sequence = Vec::new();
        for word in text.split(',').filter(|_| !text.is_empty()) {
            sequence.push(match (word.strip_prefix("ctrl-").map(str::as_bytes), word.as_bytes()) {
                (Some([letter @ b'a'..=b'z']), _) => letter - b'a' + 1,
                (Some([sign @ (b'@' | b'[' | b'\\' | b']' | b'^' | b'_')]), _) => sign - b'@',
                (None, [byte]) => *byte,
                _ => return Err(unknown(word).into()),
            });
        }
        Ok(Self { sequence, typed: 0 })
    }

    /// What of `typed` goes to the container, and whether the keys are complete. A beginning of the sequence is
    /// held back until it is clear that it is none.
    pub fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len());
        for byte in typed {
            if self.sequence.get(self.typed) == Some(byte) {
                self.typed += 1;
                if self.typed == self.sequence.len() {
                    return (passed, true);
                }
                continue;
            }
            passed.extend_from_slice(self.sequence.get(..self.typed).unwrap_or_default());
            self.typed = usize::from(self.sequence.first() == Some(byte));
            if self.typed == 0 {
                passed.push(*byte);
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_are_seen_across_pieces_and_others_pass() {
        let mut keys = Keys::parse(DEFAULT).unwrap();
        assert_eq!(keys.filter(b"a\x10"), (b"a".to_vec(), false));
        assert_eq!(keys.filter(b"b\x10\x10"), (b"\x10b\x10".to_vec(), false));
        assert_eq!(keys.filter(b"\x11rest"), (Vec::new(), true));
        let mut none = Keys::parse("").unwrap();
        assert_eq!(none.filter(b"\x10\x11"), (b"\x10\x11".to_vec(), false));
        assert!(Keys::parse("ctrl-1").is_err() && Keys::parse("ab").is_err());
    }
}
