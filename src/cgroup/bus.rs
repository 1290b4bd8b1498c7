//! As much of D-Bus as one call of the systemd user manager's needs, over the socket that it keeps for its own tools: a
//! line that says who we are, one message, one answer (D-Bus specification, "Message Protocol"). Little-endian; each
//! value is aligned to its size, an array says its length in bytes. It knows no method by name.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::error::Error;

/// How long the manager has.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest answer that is read: a sentence.
const LONGEST: usize = 1 << 16;

/// A value of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Boolean(bool),
    Text(String),
    Numbers(Vec<u32>),
    /// `a(sv)`.
    Properties(Vec<(&'static str, Value)>),
    /// `a(sa(sv))` without elements.
    NoUnits,
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Self::Boolean(_) => "b",
            Self::Text(_) => "s",
            Self::Numbers(_) => "au",
            Self::Properties(_) => "a(sv)",
            Self::NoUnits => "a(sa(sv))",
        }
    }
}

/// Calls `method` of org.freedesktop.systemd1's manager with these values, and waits for its answer.
///
/// # Errors
/// What the manager says.
pub fn call(socket: &Path, method: &str, values: &[Value]) -> Result<()> {
    let mut stream = UnixStream::connect(socket)
        .with_context(|| format!("cannot reach your systemd at {}", socket.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let uid = nix::unistd::getuid().to_string();
    let hex: String = uid.bytes().map(|byte| format!("{byte:02x}")).collect();
    stream.write_all(format!("\0AUTH EXTERNAL {hex}\r\n").as_bytes())?;
    let line = line(&mut stream)?;
    if !line.starts_with("OK ") {
        return Err(Error::host(format!("your systemd does not take us for its user: {line}")).into());
    }
    stream.write_all(&[b"BEGIN\r\n", &message(method, values)[..]].concat())?;
    loop {
        if let Some(outcome) = answer(&mut stream)? {
            return outcome;
        }
    }
}

fn line(stream: &mut UnixStream) -> Result<String> {
    let (mut line, mut byte) = (Vec::new(), [0u8]);
    while !line.ends_with(b"\r\n") && line.len() < 1024 {
        stream.read_exact(&mut byte).context("no word from your systemd")?;
        line.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

/// Kinds of messages and fields of their heads.
const CALL: u8 = 1;
const RETURN: u8 = 2;
const ERROR: u8 = 3;
const REPLY_SERIAL: u8 = 5;
const SERIAL: u32 = 1;

fn message(method: &str, values: &[Value]) -> Vec<u8> {
    let mut body = Wire::default();
    values.iter().for_each(|value| body.value(value));
    let signature: String = values.iter().map(Value::signature).collect();
    let fields = [
        (1, "o", "/org/freedesktop/systemd1"),
        (2, "s", "org.freedesktop.systemd1.Manager"),
        (3, "s", method),
        (6, "s", "org.freedesktop.systemd1"),
        (8, "g", &signature),
    ];
    let mut head = Wire(vec![b'l', CALL, 0, 1]);
    head.number(body.0.len() as u32);
    head.number(SERIAL);
    head.array(8, |head| {
        for (code, kind, text) in fields {
            head.align(8);
            head.0.push(code);
            head.short(kind);
            if kind == "g" { head.short(text) } else { head.text(text) }
        }
    });
    head.align(8);
    head.0.extend(body.0);
    head.0
}

/// The next message, if it is the answer.
fn answer(stream: &mut UnixStream) -> Result<Option<Result<()>>> {
    let mut start = [0u8; 16];
    stream.read_exact(&mut start).context("no answer from your systemd")?;
    let number = |bytes: &[u8], at: usize| -> usize {
        let four = bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
        u32::from_le_bytes(four.unwrap_or_default()) as usize
    };
    let (body, fields) = (number(&start, 4), number(&start, 12).next_multiple_of(8));
    if start[0] != b'l' || body > LONGEST || fields > LONGEST {
        return Err(Error::host("your systemd answers in another form").into());
    }
    let mut rest = vec![0u8; fields + body];
    stream.read_exact(&mut rest)?;
    let (fields, body) = rest.split_at(fields);
    // Each field is aligned to 8: its code, the length and the one letter of its kind, 0, and its value.
    let ours = fields
        .chunks(8)
        .any(|field| field.starts_with(&[REPLY_SERIAL, 1, b'u', 0]) && number(field, 4) == SERIAL as usize);
    Ok(match start[1] {
        RETURN if ours => Some(Ok(())),
        ERROR if ours => {
            let text = body.get(4..4 + number(body, 0)).map(String::from_utf8_lossy);
            Some(Err(Error::host(text.unwrap_or_default().into_owned()).into()))
        }
        _ => None,
    })
}

/// Bytes of a message.
#[derive(Default)]
struct Wire(Vec<u8>);

impl Wire {
    fn align(&mut self, size: usize) {
        self.0.resize(self.0.len().next_multiple_of(size), 0);
    }

    fn number(&mut self, number: u32) {
        self.align(4);
        self.0.extend(number.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u32);
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    /// A signature, whose length is one byte.
    fn short(&mut self, text: &str) {
        self.0.push(text.len() as u8);
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    /// An array: its length counts neither itself nor what aligns the first element.
    fn array(&mut self, alignment: usize, fill: impl FnOnce(&mut Self)) {
        self.number(0);
        let place = self.0.len() - 4;
        self.align(alignment);
        let start = self.0.len();
        fill(self);
        let length = (self.0.len() - start) as u32;
        if let Some(four) = self.0.get_mut(place..place + 4) {
            four.copy_from_slice(&length.to_le_bytes());
        }
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Boolean(truth) => self.number(u32::from(*truth)),
            Value::Text(text) => self.text(text),
            Value::Numbers(list) => self.array(4, |wire| list.iter().for_each(|number| wire.number(*number))),
            Value::Properties(list) => self.array(8, |wire| {
                for (name, value) in list {
                    wire.align(8);
                    wire.text(name);
                    wire.short(value.signature());
                    wire.value(value);
                }
            }),
            Value::NoUnits => self.array(8, |_| {}),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_aligned_and_arrays_count_their_bytes() {
        let mut wire = Wire::default();
        wire.value(&Value::Text("ab".to_owned()));
        wire.value(&Value::Properties(vec![("PIDs", Value::Numbers(vec![7]))]));
        assert_eq!(wire.0.get(..8).unwrap(), [2, 0, 0, 0, b'a', b'b', 0, 0]);
        // The array's length stands at 8, its first structure at 16.
        assert_eq!(wire.0.get(8..16).unwrap(), [24, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(wire.0.get(16..25).unwrap(), [4, 0, 0, 0, b'P', b'I', b'D', b's', 0]);
        assert_eq!(wire.0.get(25..29).unwrap(), [2, b'a', b'u', 0]);
        assert_eq!(wire.0.get(32..40).unwrap(), [4, 0, 0, 0, 7, 0, 0, 0]);
        assert_eq!(wire.0.len(), 40);
    }

    #[test]
    fn a_message_says_how_long_it_is() {
        let made = message("Subscribe", &[]);
        assert_eq!(made.get(..4).unwrap(), [b'l', CALL, 0, 1]);
        assert_eq!(made.get(4..8).unwrap(), [0; 4], "no body");
        let fields = u32::from_le_bytes(made.get(12..16).unwrap().try_into().unwrap()) as usize;
        assert_eq!(made.len(), (16 + fields).next_multiple_of(8));
    }

    /// The other end of the socket, in a thread.
    #[test]
    fn an_error_is_told_in_its_words() {
        let (mut theirs, mut ours) = UnixStream::pair().unwrap();
        let mut reply = Wire(vec![b'l', ERROR, 0, 1]);
        let text = "Unit is there already";
        reply.number(4 + text.len() as u32 + 1);
        reply.number(9);
        reply.array(8, |wire| {
            wire.0.extend([REPLY_SERIAL, 1, b'u', 0]);
            wire.number(SERIAL);
        });
        reply.align(8);
        let mut body = Wire::default();
        body.text(text);
        theirs.write_all(&[reply.0, body.0].concat()).unwrap();
        let outcome = answer(&mut ours).unwrap().unwrap();
        assert_eq!(outcome.unwrap_err().to_string(), text);
    }
}
