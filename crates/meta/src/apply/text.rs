//! JSON written at the end of a text.

use serde_json::Value;

/// Adds a string.
pub fn quote(text: &str, out: &mut String) {
    out.push('"');
    inside_quotes(text, out);
    out.push('"');
}

/// Adds what stands between the quotes of a string.
pub fn inside_quotes(text: &str, out: &mut String) {
    let mut rest = text;
    while let Some(at) = rest.bytes().position(|b| b < b' ' || b == b'"' || b == b'\\') {
        // These are all one byte long.
        let (plain, special) = (&rest[..at], &rest[at..=at]);
        out.push_str(plain);
        match special {
            "\"" => out.push_str("\\\""),
            "\\" => out.push_str("\\\\"),
            control => out.push_str(Value::from(control).to_string().trim_matches('"')),
        }
        rest = &rest[at + 1..];
    }
    out.push_str(rest);
}

/// Adds any value.
pub fn value(value: &Value, out: &mut String) {
    use std::fmt::Write as _;
    match value {
        Value::String(text) => quote(text, out),
        // Writing to a string cannot fail.
        other => _ = write!(out, "{other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_written_as_serde_json_writes_them() {
        for text in ["", "a/b", "k:{\"name\":\"a\\\\b\"}", "\n\t\r\u{1}\u{7f}", "é\"ü", "\\", "<&>"] {
            let mut out = String::new();
            quote(text, &mut out);
            assert_eq!(out, Value::from(text).to_string());
        }
    }
}
