//! The part of Go's `text/template` that people use with `--format`: fields, `range`, `if`, `with`, pipes,
//! variables, and docker's functions (`json`, `join`, `upper`, ...). Text to a tree, then a tree and a JSON
//! value to text; it knows nothing of what it prints.

use anyhow::Result;
use serde_json::Value;

use crate::cli::functions;
use crate::error::Error;

#[derive(Debug)]
pub struct Template {
    nodes: Vec<Node>,
}

#[derive(Debug)]
enum Node {
    Text(String),
    Print(Pipe),
    Assign(String, Pipe),
    If(Pipe, Vec<Node>, Vec<Node>),
    With(Pipe, Vec<Node>, Vec<Node>),
    Range { key: Option<String>, value: Option<String>, over: Pipe, body: Vec<Node>, otherwise: Vec<Node> },
}

/// Commands, each given the last one's result as its last argument.
#[derive(Debug)]
struct Pipe(Vec<Vec<Term>>);

#[derive(Debug)]
enum Term {
    /// `.A.B`, `$.A`, `$name.A`: where from, and the way.
    Path(Option<String>, Vec<String>),
    Literal(Value),
    Function(String),
    Nested(Pipe, Vec<String>),
}

type Variables = Vec<(String, Value)>;

fn malformed(why: impl std::fmt::Display) -> anyhow::Error {
    Error::usage(format!("cannot use the --format template: {why}")).into()
}

enum Piece {
    Text(String),
    Action(Vec<String>),
}

impl Template {
    pub fn parse(text: &str) -> Result<Self> {
        let mut pieces = pieces(text)?.into_iter();
        let (nodes, end) = parse_nodes(&mut pieces, 0)?;
        match end {
            None => Ok(Self { nodes }),
            Some(word) => Err(malformed(format!("{{{{{word}}}}} without a beginning"))),
        }
    }

    pub fn render(&self, value: &Value) -> Result<String> {
        let mut out = String::new();
        render(&self.nodes, value, &mut vec![(String::new(), value.clone())], &mut out)?;
        Ok(out)
    }

    /// The heading line of `table TEMPLATE`: each field by its column's heading.
    pub fn headings<'a>(&self, columns: impl Iterator<Item = (&'a str, &'a str)>) -> String {
        let columns: Vec<(&str, &str)> = columns.collect();
        let heading = |path: &[String]| {
            let field = path.last().map_or("", String::as_str);
            let known = columns.iter().find(|(name, _)| *name == field);
            known.map_or_else(|| field.to_uppercase(), |(_, heading)| (*heading).to_owned())
        };
        let show = |node: &Node| match node {
            Node::Text(text) => text.clone(),
            Node::Print(Pipe(commands)) => match commands.first().and_then(|command| command.last()) {
                Some(Term::Path(_, path)) => heading(path),
                _ => String::new(),
            },
            _ => String::new(),
        };
        self.nodes.iter().map(show).collect()
    }
}

fn pieces(text: &str) -> Result<Vec<Piece>> {
    let (mut pieces, mut rest, mut trim) = (Vec::new(), text, false);
    while let Some((before, after)) = rest.split_once("{{") {
        let trims_left = after.starts_with("- ");
        let (action, next) = action(after)?;
        let mut before = if trim { before.trim_start() } else { before };
        if trims_left {
            before = before.trim_end();
        }
        pieces.push(Piece::Text(before.to_owned()));
        trim = action.ends_with(" -");
        let action = action.trim_start_matches("- ").trim_end_matches(" -").trim();
        if !action.starts_with("/*") {
            pieces.push(Piece::Action(words(action)?));
        }
        rest = next;
    }
    pieces.push(Piece::Text(if trim { rest.trim_start() } else { rest }.to_owned()));
    Ok(pieces)
}

/// Splits at the closing braces that are in no string.
fn action(text: &str) -> Result<(&str, &str)> {
    let (mut quote, mut escaped) = (None, false);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some('"'), '\\') if !escaped => escaped = true,
            (Some(open), _) if c == open && !escaped => quote = None,
            (Some(_), _) => escaped = false,
            (None, '"' | '`') => quote = Some(c),
            (None, '}') if text[at..].starts_with("}}") => return Ok((&text[..at], &text[at + 2..])),
            _ => {}
        }
    }
    Err(malformed("{{ is not closed"))
}

