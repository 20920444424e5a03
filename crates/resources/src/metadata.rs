//! What every object's metadata must obey: labels, annotations, owners, finalizers.
//!
//! Follows `k8s.io/apimachinery/pkg/api/validation` (ValidateObjectMeta, ValidateObjectMetaUpdate). Names are checked by the
//! kind's strategy.

use meta::{FieldError, FieldPath, Value};

/// Checks a whole body's metadata on create.
pub fn validate(body: &Value, _namespaced: bool) -> Vec<FieldError> {
    let path = FieldPath::new("metadata");
    let mut errors = Vec::new();
    for field in ["labels", "annotations"] {
        for (key, value) in body["metadata"][field].as_object().into_iter().flatten() {
            if !value.is_string() {
                errors.push(FieldError::type_invalid(&path.child(field).key(key), value.clone(), "must be a string"));
            }
        }
    }
    errors
}

/// Checks a change, the stored body at hand.
pub fn validate_update(body: &Value, old: &Value) -> Vec<FieldError> {
    let path = FieldPath::new("metadata");
    let mut errors = validate(body, true);
    for field in ["name", "namespace", "uid", "creationTimestamp"] {
        let (new, before) = (&body["metadata"][field], &old["metadata"][field]);
        if new != before {
            errors.push(FieldError::invalid(&path.child(field), new.clone(), "field is immutable"));
        }
    }
    errors
}
