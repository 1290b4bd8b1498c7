//! Reading a file of lines that others append to and put aside when it is full: as `NAME.1`, and what was there as
//! `NAME.2`. It knows nothing of what a line says. A line that is not whole yet is left for later; the end of a
//! file that a crash has cut short is no part of the next one.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use crate::record::is_at;

/// What is read of such a file, from the oldest line on.
#[derive(Debug)]
pub struct Lines {
    path: PathBuf,
    /// What was put aside, the oldest last.
    older: Vec<File>,
    file: Option<File>,
    rest: Vec<u8>,
}

impl Lines {
    pub fn of(path: PathBuf) -> Self {
        let mut older = Vec::new();
        while let Ok(file) = File::open(path.with_extension((older.len() + 1).to_string())) {
            older.push(file);
        }
        Self { path, older, file: None, rest: Vec::new() }
    }

    /// Whatever `parse` makes of the whole lines that were not read yet.
    pub fn more<T>(&mut self, parse: fn(&[u8]) -> Option<T>) -> io::Result<Vec<T>> {
        let mut found = Vec::new();
        while let Some(file) = self.older.pop() {
            self.read(&file, parse, &mut found)?;
            self.rest.clear();
        }
        loop {
            if let Some(file) = self.file.take() {
                // Asked first: what is put aside after it was read would be left without its last lines.
                let is_last = is_at(&file, &self.path);
                self.read(&file, parse, &mut found)?;
                if is_last {
                    self.file = Some(file);
                    return Ok(found);
                }
                self.rest.clear();
            }
            match File::open(&self.path) {
                Ok(file) => self.file = Some(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
                Err(error) => return Err(error),
            }
        }
    }

    fn read<T>(
        &mut self,
        mut file: &File,
        parse: fn(&[u8]) -> Option<T>,
        found: &mut Vec<T>,
    ) -> io::Result<()> {
        let mut bytes = std::mem::take(&mut self.rest);
        file.read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.rest = bytes.split_off(whole);
        found.extend(bytes.split(|byte| *byte == b'\n').filter_map(parse));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;

    #[test]
    fn lines_are_read_once_and_in_order_while_their_file_is_put_aside() {
        let folder = std::env::temp_dir().join(format!("kelp-lines-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let path = folder.join("log");
        let append = |text: &str| {
            let file = File::options().append(true).create(true).open(&path);
            file.and_then(|mut file| file.write_all(text.as_bytes())).unwrap();
        };
        let text = |line: &[u8]| (!line.is_empty()).then(|| String::from_utf8_lossy(line).into_owned());
        append("a\n");
        fs::rename(&path, path.with_extension("2")).unwrap();
        append("b\ncut");
        fs::rename(&path, path.with_extension("1")).unwrap();
        append("c\nwho");
        let mut lines = Lines::of(path.clone());
        assert_eq!(lines.more(text).unwrap(), ["a", "b", "c"]);
        append("le\nlast\n");
        fs::rename(&path, path.with_extension("1")).unwrap();
        append("next\n");
        assert_eq!(lines.more(text).unwrap(), ["whole", "last", "next"]);
        assert_eq!(lines.more(text).unwrap(), Vec::<String>::new());
        fs::remove_dir_all(&folder).unwrap();
    }
}
