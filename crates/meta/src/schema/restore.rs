//! What upstream says of a tree that does not fit its Go type where it restores one without JSON between: after a strategic
//! merge patch.
//!
//! Follows the words of `apimachinery/pkg/runtime/converter.go`. Looks only; [`super::prune`] decides whether a tree fits.

use serde_json::Value;

use super::{Scalar, Shape, View};

/// The first misfit; none where a type reads itself, and says so in its own words.
pub fn misfit(view: View<'_>, value: &Value) -> Option<String> {
    match (view.shape(), value) {
        (_, Value::Null) => None,
        (Shape::Struct(_), Value::Object(map)) => map.iter().find_map(|(name, value)| {
            let field = view.field_facts(name)?;
            misfit(view.of(field), value)
        }),
        (Shape::Map { .. }, Value::Object(map)) => {
            let inner = view.child("")?;
            map.values().find_map(|value| misfit(inner, value))
        }
        (Shape::List { .. }, Value::Array(items)) => {
            let inner = view.item()?;
            items.iter().find_map(|item| misfit(inner, item))
        }
        (Shape::Struct(_), other) => Some(format!("cannot restore struct from: {}", kind(other))),
        (Shape::Map { .. }, other) => Some(format!("cannot restore map from {}", kind(other))),
        (Shape::List { .. }, other) => Some(format!("cannot restore slice from {}", kind(other))),
        (Shape::Scalar(scalar), value) => of_scalar(*scalar, value),
    }
}

fn of_scalar(scalar: Scalar, value: &Value) -> Option<String> {
    let wanted = match scalar {
        Scalar::String => "string",
        Scalar::Boolean => "bool",
        Scalar::Int32 => "int32",
        Scalar::Int64 => "int64",
        Scalar::Uint32 => "uint32",
        Scalar::Uint64 => "uint64",
        Scalar::Float32 => "float32",
        Scalar::Float64 => "float64",
        Scalar::Bytes if !value.is_string() => return Some(format!("cannot restore slice from {}", kind(value))),
        _ => return None,
    };
    let whole = |n: &serde_json::Number| n.is_i64() || n.is_u64();
    match (value, wanted) {
        (Value::String(_), "string") | (Value::Bool(_), "bool") | (Value::Number(_), "float32" | "float64") => None,
        // Go would make a letter of a whole number, and half of a fraction; the converter does neither.
        (Value::Number(n), "string") if whole(n) => Some(format!("cannot convert int64 to {wanted}")),
        (Value::Number(n), "int32" | "int64" | "uint32" | "uint64") => {
            let fits = whole(n) || n.as_f64().is_some_and(|f| f.fract() == 0.0);
            (!fits).then(|| format!("cannot convert float64 to {wanted}"))
        }
        _ => Some(format!("unrecognized type: {wanted}")),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "invalid",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "slice",
        Value::Object(_) => "map",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Gvk;
    use crate::schema::builtin;

    #[test]
    fn misfits_are_worded_as_the_converter_words_them() {
        let view = builtin().kind(&Gvk::new("", "v1", "Pod")).unwrap();
        for (body, expect) in [
            (json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"image": null}]}}), None),
            (json!({"metadata": {"labels": "invalid"}}), Some("cannot restore map from string")),
            (json!({"spec": {"containers": {}}}), Some("cannot restore slice from map")),
            (json!({"spec": []}), Some("cannot restore struct from: slice")),
            (json!({"spec": {"nodeName": 5}}), Some("cannot convert int64 to string")),
            (json!({"spec": {"priority": "x"}}), Some("unrecognized type: int32")),
            (json!({"spec": {"priority": 1.5}}), Some("cannot convert float64 to int32")),
            (json!({"spec": {"hostNetwork": "true"}}), Some("unrecognized type: bool")),
        ] {
            assert_eq!(misfit(view, &body).as_deref(), expect, "{body}");
        }
    }
}
