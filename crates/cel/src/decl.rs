//! The shape of data an expression sees: a CRD's structural schema as CEL knows it.
//!
//! Follows `k8s.io/apiserver/pkg/cel/common`: which schemas are visible, how names are escaped, and how large values may
//! grow, from which costs are estimated. The estimates decide which rules a definition may have, so they are upstream's.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value as Json};

use crate::parse::RESERVED;
use crate::types::{Provider, Type};

/// The largest request the estimates assume, whatever the server takes.
pub const MAX_REQUEST_BYTES: i64 = 3 * 1024 * 1024;
/// The longest `metadata.name`.
const MAX_NAME: u64 = 253;

/// A value's declared shape.
#[derive(Debug)]
pub struct Decl {
    pub shape: Shape,
    /// Most items, entries or characters.
    pub max_elements: i64,
    /// Bytes of the smallest JSON of it.
    pub min_size: i64,
}

#[derive(Debug)]
pub enum Shape {
    Dyn,
    Bool,
    Int,
    Double,
    String,
    Bytes,
    Duration,
    Timestamp,
    List { item: Arc<Decl>, kind: ListKind },
    Map { value: Arc<Decl> },
    Object(Fields),
}

#[derive(Debug, PartialEq, Eq)]
pub enum ListKind {
    Atomic,
    Set,
    Map(Vec<String>),
}

#[derive(Debug, Default)]
pub struct Fields {
    /// The struct's name in messages.
    pub name: Arc<str>,
    /// By the name expressions use.
    pub escaped: BTreeMap<String, (Arc<str>, Arc<Decl>)>,
}

/// The name an expression uses for a property, if it can name it at all.
pub fn escape(name: &str) -> Option<String> {
    if matches!(name, "true" | "false" | "null" | "in") || RESERVED.contains(&name) {
        return Some(format!("__{name}__"));
    }
    let mut chars = name.chars();
    let first = chars.next()?;
    let fits = |c: char, first: bool| c == '_' || c.is_ascii_alphabetic() || (!first && c.is_ascii_digit());
    let special = |c: char| matches!(c, '.' | '-' | '/');
    if !(fits(first, true) || special(first)) || !chars.all(|c| fits(c, false) || special(c)) {
        return None;
    }
    Some(
        name.replace("__", "__underscores__")
            .replace('.', "__dot__")
            .replace('-', "__dash__")
            .replace('/', "__slash__"),
    )
}

fn number(schema: &Map<String, Json>, key: &str) -> Option<i64> {
    schema.get(key).and_then(Json::as_i64).map(|v| v.max(0))
}

fn text<'s>(schema: &'s Map<String, Json>, key: &str) -> &'s str {
    schema.get(key).and_then(Json::as_str).unwrap_or_default()
}

/// A flag of a schema.
pub fn flag(schema: &Map<String, Json>, key: &str) -> bool {
    schema.get(key) == Some(&Json::Bool(true))
}

const STRING_MAX: i64 = MAX_REQUEST_BYTES - 2;

impl Decl {
    fn new(shape: Shape, max_elements: i64, min_size: i64) -> Arc<Self> {
        Arc::new(Self { shape, max_elements, min_size })
    }

    /// What any value of unknown shape is.
    pub fn any() -> Arc<Self> {
        Self::new(Shape::Dyn, STRING_MAX, 1)
    }

    fn capped(schema: Option<&Map<String, Json>>, cap: u64) -> Arc<Self> {
        let said = schema.and_then(|s| s.get("maxLength")).and_then(Json::as_u64).unwrap_or(cap).min(cap);
        Self::new(Shape::String, said as i64 * 4, 2)
    }

