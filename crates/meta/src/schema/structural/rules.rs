//! Whether a schema is structural and says only what CRDs may say; complaints as upstream words them.

use serde_json::{Map, Value};

use super::JUNCTORS;
use crate::{FieldError, FieldPath};

/// Where a schema stands.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Place {
    Root,
    Property,
    Item,
}

const TYPES: &[&str] = &["array", "boolean", "integer", "number", "object", "string"];

fn said(schema: &Map<String, Value>, key: &str) -> bool {
    schema.get(key) == Some(&Value::Bool(true))
}

fn text<'s>(schema: &'s Map<String, Value>, key: &str) -> &'s str {
    schema.get(key).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn check(schema: &Map<String, Value>, path: &FieldPath, place: Place, errors: &mut Vec<FieldError>) {
    unsupported(schema, path, errors);
    kind(schema, path, place, errors);
    merging(schema, path, errors);
    if let Some(Value::Object(properties)) = schema.get("properties") {
        for (name, inner) in properties {
            let path = path.child("properties").key(name);
            let Value::Object(inner) = inner else { continue };
            let owned = place == Place::Root || said(schema, "x-kubernetes-embedded-resource");
            match (owned, name.as_str()) {
                (true, "metadata") => metadata(inner, &path, errors),
                (true, "apiVersion" | "kind") if text(inner, "type") != "string" => {
                    errors.push(FieldError::invalid(&path.child("type"), text(inner, "type"), "must be string"));
                }
                (true, "apiVersion" | "kind") => {}
                _ => check(inner, &path, Place::Property, errors),
            }
        }
    }
    if let Some(Value::Object(inner)) = schema.get("items") {
        check(inner, &path.child("items"), Place::Item, errors);
    }
    if let Some(Value::Object(inner)) = schema.get("additionalProperties") {
        check(inner, &path.child("additionalProperties"), Place::Property, errors);
    }
    let of_root = place == Place::Root;
    for key in JUNCTORS {
        for (at, inner) in schema.get(*key).and_then(Value::as_array).into_iter().flatten().enumerate() {
            if let Value::Object(inner) = inner {
                junction(inner, schema, path, &path.child(key).index(at), of_root, errors);
            }
        }
    }
    if let Some(Value::Object(inner)) = schema.get("not") {
        junction(inner, schema, path, &path.child("not"), of_root, errors);
    }
}

/// Keywords of JSON Schema that CRDs have not.
fn unsupported(schema: &Map<String, Value>, path: &FieldPath, errors: &mut Vec<FieldError>) {
    for key in ["id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref"] {
        if schema.get(key).is_some_and(|v| !crate::schema::is_zero(v)) {
            errors.push(FieldError::forbidden(&path.child(key), format!("{key} is not supported")));
        }
    }
    if said(schema, "uniqueItems") {
        let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        errors.push(FieldError::forbidden(&path.child("uniqueItems"), why));
    }
    if schema.get("items").is_some_and(Value::is_array) {
        errors.push(FieldError::forbidden(&path.child("items"), "items must be a schema object and not an array"));
    }
    let properties = schema.get("properties").and_then(Value::as_object).is_some_and(|p| !p.is_empty());
    if properties && schema.get("additionalProperties").is_some_and(|a| *a != Value::Bool(true)) {
        let why = "additionalProperties and properties are mutual exclusive";
        errors.push(FieldError::forbidden(&path.child("additionalProperties"), why));
    }
    if schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
        let path = path.child("x-kubernetes-preserve-unknown-fields");
        errors.push(FieldError::invalid(&path, false, "must be true or undefined"));
    }
}

