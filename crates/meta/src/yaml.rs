//! YAML → tree, by the rules Go's `sigs.k8s.io/yaml` reads it with (YAML 1.1 words for booleans, octal, `<<` merges).
//!
//! The first document of a stream counts. Scalars that are no JSON (infinities, custom tags) are errors or text as they are
//! in Go. Depth and the work that aliases can cause are bounded.

use std::borrow::Cow;
use std::collections::HashMap;

use granit_parser::{Event, Options, Parser, ScalarStyle};
use serde_json::{Map, Number, Value};

use crate::decode::{Issue, Issues};

/// Levels of nesting; as many as JSON bodies may have.
const MAX_DEPTH: usize = 128;

/// Nodes that all aliases of a document may stand for together: far above honest use, far below what fills memory.
const MAX_ALIASED_NODES: usize = 100_000;

/// Reads the first document. The error is worded as go-yaml words it.
pub fn read(bytes: &[u8]) -> Result<(Value, Issues), String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "yaml: invalid leading UTF-8 octet".to_string())?;
    let mut options = Options::default();
    options.set_emit_comments(false);
    let events = Parser::new_from_str_with_options(text, options);
    let mut composer = Composer { events, anchors: HashMap::new(), issues: Issues::default(), aliased: 0 };
    let value = loop {
        match composer.next()? {
            None | Some((Event::StreamEnd, _)) => break Value::Null,
            Some((Event::StreamStart | Event::DocumentStart(..), _)) => {}
            Some((event, line)) => break composer.node(event, line, 0)?,
        }
    };
    Ok((value, composer.issues))
}

struct Composer<E> {
    events: E,
    anchors: HashMap<usize, Value>,
    issues: Issues,
    aliased: usize,
}

impl<'t, E> Composer<E>
where
    E: Iterator<Item = Result<(Event<'t>, granit_parser::Span), granit_parser::ScanError>>,
{
    /// The next event and its line.
    fn next(&mut self) -> Result<Option<(Event<'t>, usize)>, String> {
        match self.events.next() {
            None => Ok(None),
            Some(Ok((event, span))) => Ok(Some((event, span.start.line()))),
            Some(Err(error)) => Err(format!("yaml: line {}: {}", error.marker().line(), error.info())),
        }
    }

    fn some(&mut self) -> Result<(Event<'t>, usize), String> {
        self.next()?.ok_or_else(|| "yaml: unexpected end of stream".to_string())
    }

    fn node(&mut self, event: Event<'t>, line: usize, depth: usize) -> Result<Value, String> {
        if depth > MAX_DEPTH {
            return Err(format!("yaml: line {line}: exceeded max depth of {MAX_DEPTH}"));
        }
        let (anchor, value) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let tag =
                    tag.as_ref().map(|t| t.core_suffix().map_or(Cow::Borrowed("!"), |s| Cow::Owned(s.to_string())));
                (anchor, scalar(&text, style, tag.as_deref()).map_err(|e| format!("yaml: line {line}: {e}"))?)
            }
            Event::SequenceStart(_, anchor, _) => {
                let mut items = Vec::new();
                loop {
                    match self.some()? {
                        (Event::SequenceEnd, _) => break,
                        (event, line) => items.push(self.node(event, line, depth + 1)?),
                    }
                }
                (anchor, Value::Array(items))
            }
            Event::MappingStart(_, anchor, _) => (anchor, Value::Object(self.mapping(depth)?)),
            Event::Alias(id) => {
                let value =
                    self.anchors.get(&id).cloned().ok_or_else(|| format!("yaml: line {line}: unknown anchor"))?;
                self.aliased += count(&value);
                if self.aliased > MAX_ALIASED_NODES {
                    return Err("yaml: document contains excessive aliasing".into());
                }
                return Ok(value);
            }
            Event::DocumentEnd => (0, Value::Null),
            other => return Err(format!("yaml: line {line}: unexpected {other:?}")),
        };
        if anchor != 0 {
            self.anchors.insert(anchor, value.clone());
        }
        Ok(value)
    }

    fn mapping(&mut self, depth: usize) -> Result<Map<String, Value>, String> {
        let mut map = Map::new();
        let mut merges = Vec::new();
        loop {
            let (event, line) = match self.some()? {
                (Event::MappingEnd, _) => break,
                event => event,
            };
            let merge = matches!(&event, Event::Scalar(text, ScalarStyle::Plain, ..) if *text == "<<");
            let key = self.node(event, line, depth + 1)?;
            let (event, line) = self.some()?;
            let value = self.node(event, line, depth + 1)?;
            if merge {
                merges.push((value, line));
                continue;
            }
            let key = key_text(key).map_err(|e| format!("yaml: line {line}: {e}"))?;
            if map.contains_key(&key) {
                self.issues.push(Issue::DuplicateLine(line, key.clone()));
            }
            map.insert(key, value);
        }
        // What is said in the mapping itself wins over what is merged in, earlier merges over later ones.
        for (value, line) in merges {
            let sources = match value {
                Value::Array(items) => items,
                one => vec![one],
            };
            for source in sources {
                let Value::Object(source) = source else {
                    return Err(format!("yaml: line {line}: map merge requires map or sequence of maps as the value"));
                };
                for (key, value) in source {
                    map.entry(key).or_insert(value);
                }
            }
        }
        Ok(map)
    }
}