fn words(text: &str) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let end = match first {
            '"' => {
                let mut escaped = false;
                let close = rest.char_indices().skip(1).find(|(_, c)| {
                    let closes = *c == '"' && !escaped;
                    escaped = *c == '\\' && !escaped;
                    closes
                });
                close.ok_or_else(|| malformed("a string is not closed"))?.0 + 1
            }
            '`' => rest[1..].find('`').ok_or_else(|| malformed("a string is not closed"))? + 2,
            '(' | ')' | '|' | ',' => 1,
            ':' if rest.starts_with(":=") => 2,
            _ => rest.find([' ', '\t', '\n', '(', ')', '|', ',', ':', '"']).unwrap_or(rest.len()).max(1),
        };
        words.push(rest[..end].to_owned());
        rest = rest[end..].trim_start();
    }
    Ok(words)
}

const DEEPEST: usize = 50;

/// Nodes up to `end`, `else ...` or the end of the text; says which it was.
fn parse_nodes(pieces: &mut std::vec::IntoIter<Piece>, depth: usize) -> Result<(Vec<Node>, Option<String>)> {
    let mut nodes = Vec::new();
    while let Some(piece) = pieces.next() {
        let words = match piece {
            Piece::Text(text) => {
                nodes.push(Node::Text(text));
                continue;
            }
            Piece::Action(words) => words,
        };
        match words.first().map(String::as_str) {
            Some("end" | "else") => return Ok((nodes, Some(words.join(" ")))),
            Some("if" | "with" | "range") => nodes.push(block(&words, pieces, depth)?),
            Some(name) if name.starts_with('$') && words.get(1).is_some_and(|word| word == ":=") => {
                nodes.push(Node::Assign(name.to_owned(), pipe(&words[2..])?));
            }
            Some(_) => nodes.push(Node::Print(pipe(&words)?)),
            None => return Err(malformed("{{}} is empty")),
        }
    }
    Ok((nodes, None))
}

fn block(words: &[String], pieces: &mut std::vec::IntoIter<Piece>, depth: usize) -> Result<Node> {
    if depth > DEEPEST {
        return Err(malformed("it is nested too deeply"));
    }
    let (kind, mut head) = (words[0].as_str(), &words[1..]);
    let (mut key, mut value) = (None, None);
    if let Some(at) = head.iter().position(|word| word == ":=") {
        let mut names = head[..at].iter().filter(|word| *word != ",").cloned();
        (key, value) = match (names.next(), names.next()) {
            (Some(key), Some(value)) => (Some(key), Some(value)),
            (only, _) => (None, only),
        };
        head = &head[at + 1..];
    }
    let condition = pipe(head)?;
    let (body, end) = parse_nodes(pieces, depth + 1)?;
    let otherwise = match end.as_deref() {
        Some("end") => Vec::new(),
        Some("else") => match parse_nodes(pieces, depth + 1)? {
            (nodes, Some(end)) if end == "end" => nodes,
            _ => return Err(malformed(format!("{kind} without {{{{end}}}}"))),
        },
        Some(other) => {
            let words: Vec<String> = other.split(' ').skip(1).map(str::to_owned).collect();
            vec![block(&words, pieces, depth + 1)?]
        }
        None => return Err(malformed(format!("{kind} without {{{{end}}}}"))),
    };
    Ok(match kind {
        "if" => Node::If(condition, body, otherwise),
        "with" => Node::With(condition, body, otherwise),
        _ => Node::Range { key, value, over: condition, body, otherwise },
    })
}

fn pipe(words: &[String]) -> Result<Pipe> {
    let mut at = 0;
    let pipe = pipe_at(words, &mut at, 0)?;
    if at < words.len() { Err(malformed(format!("unexpected {:?}", words[at]))) } else { Ok(pipe) }
}

fn pipe_at(words: &[String], at: &mut usize, depth: usize) -> Result<Pipe> {
    let mut commands = vec![Vec::new()];
    while let Some(word) = words.get(*at).filter(|word| *word != ")") {
        *at += 1;
        if word == "|" {
            commands.push(Vec::new());
            continue;
        }
        let term = if word == "(" {
            if depth > DEEPEST {
                return Err(malformed("it is nested too deeply"));
            }
            let inner = pipe_at(words, at, depth + 1)?;
            if words.get(*at).is_none_or(|word| word != ")") {
                return Err(malformed("( is not closed"));
            }
            *at += 1;
            let field = words.get(*at).filter(|word| word.starts_with('.') && word.len() > 1);
            *at += usize::from(field.is_some());
            Term::Nested(inner, field.map(|word| fields(word)).unwrap_or_default())
        } else {
            term(word)?
        };
        if let Some(command) = commands.last_mut() {
            command.push(term);
        }
    }
    if commands.iter().any(Vec::is_empty) { Err(malformed("a command is empty")) } else { Ok(Pipe(commands)) }
}

