//! Patches: documents that make a new object of an old one.
//!
//! [`json`] is RFC 6902, [`merge`] is RFC 7386 and [`strategic`] is Kubernetes' own merge that knows from the schema which
//! lists are keyed. All three work on trees, touch nothing but their arguments, and never panic on what a client sent;
//! what comes out still has to be pruned and validated. Server-side apply is [`crate::apply`].

mod json;
mod strategic;

pub use json::json;
pub use strategic::strategic;

use serde_json::{Map, Value};

/// Why a patch was not applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The document is not a patch (HTTP 400).
    #[error("{0}")]
    Invalid(String),
    /// The patch does not fit the object (HTTP 422).
    #[error("{0}")]
    Unprocessable(String),
}

impl PatchError {
    fn invalid(why: impl Into<String>) -> Self {
        Self::Invalid(why.into())
    }

    /// A document of another JSON type than a patch is, as Go says it.
    fn unfit(patch: &Value, go: &str) -> Self {
        let found = crate::schema::json_type(patch);
        Self::Invalid(format!("error decoding patch: json: cannot unmarshal {found} into Go value of type {go}"))
    }

    /// Upstream's words for status 422, which clients match on, and then the reason.
    fn unprocessable(why: impl std::fmt::Display) -> Self {
        Self::Unprocessable(format!("the server rejected our request due to an error in our request: {why}"))
    }
}

/// Merges a patch into an object (RFC 7386): null removes, objects merge, everything else replaces.
pub fn merge(doc: &mut Value, patch: &Value) -> Result<(), PatchError> {
    let (Value::Object(doc), Value::Object(patch)) = (doc, patch) else {
        return Err(PatchError::unfit(patch, "map[string]interface {}"));
    };
    merge_objects(doc, patch);
    Ok(())
}

fn merge_objects(doc: &mut Map<String, Value>, patch: &Map<String, Value>) {
    for (key, change) in patch {
        match change {
            Value::Null => {
                doc.remove(key);
            }
            Value::Object(change) => {
                let slot = doc.entry(key.as_str()).or_insert(Value::Null);
                if !slot.is_object() {
                    *slot = Value::Object(Map::new());
                }
                if let Value::Object(slot) = slot {
                    merge_objects(slot, change);
                }
            }
            other => {
                doc.insert(key.clone(), other.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn merges_as_rfc_7386_tells() {
        // The examples of the RFC's appendix that have an object on both sides.
        let cases = [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ];
        for (mut doc, patch, want) in cases {
            merge(&mut doc, &patch).unwrap();
            assert_eq!(doc, want, "patch {patch}");
        }
        assert!(matches!(merge(&mut json!({}), &json!([1])), Err(PatchError::Invalid(_))));
    }
}
