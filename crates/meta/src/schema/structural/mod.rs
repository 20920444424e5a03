//! CRD schemas: an `openAPIV3Schema` becomes a [`Schema`], if it is structural.
//!
//! The result runs on the same engine as the built-in kinds: pruned, defaulted, applied and validated by the same walks. What the graph
//! has no words for (bounds, patterns, `allOf` and its like, CEL rules) stays in [`Node::constraints`] for [`super::validate`].
//! The object's own metadata is the built-in `ObjectMeta`. Names, versions and the rest of a CRD are not looked at here.

mod import;
mod pattern;
mod rules;

use std::collections::HashMap;
use std::sync::Arc;

use regex::Regex;
use serde_json::{Map, Value};

use super::{Field, ListKind, Node, PatchStrategy, Scalar, Schema, Shape, Struct, TypeId, Types, View};
use crate::decode::Issues;
use crate::{FieldError, FieldPath};

/// Keywords that stay in a node's constraints.
const CONSTRAINTS: &[&str] = &[
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "pattern",
    "minItems",
    "maxItems",
    "uniqueItems",
    "minProperties",
    "maxProperties",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "x-kubernetes-validations",
];

/// The keywords that combine schemas.
pub(crate) const JUNCTORS: &[&str] = &["allOf", "anyOf", "oneOf"];

/// Builds the schema of a CRD's objects. `path` is where the schema stands in the CRD, for complaints
/// (`spec.versions[0].schema.openAPIV3Schema`).
pub fn build(schema: &Value, path: &FieldPath) -> Result<Schema, Vec<FieldError>> {
    let Value::Object(map) = schema else {
        return Err(vec![FieldError::required(path, "schemas are required")]);
    };
    let mut errors = Vec::new();
    rules::check(map, path, rules::Place::Root, &mut errors);
    if !errors.is_empty() {
        return Err(errors);
    }
    let mut builder = Builder::default();
    let root = builder.node(map, true);
    let patterns = pattern::compile(schema, path).map_err(|e| vec![e])?;
    builder.types.patterns = patterns;
    let types = Arc::new(builder.types);
    let schema = Schema { types, root };
    check_defaults(schema.root(), path, &mut errors);
    if errors.is_empty() { Ok(schema) } else { Err(errors) }
}

/// The schema of objects about which nothing is known but their metadata.
pub fn open() -> Schema {
    let mut builder = Builder::default();
    let mut map = Map::new();
    map.insert("type".into(), "object".into());
    map.insert("x-kubernetes-preserve-unknown-fields".into(), true.into());
    let root = builder.node(&map, true);
    Schema { types: Arc::new(builder.types), root }
}

#[derive(Default)]
struct Builder {
    types: Types,
    /// Built-in nodes already here.
    imported: HashMap<TypeId, TypeId>,
    words: HashMap<String, Arc<str>>,
}

impl Builder {
    fn push(&mut self, node: Node) -> TypeId {
        self.types.nodes.push(node);
        TypeId(self.types.nodes.len() as u32 - 1)
    }

    fn word(&mut self, word: &str) -> Arc<str> {
        if let Some(known) = self.words.get(word) {
            return known.clone();
        }
        let new: Arc<str> = word.into();
        self.words.insert(word.to_string(), new.clone());
        new
    }

    fn node(&mut self, schema: &Map<String, Value>, root: bool) -> TypeId {
        let said = |key: &str| schema.get(key) == Some(&Value::Bool(true));
        let text = |key: &str| schema.get(key).and_then(Value::as_str).unwrap_or_default();
        let open = said("x-kubernetes-preserve-unknown-fields");
        let embedded = said("x-kubernetes-embedded-resource");
        let shape = if said("x-kubernetes-int-or-string") {
            Shape::Scalar(Scalar::IntOrString)
        } else {
            match text("type") {
                "string" => Shape::Scalar(Scalar::String),
                "boolean" => Shape::Scalar(Scalar::Boolean),
                "integer" => Shape::Scalar(Scalar::Int64),
                "number" => Shape::Scalar(Scalar::Float64),
                "array" => self.list(schema),
                "object" => self.object(schema, root, open, embedded),
                _ => Shape::Scalar(Scalar::Any),
            }
        };
        let mut constraints: Map<String, Value> = CONSTRAINTS
            .iter()
            .filter_map(|key| Some(((*key).to_string(), schema.get(*key).filter(|v| !v.is_null())?.clone())))
            .collect();
        if root && let Some(metadata) = schema.get("properties").and_then(|p| p.get("metadata")) {
            // What a CRD says of names is checked, although metadata has its own schema.
            constraints.insert("properties".into(), serde_json::json!({"metadata": metadata}));
        }
        // Required fields that no field stands for are required all the same.
        let declared = |name: &str| matches!(&shape, Shape::Struct(s) if s.fields.iter().any(|f| &*f.name == name));
        let undeclared: Vec<&str> = strings(schema, "required").filter(|name| !declared(name)).collect();
        if !undeclared.is_empty() {
            constraints.insert("required".into(), undeclared.into());
        }
        let node = Node {
            shape,
            atomic: text("x-kubernetes-map-type") == "atomic",
            nullable: said("nullable"),
            enumeration: schema.get("enum").and_then(Value::as_array).cloned().unwrap_or_default(),
            format: self.word(text("format")),
            wrapped: false,
            constraints: (!constraints.is_empty()).then(|| Arc::new(Value::Object(constraints))),
        };
        self.push(node)
    }

