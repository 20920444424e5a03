//! Schemas of custom resources: structural, so that every field's type is known without solving formulas.
//!
//! Follows `k8s.io/apiextensions-apiserver/pkg/apiserver/schema`. Rules in CEL are compiled elsewhere.

use std::collections::HashSet;

use meta::Value;

use super::{At, Errors};
use meta::Tree;

#[derive(Clone, Copy, PartialEq)]
enum Level {
    Root,
    Item,
    Field,
}

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
/// Keywords of JSON schema that are not supported anywhere.
const UNSUPPORTED: [&str; 6] = ["id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref"];
/// Keywords below `anyOf` and its like that would say something new about structure.
const NOT_NESTED: [(&str, &str); 12] = [
    ("type", "must be empty to be structural"),
    ("additionalProperties", "must be undefined to be structural"),
    ("default", "must be undefined to be structural"),
    ("title", "must be empty to be structural"),
    ("description", "must be empty to be structural"),
    ("nullable", "must be false to be structural"),
    ("x-kubernetes-preserve-unknown-fields", "must be false to be structural"),
    ("x-kubernetes-embedded-resource", "must be false to be structural"),
    ("x-kubernetes-int-or-string", "must be false to be structural"),
    ("x-kubernetes-list-map-keys", "must be empty to be structural"),
    ("x-kubernetes-list-type", "must be undefined to be structural"),
    ("x-kubernetes-map-type", "must be undefined to be structural"),
];
const JUNCTORS: [&str; 3] = ["allOf", "anyOf", "oneOf"];

/// A field whose name may hold dots and slashes.
fn field<'v>(at: &At<'v>, name: &str) -> At<'v> {
    At { value: at.value.get(name).unwrap_or(&Value::Null), path: at.path.child(name) }
}

/// The schema of a whole object.
pub fn schema(at: &At<'_>, errors: &mut Errors) {
    structure(at, Level::Root, errors);
    if field(at, "nullable").value == &Value::Bool(true) {
        errors.forbidden(
            &At { value: at.value, path: meta::FieldPath::new(&format!("{}.nullable", at.path)) },
            "nullable cannot be true at the root",
        );
    }
}

fn structure(at: &At<'_>, level: Level, errors: &mut Errors) {
    let kind = field(at, "type");
    let set = |name: &str| at.value.get(name) == Some(&Value::Bool(true));
    let (preserve, embedded, either) = (
        set("x-kubernetes-preserve-unknown-fields"),
        set("x-kubernetes-embedded-resource"),
        set("x-kubernetes-int-or-string"),
    );
    match kind.str() {
        "" if embedded => errors.required(&kind, "must be object if x-kubernetes-embedded-resource is true"),
        "" if either || preserve => {}
        "" => errors.required(
            &kind,
            match level {
                Level::Root => "must not be empty at the root",
                Level::Item => "must not be empty for specified array items",
                Level::Field => "must not be empty for specified object fields",
            },
        ),
        "null" => errors.forbidden(&kind, "type cannot be set to null, use nullable as an alternative"),
        other if !TYPES.contains(&other) => errors.not_supported(&kind, &TYPES),
        other if embedded && other != "object" => {
            errors.invalid(&kind, "must be object if x-kubernetes-embedded-resource is true")
        }
        other if level == Level::Root && other != "object" => errors.invalid(&kind, "must be object at the root"),
        _ => {}
    }
    for keyword in UNSUPPORTED.iter().map(|k| (*k, field(at, k))).filter(|(_, f)| f.there()) {
        errors.forbidden(&keyword.1, format!("{} is not supported", keyword.0));
    }
    if set("uniqueItems") {
        errors.forbidden(
            &field(at, "uniqueItems"),
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        );
    }
    if at.value.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
        errors.invalid(&field(at, "x-kubernetes-preserve-unknown-fields"), "must be true or undefined");
    }
    if either && preserve {
        errors.invalid(
            &field(at, "x-kubernetes-preserve-unknown-fields"),
            "must be false if x-kubernetes-int-or-string is true",
        );
    }
    below(at, level, kind.str(), errors);
    lists_and_maps(at, kind.str(), errors);
    rules(at, errors);
    let (integer, string) = (serde_json::json!({"type": "integer"}), serde_json::json!({"type": "string"}));
    let int_or_string =
        |v: &Value| v.as_array().is_some_and(|v| v.len() == 2 && v.contains(&integer) && v.contains(&string));
    for junctor in JUNCTORS {
        let list = field(at, junctor);
        for (i, part) in list.items().enumerate() {
            let allowed = (junctor == "anyOf" && int_or_string(list.value))
                || (junctor == "allOf" && i == 0 && part.value.get("anyOf").is_some_and(int_or_string));
            if !allowed {
                nested(&part, errors);
            }
        }
    }
    if at.value.get("not").is_some() {
        nested(&field(at, "not"), errors);
    }
}

