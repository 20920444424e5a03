//! Patterns: Go's regular expressions, run by Rust's.
//!
//! The two agree but for details, which are rewritten: `\d`, `\w`, `\s` and `\b` are ASCII in Go, a brace that is no
//! repetition is itself, and classes know neither nesting nor set operators.

use std::collections::HashMap;
use std::iter::Peekable;
use std::str::Chars;
use std::sync::Arc;

use regex::{Regex, RegexBuilder};
use serde_json::Value;

use crate::{FieldError, FieldPath};

/// Memory one compiled pattern may take: some hundred times what honest patterns need.
const MAX_COMPILED_BYTES: usize = 1 << 20;

/// Compiles every pattern of a schema.
pub(super) fn compile(schema: &Value, path: &FieldPath) -> Result<HashMap<Arc<str>, Regex>, FieldError> {
    let mut patterns = HashMap::new();
    collect(schema, path, &mut patterns)?;
    Ok(patterns)
}

fn collect(schema: &Value, path: &FieldPath, patterns: &mut HashMap<Arc<str>, Regex>) -> Result<(), FieldError> {
    let Value::Object(map) = schema else { return Ok(()) };
    if let Some(pattern) = map.get("pattern").and_then(Value::as_str)
        && !patterns.contains_key(pattern)
    {
        let regex = go_regex(pattern).map_err(|e| {
            FieldError::invalid(
                &path.child("pattern"),
                pattern,
                format!("must be a valid regular expression, but isn't: {e}"),
            )
        })?;
        patterns.insert(pattern.into(), regex);
    }
    if let Some(Value::Object(properties)) = map.get("properties") {
        for (name, inner) in properties {
            collect(inner, &path.child("properties").key(name), patterns)?;
        }
    }
    for key in ["items", "additionalProperties", "not"] {
        if let Some(inner) = map.get(key) {
            collect(inner, &path.child(key), patterns)?;
        }
    }
    for key in super::JUNCTORS {
        for (at, inner) in map.get(*key).and_then(Value::as_array).into_iter().flatten().enumerate() {
            collect(inner, &path.child(key).index(at), patterns)?;
        }
    }
    Ok(())
}

pub(super) fn go_regex(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(&translate(pattern)).size_limit(MAX_COMPILED_BYTES).build().map_err(|e| e.to_string())
}

fn translate(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len() + 8);
    let mut chars = pattern.chars().peekable();
    // Whether there is something before that a brace could repeat.
    let mut atom = false;
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                escape(&mut chars, &mut out, false);
                atom = true;
            }
            '[' => {
                class(&mut chars, &mut out);
                atom = true;
            }
            '{' if !(atom && is_repetition(chars.clone())) => {
                out.push_str("\\{");
                atom = true;
            }
            c => {
                out.push(c);
                atom = !matches!(c, '(' | '|' | '^' | '*' | '+' | '?');
            }
        }
    }
    out
}

/// Whether `3}`, `3,}` or `3,5}` follows.
fn is_repetition(chars: Peekable<Chars<'_>>) -> bool {
    let body: String = chars.take_while(|c| *c != '}').take(12).collect();
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    match body.split_once(',') {
        None => digits(&body),
        Some((low, high)) => digits(low) && (high.is_empty() || digits(high)),
    }
}

/// What follows a backslash.
fn escape(chars: &mut Peekable<Chars<'_>>, out: &mut String, in_class: bool) {
    let Some(c) = chars.next() else { return out.push('\\') };
    let set = match c {
        'd' | 'D' => "0-9",
        'w' | 'W' => "0-9A-Za-z_",
        's' | 'S' => r"\t\n\f\r ",
        'b' | 'B' if !in_class => {
            out.push_str(if c == 'b' { r"(?-u:\b)" } else { r"(?-u:\B)" });
            return;
        }
        'p' | 'P' | 'x' => {
            out.push('\\');
            out.push(c);
            if chars.peek() == Some(&'{') {
                for c in chars.by_ref() {
                    out.push(c);
                    if c == '}' {
                        break;
                    }
                }
            }
            return;
        }
        c => {
            out.push('\\');
            out.push(c);
            return;
        }
    };
    match (in_class, c.is_ascii_uppercase()) {
        (true, false) => out.push_str(set),
        (_, true) => {
            out.push_str("[^");
            out.push_str(set);
            out.push(']');
        }
        (false, false) => {
            out.push('[');
            out.push_str(set);
            out.push(']');
        }
    }
}

/// A class, up to its closing bracket.
fn class(chars: &mut Peekable<Chars<'_>>, out: &mut String) {
    out.push('[');
    if chars.peek() == Some(&'^') {
        chars.next();
        out.push('^');
    }
    let mut first = true;
    while let Some(c) = chars.next() {
        match c {
            ']' if first => out.push_str("\\]"),
            ']' => return out.push(']'),
            '\\' => escape(chars, out, true),
            '[' if chars.peek() == Some(&':') => {
                out.push('[');
                for c in chars.by_ref() {
                    out.push(c);
                    if c == ']' {
                        break;
                    }
                }
            }
            '[' => out.push_str("\\["),
            // Operators in Rust when doubled.
            '&' | '~' => {
                out.push('\\');
                out.push(c);
            }
            '-' if chars.peek() == Some(&'-') => out.push_str("\\-"),
            c => out.push(c),
        }
        first = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_patterns_mean_the_same() {
        for (pattern, yes, no) in [
            (r"^(\d+|\*)(/\d+)?(\s+(\d+|\*)(/\d+)?){4}$", "* * * * */5", "0 5"),
            (r"^\d$", "3", "٣"),
            (r"^{x}$", "{x}", "x"),
            (r"^a{2}$", "aa", "a"),
            (r"^[^[]$", "a", "["),
            (r"^[]a]+$", "]a", "b"),
            (r"^[a&&b]+$", "a&b", "c"),
            (r"^[\w.-]+$", "a_b.c-d", "a b"),
            (r"^[[:alpha:]]+$", "abc", "1"),
            (r"^\$\{[a-z]+\}$", "${abc}", "abc"),
            (r"^\p{L}+$", "é", "1"),
        ] {
            let regex = go_regex(pattern).unwrap_or_else(|e| panic!("{pattern}: {e}"));
            assert!(regex.is_match(yes), "{pattern} {yes}");
            assert!(!regex.is_match(no), "{pattern} {no}");
        }
        assert!(go_regex("(").is_err());
        assert!(go_regex("((a{1000}){1000}){1000}").is_err());
    }
}