    fn list(&mut self, schema: &Map<String, Value>) -> Shape {
        let item = match schema.get("items") {
            Some(Value::Object(items)) => self.node(items, false),
            _ => self.any(),
        };
        let kind = match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
            Some("set") => ListKind::Set,
            Some("map") => {
                ListKind::Map { keys: strings(schema, "x-kubernetes-list-map-keys").map(|k| self.word(k)).collect() }
            }
            _ => ListKind::Atomic,
        };
        Shape::List { item, kind, patch: PatchStrategy::default() }
    }

    fn any(&mut self) -> TypeId {
        self.push(Node::from(Shape::Scalar(Scalar::Any)))
    }

    fn object(&mut self, schema: &Map<String, Value>, root: bool, open: bool, embedded: bool) -> Shape {
        let properties = schema.get("properties").and_then(Value::as_object);
        if properties.is_none_or(Map::is_empty) && !root && !embedded {
            match schema.get("additionalProperties") {
                Some(Value::Object(value)) => return Shape::Map { value: self.node(value, false) },
                Some(Value::Bool(true)) => return Shape::Map { value: self.any() },
                _ => {}
            }
        }
        let required: Vec<&str> = strings(schema, "required").collect();
        let mut fields = Vec::new();
        for (name, property) in properties.into_iter().flatten() {
            let Value::Object(property) = property else { continue };
            if (root || embedded) && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
                continue;
            }
            let node = self.node(property, false);
            let default = property.get("default").filter(|d| !d.is_null()).cloned().map(Arc::new);
            fields.push(Field {
                name: self.word(name),
                node,
                required: required.contains(&name.as_str()),
                default,
                ..Field::default()
            });
        }
        if root || embedded {
            let text = self.push(Node::from(Shape::Scalar(Scalar::String)));
            for name in ["apiVersion", "kind"] {
                fields.push(Field {
                    name: self.word(name),
                    node: text,
                    required: required.contains(&name),
                    ..Field::default()
                });
            }
            let node = self.object_meta();
            let name = self.word("metadata");
            fields.push(Field { required: required.contains(&"metadata"), name, node, ..Field::default() });
        }
        let fields = fields.into();
        Shape::Struct(Struct { fields, preserve_unknown: open, embedded_resource: embedded, ..Struct::default() })
    }
}

fn strings<'s>(schema: &'s Map<String, Value>, key: &str) -> impl Iterator<Item = &'s str> {
    schema.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

/// Defaults must be what they default: known fields of the right types.
fn check_defaults(view: View<'_>, path: &FieldPath, errors: &mut Vec<FieldError>) {
    match view.shape() {
        Shape::Struct(s) if s.name.is_empty() => {
            for field in &s.fields {
                let inner = view.of(field);
                let path = path.child("properties").key(&field.name);
                if let Some(default) = &field.default {
                    let path = path.child("default");
                    let (mut pruned, mut issues) = (Value::clone(default), Issues::default());
                    match super::prune(inner, &mut pruned, &mut issues) {
                        Err(e) => errors.push(FieldError::invalid(&path, Value::clone(default), e.to_string())),
                        Ok(()) if !issues.is_empty() => {
                            errors.push(FieldError::invalid(
                                &path,
                                Value::clone(default),
                                "must not have unknown fields",
                            ));
                        }
                        Ok(()) => {
                            super::default(inner, &mut pruned);
                            errors.extend(super::validate(inner, &pruned, &path));
                        }
                    }
                }
                check_defaults(inner, &path, errors);
            }
        }
        Shape::Map { .. } => {
            if let Some(inner) = view.child("") {
                check_defaults(inner, &path.child("additionalProperties"), errors);
            }
        }
        Shape::List { .. } => {
            if let Some(inner) = view.item() {
                check_defaults(inner, &path.child("items"), errors);
            }
        }
        _ => {}
    }
}

/// Compiles a pattern written for Go's regular expressions.
pub(crate) fn go_regex(pattern: &str) -> Result<Regex, String> {
    pattern::go_regex(pattern)
}

#[cfg(test)]
mod tests;
