//! Whether an answer is what a scenario expects: a partial match, with few words of its own.
//!
//! An object expects the fields it names and no others; an array expects its elements, each partially, and no more.
//! A string expects itself, or, when it begins so: `~text` a string that contains the text; `$any` any value but null;
//! `$none` no value at all. An object `{$has: [..]}` expects an array (or object) with such elements among others,
//! `{$lacks: [..]}` one without, and `{$len: n}` one of that length.

use serde_json::Value;

/// What differs, each with its path.
pub fn differences(expected: &Value, actual: &Value) -> Vec<String> {
    let mut out = Vec::new();
    compare("", expected, actual, &mut out);
    out
}

fn is_none(expected: &Value) -> bool {
    expected == "$none"
}

fn compare(path: &str, expected: &Value, actual: &Value, out: &mut Vec<String>) {
    match (expected, actual) {
        (Value::String(e), a) if e == "$any" => {
            if a.is_null() {
                out.push(format!("{path}: nothing, expected a value"));
            }
        }
        (Value::String(e), a) if e == "$none" => {
            if !a.is_null() {
                out.push(format!("{path}: {a}, expected nothing"));
            }
        }
        (Value::String(e), Value::String(a)) if e.starts_with('~') => {
            if !a.contains(&e[1..]) {
                out.push(format!("{path}: {a:?} does not contain {:?}", &e[1..]));
            }
        }
        (Value::Object(e), a) if e.keys().any(|k| k.starts_with('$')) => {
            for (word, operand) in e {
                special(path, word, operand, a, out);
            }
        }
        (Value::Object(e), Value::Object(a)) => {
            for (key, expected) in e {
                compare(&format!("{path}.{key}"), expected, a.get(key).unwrap_or(&Value::Null), out);
            }
        }
        // An object of absences matches what is not there.
        (Value::Object(e), Value::Null) if e.values().all(is_none) => {}
        (Value::Array(e), Value::Array(a)) => {
            if e.len() != a.len() {
                out.push(format!("{path}: {} elements, expected {}: {actual}", a.len(), e.len()));
                return;
            }
            for (i, (e, a)) in e.iter().zip(a).enumerate() {
                compare(&format!("{path}[{i}]"), e, a, out);
            }
        }
        (e, a) if e == a => {}
        (e, a) => out.push(format!("{path}: {a}, expected {e}")),
    }
}

fn special(path: &str, word: &str, operand: &Value, actual: &Value, out: &mut Vec<String>) {
    let elements: Vec<&Value> = match actual {
        Value::Array(elements) => elements.iter().collect(),
        Value::Object(fields) => fields.values().collect(),
        _ => Vec::new(),
    };
    let found = |wanted: &Value| elements.iter().any(|e| differences(wanted, e).is_empty());
    let wanted = || operand.as_array().into_iter().flatten();
    match word {
        "$has" => out.extend(wanted().filter(|w| !found(w)).map(|w| format!("{path}: has no {w}"))),
        "$lacks" => out.extend(wanted().filter(|w| found(w)).map(|w| format!("{path}: has {w}"))),
        "$len" if operand.as_u64() == Some(elements.len() as u64) => {}
        "$len" => out.push(format!("{path}: {} elements, expected {operand}", elements.len())),
        other => out.push(format!("{path}: the scenario's {other} is no word of this language")),
    }
}

#[test]
fn matching() {
    use serde_json::json;
    let check = |expected: Value, actual: Value, differ: usize| {
        assert_eq!(differences(&expected, &actual).len(), differ, "{expected} {actual}")
    };
    check(json!({"a": 1}), json!({"a": 1, "b": 2}), 0);
    check(json!({"a": 2, "b": "~x"}), json!({"a": 1, "b": "y"}), 2);
    check(json!([1]), json!([1, 2]), 1);
    check(json!({"a": "$any", "b": "$none"}), json!({"a": 0}), 0);
    check(json!({"a": "$any", "b": "$none"}), json!({"b": 0}), 2);
    check(json!({"$has": [{"n": 1}], "$len": 2, "$lacks": [{"n": 3}]}), json!([{"n": 1}, {"n": 2}]), 0);
    check(json!({"$has": [{"n": 3}]}), json!([{"n": 1}, {"n": 2}]), 1);
    check(json!({"a": {"b": "$none"}}), json!({}), 0);
}
