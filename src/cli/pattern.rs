//! The small part of regular expressions that people write in `--filter name=...`: text anywhere, `^`, `$`, `.`,
//! `*`, `+` and `?` behind one character, `\\` before one that is meant, and `|` between whole patterns.

/// Whether the pattern is found in the text.
pub fn found(pattern: &str, text: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    pattern.split('|').any(|pattern| {
        let pattern: Vec<char> = pattern.chars().collect();
        match pattern.split_first() {
            Some(('^', rest)) => here(rest, &text),
            _ => (0..=text.len()).any(|from| here(&pattern, &text[from..])),
        }
    })
}

/// Whether the pattern fits what the text begins with.
fn here(pattern: &[char], text: &[char]) -> bool {
    let (one, rest) = match pattern {
        [] => return true,
        ['$'] => return text.is_empty(),
        ['\\', one, rest @ ..] => (Some(*one), rest),
        ['.', rest @ ..] => (None, rest),
        [one, rest @ ..] => (Some(*one), rest),
    };
    let fits = |at: usize| text.get(at).is_some_and(|found| one.is_none_or(|one| one == *found));
    let (least, most, rest) = match rest {
        ['*', rest @ ..] => (0, text.len(), rest),
        ['+', rest @ ..] => (1, text.len(), rest),
        ['?', rest @ ..] => (0, 1, rest),
        rest => (1, 1, rest),
    };
    let longest = (0..most).take_while(|at| fits(*at)).count();
    (least..=longest).rev().any(|count| here(rest, &text[count..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_found_as_by_a_shell_user() {
        for (pattern, text) in [
            ("eb", "web"),
            ("^web$", "web"),
            ("^/?web", "web-1"),
            ("w.b", "web"),
            ("a+b*c", "xaac"),
            ("web|db", "my-db"),
            ("a\\.b", "a.b"),
            ("", "x"),
        ] {
            assert!(found(pattern, text), "{pattern}");
        }
        for (pattern, text) in [("^eb", "web"), ("we$", "web"), ("a\\.b", "axb"), ("a+", "b"), ("x", "")] {
            assert!(!found(pattern, text), "{pattern}");
        }
    }
}
