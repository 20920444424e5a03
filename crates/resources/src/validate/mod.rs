//! The vocabulary of validation: a place in an object ([`At`]), what is wrong ([`Errors`]), and rules said as sentences.
//!
//! Rules of particular types that several kinds share are in the modules below (pod specs, label selectors, …); rules of
//! one kind stand with the kind. Texts and paths are upstream's, for clients match on them. Types have been checked
//! against the schema before; a value of a wrong type reads as absent here.

pub mod conditions;
pub mod containers;
pub mod cron;
pub mod devices;
pub mod expressions;
pub mod formats;
pub mod pod_spec;
pub mod pod_update;
pub mod resources;
pub mod rules;
pub mod scheduling;
pub mod security;
pub mod selectors;
pub mod slices;
pub mod structural;
pub mod volumes;
pub mod webhooks;
pub mod workloads;

use std::collections::HashSet;

use meta::{FieldError, FieldPath, Value};

use meta::Tree;

pub const IMMUTABLE: &str = "field is immutable";
pub const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
pub const POSITIVE: &str = "must be greater than 0";
pub const PORT_RANGE: &str = "must be between 1 and 65535, inclusive";

/// A place in an object: a value, perhaps null, and its path.
#[derive(Clone, Debug)]
pub struct At<'v> {
    pub value: &'v Value,
    pub path: FieldPath,
}

impl<'v> At<'v> {
    /// The whole object.
    pub fn root(value: &'v Value) -> Self {
        Self { value, path: FieldPath::root() }
    }

    /// A value that stands at a known path.
    pub fn new(value: &'v Value, path: &str) -> Self {
        Self { value, path: FieldPath::new(path) }
    }

    /// Below, by a dotted path of fields.
    pub fn child(&self, path: &str) -> At<'v> {
        At { value: self.value.at(path), path: self.path.child(path) }
    }

    /// The items of a list.
    pub fn items(&self) -> impl Iterator<Item = At<'v>> + use<'v> {
        let path = self.path.clone();
        self.value.list("").iter().enumerate().map(move |(i, value)| At { value, path: path.index(i) })
    }

    /// The items of a list field.
    pub fn each(&self, path: &str) -> impl Iterator<Item = At<'v>> + use<'v> {
        self.child(path).items()
    }

    /// The values of a map, at `path[key]`.
    pub fn entries(&self) -> impl Iterator<Item = (&'v str, At<'v>)> + use<'v> {
        let path = self.path.clone();
        self.value.map("").iter().map(move |(key, value)| (key.as_str(), At { value, path: path.key(key) }))
    }

    pub fn there(&self) -> bool {
        !self.value.is_null()
    }

    /// Absent, or an empty string.
    pub fn blank(&self) -> bool {
        self.value.is_null() || self.value == ""
    }

    pub fn str(&self) -> &'v str {
        self.value.as_str().unwrap_or_default()
    }

    pub fn number(&self) -> Option<i64> {
        self.value.as_i64()
    }
}

/// What is wrong with an object so far.
#[derive(Debug, Default)]
pub struct Errors(pub Vec<FieldError>);

impl Errors {
    pub fn required(&mut self, at: &At<'_>, detail: &str) {
        self.0.push(FieldError::required(&at.path, detail));
    }

    /// Absent is the empty string, in Go.
    pub fn invalid(&mut self, at: &At<'_>, detail: impl Into<String>) {
        self.0.push(FieldError::invalid(&at.path, shown(at), detail));
    }

    /// As `invalid`, where what is shown is not what stands there.
    pub fn invalid_as(&mut self, at: &At<'_>, shown: impl Into<Value>, detail: impl Into<String>) {
        self.0.push(FieldError::invalid(&at.path, shown, detail));
    }

    pub fn forbidden(&mut self, at: &At<'_>, detail: impl Into<String>) {
        self.0.push(FieldError::forbidden(&at.path, detail));
    }

    pub fn duplicate(&mut self, at: &At<'_>) {
        self.0.push(FieldError::duplicate(&at.path, at.value.clone()));
    }

    pub fn not_found(&mut self, at: &At<'_>) {
        self.0.push(FieldError::not_found(&at.path, shown(at)));
    }

    pub fn not_supported(&mut self, at: &At<'_>, supported: &[&str]) {
        self.0.push(FieldError::not_supported(&at.path, shown(at), supported));
    }

    pub fn too_long(&mut self, at: &At<'_>, max_bytes: usize) {
        self.0.push(FieldError::too_long(&at.path, max_bytes));
    }

    /// Must be there. Says whether it is.
    pub fn need(&mut self, at: &At<'_>, detail: &str) -> bool {
        if at.blank() {
            self.required(at, detail);
        }
        !at.blank()
    }

    /// A string of some format.
    pub fn format(&mut self, at: &At<'_>, complaints: fn(&str) -> Vec<String>) {
        for complaint in complaints(at.str()) {
            self.invalid(at, complaint);
        }
    }

    /// There, and a string of some format.
    pub fn need_format(&mut self, at: &At<'_>, complaints: fn(&str) -> Vec<String>) {
        if self.need(at, "") {
            self.format(at, complaints);
        }
    }

    /// A string of some format, or nothing.
    pub fn may_format(&mut self, at: &At<'_>, complaints: fn(&str) -> Vec<String>) {
        if !at.blank() {
            self.format(at, complaints);
        }
    }