    /// The shape of a schema; `None` where it is invisible to expressions. `root` is that of a whole resource.
    pub fn of(schema: &Json, root: bool, name: &str) -> Option<Arc<Self>> {
        let schema = schema.as_object()?;
        if flag(schema, "x-kubernetes-int-or-string") {
            let max = number(schema, "maxLength").map_or(STRING_MAX, |m| m * 4);
            return Some(Self::new(Shape::Dyn, max, 1));
        }
        Some(match text(schema, "type") {
            "array" => {
                let items = schema.get("items")?;
                let embedded = items.as_object().is_some_and(|i| flag(i, "x-kubernetes-embedded-resource"));
                let item = Self::of(items, embedded, &format!("{name}.@idx"))?;
                let max = number(schema, "maxItems").unwrap_or((MAX_REQUEST_BYTES - 2) / (item.min_size + 1));
                let kind = match text(schema, "x-kubernetes-list-type") {
                    "set" => ListKind::Set,
                    "map" => {
                        let keys = schema.get("x-kubernetes-list-map-keys").and_then(Json::as_array);
                        ListKind::Map(keys.into_iter().flatten().filter_map(Json::as_str).map(Into::into).collect())
                    }
                    _ => ListKind::Atomic,
                };
                Self::new(Shape::List { item, kind }, max, 2)
            }
            "object" => return Self::object(schema, root, name),
            "string" => Self::string(schema),
            "boolean" => Self::new(Shape::Bool, 0, 4),
            "number" => Self::new(Shape::Double, 0, 1),
            "integer" => Self::new(Shape::Int, 0, 1),
            _ => return None,
        })
    }

    fn string(schema: &Map<String, Json>) -> Arc<Self> {
        let longest = schema.get("enum").and_then(Json::as_array).filter(|e| !e.is_empty());
        let longest = longest.map(|e| e.iter().filter_map(Json::as_str).map(|s| s.len() as i64).max().unwrap_or(0));
        match text(schema, "format") {
            "byte" => Self::new(Shape::Bytes, number(schema, "maxLength").unwrap_or(STRING_MAX), 2),
            "duration" => Self::new(Shape::Duration, 32, 3),
            "date" => Self::new(Shape::Timestamp, 12, 12),
            "date-time" => Self::new(Shape::Timestamp, 32, 21),
            _ => {
                let max = number(schema, "maxLength").map(|m| m * 4).or(longest).unwrap_or(STRING_MAX);
                Self::new(Shape::String, max, 2)
            }
        }
    }

