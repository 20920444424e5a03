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
    cut(json, from).map_or(json.into(), |(rest, _)| rest)
}

/// A body without its own `managedFields`, and these (empty for none). `metadata` is where the metadata's first field
/// begins: objects within the object have metadata too.
pub fn apart(json: &[u8], metadata: usize) -> (Cow<'_, [u8]>, &[u8]) {
    let none = (Cow::from(json), &json[..0]);
    let (mut depth, mut quoted, mut escaped) = (1usize, false, false);
    for (at, byte) in json.iter().enumerate().skip(metadata) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' if depth == 1 && !quoted && json[at..].starts_with(KEY) => return cut(json, at).unwrap_or(none),
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'[' | b'{' => depth += 1,
            b']' | b'}' if depth == 1 => return none,
            b']' | b'}' => depth -= 1,
            _ => {}
        }
    }
    none
}

/// What is left without the field that begins at `from`, and its list.
fn cut(json: &[u8], mut from: usize) -> Option<(Cow<'_, [u8]>, &[u8])> {
    let list = from + KEY.len() - 1;
    let length = end_of_list(&json[list..])?;
    let mut to = list + length;
    // One of the commas beside it goes too.
    if json.get(to) == Some(&b',') {
        to += 1;
    } else if from > 0 && json[from - 1] == b',' {
        from -= 1;
    }
    Some(([&json[..from], &json[to..]].concat().into(), &json[list..list + length]))
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

    #[test]
    fn only_the_objects_own_is_taken_apart() {
        let own = r#"[{"fieldsV1":{"f:a":{}}}]"#;
        let inner = r#""spec":{"metadata":{"managedFields":[1]}}"#;
        for (metadata, expect) in [
            (format!(r#""annotations":{{"a":"\"managedFields\":["}},"managedFields":{own},"name":"n""#), own),
            (format!(r#""labels":{{"managedFields":[2]}},"managedFields":{own}"#), own),
            (r#""labels":{"managedFields":[2]},"name":"}\"""#.to_string(), ""),
        ] {
            let body = format!(r#"{{"metadata":{{{metadata}}},{inner}}}"#);
            let (rest, list) = apart(body.as_bytes(), r#"{"metadata":{"#.len());
            assert_eq!(String::from_utf8_lossy(list), expect, "{body}");
            let rest: serde_json::Value = serde_json::from_slice(&rest).unwrap();
            assert_eq!(rest["metadata"].get("managedFields"), None);
            assert_eq!(rest["spec"]["metadata"]["managedFields"][0], 1);
        }
    }
}
