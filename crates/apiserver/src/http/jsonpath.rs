//! The JSONPath of a CRD's printer columns: fields, indexes, `*`, and equality filters.
//!
//! The subset `additionalPrinterColumns` is documented with: `.spec.replicas`, `.metadata.annotations['a\.b']`,
//! `.spec.list[0].name`, `.status.conditions[?(@.type=="Ready")].status`. Several results print as the first, as
//! upstream's table converter prints them.

use meta::Value;

/// The first value at a path.
pub fn find<'a>(root: &'a Value, path: &str) -> Option<&'a Value> {
    let mut found = vec![root];
    let mut rest = path.trim().trim_start_matches('{').trim_end_matches('}');
    while !rest.is_empty() {
        if let Some(inside) = rest.strip_prefix('[') {
            let end = closing(inside)?;
            let step = inside[..end].trim();
            rest = &inside[end + 1..];
            found = found.into_iter().flat_map(|at| bracket(at, step)).collect();
        } else {
            rest = rest.strip_prefix('.').unwrap_or(rest);
            let mut name = String::new();
            let mut chars = rest.char_indices();
            let mut end = rest.len();
            while let Some((at, c)) = chars.next() {
                match c {
                    '\\' => name.extend(chars.next().map(|(_, c)| c)),
                    '.' | '[' => {
                        end = at;
                        break;
                    }
                    c => name.push(c),
                }
            }
            rest = &rest[end..];
            if name.is_empty() {
                continue;
            }
            found = found
                .into_iter()
                .flat_map(|at| if name == "*" { bracket(at, "*") } else { at.get(&name).into_iter().collect() })
                .collect();
        }
    }
    found.into_iter().next()
}

/// The place of the bracket that closes, quotes and nested brackets aside.
fn closing(text: &str) -> Option<usize> {
    let (mut quote, mut depth) = (None, 0);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(q), c) if q == c => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '[') => depth += 1,
            (None, ']') if depth == 0 => return Some(at),
            (None, ']') => depth -= 1,
            _ => {}
        }
    }
    None
}

fn bracket<'a>(at: &'a Value, step: &str) -> Vec<&'a Value> {
    let items = || -> Vec<&'a Value> {
        match at {
            Value::Array(list) => list.iter().collect(),
            Value::Object(map) => map.values().collect(),
            _ => Vec::new(),
        }
    };
    if step == "*" {
        return items();
    }
    if let Some(condition) = step.strip_prefix("?(").and_then(|s| s.strip_suffix(')')) {
        return items().into_iter().filter(|item| holds(item, condition)).collect();
    }
    if let Some(name) = step.strip_prefix(['\'', '"']) {
        return at.get(name.trim_end_matches(['\'', '"'])).into_iter().collect();
    }
    let Ok(index) = step.parse::<i64>() else { return Vec::new() };
    let Some(list) = at.as_array() else { return Vec::new() };
    let index = if index < 0 { list.len() as i64 + index } else { index };
    usize::try_from(index).ok().and_then(|i| list.get(i)).into_iter().collect()
}

fn holds(item: &Value, condition: &str) -> bool {
    let (path, wanted, equal) = match (condition.split_once("=="), condition.split_once("!=")) {
        (Some((path, wanted)), _) => (path, wanted, true),
        (None, Some((path, wanted))) => (path, wanted, false),
        _ => return find(item, condition.trim().trim_start_matches('@')).is_some(),
    };
    let wanted = wanted.trim().trim_matches(['\'', '"']);
    let found = find(item, path.trim().trim_start_matches('@'));
    let same = match found {
        Some(Value::String(text)) => text == wanted,
        Some(other) => format!("{other}") == wanted,
        None => false,
    };
    same == equal
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn paths() {
        let object = json!({"a": {"b.c": 1, "l": [{"t": "x", "v": 1}, {"t": "y", "v": 2}]}, "n": true});
        for (path, expect) in [
            (".a['b.c']", json!(1)),
            (".a.b\\.c", json!(1)),
            (".a.l[1].v", json!(2)),
            (".a.l[-1].v", json!(2)),
            (".a.l[?(@.t==\"y\")].v", json!(2)),
            (".a.l[*].v", json!(1)),
            ("{.n}", json!(true)),
        ] {
            assert_eq!(super::find(&object, path), Some(&expect), "{path}");
        }
        assert_eq!(super::find(&object, ".a.missing[3]"), None);
    }
}