/// Properties, items and what is not named.
fn below(at: &At<'_>, level: Level, kind: &str, errors: &mut Errors) {
    let (properties, more, items) = (field(at, "properties"), field(at, "additionalProperties"), field(at, "items"));
    for (_, property) in properties.entries() {
        structure(&property, Level::Field, errors);
    }
    if more.there() {
        let (open, named) = (more.value == &Value::Bool(true), !properties.value.map("").is_empty());
        if level == Level::Root && more.value != &Value::Bool(false) {
            errors.forbidden(&more, "must not be used at the root");
        } else if named && !open {
            errors.forbidden(&more, "additionalProperties and properties are mutual exclusive");
        } else if more.value.is_object() {
            structure(&more, Level::Field, errors);
        }
    }
    match items.value {
        Value::Null if kind == "array" => errors.required(&items, "must be specified"),
        Value::Null => {}
        Value::Array(_) => errors.forbidden(&items, "items must be a schema object and not an array"),
        _ => structure(&items, Level::Item, errors),
    }
    let metadata = properties.child("metadata");
    if level == Level::Root && metadata.there() {
        let path = properties.path.key("metadata");
        let only_names = metadata.value.map("properties").keys().all(|k| k == "name" || k == "generateName");
        let said = metadata.value.map("").keys().any(|k| k != "type" && k != "properties" && k != "description");
        if metadata.value.text("type") != "object" {
            errors.invalid(&At { value: metadata.value.at("type"), path: path.child("type") }, "must be object");
        } else if !only_names || said {
            errors.forbidden(
                &At { value: metadata.value, path },
                "must not specify anything other than name and generateName, but metadata is implicitly specified",
            );
        }
    }
}

fn lists_and_maps(at: &At<'_>, kind: &str, errors: &mut Errors) {
    let (list, keys, map) = (
        field(at, "x-kubernetes-list-type"),
        field(at, "x-kubernetes-list-map-keys"),
        field(at, "x-kubernetes-map-type"),
    );
    let must_be = |what: &str, because: &str, errors: &mut Errors| {
        let detail = format!("must be {what} if {because} is specified");
        match kind {
            "" => errors.required(&field(at, "type"), &detail),
            other if other != what => errors.invalid(&field(at, "type"), detail),
            _ => {}
        }
    };
    if map.there() {
        must_be("object", "x-kubernetes-map-type", errors);
        errors.one_of(&map, &["atomic", "granular"]);
    }
    if list.there() {
        must_be("array", "x-kubernetes-list-type", errors);
        errors.one_of(&list, &["atomic", "map", "set"]);
    }
    let items = field(at, "items");
    if matches!(list.str(), "set" | "map") && items.value.flag("nullable") {
        let why = format!("cannot be nullable when x-kubernetes-list-type is {}", list.str());
        errors.forbidden(&items.child("nullable"), why);
    }
    if list.str() == "set" {
        const ATOMIC: &str = "must be atomic as item of a list with x-kubernetes-list-type=set";
        let says = |key: &str| items.value.get(key).and_then(Value::as_str);
        // A list is atomic unless it says otherwise, and a map is granular.
        match items.value.text("type") {
            "array" if says("x-kubernetes-list-type").is_some_and(|said| said != "atomic") => {
                errors.invalid(&field(&items, "x-kubernetes-list-type"), ATOMIC);
            }
            "object" if says("x-kubernetes-map-type") != Some("atomic") => {
                errors.invalid(&field(&items, "x-kubernetes-map-type"), ATOMIC);
            }
            _ => {}
        }
    }
    if list.str() == "map" {
        if keys.value.list("").is_empty() {
            errors.required(&keys, "must not be empty if x-kubernetes-list-type is map");
        }
        if items.there() && items.value.text("type") != "object" {
            errors.invalid(&items.child("type"), "must be object if parent array's x-kubernetes-list-type is map");
        }
        let mut seen = HashSet::new();
        for key in keys.items() {
            match items.value.map("properties").get(key.str()) {
                None => errors.invalid(&keys, "entries must all be names of item properties"),
                Some(property) => {
                    let property = At { value: property, path: items.path.child("properties").key(key.str()) };
                    map_key(&property, items.value.list("required").contains(key.value), errors);
                }
            }
            if !seen.insert(key.str()) {
                errors.invalid(&keys, "must not contain duplicate entries");
            }
        }
    } else if keys.there() {
        match list.there() {
            false => errors.required(&list, "must be map if x-kubernetes-list-map-keys is non-empty"),
            true => errors.invalid(&list, "must be map if x-kubernetes-list-map-keys is non-empty"),
        }
    }
}

