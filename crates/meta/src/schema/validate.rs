//! Whether a custom object keeps to its CRD's schema; complaints as upstream words them.
//!
//! Walks value and schema together below the inline objects of CRDs; built-in structs (metadata) were checked on
//! decoding. CEL rules are not run here: they lie in the constraints for whoever runs them.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::coerce::{Path, Step};
use super::structural::JUNCTORS;
use super::{ListKind, Scalar, Shape, Types, View};
use crate::{FieldError, FieldPath};

mod format;

/// Complaints kept of one object: an answer nobody could read is cut here.
const MAX_ERRORS: usize = 256;

/// Everything wrong with a value; `path` is where it stands (the root for whole objects).
pub fn validate(view: View<'_>, value: &Value, path: &FieldPath) -> Vec<FieldError> {
    validate_with(view, value, path, |_| Vec::new())
}

/// What is wrong with an object's metadata, which this room knows nothing of.
pub type Metadata = fn(&Value) -> Vec<FieldError>;

/// The same; `metadata` judges the metadata of objects within the object.
pub fn validate_with(view: View<'_>, value: &Value, path: &FieldPath, metadata: Metadata) -> Vec<FieldError> {
    let mut check = Check { types: view.types, base: path, errors: Vec::new(), metadata };
    check.node(view, value, &Path { parent: None, step: Step::Root });
    check.errors
}

struct Check<'c> {
    types: &'c Types,
    base: &'c FieldPath,
    errors: Vec<FieldError>,
    metadata: Metadata,
}

