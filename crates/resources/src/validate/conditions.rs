//! Conditions of the one sort that newer kinds share (`metav1.Condition`).

use super::{At, Errors, formats};
use meta::Tree;

const MAX_REASON: usize = 1024;
const MAX_MESSAGE: usize = 32 * 1024;

fn reason(text: &str) -> Vec<String> {
    let first = |b: u8| b.is_ascii_alphabetic();
    let last = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let bytes = text.as_bytes();
    let fits = bytes.first().is_some_and(|b| first(*b))
        && bytes.last().is_some_and(|b| last(*b))
        && bytes.iter().all(|b| last(*b) || matches!(b, b',' | b':'));
    if fits {
        return Vec::new();
    }
    let what = "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_'";
    let examples = ["my_name", "MY_NAME", "MyName", "ReasonA,ReasonB", "ReasonA:ReasonB"];
    vec![meta::formats::pattern(what, "[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", &examples)]
}

fn at_most(at: &At<'_>, bytes: usize, errors: &mut Errors) {
    if at.str().len() > bytes {
        errors.too_long(at, bytes);
    }
}

/// A list of them: one of each type, and each complete.
pub fn conditions(list: &At<'_>, errors: &mut Errors) {
    errors.unique(list.items().map(|condition| condition.child("type")));
    for condition in list.items() {
        let child = |field| condition.child(field);
        errors.format(&child("type"), formats::qualified_name);
        errors.one_of(&child("status"), &["False", "True", "Unknown"]);
        if condition.value.int("observedGeneration") < 0 {
            errors.invalid(&child("observedGeneration"), "must be greater than or equal to zero");
        }
        errors.need(&child("lastTransitionTime"), "must be set");
        let said = child("reason");
        if errors.need(&said, "must be set") {
            errors.format(&said, reason);
            at_most(&said, MAX_REASON, errors);
        }
        at_most(&child("message"), MAX_MESSAGE, errors);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn conditions_are_complete() {
        let good =
            json!({"type": "Ready", "status": "True", "reason": "A_b", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let with = |field: &str, value: serde_json::Value| {
            let mut condition = good.clone();
            condition[field] = value;
            condition
        };
        for (list, expected) in [
            (json!([good]), vec![]),
            (json!([good, good]), vec!["c[1].type: Duplicate value: \"Ready\""]),
            (json!([with("type", json!(""))]), vec!["c[0].type: Invalid value: \"\": name part must be non-empty"]),
            (json!([with("status", json!("x"))]), vec!["c[0].status: Unsupported value: \"x\""]),
            (json!([with("reason", json!(""))]), vec!["c[0].reason: Required value: must be set"]),
            (
                json!([with("reason", json!("A b"))]),
                vec!["c[0].reason: Invalid value: \"A b\": a condition reason must"],
            ),
            (
                json!([with("lastTransitionTime", json!(null))]),
                vec!["c[0].lastTransitionTime: Required value: must be set"],
            ),
        ] {
            let mut errors = Errors::default();
            conditions(&At::new(&list, "c"), &mut errors);
            assert_eq!(errors.0.is_empty(), expected.is_empty(), "{list}: {:?}", errors.0);
            let said: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
            for part in expected {
                assert!(said.iter().any(|text| text.starts_with(part)), "{list}: {said:?}");
            }
        }
    }
}
