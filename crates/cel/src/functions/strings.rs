//! Strings: the standard functions and the extension, by characters.

use super::{Row, bool, int, list, made, no_overload, text};
use crate::eval::{Error, fail};
use crate::functions::operators::double_text;
use crate::value::{MAX_TEXT, Value};

type Outcome<'a> = Result<Value<'a>, Error>;

/// Digits after the point a format may ask for.
const MAX_PRECISION: usize = 100;

fn char_at<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let (said, at) = (text(args, 0)?, int(args, 1)?);
    let count = said.chars().count();
    match usize::try_from(at) {
        Ok(at) if at <= count => made(said.chars().nth(at).map(String::from).unwrap_or_default()),
        _ => fail(format!("index out of range: {at}")),
    }
}

fn index_of<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let (said, part) = (text(args, 0)?, text(args, 1)?);
    let offset = if args.len() > 2 { int(args, 2)? } else { 0 };
    let starts: Vec<usize> = said.char_indices().map(|(at, _)| at).chain([said.len()]).collect();
    let Some(from) = usize::try_from(offset).ok().and_then(|o| starts.get(o)) else {
        return if part.is_empty() && offset >= 0 {
            Ok(Value::Int(offset))
        } else {
            fail(format!("index out of range: {offset}"))
        };
    };
    let found = said[*from..].find(part).and_then(|at| starts.binary_search(&(from + at)).ok());
    Ok(Value::Int(found.map_or(-1, |at| at as i64)))
}

fn last_index_of<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let (said, part) = (text(args, 0)?, text(args, 1)?);
    let starts: Vec<usize> = said.char_indices().map(|(at, _)| at).chain([said.len()]).collect();
    let end = if args.len() > 2 {
        let offset = int(args, 2)?;
        let Some(from) = usize::try_from(offset).ok().and_then(|o| starts.get(o)) else {
            return fail(format!("index out of range: {offset}"));
        };
        (from + part.len()).min(said.len())
    } else {
        said.len()
    };
    if !said.is_char_boundary(end) {
        return Ok(Value::Int(-1));
    }
    let found = said[..end].rfind(part).and_then(|at| starts.binary_search(&at).ok());
    Ok(Value::Int(found.map_or(-1, |at| at as i64)))
}

fn substring<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let (said, from) = (text(args, 0)?, int(args, 1)?);
    let count = said.chars().count() as i64;
    let to = if args.len() > 2 { int(args, 2)? } else { count };
    for at in [from, to] {
        if at < 0 || at > count {
            return fail(format!("index out of range: {at}"));
        }
    }
    if from > to {
        return fail(format!("invalid substring range. start: {from}, end: {to}"));
    }
    made(said.chars().skip(from as usize).take((to - from) as usize).collect())
}

fn replace<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let (said, part, with) = (text(args, 0)?, text(args, 1)?, text(args, 2)?);
    let limit = if args.len() > 3 { int(args, 3)? } else { -1 };
    let count = usize::try_from(limit).unwrap_or(usize::MAX);
    // Known before it is made: what replacing would come to.
    let times = if part.is_empty() { said.chars().count() + 1 } else { said.matches(part).count() }.min(count);
    if said.len().saturating_add(times.saturating_mul(with.len())) > MAX_TEXT {
        return fail(format!("a text of more than {MAX_TEXT} bytes"));
    }
    made(said.replacen(part, with, count))
}

fn split<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let (said, by) = (text(args, 0)?, text(args, 1)?);
    let limit = if args.len() > 2 { int(args, 2)? } else { -1 };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let parts: Vec<String> = if limit == 0 {
        Vec::new()
    } else if by.is_empty() {
        let mut parts: Vec<String> = said.chars().take(limit - 1).map(String::from).collect();
        let rest: String = said.chars().skip(limit - 1).collect();
        if !rest.is_empty() {
            parts.push(rest);
        }
        parts
    } else {
        said.splitn(limit, by).map(String::from).collect()
    };
    if parts.len() > crate::value::MAX_ITEMS {
        return fail(format!("a list of more than {} items", crate::value::MAX_ITEMS));
    }
    Ok(Value::list(parts.into_iter().map(Value::text).collect()))
}

