//! Reading and touching up JSON trees by dotted path.
//!
//! What strategies, columns and validation say about objects is said in these few words. Absent and `null` are the same;
//! a value of another type reads as absent (the schema has complained before a strategy sees it). Paths name object
//! fields only, never list items.

use std::sync::LazyLock;

use crate::Value;
use serde_json::Map;

static EMPTY: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);

pub trait Tree {
    /// The value at a path; `null` when there is none.
    fn at(&self, path: &str) -> &Value;
    /// The string at a path; empty when there is none.
    fn text(&self, path: &str) -> &str;
    /// The whole number at a path, if any.
    fn number(&self, path: &str) -> Option<i64>;
    /// The whole number at a path; 0 when there is none.
    fn int(&self, path: &str) -> i64 {
        self.number(path).unwrap_or(0)
    }
    /// True only where the path holds `true`.
    fn flag(&self, path: &str) -> bool;
    /// The items at a path; none when there is no list.
    fn list(&self, path: &str) -> &[Value];
    /// The fields at a path; none when there is no object.
    fn map(&self, path: &str) -> &Map<String, Value>;
    /// Whether there is anything at a path.
    fn has(&self, path: &str) -> bool {
        !self.at(path).is_null()
    }
    /// The item of a list whose field has this text.
    fn find(&self, path: &str, key: &str, text: &str) -> Option<&Value> {
        self.list(path).iter().find(|item| item[key] == text)
    }

    /// The object at a path, made on the way.
    fn dig(&mut self, path: &str) -> &mut Map<String, Value>;
    /// Puts a value at a path, with the objects around it.
    fn put(&mut self, path: &str, value: impl Into<Value>);
    /// As `put`, where there is nothing yet.
    fn or_put(&mut self, path: &str, value: impl Into<Value>);
    /// Takes away what is at a path.
    fn drop(&mut self, path: &str);
    /// The items at a path, to change.
    fn list_mut(&mut self, path: &str) -> &mut [Value];
    /// The value at a path, to change; only if it is there and not null.
    fn at_mut(&mut self, path: &str) -> Option<&mut Value>;
    /// Makes the field at a path that of another tree, absence included.
    fn copy_from(&mut self, path: &str, other: &Value);
}

/// The names in a path. Validation asks for hundreds of paths for each object, most of them one short name, so this is
/// a loop over bytes rather than a search.
fn parts(path: &str) -> impl Iterator<Item = &str> {
    let mut rest = path;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            let end = rest.bytes().position(|b| b == b'.').unwrap_or(rest.len());
            let part = &rest[..end];
            rest = rest.get(end + 1..).unwrap_or_default();
            if !part.is_empty() {
                return Some(part);
            }
        }
        None
    })
}

impl Tree for Value {
    fn at(&self, path: &str) -> &Value {
        parts(path).try_fold(self, |at, part| at.as_object()?.get(part)).unwrap_or(&Value::Null)
    }

    fn text(&self, path: &str) -> &str {
        self.at(path).as_str().unwrap_or_default()
    }

    fn number(&self, path: &str) -> Option<i64> {
        self.at(path).as_i64()
    }

    fn flag(&self, path: &str) -> bool {
        self.at(path) == &Value::Bool(true)
    }

    fn list(&self, path: &str) -> &[Value] {
        self.at(path).as_array().map_or(&[], Vec::as_slice)
    }

    fn map(&self, path: &str) -> &Map<String, Value> {
        self.at(path).as_object().unwrap_or(&EMPTY)
    }

    fn dig(&mut self, path: &str) -> &mut Map<String, Value> {
        let mut at = self;
        for part in parts(path) {
            if !at.is_object() {
                *at = Value::Object(Map::new());
            }
            at = &mut at[part];
        }
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        match at {
            Value::Object(map) => map,
            // It was made an object just above.
            _ => unreachable!("an object"),
        }
    }

    fn put(&mut self, path: &str, value: impl Into<Value>) {
        let (parent, field) = path.rsplit_once('.').unwrap_or(("", path));
        self.dig(parent).insert(field.to_string(), value.into());
    }

    fn or_put(&mut self, path: &str, value: impl Into<Value>) {
        if !self.has(path) {
            self.put(path, value);
        }
    }

    fn drop(&mut self, path: &str) {
        let (parent, field) = path.rsplit_once('.').unwrap_or(("", path));
        if let Some(Value::Object(map)) = self.at_mut(parent) {
            map.remove(field);
        }
    }

    fn list_mut(&mut self, path: &str) -> &mut [Value] {
        match self.at_mut(path) {
            Some(Value::Array(items)) => items,
            _ => &mut [],
        }
    }

    fn at_mut(&mut self, path: &str) -> Option<&mut Value> {
        parts(path).try_fold(self, |at, part| at.as_object_mut()?.get_mut(part)).filter(|v| !v.is_null())
    }

    fn copy_from(&mut self, path: &str, other: &Value) {
        match other.at(path) {
            Value::Null => self.drop(path),
            value => self.put(path, value.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_are_read_and_written() {
        let mut tree = json!({"spec": {"replicas": 3, "ports": [{"name": "a"}], "none": null}});
        assert_eq!((tree.int("spec.replicas"), tree.text("spec.name"), tree.has("spec.none")), (3, "", false));
        assert!(tree.find("spec.ports", "name", "a").is_some() && tree.list("spec.replicas").is_empty());
        tree.or_put("spec.replicas", 1);
        tree.or_put("spec.template.metadata.name", "x");
        tree.drop("spec.ports");
        tree.drop("status.nowhere");
        tree.copy_from("spec.replicas", &json!({}));
        assert_eq!(tree, json!({"spec": {"none": null, "template": {"metadata": {"name": "x"}}}}));
    }
}