fn fields(path: &str) -> Vec<String> {
    path.split('.').filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

fn term(word: &str) -> Result<Term> {
    if word.starts_with('"') {
        let text = serde_json::from_str(word).map_err(|_| malformed(format!("{word} is not a string")))?;
        return Ok(Term::Literal(Value::String(text)));
    }
    if let Some(text) = word.strip_prefix('`') {
        return Ok(Term::Literal(Value::String(text.trim_end_matches('`').to_owned())));
    }
    if word.starts_with('.') {
        return Ok(Term::Path(None, fields(word)));
    }
    if word.starts_with('$') {
        let (name, path) = word.split_once('.').unwrap_or((word, ""));
        let name = if name == "$" { String::new() } else { name.to_owned() };
        return Ok(Term::Path(Some(name), fields(path)));
    }
    match word {
        "true" | "false" => return Ok(Term::Literal(Value::Bool(word == "true"))),
        "nil" => return Ok(Term::Literal(Value::Null)),
        _ => {}
    }
    if let Ok(number) = word.parse::<i64>() {
        return Ok(Term::Literal(number.into()));
    }
    if functions::NAMES.contains(&word) {
        return Ok(Term::Function(word.to_owned()));
    }
    Err(malformed(format!("{word:?} is not a function")))
}

fn render(nodes: &[Node], dot: &Value, variables: &mut Variables, out: &mut String) -> Result<()> {
    let known = variables.len();
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Print(pipe) => out.push_str(&functions::text(&evaluate(pipe, dot, variables)?)),
            Node::Assign(name, pipe) => {
                let value = evaluate(pipe, dot, variables)?;
                variables.push((name.clone(), value));
            }
            Node::If(condition, body, otherwise) => {
                let chosen =
                    if functions::truth(&evaluate(condition, dot, variables)?) { body } else { otherwise };
                render(chosen, dot, variables, out)?;
            }
            Node::With(condition, body, otherwise) => {
                let value = evaluate(condition, dot, variables)?;
                if functions::truth(&value) {
                    render(body, &value, variables, out)?;
                } else {
                    render(otherwise, dot, variables, out)?;
                }
            }
            Node::Range { key, value, over, body, otherwise } => {
                let items: Vec<(Value, Value)> = match evaluate(over, dot, variables)? {
                    Value::Array(list) => {
                        list.into_iter().enumerate().map(|(at, item)| (at.into(), item)).collect()
                    }
                    Value::Object(map) => map.into_iter().map(|(name, item)| (name.into(), item)).collect(),
                    _ => Vec::new(),
                };
                if items.is_empty() {
                    render(otherwise, dot, variables, out)?;
                }
                for (at, item) in items {
                    let depth = variables.len();
                    variables.extend(key.iter().map(|name| (name.clone(), at.clone())));
                    variables.extend(value.iter().map(|name| (name.clone(), item.clone())));
                    render(body, &item, variables, out)?;
                    variables.truncate(depth);
                }
            }
        }
    }
    variables.truncate(known);
    Ok(())
}

fn evaluate(Pipe(commands): &Pipe, dot: &Value, variables: &Variables) -> Result<Value> {
    let mut last: Option<Value> = None;
    for command in commands {
        let (first, rest) = command.split_first().ok_or_else(|| malformed("a command is empty"))?;
        let arguments: Result<Vec<Value>> = rest.iter().map(|term| resolve(term, dot, variables)).collect();
        let mut arguments = arguments?;
        arguments.extend(last.take());
        last = Some(match first {
            Term::Function(name) => functions::call(name, &arguments).map_err(malformed)?,
            _ if arguments.is_empty() => resolve(first, dot, variables)?,
            Term::Path(None, path) if path == &["Label"] => label(dot, &arguments),
            _ => return Err(malformed("something that is no function has arguments")),
        });
    }
    last.ok_or_else(|| malformed("a command is empty"))
}