impl Check<'_> {
    fn at(&self, path: &Path<'_>) -> FieldPath {
        let text = path.text();
        match (self.base == &FieldPath::root(), text.is_empty()) {
            (true, _) => FieldPath::new(&text),
            (false, true) => self.base.clone(),
            (false, false) if text.starts_with('[') => FieldPath::new(&format!("{}{text}", self.base)),
            (false, false) => self.base.child(&text),
        }
    }

    fn push(&mut self, error: FieldError) {
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(error);
        }
    }

    /// `NAME in body WHY`, about a value.
    fn invalid(&mut self, path: &Path<'_>, value: &Value, why: &str) {
        let error = FieldError::invalid(&self.at(path), value.clone(), format!("{} in body {why}", path.text()));
        self.push(error);
    }

    fn type_invalid(&mut self, path: &Path<'_>, wanted: &str, found: &str) {
        let why = format!("{} in body must be of type {wanted}: {found:?}", path.text());
        let error = FieldError::type_invalid(&self.at(path), found, why);
        self.push(error);
    }

    fn node(&mut self, view: View<'_>, value: &Value, path: &Path<'_>) {
        let node = view.node();
        if value.is_null() && node.nullable {
            return;
        }
        match (&node.shape, value) {
            (Shape::Struct(s), _) if !s.name.is_empty() => return,
            (Shape::Struct(s), Value::Object(map)) => {
                for field in &s.fields {
                    let path = Path { parent: Some(path), step: Step::Field(&field.name, "") };
                    match map.get(&*field.name) {
                        Some(value) => self.node(view.of(field), value, &path),
                        None if field.required => {
                            let error = FieldError::required(&self.at(&path), "");
                            self.push(error);
                        }
                        None => {}
                    }
                }
                if s.embedded_resource {
                    self.embedded(value, map, path);
                }
            }
            (Shape::Map { .. }, Value::Object(map)) => {
                for (key, value) in map {
                    if let Some(inner) = view.child(key) {
                        self.node(inner, value, &Path { parent: Some(path), step: Step::Key(key) });
                    }
                }
            }
            (Shape::List { kind, .. }, Value::Array(items)) => {
                if let Some(inner) = view.item() {
                    for (at, value) in items.iter().enumerate() {
                        self.node(inner, value, &Path { parent: Some(path), step: Step::Index(at) });
                    }
                }
                self.unique(kind, items, path);
            }
            (Shape::Scalar(scalar), value) => {
                if let Some(wanted) = misfit(*scalar, value) {
                    return self.type_invalid(path, wanted, type_name(value));
                }
            }
            (Shape::List { .. }, value) => return self.type_invalid(path, "array", type_name(value)),
            (_, value) => return self.type_invalid(path, "object", type_name(value)),
        }
        if !node.enumeration.is_empty() {
            self.enumeration(&node.enumeration, value, path);
        }
        if !node.format.is_empty() {
            self.format(&node.format, value, path);
        }
        if let Some(Value::Object(constraints)) = node.constraints.as_deref() {
            self.constraints(constraints, value, path);
        }
    }

    fn embedded(&mut self, value: &Value, map: &Map<String, Value>, path: &Path<'_>) {
        for name in ["apiVersion", "kind"] {
            let at = self.at(&Path { parent: Some(path), step: Step::Key(name) });
            let said = map.get(name).and_then(Value::as_str).unwrap_or_default();
            let wrong = match name {
                _ if said.is_empty() => {
                    self.push(FieldError::required(&at, "must not be empty"));
                    continue;
                }
                "kind" => crate::formats::dns_1035_label(&said.to_ascii_lowercase()).join(","),
                _ if said.matches('/').count() > 1 => {
                    self.push(FieldError::invalid(&at, said, format!("unexpected GroupVersion string: {said}")));
                    continue;
                }
                _ => String::new(),
            };
            if !wrong.is_empty() {
                let why = format!("may have mixed case, but should otherwise match: {wrong}");
                self.push(FieldError::invalid(&at, said, why));
            }
        }
        if map.get("metadata").is_some_and(Value::is_object) {
            let at = self.at(path);
            for error in (self.metadata)(value) {
                self.push(FieldError { field: format!("{at}.{}", error.field), ..error });
            }
        }
    }

    /// Sets and maps have no item twice.
    fn unique(&mut self, kind: &ListKind, items: &[Value], path: &Path<'_>) {
        let mut seen = HashSet::new();
        for (at, item) in items.iter().enumerate() {
            let key = match kind {
                ListKind::Atomic => return,
                ListKind::Set => item.clone(),
                ListKind::Map { keys } => {
                    let keys = keys.iter().filter_map(|k| Some((k.to_string(), item.get(&**k)?.clone())));
                    Value::Object(keys.collect())
                }
            };
            if !seen.insert(key.to_string()) {
                let at = self.at(&Path { parent: Some(path), step: Step::Index(at) });
                self.push(FieldError::duplicate(&at, key));
            }
        }
    }

    fn enumeration(&mut self, allowed: &[Value], value: &Value, path: &Path<'_>) {
        if !allowed.iter().any(|a| same(a, value)) {
            let texts: Vec<String> =
                allowed.iter().map(|a| a.as_str().map_or_else(|| a.to_string(), Into::into)).collect();
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let error = FieldError::not_supported(&self.at(path), value.clone(), &texts);
            self.push(error);
        }
    }

    fn format(&mut self, format: &str, value: &Value, path: &Path<'_>) {
        if let Value::String(text) = value
            && !format::matches(format, text)
        {
            let why = format!("{} in body must be of type {format}: {text:?}", path.text());
            let error = FieldError::type_invalid(&self.at(path), text.as_str(), why);
            self.push(error);
        }
    }

    /// The keywords of a JSON schema that [`super::Node`] has no fields for.
    fn constraints(&mut self, schema: &Map<String, Value>, value: &Value, path: &Path<'_>) {
        match value {
            Value::Number(_) => self.number(schema, value, path),
            Value::String(text) => self.string(schema, text, value, path),
            Value::Array(items) => {
                if let Some(max) = limit(schema, "maxItems").filter(|max| items.len() > *max) {
                    let error = FieldError::too_many(&self.at(path), items.len(), max);
                    self.push(error);
                }
                if let Some(min) = limit(schema, "minItems").filter(|min| items.len() < *min) {
                    self.invalid(path, &items.len().into(), &format!("should have at least {min} items"));
                }
                if schema.get("uniqueItems") == Some(&Value::Bool(true)) {
                    let mut seen = HashSet::new();
                    if !items.iter().all(|item| seen.insert(item.to_string())) {
                        self.invalid(path, &Value::from(""), "shouldn't contain duplicates");
                    }
                }
            }
            Value::Object(map) => {
                if let Some(max) = limit(schema, "maxProperties").filter(|max| map.len() > *max) {
                    let error = FieldError::too_many(&self.at(path), map.len(), max);
                    self.push(error);
                }
                if let Some(min) = limit(schema, "minProperties").filter(|min| map.len() < *min) {
                    self.invalid(path, &map.len().into(), &format!("should have at least {min} properties"));
                }
            }
            _ => {}
        }
        self.parts(schema, value, path);
        self.junctions(schema, value, path);
    }

    fn number(&mut self, schema: &Map<String, Value>, value: &Value, path: &Path<'_>) {
        let Some(number) = value.as_f64() else { return };
        let bound = |key: &str| Some((schema.get(key)?, schema.get(key)?.as_f64()?));
        let exclusive = |key: &str| schema.get(key) == Some(&Value::Bool(true));
        if let Some((shown, max)) = bound("maximum") {
            if exclusive("exclusiveMaximum") && number >= max {
                self.invalid(path, value, &format!("should be less than {shown}"));
            } else if number > max {
                self.invalid(path, value, &format!("should be less than or equal to {shown}"));
            }
        }
        if let Some((shown, min)) = bound("minimum") {
            if exclusive("exclusiveMinimum") && number <= min {
                self.invalid(path, value, &format!("should be greater than {shown}"));
            } else if number < min {
                self.invalid(path, value, &format!("should be greater than or equal to {shown}"));
            }
        }
        if let Some((shown, factor)) = bound("multipleOf")
            && factor > 0.0
        {
            let quotient = number / factor;
            if (quotient - quotient.round()).abs() > f64::EPSILON * quotient.abs().max(1.0) {
                self.invalid(path, value, &format!("should be a multiple of {shown}"));
            }
        }
    }

    fn string(&mut self, schema: &Map<String, Value>, text: &str, value: &Value, path: &Path<'_>) {
        if schema.contains_key("maxLength") || schema.contains_key("minLength") {
            let length = text.chars().count();
            // Of a text, the first complaint is told.
            if let Some(max) = limit(schema, "maxLength").filter(|max| length > *max) {
                let error = FieldError::too_long(&self.at(path), max);
                return self.push(error);
            }
            if let Some(min) = limit(schema, "minLength").filter(|min| length < *min) {
                return self.invalid(path, value, &format!("should be at least {min} chars long"));
            }
        }
        if let Some(pattern) = schema.get("pattern").and_then(Value::as_str) {
            let matched = match self.types.patterns.get(pattern) {
                Some(regex) => regex.is_match(text),
                // Patterns are compiled with the schema; one that was not is of a schema made by other means.
                None => super::structural::go_regex(pattern).is_ok_and(|regex| regex.is_match(text)),
            };
            if !matched {
                self.invalid(path, value, &format!("should match '{pattern}'"));
            }
        }
    }

    /// Keywords about parts of the value, as schemas below `allOf` and its like have them.
    fn parts(&mut self, schema: &Map<String, Value>, value: &Value, path: &Path<'_>) {
        if let Value::Object(map) = value {
            for name in schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
            {
                if !map.contains_key(name) {
                    let at = self.at(&Path { parent: Some(path), step: Step::Key(name) });
                    self.push(FieldError::required(&at, ""));
                }
            }
            let properties = schema.get("properties").and_then(Value::as_object);
            for (name, inner) in properties.into_iter().flatten() {
                if let (Value::Object(inner), Some(value)) = (inner, map.get(name)) {
                    self.raw(inner, value, &Path { parent: Some(path), step: Step::Key(name) });
                }
            }
            match schema.get("additionalProperties") {
                Some(Value::Object(inner)) => {
                    for (name, value) in map.iter().filter(|(n, _)| properties.is_none_or(|p| !p.contains_key(*n))) {
                        self.raw(inner, value, &Path { parent: Some(path), step: Step::Key(name) });
                    }
                }
                Some(Value::Bool(false)) => {
                    for name in map.keys().filter(|n| properties.is_none_or(|p| !p.contains_key(*n))) {
                        let why = format!("{}.{name} in body is a forbidden property", path.text());
                        let error = FieldError::invalid(&self.at(path), "", why);
                        self.push(error);
                    }
                }
                _ => {}
            }
        }
        if let (Value::Array(items), Some(Value::Object(inner))) = (value, schema.get("items")) {
            for (at, value) in items.iter().enumerate() {
                self.raw(inner, value, &Path { parent: Some(path), step: Step::Index(at) });
            }
        }
    }

    /// A whole JSON schema that is no node.
    fn raw(&mut self, schema: &Map<String, Value>, value: &Value, path: &Path<'_>) {
        if value.is_null() && schema.get("nullable") == Some(&Value::Bool(true)) {
            return;
        }
        if let Some(wanted) = schema.get("type").and_then(Value::as_str).filter(|t| !t.is_empty()) {
            let found = type_name(value);
            let whole = value.as_f64().is_some_and(|n| n.fract() == 0.0);
            if found != wanted && !(wanted == "number" && found == "integer") && !(wanted == "integer" && whole) {
                return self.type_invalid(path, wanted, found);
            }
        }
        if let Some(allowed) = schema.get("enum").and_then(Value::as_array) {
            self.enumeration(allowed, value, path);
        }
        if let Some(format) = schema.get("format").and_then(Value::as_str) {
            self.format(format, value, path);
        }
        self.constraints(schema, value, path);
    }

    /// What a schema finds wrong, apart.
    fn trial(&self, schema: &Value, value: &Value, path: &Path<'_>) -> Vec<FieldError> {
        let mut check = Check { types: self.types, base: self.base, errors: Vec::new(), metadata: self.metadata };
        if let Value::Object(schema) = schema {
            check.raw(schema, value, path);
        }
        check.errors
    }

    fn junctions(&mut self, schema: &Map<String, Value>, value: &Value, path: &Path<'_>) {
        let complain = |check: &mut Self, text: String| {
            let error = FieldError::invalid(check.base, "", text);
            check.push(error);
        };
        for key in JUNCTORS {
            let Some(schemas) = schema.get(*key).and_then(Value::as_array).filter(|s| !s.is_empty()) else { continue };
            let trials: Vec<Vec<FieldError>> = schemas.iter().map(|s| self.trial(s, value, path)).collect();
            let valid = trials.iter().filter(|t| t.is_empty()).count();
            let closest = || trials.iter().min_by_key(|t| t.len()).cloned().unwrap_or_default();
            let name = path.text();
            match *key {
                "anyOf" if valid == 0 => {
                    complain(self, format!("{name:?} must validate at least one schema (anyOf)"));
                    closest().into_iter().for_each(|e| self.push(e));
                }
                "oneOf" if valid == 0 => {
                    complain(self, format!("{name:?} must validate one and only one schema (oneOf). Found none valid"));
                    closest().into_iter().for_each(|e| self.push(e));
                }
                "oneOf" if valid > 1 => {
                    complain(
                        self,
                        format!(
                            "{name:?} must validate one and only one schema (oneOf). Found {valid} valid alternatives"
                        ),
                    );
                }
                "allOf" if valid < schemas.len() => {
                    trials.into_iter().flatten().for_each(|e| self.push(e));
                    let none = if valid == 0 { ". None validated" } else { "" };
                    complain(self, format!("{name:?} must validate all the schemas (allOf){none}"));
                }
                _ => {}
            }
        }
        if let Some(not) = schema.get("not").filter(|n| n.is_object())
            && self.trial(not, value, path).is_empty()
        {
            complain(self, format!("{:?} must not validate the schema (not)", path.text()));
        }
    }
}

fn limit(schema: &Map<String, Value>, key: &str) -> Option<usize> {
    usize::try_from(schema.get(key)?.as_u64()?).ok()
}

/// Equal as JSON: `1` and `1.0` are the same number.
fn same(a: &Value, b: &Value) -> bool {
    a == b || matches!((a, b), (Value::Number(a), Value::Number(b)) if a.as_f64() == b.as_f64())
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// The type a leaf should have been of.
fn misfit(scalar: Scalar, value: &Value) -> Option<&'static str> {
    let (fits, wanted) = match scalar {
        Scalar::String => (value.is_string(), "string"),
        Scalar::Boolean => (value.is_boolean(), "boolean"),
        Scalar::Int64 => (value.as_f64().is_some_and(|n| n.fract() == 0.0), "integer"),
        Scalar::Float64 => (value.is_number(), "number"),
        Scalar::IntOrString => (value.is_string() || value.is_i64() || value.is_u64(), "integer,string"),
        _ => (true, ""),
    };
    (!fits).then_some(wanted)
}