fn count(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(count).sum::<usize>(),
        Value::Object(map) => 1 + map.values().map(count).sum::<usize>(),
        _ => 1,
    }
}

fn key_text(key: Value) -> Result<String, String> {
    match key {
        Value::String(text) => Ok(text),
        Value::Bool(b) => Ok(b.to_string()),
        Value::Number(n) => Ok(n.to_string()),
        other => Err(format!("unsupported map key {other}")),
    }
}

/// A scalar's value. `tag` is a core tag's name (`str`, `int`, …) or `!` for any other.
fn scalar(text: &str, style: ScalarStyle, tag: Option<&str>) -> Result<Value, String> {
    match tag {
        Some("str" | "binary" | "!") => Ok(text.into()),
        None if style != ScalarStyle::Plain => Ok(text.into()),
        _ => plain(text),
    }
}

/// A plain scalar: null, boolean and number by YAML 1.1 as go-yaml has it, text otherwise.
fn plain(text: &str) -> Result<Value, String> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Value::Null),
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => return Ok(true.into()),
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => return Ok(false.into()),
        ".nan" | ".NaN" | ".NAN" => return Err("json: unsupported value: NaN".into()),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return Err("json: unsupported value: +Inf".into()),
        "-.inf" | "-.Inf" | "-.INF" => return Err("json: unsupported value: -Inf".into()),
        _ => {}
    }
    if text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        let digits: Cow<'_, str> = if text.contains('_') { text.replace('_', "").into() } else { text.into() };
        if let Some(number) = integer(&digits) {
            return Ok(Value::Number(number));
        }
        if is_float(&digits)
            && let Ok(float) = digits.parse::<f64>()
        {
            return float_value(float);
        }
    }
    Ok(text.into())
}

/// A float as Go's JSON writes it: whole ones without a fraction, so they read back as integers.
fn float_value(float: f64) -> Result<Value, String> {
    if float.fract() == 0.0 && float.abs() < 9.0e18 {
        return Ok((float as i64).into());
    }
    Number::from_f64(float).map(Value::Number).ok_or_else(|| "json: unsupported value: +Inf".to_string())
}

/// Go's `ParseInt(text, 0, 64)`: decimal, `0x`, `0b`, `0o` and the old `0` for octal.
fn integer(text: &str) -> Option<Number> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    if !digits.starts_with(|c: char| c.is_ascii_hexdigit()) {
        return None;
    }
    let magnitude = u64::from_str_radix(digits, radix).ok()?;
    if negative { 0i64.checked_sub_unsigned(magnitude).map(Number::from) } else { Some(magnitude.into()) }
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`
fn is_float(text: &str) -> bool {
    let text = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent.strip_prefix(['-', '+']).unwrap_or(exponent))),
        None => (text, None),
    };
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let mantissa = match mantissa.split_once('.') {
        Some(("", fraction)) => digits(fraction),
        Some((whole, fraction)) => digits(whole) && (fraction.is_empty() || digits(fraction)),
        None => digits(mantissa),
    };
    mantissa && exponent.is_none_or(digits)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(text: &str, expect: Value) {
        let (value, _) = read(text.as_bytes()).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(value, expect, "{text}");
    }

    #[test]
    fn scalars_are_what_go_makes_of_them() {
        for (text, expect) in [
            ("a: yes", json!({"a": true})),
            ("a: 'yes'", json!({"a": "yes"})),
            ("a: 0644", json!({"a": 420})),
            ("a: 0o644", json!({"a": 420})),
            ("a: 0x1F", json!({"a": 31})),
            ("a: 1_000", json!({"a": 1000})),
            ("a: -5", json!({"a": -5})),
            ("a: 1e3", json!({"a": 1000})),
            ("a: 1.50", json!({"a": 1.5})),
            ("a: 1.0", json!({"a": 1})),
            ("a: 089", json!({"a": 89})),
            ("a: 1.2.3", json!({"a": "1.2.3"})),
            ("a: 12Mi", json!({"a": "12Mi"})),
            ("a: 2024-01-01", json!({"a": "2024-01-01"})),
            ("a: ~\nb:", json!({"a": null, "b": null})),
            ("a: !!str 12", json!({"a": "12"})),
            ("1: a\ntrue: b", json!({"1": "a", "true": "b"})),
            ("a: |\n  x\n  y\n", json!({"a": "x\ny\n"})),
            ("", json!(null)),
            ("---\na: 1\n---\nb: 2\n", json!({"a": 1})),
            ("{\"a\": [1, \"x\"]}", json!({"a": [1, "x"]})),
        ] {
            check(text, expect);
        }
    }

    #[test]
    fn anchors_and_merges() {
        check(
            "base: &b {x: 1, z: 2}\nall:\n  <<: *b\n  z: 3\nsame: *b\n",
            json!({"base": {"x": 1, "z": 2}, "all": {"x": 1, "z": 3}, "same": {"x": 1, "z": 2}}),
        );
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x]\n");
        for i in 1..10 {
            let one = format!("*a{}", i - 1);
            bomb.push_str(&format!("a{i}: &a{i} [{}]\n", vec![one; 9].join(",")));
        }
        assert_eq!(read(bomb.as_bytes()), Err("yaml: document contains excessive aliasing".into()));
    }
}