/// `{{.Label "KEY"}}` of a row whose labels stand in one word, as docker has it.
fn label(row: &Value, arguments: &[Value]) -> Value {
    let key = arguments.first().and_then(Value::as_str).unwrap_or_default();
    let labels = row["Labels"].as_str().unwrap_or_default();
    let found = labels.split(',').filter_map(|label| label.split_once('=')).find(|(name, _)| *name == key);
    found.map_or("", |(_, value)| value).into()
}

fn resolve(term: &Term, dot: &Value, variables: &Variables) -> Result<Value> {
    match term {
        Term::Literal(value) => Ok(value.clone()),
        Term::Function(name) => functions::call(name, &[]).map_err(malformed),
        Term::Nested(pipe, path) => walk(&evaluate(pipe, dot, variables)?, path),
        Term::Path(None, path) => walk(dot, path),
        Term::Path(Some(name), path) => {
            let found = variables.iter().rev().find(|(known, _)| known == name);
            walk(&found.ok_or_else(|| malformed(format!("{name} is not set")))?.1, path)
        }
    }
}

fn walk(value: &Value, path: &[String]) -> Result<Value> {
    let mut value = value;
    for (at, field) in path.iter().enumerate() {
        value = match value {
            Value::Object(map) => match map.get(field) {
                Some(found) => found,
                // Maps of names (labels) answer nothing for a missing key; the record itself must have the field.
                None if at > 0 => return Ok(Value::Null),
                None => return Err(malformed(format!("there is no field {field}"))),
            },
            Value::Null => return Ok(Value::Null),
            _ => return Err(malformed(format!("what stands before .{field} has no fields"))),
        };
    }
    Ok(value.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_people_write_with_format_works() {
        let value = json!({
            "ID": "abc", "Size": 7, "Labels": "w=v,x=y", "Config": {"Env": ["A=1", "B=2"], "Labels": {"x": "y"}, "Cmd": null},
            "On": true, "List": [{"N": 1}, {"N": 2}],
        });
        for (text, expected) in [
            ("{{.ID}}:{{.Size}}", "abc:7"),
            ("{{json .Config.Env}}", r#"["A=1","B=2"]"#),
            ("{{ .Config.Env | json }}", r#"["A=1","B=2"]"#),
            ("{{range .Config.Env}}[{{.}}]{{end}}", "[A=1][B=2]"),
            ("{{range $k, $v := .Config.Labels}}{{$k}}={{$v}};{{end}}", "x=y;"),
            ("{{range $i, $e := .List}}{{if $i}},{{end}}{{$e.N}}{{end}}", "1,2"),
            ("{{if .On}}yes{{else}}no{{end}}", "yes"),
            ("{{if eq .ID \"abc\"}}a{{else if .On}}b{{end}}", "a"),
            ("{{if and .On (not .Config.Cmd)}}ok{{end}}", "ok"),
            ("{{index .Config.Labels \"x\"}} {{index .Config.Env 1}}", "y B=2"),
            ("{{.Label \"x\"}}{{.Label \"z\"}}", "y"),
            ("{{.Config.Labels.missing}}", "<no value>"),
            ("{{join .Config.Env \",\"}} {{upper .ID}} {{len .List}}", "A=1,B=2 ABC 2"),
            ("{{with .Config}}{{.Env}}{{end}}", "[A=1 B=2]"),
            ("{{printf \"%s-%d-%v\" .ID .Size .On}}", "abc-7-true"),
            ("{{- .ID -}}  x", "abcx"),
            ("{{(index .List 0).N}}", "1"),
            ("{{$x := .ID}}{{$x}}{{$.Size}}", "abc7"),
            ("a}}b", "a}}b"),
        ] {
            assert_eq!(Template::parse(text).unwrap().render(&value).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_malformed_is_refused_with_a_sentence() {
        let value = json!({"A": 1});
        for text in [
            "{{",
            "{{.A",
            "{{end}}",
            "{{if .A}}",
            "{{nosuch .A}}",
            "{{}}",
            "{{\"x}}",
            "{{.B}}",
            "{{.A.B}}",
            "{{(.A}}",
            "{{.A | }}",
            "{{$x}}",
            "{{index .A 1}}",
            "{{range}}{{end}}",
        ] {
            let rendered = Template::parse(text).and_then(|template| template.render(&value));
            assert!(rendered.is_err(), "{text}");
        }
    }
}