/// The type, and what the type must be for the extensions in use.
fn kind(schema: &Map<String, Value>, path: &FieldPath, place: Place, errors: &mut Vec<FieldError>) {
    let ty = text(schema, "type");
    let at = path.child("type");
    let (open, either, embedded) = (
        said(schema, "x-kubernetes-preserve-unknown-fields"),
        said(schema, "x-kubernetes-int-or-string"),
        said(schema, "x-kubernetes-embedded-resource"),
    );
    if ty == "null" {
        errors.push(FieldError::forbidden(&at, "type cannot be set to null, use nullable as an alternative"));
    } else if !ty.is_empty() && !TYPES.contains(&ty) {
        errors.push(FieldError::not_supported(&at, ty, TYPES));
    }
    if ty.is_empty() && embedded {
        errors.push(FieldError::required(&at, "must be object if x-kubernetes-embedded-resource is true"));
    } else if ty.is_empty() && place == Place::Root {
        errors.push(FieldError::required(&at, "must not be empty at the root"));
    } else if ty.is_empty() && !open && !either {
        let what = if place == Place::Item { "array items" } else { "object fields" };
        errors.push(FieldError::required(&at, format!("must not be empty for specified {what}")));
    }
    if embedded && !ty.is_empty() && ty != "object" {
        errors.push(FieldError::invalid(&at, ty, "must be object if x-kubernetes-embedded-resource is true"));
    }
    if place == Place::Root {
        if !ty.is_empty() && ty != "object" {
            errors.push(FieldError::invalid(&at, ty, "must be object at the root"));
        }
        if said(schema, "nullable") {
            errors.push(FieldError::forbidden(&path.child("nullable"), "nullable cannot be true at the root"));
        }
        if schema.get("additionalProperties").is_some_and(|a| !a.is_null()) {
            errors.push(FieldError::forbidden(&path.child("additionalProperties"), "must not be used at the root"));
        }
    }
    if embedded {
        if schema.get("additionalProperties").is_some_and(|a| !a.is_null()) {
            let why = "must not be used if x-kubernetes-embedded-resource is set";
            errors.push(FieldError::forbidden(&path.child("additionalProperties"), why));
        }
        if !open && schema.get("properties").and_then(Value::as_object).is_none_or(Map::is_empty) {
            let why = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
            errors.push(FieldError::required(&path.child("properties"), why));
        }
    }
    if either {
        for (set, key) in [(open, "x-kubernetes-preserve-unknown-fields"), (embedded, "x-kubernetes-embedded-resource")]
        {
            if set {
                let why = "must be false if x-kubernetes-int-or-string is true";
                errors.push(FieldError::invalid(&path.child(key), true, why));
            }
        }
    }
    if ty == "array" && schema.get("items").is_none_or(Value::is_null) {
        errors.push(FieldError::required(&path.child("items"), "must be specified"));
    }
}

/// The extensions that say how lists and maps merge.
fn merging(schema: &Map<String, Value>, path: &FieldPath, errors: &mut Vec<FieldError>) {
    let ty = text(schema, "type");
    for (key, wanted, supported) in [
        ("x-kubernetes-map-type", "object", &["atomic", "granular"][..]),
        ("x-kubernetes-list-type", "array", &["atomic", "set", "map"][..]),
    ] {
        let Some(value) = schema.get(key).and_then(Value::as_str) else { continue };
        let why = format!("must be {wanted} if {key} is specified");
        if ty.is_empty() {
            errors.push(FieldError::required(&path.child("type"), why));
        } else if ty != wanted {
            errors.push(FieldError::invalid(&path.child("type"), ty, why));
        }
        if !supported.contains(&value) {
            errors.push(FieldError::not_supported(&path.child(key), value, supported));
        }
    }
    let list_type = text(schema, "x-kubernetes-list-type");
    let keys: Vec<&str> = schema
        .get("x-kubernetes-list-map-keys")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if !keys.is_empty() && list_type != "map" {
        let (at, why) =
            (path.child("x-kubernetes-list-type"), "must be map if x-kubernetes-list-map-keys is non-empty");
        errors.push(if list_type.is_empty() {
            FieldError::required(&at, why)
        } else {
            FieldError::invalid(&at, list_type, why)
        });
    }
    let Some(Value::Object(items)) = schema.get("items") else { return };
    if matches!(list_type, "set" | "map") && said(items, "nullable") {
        let why = format!("cannot be nullable when x-kubernetes-list-type is {list_type}");
        errors.push(FieldError::forbidden(&path.child("items").child("nullable"), why));
    }
    if list_type != "map" {
        return;
    }
    let at = path.child("x-kubernetes-list-map-keys");
    if keys.is_empty() {
        errors.push(FieldError::required(&at, "must not be empty if x-kubernetes-list-type is map"));
    }
    if text(items, "type") != "object" {
        let why = "must be object if parent array's x-kubernetes-list-type is map";
        errors.push(FieldError::invalid(&path.child("items").child("type"), text(items, "type"), why));
    }
    let required = items.get("required").and_then(Value::as_array);
    for (i, key) in keys.iter().enumerate() {
        if keys[..i].contains(key) {
            errors.push(FieldError::invalid(&at, keys.clone(), "must not contain duplicate entries"));
        }
        let Some(Value::Object(property)) = items.get("properties").and_then(|p| p.get(*key)) else {
            errors.push(FieldError::invalid(&at, keys.clone(), "entries must all be names of item properties"));
            continue;
        };
        let of = path.child("items").child("properties").key(key);
        if matches!(text(property, "type"), "object" | "array") {
            let why = "must be a scalar type if parent array's x-kubernetes-list-type is map";
            errors.push(FieldError::invalid(&of.child("type"), text(property, "type"), why));
        }
        let is_required = required.is_some_and(|r| r.iter().any(|r| r == key));
        if !is_required && property.get("default").is_none_or(Value::is_null) {
            let why =
                "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            errors.push(FieldError::required(&of.child("default"), why));
        }
        if said(property, "nullable") {
            let why = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            errors.push(FieldError::forbidden(&of.child("nullable"), why));
        }
    }
}

