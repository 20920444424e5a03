//! The v2 document in protobuf, as client-go's discovery asks for it (gnostic's `openapi.v2.Document`).
//!
//! Encodes what [`super::v2`] writes: keys that no document of ours has are not looked for.

use serde_json::Value;

use crate::protobuf::wire::{bytes, key, message, number};

/// Encodes a v2 document.
pub fn encode(document: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 << 20);
    text(&mut out, 1, &document["swagger"]);
    message(&mut out, 2, |out| {
        text(out, 1, &document["info"]["title"]);
        text(out, 2, &document["info"]["version"]);
    });
    message(&mut out, 8, |out| named(out, 2, &document["paths"], path));
    message(&mut out, 9, |out| named(out, 1, &document["definitions"], schema));
    for requirement in items(&document["security"]) {
        message(&mut out, 12, |out| named(out, 1, requirement, |out, scopes| texts(out, 1, scopes)));
    }
    message(&mut out, 13, |out| {
        named(out, 1, &document["securityDefinitions"], |out, security| {
            message(out, 2, |out| {
                for (tag, key) in [(1, "type"), (2, "name"), (3, "in"), (4, "description")] {
                    text(out, tag, &security[key]);
                }
            });
        });
    });
    out
}

/// A map as repeated `{name = 1, value = 2}` messages.
fn named(out: &mut Vec<u8>, tag: u32, map: &Value, write: impl Fn(&mut Vec<u8>, &Value)) {
    for (name, value) in map.as_object().into_iter().flatten() {
        message(out, tag, |out| {
            bytes(out, 1, name.as_bytes());
            message(out, 2, |out| write(out, value));
        });
    }
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(out: &mut Vec<u8>, tag: u32, value: &Value) {
    if let Some(text) = value.as_str() {
        bytes(out, tag, text.as_bytes());
    }
}

fn texts(out: &mut Vec<u8>, tag: u32, value: &Value) {
    items(value).for_each(|item| text(out, tag, item));
}

fn boolean(out: &mut Vec<u8>, tag: u32, value: &Value) {
    if value == &Value::Bool(true) {
        number(out, tag, 1);
    }
}

fn integer(out: &mut Vec<u8>, tag: u32, value: &Value) {
    if let Some(n) = value.as_i64() {
        number(out, tag, n as u64);
    }
}

fn double(out: &mut Vec<u8>, tag: u32, value: &Value) {
    if let Some(n) = value.as_f64() {
        key(out, tag, 1);
        out.extend_from_slice(&n.to_le_bytes());
    }
}

/// Any value: JSON text in the place of YAML, which contains it.
fn any(out: &mut Vec<u8>, tag: u32, value: &Value) {
    if !value.is_null() {
        message(out, tag, |out| bytes(out, 2, value.to_string().as_bytes()));
    }
}

fn extensions(out: &mut Vec<u8>, tag: u32, value: &Value) {
    for (name, value) in value.as_object().into_iter().flatten().filter(|(name, _)| name.starts_with("x-")) {
        message(out, tag, |out| {
            bytes(out, 1, name.as_bytes());
            any(out, 2, value);
        });
    }
}

fn path(out: &mut Vec<u8>, item: &Value) {
    for (tag, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (6, "options"), (7, "head"), (8, "patch")]
    {
        if let Some(value) = item.get(method) {
            message(out, tag, |out| operation(out, value));
        }
    }
    items(&item["parameters"]).for_each(|value| parameter(out, 9, value));
}

fn operation(out: &mut Vec<u8>, value: &Value) {
    texts(out, 1, &value["tags"]);
    text(out, 3, &value["description"]);
    text(out, 5, &value["operationId"]);
    texts(out, 6, &value["produces"]);
    texts(out, 7, &value["consumes"]);
    items(&value["parameters"]).for_each(|value| parameter(out, 8, value));
    message(out, 9, |out| {
        named(out, 1, &value["responses"], |out, response| {
            message(out, 1, |out| {
                text(out, 1, &response["description"]);
                if let Some(value) = response.get("schema") {
                    message(out, 2, |out| message(out, 1, |out| schema(out, value)));
                }
            });
        });
    });
    texts(out, 10, &value["schemes"]);
    extensions(out, 13, value);
}

/// A parameter as an item of a list of parameters or references.
fn parameter(out: &mut Vec<u8>, tag: u32, value: &Value) {
    message(out, tag, |out| {
        message(out, 1, |out| match value["in"].as_str() {
            Some("body") => message(out, 1, |out| {
                text(out, 1, &value["description"]);
                text(out, 2, &value["name"]);
                text(out, 3, &value["in"]);
                boolean(out, 4, &value["required"]);
                message(out, 5, |out| schema(out, &value["schema"]));
            }),
            place => message(out, 2, |out| {
                // Path and query parameters have the same fields at shifted numbers.
                let (kind, ty, unique) = if place == Some("path") { (4, 5, 19) } else { (3, 6, 20) };
                message(out, kind, |out| {
                    boolean(out, 1, &value["required"]);
                    text(out, 2, &value["in"]);
                    text(out, 3, &value["description"]);
                    text(out, 4, &value["name"]);
                    text(out, ty, &value["type"]);
                    boolean(out, unique, &value["uniqueItems"]);
                });
            }),
        });
    });
}

fn schema(out: &mut Vec<u8>, value: &Value) {
    text(out, 1, &value["$ref"]);
    text(out, 2, &value["format"]);
    text(out, 3, &value["title"]);
    text(out, 4, &value["description"]);
    any(out, 5, &value["default"]);
    double(out, 6, &value["multipleOf"]);
    double(out, 7, &value["maximum"]);
    boolean(out, 8, &value["exclusiveMaximum"]);
    double(out, 9, &value["minimum"]);
    boolean(out, 10, &value["exclusiveMinimum"]);
    integer(out, 11, &value["maxLength"]);
    integer(out, 12, &value["minLength"]);
    text(out, 13, &value["pattern"]);
    integer(out, 14, &value["maxItems"]);
    integer(out, 15, &value["minItems"]);
    boolean(out, 16, &value["uniqueItems"]);
    integer(out, 17, &value["maxProperties"]);
    integer(out, 18, &value["minProperties"]);
    texts(out, 19, &value["required"]);
    items(&value["enum"]).for_each(|value| any(out, 20, value));
    match &value["additionalProperties"] {
        Value::Null => {}
        Value::Bool(allowed) => message(out, 21, |out| number(out, 2, (*allowed).into())),
        inner => message(out, 21, |out| message(out, 1, |out| schema(out, inner))),
    }
    if value["type"].is_string() {
        message(out, 22, |out| text(out, 1, &value["type"]));
    }
    match &value["items"] {
        Value::Null => {}
        inner => message(out, 23, |out| message(out, 1, |out| schema(out, inner))),
    }
    items(&value["allOf"]).for_each(|value| message(out, 24, |out| schema(out, value)));
    if value["properties"].is_object() {
        message(out, 25, |out| named(out, 1, &value["properties"], schema));
    }
    extensions(out, 31, value);
}
