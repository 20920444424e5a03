//! `managedFields` left out of a body: they are the API server's bookkeeping, deep trees of names that cost a typed view
//! more time and memory than all the rest.

use std::borrow::Cow;

/// In JSON without spaces a quote that is not escaped bounds a string, so this is found as a key or not at all.
const KEY: &[u8] = b"\"managedFields\":[";

/// Where a list ends whose `[` stands at the beginning.
fn end_of_list(json: &[u8]) -> Option<usize> {
    let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
    for (at, byte) in json.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'[' => depth += 1,
            b']' if depth == 1 => return Some(at + 1),
            b']' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// The same body without its `managedFields`; as it is when it has none, or is written with spaces.
pub fn without_managed_fields(json: &[u8]) -> Cow<'_, [u8]> {
    let Some(from) = json.windows(KEY.len()).position(|window| window == KEY) else { return json.into() };
    let list = from + KEY.len() - 1;
    let Some(length) = end_of_list(&json[list..]) else { return json.into() };
    let (mut from, mut to) = (from, list + length);
    // One of the commas beside it goes too.
    if json.get(to) == Some(&b',') {
        to += 1;
    } else if from > 0 && json[from - 1] == b',' {
        from -= 1;
    }
    [&json[..from], &json[to..]].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bookkeeping_is_left_out() {
        let fields = r#""managedFields":[{"fieldsV1":{"f:a":{}},"time":"]\"["},{"x":[[]]}]"#;
        for (body, expect) in [
            (r#"{"metadata":{"name":"a"}}"#.to_string(), r#"{"metadata":{"name":"a"}}"#),
            (format!(r#"{{"metadata":{{{fields}}},"spec":1}}"#), r#"{"metadata":{},"spec":1}"#),
            (format!(r#"{{"metadata":{{{fields},"name":"a"}}}}"#), r#"{"metadata":{"name":"a"}}"#),
            (format!(r#"{{"metadata":{{"name":"a",{fields}}}}}"#), r#"{"metadata":{"name":"a"}}"#),
            (
                r#"{"metadata":{"annotations":{"last":"{\"managedFields\":[]}"}}}"#.to_string(),
                r#"{"metadata":{"annotations":{"last":"{\"managedFields\":[]}"}}}"#,
            ),
        ] {
            assert_eq!(String::from_utf8_lossy(&without_managed_fields(body.as_bytes())), expect);
        }
    }
}
