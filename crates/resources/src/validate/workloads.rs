//! What workloads have in common: a selector that fits the template, pods that restart, counts and percentages.

use meta::{LabelSelector, Value};

use super::selectors::{label_selector, selects_everything};
use super::{At, Errors, formats, pod_spec};
use meta::Tree;

/// A number that is not negative, or a percentage.
pub fn int_or_percent(at: &At<'_>, errors: &mut Errors) {
    match at.value {
        Value::Null => {}
        Value::String(_) => errors.format(at, formats::percent),
        _ => errors.not_negative(at),
    }
}

/// The number, or that of the percentage.
pub fn number_of(value: &Value) -> i64 {
    match value {
        Value::String(text) => text.trim_end_matches('%').parse().unwrap_or(0),
        value => value.as_i64().unwrap_or(0),
    }
}

/// A percentage of at most all.
pub fn at_most_all(at: &At<'_>, errors: &mut Errors) {
    if at.value.is_string() && number_of(at.value) > 100 {
        errors.invalid(at, "must not be greater than 100%");
    }
}

/// The selector of a workload: there, and not everything. `kind` as messages name it.
pub fn selector(at: &At<'_>, kind: &str, errors: &mut Errors) {
    if !at.there() {
        return errors.required(at, "");
    }
    label_selector(at, errors);
    if selects_everything(at) {
        errors.invalid(at, format!("empty selector is invalid for {kind}"));
    }
    if !readable(at) {
        errors.invalid(at, "invalid label selector");
    }
}

/// Whether a selector can be made of this: operators that fit their values, keys and values that labels can have.
pub fn readable(at: &At<'_>) -> bool {
    let mut errors = Errors::default();
    label_selector(at, &mut errors);
    errors.0.is_empty() && LabelSelector::from_value(at.value).is_ok()
}

/// Whether a label selector fits the labels at a place; true when it cannot be read, which is said elsewhere.
pub fn matches(selector: &Value, labels: &Value) -> bool {
    LabelSelector::from_value(selector)
        .map_or(true, |selector| selector.matches_by(|key| labels.map("").get(key).and_then(Value::as_str)))
}

/// The template's labels are among those selected.
pub fn selected(spec: &At<'_>, errors: &mut Errors) {
    let labels = spec.child("template.metadata.labels");
    let selector = spec.child("selector");
    if !selector.there() || readable(&selector) && !matches(selector.value, labels.value) {
        errors.invalid(&labels, "`selector` does not match template `labels`");
    }
}

/// Pods of a workload run for good. `kind` as messages name it.
pub fn lasting_pods(template: &At<'_>, kind: &str, errors: &mut Errors) {
    let policy = template.child("spec.restartPolicy");
    if policy.str() != "Always" {
        errors.not_supported(&policy, &["Always"]);
    }
    let deadline = template.child("spec.activeDeadlineSeconds");
    if deadline.there() {
        errors.forbidden(&deadline, format!("activeDeadlineSeconds in {kind} is not Supported"));
    }
}

/// A template for pods that run for good, fitting the selector.
pub fn template(spec: &At<'_>, kind: &str, errors: &mut Errors) {
    let template = spec.child("template");
    if !template.there() {
        return errors.required(&template, "");
    }
    selected(spec, errors);
    pod_spec::template(&template, errors);
    lasting_pods(&template, kind, errors);
}

/// Counts in a status: none negative, none above `replicas`.
pub fn counts(object: &At<'_>, fields: &[&str], ready: &str, errors: &mut Errors) {
    let status = object.child("status");
    let total = status.value.int("replicas");
    for field in ["replicas", "observedGeneration"] {
        errors.not_negative(&status.child(field));
    }
    for at in fields.iter().map(|f| status.child(f)) {
        errors.not_negative(&at);
        if at.number().unwrap_or(0) > total {
            errors.invalid(&at, "cannot be greater than status.replicas");
        }
    }
    let available = status.child("availableReplicas");
    if available.number().unwrap_or(0) > status.value.int("readyReplicas") {
        errors.invalid(&available, format!("cannot be greater than {ready}"));
    }
}

/// Collisions of hashes are counted, and the count goes one way.
pub fn collisions(object: &At<'_>, old: &Value, errors: &mut Errors) {
    let count = object.child("status.collisionCount");
    errors.not_negative(&count);
    let before = old.number("status.collisionCount");
    if before.is_some_and(|before| count.number().is_none_or(|count| count < before)) {
        errors.invalid_as(&count, count.number().unwrap_or(0), "cannot be decremented");
    }
}
