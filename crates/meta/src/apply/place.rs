//! A place in the schema as ownership sees it: what is one leaf, what is shared field by field or item by item, and how
//! a list's items are told apart.
//!
//! Below what the schema does not know, maps are shared by key and lists are leaves. Built-in structs behave as Go's
//! do: a struct inside a struct, and fields always written, exist from the start, so that nobody gains them by writing
//! what is inside.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::text;
use crate::schema::{ListKind, Presence, Scalar, Shape, View};

#[derive(Clone, Copy)]
pub struct Place<'s> {
    /// None below what the schema does not know.
    view: Option<View<'s>>,
    /// Below a built-in struct, where any-JSON values are leaves.
    builtin: bool,
}

/// How a value is owned.
#[derive(Clone, Copy)]
pub enum Form<'s> {
    /// As a whole.
    Leaf,
    /// Field by field or key by key.
    Object,
    /// Item by item.
    List(Identity<'s>),
}

/// What tells a list's item from the others.
#[derive(Clone, Copy)]
pub enum Identity<'s> {
    Value,
    Keys(&'s [Arc<str>]),
}

impl<'s> Place<'s> {
    pub fn root(view: View<'s>) -> Self {
        let builtin = matches!(view.shape(), Shape::Struct(s) if !s.name.is_empty());
        Self { view: Some(view), builtin }
    }

    /// A built-in type, not a custom resource.
    pub fn is_builtin(self) -> bool {
        self.builtin
    }

    pub fn form(self, value: &Value) -> Form<'s> {
        let node = self.view.map(View::node);
        match (value, node) {
            (Value::Object(_), None) => Form::Object,
            (Value::Object(_), Some(node)) => match &node.shape {
                Shape::Struct(_) | Shape::Map { .. } if !node.atomic => Form::Object,
                _ => Form::Leaf,
            },
            (Value::Array(_), Some(node)) => match &node.shape {
                Shape::List { kind: ListKind::Set, .. } => Form::List(Identity::Value),
                Shape::List { kind: ListKind::Map { keys }, .. } => Form::List(Identity::Keys(keys)),
                _ => Form::Leaf,
            },
            _ => Form::Leaf,
        }
    }

    /// Whether the schema has it owned as a whole, whatever a set says that was written when it had not.
    pub fn is_atomic(self) -> bool {
        self.view.map(View::node).is_some_and(|node| match &node.shape {
            Shape::Struct(_) | Shape::Map { .. } => node.atomic,
            Shape::List { kind, .. } => *kind == ListKind::Atomic,
            Shape::Scalar(_) => false,
        })
    }

    /// The place a path element leads to.
    pub fn element_place(self, element: &str) -> Self {
        match element.strip_prefix("f:") {
            Some(name) => self.child(name),
            None => self.item(),
        }
    }

    /// Whether the schema names this field, other than as some key of a map.
    pub fn declares(self, name: &str) -> bool {
        self.view.is_some_and(|v| v.field_facts(name).is_some())
    }

    /// A struct that neither has this field nor keeps those it does not know.
    pub fn refuses(self, name: &str) -> bool {
        let Some(Shape::Struct(s)) = self.view.map(View::shape) else { return false };
        let embedded = s.embedded_resource && matches!(name, "apiVersion" | "kind" | "metadata");
        !s.preserve_unknown && !embedded && !self.declares(name)
    }

    fn at(self, view: Option<View<'s>>, builtin: bool) -> Self {
        let deduced = !builtin && view.is_some_and(|v| matches!(v.shape(), Shape::Scalar(Scalar::Any)));
        Self { view: view.filter(|_| !deduced), builtin }
    }

    pub fn child(self, name: &str) -> Self {
        let builtin = match self.view.map(View::shape) {
            Some(Shape::Struct(s)) => !s.name.is_empty(),
            _ => self.builtin,
        };
        self.at(self.view.and_then(|v| v.child(name)), builtin)
    }

    pub fn item(self) -> Self {
        self.at(self.view.and_then(View::item), self.builtin)
    }

    /// Whether Go's struct has this field even when JSON has not.
    pub fn always_has(self, name: &str) -> bool {
        let Some(view) = self.view else { return false };
        let Shape::Struct(s) = view.shape() else { return false };
        if s.name.is_empty() {
            return false;
        }
        view.field_facts(name).is_some_and(|field| match field.presence {
            Presence::Always => true,
            Presence::NonZero => matches!(view.of(field).shape(), Shape::Struct(_)),
            Presence::Pointer => false,
        })
    }

    /// The path element of an item; an error in upstream's words when it has none.
    pub fn element(self, identity: Identity<'_>, item: &Value) -> Result<String, String> {
        match identity {
            Identity::Value => match item {
                Value::Object(_) => Err("associative list without keys has an element that's a map type".into()),
                Value::Array(_) => Err("not supported: associative list with lists as elements".into()),
                Value::Null => Err("associative list without keys has an element that's an explicit null".into()),
                scalar => {
                    let mut out = String::from("v:");
                    text::value(scalar, &mut out);
                    Ok(out)
                }
            },
            Identity::Keys(keys) => {
                let item = match item {
                    Value::Object(item) => item,
                    Value::Null => return Err("associative list with keys may not have a null element".into()),
                    _ => return Err("associative list with keys may not have non-map elements".into()),
                };
                self.keys_element(keys, item)
            }
        }
    }

    fn keys_element(self, keys: &[Arc<str>], item: &Map<String, Value>) -> Result<String, String> {
        let inner = self.view.and_then(View::item);
        let mut found: Vec<(&str, Cow<'_, Value>)> = Vec::with_capacity(keys.len());
        for key in keys {
            let given = item.get(&**key).filter(|v| !v.is_null()).map(Cow::Borrowed);
            let value = given.or_else(|| default(inner?, key)).ok_or_else(|| {
                format!("associative list with keys has an element that omits key field {key:?} (and doesn't have default value)")
            })?;
            found.push((key, value));
        }
        found.sort_unstable_by(|a, b| a.0.cmp(b.0));
        let mut out = String::with_capacity(32);
        out.push_str("k:{");
        for (at, (name, value)) in found.iter().enumerate() {
            out.push_str(if at == 0 { "" } else { "," });
            text::quote(name, &mut out);
            out.push(':');
            text::value(value, &mut out);
        }
        out.push('}');
        Ok(out)
    }
}

/// What a key is when an item does not say: its default, or Go's zero value of a field that is always written.
fn default<'s>(item: View<'s>, key: &str) -> Option<Cow<'s, Value>> {
    let Shape::Struct(s) = item.shape() else { return None };
    let field = item.field_facts(key)?;
    if let Some(default) = &field.default {
        return Some(Cow::Borrowed(&**default));
    }
    if s.name.is_empty() || field.presence != Presence::Always {
        return None;
    }
    match item.of(field).shape() {
        Shape::Scalar(Scalar::String) => Some(Cow::Owned("".into())),
        Shape::Scalar(Scalar::Int32 | Scalar::Int64) => Some(Cow::Owned(0.into())),
        _ => None,
    }
}

/// The path element of a field or map key.
pub fn field_element(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 2);
    out.push_str("f:");
    out.push_str(name);
    out
}