/// The object's own metadata may be narrowed by name only.
fn metadata(schema: &Map<String, Value>, path: &FieldPath, errors: &mut Vec<FieldError>) {
    if text(schema, "type") != "object" && schema.contains_key("type") {
        errors.push(FieldError::invalid(&path.child("type"), text(schema, "type"), "must be object"));
    }
    let known = ["type", "description", "title", "properties"];
    let properties = schema.get("properties").and_then(Value::as_object);
    let other = schema.keys().any(|k| !known.contains(&k.as_str()))
        || properties.into_iter().flatten().any(|(name, _)| !matches!(name.as_str(), "name" | "generateName"));
    if other {
        let why = "must not specify anything other than name and generateName, but metadata is implicitly specified";
        errors.push(FieldError::forbidden(path, why));
    }
}

/// A schema below `allOf` and its like may only restrict what the schema around it declares; upstream looks for that at the
/// root alone.
fn junction(
    schema: &Map<String, Value>,
    around: &Map<String, Value>,
    around_path: &FieldPath,
    path: &FieldPath,
    of_root: bool,
    errors: &mut Vec<FieldError>,
) {
    if schema.get("type").is_some_and(|t| !t.is_null()) && !said(around, "x-kubernetes-int-or-string") {
        errors.push(FieldError::forbidden(&path.child("type"), "must be empty to be structural"));
    }
    for (key, must) in [
        ("additionalProperties", "undefined"),
        ("default", "undefined"),
        ("title", "empty"),
        ("description", "empty"),
        ("nullable", "false"),
        ("x-kubernetes-preserve-unknown-fields", "false"),
        ("x-kubernetes-embedded-resource", "false"),
        ("x-kubernetes-int-or-string", "false"),
        ("x-kubernetes-list-map-keys", "empty"),
        ("x-kubernetes-list-type", "undefined"),
        ("x-kubernetes-map-type", "undefined"),
        ("x-kubernetes-validations", "empty"),
    ] {
        if schema.get(key).is_some_and(|v| !crate::schema::is_zero(v)) {
            errors.push(FieldError::forbidden(&path.child(key), format!("must be {must} to be structural")));
        }
    }
    for (name, inner) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let (at, declared) = (path.child("properties").key(name), around_path.child("properties").key(name));
        let outer = around.get("properties").and_then(|p| p.get(name)).or_else(|| around.get("additionalProperties"));
        complete(inner, outer, &declared, &at, of_root, errors);
    }
    if let Some(inner) = schema.get("items") {
        complete(inner, around.get("items"), &around_path.child("items"), &path.child("items"), of_root, errors);
    }
    for key in JUNCTORS {
        for (at, inner) in schema.get(*key).and_then(Value::as_array).into_iter().flatten().enumerate() {
            if let Value::Object(inner) = inner {
                junction(inner, around, around_path, &path.child(key).index(at), of_root, errors);
            }
        }
    }
    if let Some(Value::Object(inner)) = schema.get("not") {
        junction(inner, around, around_path, &path.child("not"), of_root, errors);
    }
}

fn complete(
    inner: &Value,
    outer: Option<&Value>,
    declared: &FieldPath,
    at: &FieldPath,
    of_root: bool,
    errors: &mut Vec<FieldError>,
) {
    match (inner, outer) {
        (Value::Object(inner), Some(Value::Object(outer))) => junction(inner, outer, declared, at, of_root, errors),
        (_, Some(Value::Bool(true))) => {}
        (Value::Object(inner), None) if !of_root => junction(inner, &Map::new(), declared, at, of_root, errors),
        _ => errors.push(FieldError::required(declared, format!("because it is defined in {at}"))),
    }
}