    /// A string of some format if it was set at all, be it to nothing.
    pub fn format_if_set(&mut self, at: &At<'_>, complaints: fn(&str) -> Vec<String>) {
        if at.there() {
            self.format(at, complaints);
        }
    }

    /// There, and one of these.
    pub fn need_one_of(&mut self, at: &At<'_>, supported: &[&str]) {
        if self.need(at, "") {
            self.one_of(at, supported);
        }
    }

    /// One of these, or nothing.
    pub fn may_one_of(&mut self, at: &At<'_>, supported: &[&str]) {
        if at.there() {
            self.one_of(at, supported);
        }
    }

    /// One of these, the empty string being none of them.
    pub fn one_of(&mut self, at: &At<'_>, supported: &[&str]) {
        if !supported.contains(&at.str()) {
            self.not_supported(at, supported);
        }
    }

    pub fn not_negative(&mut self, at: &At<'_>) {
        self.at_least(at, 0, NOT_NEGATIVE);
    }

    pub fn positive(&mut self, at: &At<'_>) {
        self.at_least(at, 1, POSITIVE);
    }

    pub fn at_least(&mut self, at: &At<'_>, least: i64, detail: &str) {
        if at.number().is_some_and(|n| n < least) {
            self.invalid(at, detail);
        }
    }

    /// A port number.
    pub fn port(&mut self, at: &At<'_>) {
        if at.number().is_none_or(|n| !(1..=65535).contains(&n)) {
            self.invalid_as(at, at.number().unwrap_or(0), PORT_RANGE);
        }
    }

    /// A CSI driver's name.
    pub fn driver_name(&mut self, at: &At<'_>) {
        self.need(at, "");
        if at.str().len() > formats::MAX_DRIVER_NAME {
            self.too_long(at, formats::MAX_DRIVER_NAME);
        }
        self.format(at, formats::driver_name);
    }

    /// A name that can be one segment of a URL's path.
    pub fn path_segment(&mut self, at: &At<'_>) {
        if let Some(why) = formats::not_a_path_segment(at.str()) {
            self.invalid(at, why);
        }
    }

    /// A port number or name.
    pub fn port_or_name(&mut self, at: &At<'_>) {
        match at.value {
            Value::String(_) => self.format(at, formats::port_name),
            _ => self.port(at),
        }
    }

    /// No two of these the same; empty ones do not count.
    pub fn unique<'v>(&mut self, items: impl Iterator<Item = At<'v>>) {
        let mut seen = HashSet::new();
        for at in items.filter(|at| !at.blank()) {
            if !seen.insert(at.value.to_string()) {
                self.duplicate(&at);
            }
        }
    }

    /// As it was.
    pub fn immutable(&mut self, at: &At<'_>, old: &Value) {
        if !same(at.value, old) {
            self.invalid(at, IMMUTABLE);
        }
    }

    /// As it was once it was set.
    pub fn set_once(&mut self, at: &At<'_>, old: &Value) {
        if !old.is_null() && old != "" {
            self.immutable(at, old);
        }
    }
}

fn shown(at: &At<'_>) -> Value {
    if at.there() { at.value.clone() } else { "".into() }
}

/// Whether two values mean the same: what is empty, false or null is as good as absent.
pub fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let covers = |one: &serde_json::Map<String, Value>, other: &serde_json::Map<String, Value>| {
                one.iter().all(|(key, value)| same(value, other.get(key).unwrap_or(&Value::Null)))
            };
            covers(a, b) && covers(b, a)
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        _ => a == b || empty(a) && empty(b),
    }
}

fn empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.values().all(empty),
        _ => false,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    /// Fails unless the errors are exactly these texts, in any order.
    pub fn expect(errors: &[FieldError], expected: &[&str], about: &Value) {
        let mut said: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let mut expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
        said.sort();
        expected.sort();
        assert_eq!(said, expected, "{about}");
    }

    #[test]
    fn empty_is_as_good_as_absent() {
        for (a, b, expect) in [
            (json!({"a": null, "b": {"c": false}}), json!({}), true),
            (json!({"a": []}), json!({"a": null}), true),
            (json!({"a": 0}), json!({}), false),
            (json!([1, {"x": ""}]), json!([1, {}]), true),
            (json!([1]), json!([1, 2]), false),
        ] {
            assert_eq!(same(&a, &b), expect, "{a} {b}");
            assert_eq!(same(&b, &a), expect, "{b} {a}");
        }
    }

    #[test]
    fn rules_say_what_upstream_says() {
        let object = json!({"port": 0, "name": "A_b", "kind": "X", "list": ["a", "b", "a"], "n": -1});
        let at = At::root(&object);
        let mut errors = Errors::default();
        errors.port(&at.child("port"));
        errors.format(&at.child("name"), formats::dns_label);
        errors.need_one_of(&at.child("kind"), &["Y"]);
        errors.need(&at.child("spec.absent"), "");
        errors.unique(at.each("list"));
        errors.not_negative(&at.child("n"));
        errors.immutable(&at.child("kind"), &json!("Z"));
        expect(
            &errors.0,
            &[
                "port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "name: Invalid value: \"A_b\": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
                "kind: Unsupported value: \"X\": supported values: \"Y\"",
                "spec.absent: Required value",
                "list[2]: Duplicate value: \"a\"",
                "n: Invalid value: -1: must be greater than or equal to 0",
                "kind: Invalid value: \"X\": field is immutable",
            ],
            &object,
        );
    }
}
