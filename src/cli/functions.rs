//! The functions of `--format` templates: Go's and docker's, on JSON values. Pure; what went wrong is told in
//! words.

use serde_json::Value;

pub const NAMES: [&str; 23] = [
    "json", "join", "split", "upper", "lower", "title", "len", "index", "printf", "print", "println", "eq",
    "ne", "lt", "gt", "le", "ge", "and", "or", "not", "truncate", "pad", "slice",
];

/// A value as Go's `%v` prints it.
pub fn text(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(text).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let pairs: Vec<String> =
                map.iter().map(|(name, value)| format!("{name}:{}", text(value))).collect();
            format!("map[{}]", pairs.join(" "))
        }
        other => other.to_string(),
    }
}

/// Go's idea of what is true: not empty, not zero.
pub fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(is) => *is,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// Calls a function; the error is the reason in words.
pub fn call(name: &str, arguments: &[Value]) -> Result<Value, String> {
    let needs = |count: usize| match arguments.len() >= count {
        true => Ok(()),
        false => Err(format!("{name} needs {count} arguments")),
    };
    needs(usize::from(!matches!(name, "print" | "println")))?;
    Ok(match name {
        "json" => arguments[0].to_string().into(),
        "upper" => text(&arguments[0]).to_uppercase().into(),
        "lower" => text(&arguments[0]).to_lowercase().into(),
        "title" => title(&text(&arguments[0])).into(),
        "not" => (!truth(&arguments[0])).into(),
        "and" => {
            arguments.iter().find(|value| !truth(value)).or(arguments.last()).cloned().unwrap_or_default()
        }
        "or" => arguments.iter().find(|value| truth(value)).or(arguments.last()).cloned().unwrap_or_default(),
        "len" => length(&arguments[0])?.into(),
        "print" => arguments.iter().map(text).collect::<String>().into(),
        "println" => format!("{}\n", arguments.iter().map(text).collect::<Vec<_>>().join(" ")).into(),
        "printf" => printf(arguments).into(),
        "index" => index(arguments)?,
        "join" => {
            needs(2)?;
            let list = arguments[0].as_array().ok_or("join needs a list")?;
            list.iter().map(text).collect::<Vec<_>>().join(&text(&arguments[1])).into()
        }
        "split" => {
            needs(2)?;
            let (whole, by) = (text(&arguments[0]), text(&arguments[1]));
            whole.split(&by).map(Value::from).collect::<Vec<_>>().into()
        }
        "truncate" => {
            needs(2)?;
            let most = arguments[1].as_u64().unwrap_or(0) as usize;
            text(&arguments[0]).chars().take(most).collect::<String>().into()
        }
        "pad" => {
            needs(3)?;
            let spaces = |at: usize| " ".repeat(arguments[at].as_u64().unwrap_or(0).min(1000) as usize);
            format!("{}{}{}", spaces(1), text(&arguments[0]), spaces(2)).into()
        }
        "slice" => {
            needs(3)?;
            let (from, to) = (arguments[1].as_u64().unwrap_or(0), arguments[2].as_u64().unwrap_or(0));
            let count = to.checked_sub(from).ok_or("slice ends before it begins")? as usize;
            text(&arguments[0]).chars().skip(from as usize).take(count).collect::<String>().into()
        }
        _ => {
            needs(2)?;
            compare(name, &arguments[0], &arguments[1..])?.into()
        }
    })
}

fn compare(name: &str, left: &Value, others: &[Value]) -> Result<bool, String> {
    let order = |right: &Value| match (left.as_f64(), right.as_f64()) {
        (Some(left), Some(right)) => left.partial_cmp(&right),
        _ => Some(text(left).cmp(&text(right))),
    };
    let right = order(&others[0]).ok_or("values that can't be compared")?;
    Ok(match name {
        "eq" => others.iter().any(|right| left == right || text(left) == text(right)),
        "ne" => left != &others[0],
        "lt" => right.is_lt(),
        "le" => right.is_le(),
        "gt" => right.is_gt(),
        _ => right.is_ge(),
    })
}

fn length(value: &Value) -> Result<usize, String> {
    match value {
        Value::Null => Ok(0),
        Value::String(text) => Ok(text.len()),
        Value::Array(list) => Ok(list.len()),
        Value::Object(map) => Ok(map.len()),
        _ => Err("len needs a list, a map or a text".to_owned()),
    }
}

fn index(arguments: &[Value]) -> Result<Value, String> {
    let mut value = arguments[0].clone();
    for key in &arguments[1..] {
        value = match &value {
            Value::Array(list) => {
                let at = key.as_u64().and_then(|at| usize::try_from(at).ok());
                at.and_then(|at| list.get(at)).cloned().ok_or("index is outside of the list")?
            }
            Value::Object(map) => map.get(&text(key)).cloned().unwrap_or_default(),
            Value::Null => Value::Null,
            _ => return Err("index needs a list or a map".to_owned()),
        };
    }
    Ok(value)
}

fn title(words: &str) -> String {
    let mut start = true;
    let raise = |c: char| {
        let upper = std::mem::replace(&mut start, c.is_whitespace());
        if upper { c.to_uppercase().next().unwrap_or(c) } else { c }
    };
    words.chars().map(raise).collect()
}

/// `%s %d %v %q %%`, with widths as Go has them.
fn printf(arguments: &[Value]) -> String {
    let format = text(&arguments[0]);
    let (mut out, mut values, mut chars) = (String::new(), arguments[1..].iter(), format.chars().peekable());
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut width = String::new();
        while let Some(digit) = chars.next_if(|c| c.is_ascii_digit() || *c == '-') {
            width.push(digit);
        }
        let Some(verb) = chars.next() else { break };
        if verb == '%' {
            out.push('%');
            continue;
        }
        let value = values.next().map_or_else(|| format!("%!{verb}(MISSING)"), text);
        let value = if verb == 'q' { format!("{value:?}") } else { value };
        let places = width.trim_start_matches('-').parse::<usize>().unwrap_or(0).min(1000);
        out.push_str(&if width.starts_with('-') {
            format!("{value:<places$}")
        } else {
            format!("{value:>places$}")
        });
    }
    out
}