fn join<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let separator = if args.len() > 1 { text(args, 1)? } else { "" };
    let mut out = String::new();
    for (at, item) in list(args, 0)?.items()?.iter().enumerate() {
        if at > 0 {
            out.push_str(separator);
        }
        out.push_str(text(std::slice::from_ref(item), 0)?);
        if out.len() > MAX_TEXT {
            return fail(format!("a text of more than {MAX_TEXT} bytes"));
        }
    }
    made(out)
}

fn quote<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let mut out = String::from("\"");
    for c in text(args, 0)?.chars() {
        match c {
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            c => out.push(c),
        }
    }
    out.push('"');
    made(out)
}

/// A value as `%s` shows it.
fn shown(value: &Value<'_>, out: &mut String) -> Result<(), Error> {
    match value {
        Value::Null => out.push_str("null"),
        Value::List(list) => {
            out.push('[');
            for (at, item) in list.items()?.iter().enumerate() {
                if at > 0 {
                    out.push_str(", ");
                }
                shown(item, out)?;
            }
            out.push(']');
        }
        Value::Map(map) => {
            out.push('{');
            for (at, pair) in map.entries().into_iter().enumerate() {
                let (key, value) = pair?;
                if at > 0 {
                    out.push_str(", ");
                }
                shown(&key, out)?;
                out.push_str(": ");
                shown(&value, out)?;
            }
            out.push('}');
        }
        Value::Type(name) => out.push_str(name),
        Value::Double(d) if d.is_infinite() => out.push_str(if *d > 0.0 { "Infinity" } else { "-Infinity" }),
        Value::Double(d) => out.push_str(&double_text(*d)),
        other => match super::operators::to_string(std::slice::from_ref(other)) {
            Ok(Value::String(text)) => out.push_str(&text),
            _ => {
                return fail(format!(
                    "error during formatting: string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, durations, and timestamps, was given {}",
                    other.type_name()
                ));
            }
        },
    }
    if out.len() > MAX_TEXT { fail(format!("a text of more than {MAX_TEXT} bytes")) } else { Ok(()) }
}

fn clause(letter: char, precision: Option<usize>, value: &Value<'_>, out: &mut String) -> Result<(), Error> {
    let wrong = |kind: &str, takes: &str| {
        fail(format!(
            "error during formatting: {kind} clause can only be used on {takes}, was given {}",
            value.type_name()
        ))
    };
    let float = |value: &Value<'_>| match value {
        Value::Double(d) => Some(*d),
        Value::Int(i) => Some(*i as f64),
        Value::Uint(u) => Some(*u as f64),
        Value::String(text) => match &**text {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    };
    let special = |d: f64| {
        if d.is_nan() {
            Some("NaN")
        } else if d.is_infinite() {
            Some(if d > 0.0 { "∞" } else { "-∞" })
        } else {
            None
        }
    };
    let whole = |value: &Value<'_>| match value {
        Value::Int(i) => Some(i128::from(*i)),
        Value::Uint(u) => Some(i128::from(*u)),
        Value::Bool(b) => Some(i128::from(*b)),
        _ => None,
    };
    let radix = |n: i128, digits: String| if n < 0 { format!("-{digits}") } else { digits };
    match letter {
        's' => shown(value, out)?,
        'd' => match value {
            Value::Int(_) | Value::Uint(_) => shown(value, out)?,
            Value::Double(d) if d.is_nan() || d.is_infinite() => shown(value, out)?,
            _ => return wrong("decimal", "integers"),
        },
        'f' => match float(value) {
            Some(d) => match special(d) {
                Some(text) => out.push_str(text),
                None => out.push_str(&format!("{d:.*}", precision.unwrap_or(6))),
            },
            None => return wrong("fixed-point", "doubles"),
        },
        'e' => match float(value) {
            Some(d) => match special(d) {
                Some(text) => out.push_str(text),
                None => {
                    let text = format!("{d:.*e}", precision.unwrap_or(6));
                    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
                    let exponent: i32 = exponent.parse().unwrap_or(0);
                    let sign = if exponent < 0 { '-' } else { '+' };
                    out.push_str(&format!("{digits}e{sign}{:02}", exponent.abs()));
                }
            },
            None => return wrong("scientific", "doubles"),
        },
        'b' => match whole(value) {
            Some(n) => out.push_str(&radix(n, format!("{:b}", n.unsigned_abs()))),
            None => return wrong("binary", "integers and bools"),
        },
        'o' => match whole(value) {
            Some(n) if !matches!(value, Value::Bool(_)) => {
                out.push_str(&radix(n, format!("{:o}", n.unsigned_abs())));
            }
            _ => return wrong("octal", "integers"),
        },
        'x' | 'X' => {
            let hex = match value {
                Value::Int(_) | Value::Uint(_) => {
                    let n = whole(value).unwrap_or(0);
                    radix(n, format!("{:x}", n.unsigned_abs()))
                }
                Value::String(text) => text.bytes().map(|b| format!("{b:02x}")).collect(),
                Value::Bytes(bytes) => bytes.iter().map(|b| format!("{b:02x}")).collect(),
                _ => return wrong("hex", "integers, byte buffers, and strings"),
            };
            out.push_str(&if letter == 'X' { hex.to_uppercase() } else { hex });
        }
        other => {
            return fail(format!("could not parse formatting clause: unrecognized formatting clause \"{other}\""));
        }
    }
    Ok(())
}

