//! Labels and label selectors.

use super::{At, Errors, formats};
use meta::Tree;

/// A label map. Complaints name the map, not the key.
pub fn labels(at: &At<'_>, errors: &mut Errors) {
    for (key, value) in at.entries() {
        for complaint in formats::qualified_name(key) {
            errors.invalid_as(at, key, complaint);
        }
        for complaint in formats::label_value(value.str()) {
            errors.invalid_as(at, value.str(), complaint);
        }
    }
}

/// A `metav1.LabelSelector`.
pub fn label_selector(at: &At<'_>, errors: &mut Errors) {
    labels(&at.child("matchLabels"), errors);
    for expression in at.each("matchExpressions") {
        let values = expression.child("values");
        match expression.value.text("operator") {
            "In" | "NotIn" if values.value.list("").is_empty() => {
                errors.required(&values, "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if !values.value.list("").is_empty() => {
                errors.forbidden(&values, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => errors.invalid(&expression.child("operator"), "not a valid selector operator"),
        }
        errors.format(&expression.child("key"), formats::qualified_name);
        for value in values.items() {
            errors.format(&value, formats::label_value);
        }
    }
}

/// Whether a selector says nothing and so selects everything.
pub fn selects_everything(at: &At<'_>) -> bool {
    at.value.map("matchLabels").is_empty() && at.value.list("matchExpressions").is_empty()
}