/// A property that tells a list's items apart.
fn map_key(property: &At<'_>, required: bool, errors: &mut Errors) {
    if matches!(property.value.text("type"), "array" | "object") {
        let detail = "must be a scalar type if parent array's x-kubernetes-list-type is map";
        errors.invalid(&property.child("type"), detail);
    }
    if !required && property.value.get("default").is_none() {
        let detail =
            "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
        errors.required(&property.child("default"), detail);
    }
    if property.value.flag("nullable") {
        let detail = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
        errors.forbidden(&property.child("nullable"), detail);
    }
}

fn rules(at: &At<'_>, errors: &mut Errors) {
    for rule in field(at, "x-kubernetes-validations").items() {
        let (text, message) = (rule.child("rule"), rule.child("message"));
        if text.str().trim().is_empty() {
            errors.required(&text, "rule is not specified");
        }
        match (message.there(), message.str().trim()) {
            (true, "") => errors.invalid(&message, "message must be non-empty if specified"),
            (true, said) if said.contains('\n') => errors.invalid(&message, "message must not contain line breaks"),
            (false, _) if text.str().trim().contains('\n') && !rule.value.has("messageExpression") => {
                errors.required(&message, "message must be specified if rule contains line breaks");
            }
            _ => {}
        }
        let (expression, reason, path) =
            (rule.child("messageExpression"), rule.child("reason"), rule.child("fieldPath"));
        if expression.there() && expression.str() != "" && expression.str().trim().is_empty() {
            errors.required(&expression, "messageExpression must be non-empty if specified");
        }
        if reason.there() {
            const REASONS: [&str; 4] =
                ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
            errors.one_of(&reason, &REASONS);
        }
        if path.str() != "" {
            if path.str().trim().is_empty() {
                errors.invalid(&path, "must be non-empty if specified");
            }
            if path.str().contains('\n') {
                errors.invalid(&path, "must not contain line breaks");
            }
            if super::rules::field_path(path.str(), at.value, true).is_err() {
                errors.invalid(&path, "must be a valid path");
            }
        }
    }
}

/// Below a junctor: values may be narrowed, structure may not be said.
fn nested(at: &At<'_>, errors: &mut Errors) {
    for (name, detail) in NOT_NESTED {
        let field = field(at, name);
        // An empty default is one.
        if !super::same(field.value, &Value::Null) || name == "default" && field.there() {
            errors.forbidden(&field, detail);
        }
    }
    for (_, property) in field(at, "properties").entries() {
        nested(&property, errors);
    }
    for part in JUNCTORS.iter().flat_map(|j| field(at, j).items()) {
        nested(&part, errors);
    }
    for one in ["items", "not"].map(|n| field(at, n)).into_iter().filter(At::there) {
        nested(&one, errors);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::tests::expect;

    #[test]
    fn schemas_are_structural() {
        let check = |value: Value, expected: &[&str]| {
            let mut errors = Errors::default();
            schema(&At::new(&value, "s"), &mut errors);
            expect(&errors.0, expected, &value);
        };
        check(
            json!({"type": "object", "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}}}),
            &[],
        );
        check(json!({}), &["s.type: Required value: must not be empty at the root"]);
        check(
            json!({"type": "array", "items": {}}),
            &[
                "s.type: Invalid value: \"array\": must be object at the root",
                "s.items.type: Required value: must not be empty for specified array items",
            ],
        );
        check(
            json!({"type": "object", "properties": {"a": {}, "b": {"type": "array"}}}),
            &[
                "s.properties[a].type: Required value: must not be empty for specified object fields",
                "s.properties[b].items: Required value: must be specified",
            ],
        );
        check(
            json!({"type": "object", "additionalProperties": {"type": "string"}}),
            &["s.additionalProperties: Forbidden: must not be used at the root"],
        );
        check(
            json!({"type": "object", "properties": {"l": {"type": "array", "x-kubernetes-list-type": "map", "items": {"type": "object"},
            "x-kubernetes-list-map-keys": ["k"]}}}),
            &[
                "s.properties[l].x-kubernetes-list-map-keys: Invalid value: [\"k\"]: entries must all be names of item properties",
            ],
        );
        check(
            json!({"type": "object", "anyOf": [{"type": "object"}], "$ref": "x"}),
            &["s.anyOf[0].type: Forbidden: must be empty to be structural", "s.$ref: Forbidden: $ref is not supported"],
        );
        check(
            json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"labels": {"type": "object"}}}}}),
            &[
                "s.properties[metadata]: Forbidden: must not specify anything other than name and generateName, but metadata is implicitly specified",
            ],
        );
    }
}