fn format<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let (said, values) = (text(args, 0)?, list(args, 1)?.items()?);
    let (mut out, mut next) = (String::new(), 0);
    let mut chars = said.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        if chars.peek() == Some(&'%') {
            chars.next();
            out.push('%');
            continue;
        }
        let mut precision = None;
        if chars.peek() == Some(&'.') {
            chars.next();
            let mut digits = String::new();
            while let Some(d) = chars.peek().filter(|d| d.is_ascii_digit()) {
                digits.push(*d);
                chars.next();
            }
            match digits.parse() {
                Ok(n) if n <= MAX_PRECISION => precision = Some(n),
                _ => return fail("could not parse formatting clause: error while converting precision to integer"),
            }
        }
        let Some(letter) = chars.next() else { return fail("unexpected end of string") };
        let Some(value) = values.get(next) else { return fail(format!("index {next} out of range")) };
        next += 1;
        clause(letter, precision, value, &mut out)?;
    }
    made(out)
}

fn is_space(c: char) -> bool {
    c.is_whitespace()
}

pub const ROWS: &[Row] = &[
    Row("contains", "contains_string", "string.(string) bool", |a| bool(text(a, 0)?.contains(text(a, 1)?))),
    Row("startsWith", "starts_with_string", "string.(string) bool", |a| bool(text(a, 0)?.starts_with(text(a, 1)?))),
    Row("endsWith", "ends_with_string", "string.(string) bool", |a| bool(text(a, 0)?.ends_with(text(a, 1)?))),
    Row("charAt", "string_char_at_int", "string.(int) string", char_at),
    Row("indexOf", "string_index_of_string", "string.(string) int", index_of),
    Row("indexOf", "string_index_of_string_int", "string.(string, int) int", index_of),
    Row("lastIndexOf", "string_last_index_of_string", "string.(string) int", last_index_of),
    Row("lastIndexOf", "string_last_index_of_string_int", "string.(string, int) int", last_index_of),
    Row("lowerAscii", "string_lower_ascii", "string.() string", |a| made(text(a, 0)?.to_ascii_lowercase())),
    Row("upperAscii", "string_upper_ascii", "string.() string", |a| made(text(a, 0)?.to_ascii_uppercase())),
    Row("trim", "string_trim", "string.() string", |a| made(text(a, 0)?.trim_matches(is_space).to_string())),
    Row("replace", "string_replace_string_string", "string.(string, string) string", replace),
    Row("replace", "string_replace_string_string_int", "string.(string, string, int) string", replace),
    Row("split", "string_split_string", "string.(string) list(string)", split),
    Row("split", "string_split_string_int", "string.(string, int) list(string)", split),
    Row("substring", "string_substring_int", "string.(int) string", substring),
    Row("substring", "string_substring_int_int", "string.(int, int) string", substring),
    Row("join", "list_join", "list(string).() string", join),
    Row("join", "list_join_string", "list(string).(string) string", join),
    Row("format", "string_format", "string.(list(dyn)) string", format),
    Row("strings.quote", "strings_quote", "(string) string", quote),
];

pub const PATCHES: &[Row] =
    &[Row("jsonpatch.escapeKey", "string_jsonpatch_escapeKey_string", "(string) string", |a| match a {
        [Value::String(key)] => made(key.replace('~', "~0").replace('/', "~1")),
        _ => no_overload(),
    })];