    fn object(schema: &Map<String, Json>, root: bool, name: &str) -> Option<Arc<Self>> {
        if let Some(more) = schema.get("additionalProperties").filter(|m| m.is_object()) {
            let embedded = more.as_object().is_some_and(|m| flag(m, "x-kubernetes-embedded-resource"));
            let value = Self::of(more, embedded, &format!("{name}.@elem"))?;
            let max = number(schema, "maxProperties").unwrap_or((MAX_REQUEST_BYTES - 2) / (value.min_size + 6));
            return Some(Self::new(Shape::Map { value }, max, 2));
        }
        let required: Vec<&str> =
            schema.get("required").and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str).collect();
        let mut fields = Fields { name: name.into(), escaped: BTreeMap::new() };
        let mut min_size = 2;
        let mut add = |property: &str, decl: Arc<Decl>, defaulted: bool| {
            if required.contains(&property) && !defaulted {
                min_size += property.len() as i64 + decl.min_size + 4;
            }
            if let Some(escaped) = escape(property) {
                fields.escaped.insert(escaped, (property.into(), decl));
            }
        };
        let properties = schema.get("properties").and_then(Json::as_object);
        for (property, inner) in properties.into_iter().flatten() {
            if root && matches!(&**property, "apiVersion" | "kind" | "metadata") {
                continue;
            }
            let facts = inner.as_object();
            let embedded = facts.is_some_and(|i| flag(i, "x-kubernetes-embedded-resource"));
            if let Some(decl) = Self::of(inner, embedded, &format!("{name}.{}", escape(property).unwrap_or_default())) {
                let default = facts.and_then(|f| f.get("default")).is_some_and(|d| !d.is_null());
                add(property, decl, default);
            }
        }
        if root {
            for property in ["apiVersion", "kind"] {
                add(property, Self::new(Shape::String, STRING_MAX, 2), false);
            }
            let own = properties.and_then(|p| p.get("metadata")?.get("properties")?.as_object());
            let mut metadata = Fields { name: format!("{name}.metadata").into(), escaped: BTreeMap::new() };
            for (field, cap) in [("name", MAX_NAME), ("generateName", MAX_NAME - 1)] {
                let capped = Self::capped(own.and_then(|o| o.get(field)?.as_object()), cap);
                metadata.escaped.insert(field.into(), (field.into(), capped));
            }
            add("metadata", Self::new(Shape::Object(metadata), 0, 2), false);
        }
        Some(Self::new(Shape::Object(fields), 0, min_size))
    }

    /// An object of given fields: a request, a namespace. Expressions name them as they are: only what users name is escaped.
    pub fn with_fields(name: &str, fields: impl IntoIterator<Item = (&'static str, Arc<Decl>)>) -> Arc<Self> {
        let escaped = fields.into_iter().map(|(f, d)| (f.into(), (f.into(), d))).collect();
        Self::new(Shape::Object(Fields { name: name.into(), escaped }), 0, 2)
    }

    /// A list or map (with string keys) of values of one shape, and leaves.
    pub fn leaf(shape: Shape) -> Arc<Self> {
        Self::new(shape, -1, 1)
    }

    pub fn ty(&self) -> Type {
        match &self.shape {
            Shape::Dyn => Type::Dyn,
            Shape::Bool => Type::Bool,
            Shape::Int => Type::Int,
            Shape::Double => Type::Double,
            Shape::String => Type::String,
            Shape::Bytes => Type::Bytes,
            Shape::Duration => Type::Duration,
            Shape::Timestamp => Type::Timestamp,
            Shape::List { item, .. } => Type::list(item.ty()),
            Shape::Map { value } => Type::map(Type::String, value.ty()),
            Shape::Object(fields) => Type::Struct(fields.name.clone()),
        }
    }

    /// The declared shape of what is below: a property by its escaped name, an item, a value.
    pub fn below(&self, step: &str) -> Option<&Arc<Decl>> {
        match (&self.shape, step) {
            (Shape::List { item, .. }, "@items") => Some(item),
            (Shape::Map { value }, "@values" | "@items") => Some(value),
            (Shape::Object(fields), name) => fields.escaped.get(name).map(|f| &f.1),
            _ => None,
        }
    }

    fn structs<'d>(&'d self, into: &mut BTreeMap<Arc<str>, &'d Fields>) {
        match &self.shape {
            Shape::List { item, .. } => item.structs(into),
            Shape::Map { value } => value.structs(into),
            Shape::Object(fields) => {
                into.insert(fields.name.clone(), fields);
                fields.escaped.values().for_each(|(_, decl)| decl.structs(into));
            }
            _ => {}
        }
    }
}

/// The structs of some declared shapes.
#[derive(Default)]
pub struct Structs {
    fields: BTreeMap<Arc<str>, BTreeMap<String, Type>>,
}

impl Structs {
    pub fn of<'d>(decls: impl IntoIterator<Item = &'d Decl>) -> Self {
        let mut all = BTreeMap::new();
        for decl in decls {
            decl.structs(&mut all);
        }
        let typed = |f: &Fields| f.escaped.iter().map(|(name, (_, decl))| (name.clone(), decl.ty())).collect();
        Self { fields: all.into_iter().map(|(name, fields)| (name, typed(fields))).collect() }
    }

    /// Adds a struct, or replaces it.
    pub fn insert(&mut self, name: &str, fields: BTreeMap<String, Type>) {
        self.fields.insert(name.into(), fields);
    }
}

impl Provider for Structs {
    fn field(&self, name: &str, field: &str) -> Option<Type> {
        self.fields.get(name)?.get(field).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped() {
        for (name, expect) in [
            ("a", Some("a")),
            ("namespace", Some("__namespace__")),
            ("a-b.c/d", Some("a__dash__b__dot__c__slash__d")),
            ("a__b", Some("a__underscores__b")),
            ("$ref", None),
            ("1a", None),
            ("", None),
        ] {
            assert_eq!(escape(name).as_deref(), expect, "{name}");
        }
    }
}
