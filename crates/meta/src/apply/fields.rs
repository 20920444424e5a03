//! Sets of fields, in the very form `FieldsV1` has on the wire.
//!
//! A set is a tree of objects whose keys are path elements: `f:` a field or map key, `k:` the keys of a list item,
//! `v:` the value of a set's item, `i:` an index. A node belongs to the set when it is empty, or holds `"."` beside its
//! children. Working on this form means that nobody's set is parsed or built twice. The operations keep the form canonical:
//! no node without members, `"."` only beside children. Knows neither schema nor objects.

use serde_json::{Map, Value};

/// A set: the children of its root. The root itself is never a member.
pub type Fields = Map<String, Value>;

/// Marks a node with children as a member itself.
pub const SELF: &str = ".";

/// A member without children.
pub fn leaf() -> Value {
    Value::Object(Map::new())
}

/// A node of these children, and itself a member or not; none when nothing is left.
pub fn node(mut children: Fields, member: bool) -> Option<Value> {
    if children.is_empty() {
        return member.then(leaf);
    }
    if member {
        children.insert(SELF.into(), leaf());
    }
    Some(Value::Object(children))
}

/// Whether the node is a member itself.
pub fn member(node: &Value) -> bool {
    node.as_object().is_some_and(|children| children.is_empty() || children.contains_key(SELF))
}

/// Whether a tree a client wrote is a set.
pub fn valid(set: &Fields) -> bool {
    set.iter().all(|(element, below)| {
        let known = match element.split_at_checked(2) {
            Some(("f:", _)) => true,
            Some(("k:", keys)) => keys.starts_with('{') && keys.ends_with('}'),
            Some(("v:", value)) => !value.is_empty(),
            Some(("i:", index)) => index.parse::<i64>().is_ok(),
            _ => element == SELF,
        };
        known && below.as_object().is_some_and(valid)
    })
}

/// Adds members.
pub fn unite(into: &mut Fields, what: Fields) {
    for (key, value) in what {
        match into.get_mut(&key) {
            None => {
                into.insert(key, value);
            }
            Some(_) if key == SELF => {}
            Some(Value::Object(node)) => {
                let Value::Object(value) = value else { continue };
                let members = node.is_empty() || value.is_empty();
                unite(node, value);
                if members && !node.is_empty() {
                    node.insert(SELF.into(), leaf());
                }
            }
            Some(other) => *other = value,
        }
    }
}

/// Removes members. Members below a removed one stay.
pub fn subtract(from: &mut Fields, what: &Fields) {
    for (key, gone) in what {
        let (Some(Value::Object(node)), Value::Object(below)) = (from.get_mut(key), gone) else { continue };
        if key == SELF {
            continue;
        }
        let mut stays = node.is_empty() || node.remove(SELF).is_some();
        stays &= !member(gone);
        subtract(node, below);
        match (node.is_empty(), stays) {
            (true, false) => {
                from.remove(key);
            }
            (false, true) => {
                node.insert(SELF.into(), leaf());
            }
            _ => {}
        }
    }
}

/// The members of both.
pub fn intersection(a: &Fields, b: &Fields) -> Fields {
    let mut out = Fields::new();
    for (key, x) in a.iter().filter(|(key, _)| *key != SELF) {
        let Some(y) = b.get(key) else { continue };
        let (Value::Object(below_x), Value::Object(below_y)) = (x, y) else { continue };
        if let Some(node) = node(intersection(below_x, below_y), member(x) && member(y)) {
            out.insert(key.clone(), node);
        }
    }
    out
}

/// Every member as its path reads in messages: `.spec.containers[name="a"].image`. Members of a node come before those
/// below them.
pub fn paths(fields: &Fields) -> Vec<String> {
    let mut out = Vec::new();
    let mut at = String::new();
    collect(fields, &mut at, &mut out);
    out
}

fn collect(fields: &Fields, at: &mut String, out: &mut Vec<String>) {
    let elements = || fields.iter().filter(|(key, _)| *key != SELF);
    out.extend(elements().filter(|(_, n)| member(n)).map(|(key, _)| format!("{at}{}", element_text(key))));
    for (key, below) in elements() {
        let Value::Object(below) = below else { continue };
        let length = at.len();
        at.push_str(&element_text(key));
        collect(below, at, out);
        at.truncate(length);
    }
}

/// A path element as messages show it.
pub fn element_text(element: &str) -> String {
    let (kind, rest) = element.split_at_checked(2).unwrap_or((element, ""));
    match kind {
        "f:" => format!(".{rest}"),
        "k:" => match serde_json::from_str::<Map<String, Value>>(rest) {
            Ok(keys) => {
                let keys: Vec<String> = keys.iter().map(|(name, value)| format!("{name}={value}")).collect();
                format!("[{}]", keys.join(","))
            }
            Err(_) => format!("[{rest}]"),
        },
        "v:" => format!("[={rest}]"),
        "i:" => format!("[{rest}]"),
        _ => "{{invalid path element}}".into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(value: Value) -> Fields {
        match value {
            Value::Object(map) => map,
            other => panic!("not a set: {other}"),
        }
    }

    #[test]
    fn set_algebra() {
        // (a, b, a ∪ b, a ∖ b, a ∩ b)
        let cases = [
            (json!({"f:a": {}}), json!({"f:b": {}}), json!({"f:a": {}, "f:b": {}}), json!({"f:a": {}}), json!({})),
            (
                json!({"f:a": {}}),
                json!({"f:a": {"f:b": {}}}),
                json!({"f:a": {".": {}, "f:b": {}}}),
                json!({"f:a": {}}),
                json!({}),
            ),
            (
                json!({"f:a": {"f:b": {}}}),
                json!({"f:a": {}}),
                json!({"f:a": {".": {}, "f:b": {}}}),
                json!({"f:a": {"f:b": {}}}),
                json!({}),
            ),
            (
                json!({"f:a": {".": {}, "f:b": {}, "f:c": {}}}),
                json!({"f:a": {".": {}, "f:b": {}}}),
                json!({"f:a": {".": {}, "f:b": {}, "f:c": {}}}),
                json!({"f:a": {"f:c": {}}}),
                json!({"f:a": {".": {}, "f:b": {}}}),
            ),
            (
                json!({"f:a": {".": {}, "f:b": {}}}),
                json!({"f:a": {"f:b": {}}}),
                json!({"f:a": {".": {}, "f:b": {}}}),
                json!({"f:a": {}}),
                json!({"f:a": {"f:b": {}}}),
            ),
        ];
        for (a, b, union, difference, both) in cases {
            let mut united = set(a.clone());
            unite(&mut united, set(b.clone()));
            assert_eq!(Value::Object(united), union, "{a} ∪ {b}");
            let mut left = set(a.clone());
            subtract(&mut left, &set(b.clone()));
            assert_eq!(Value::Object(left), difference, "{a} ∖ {b}");
            assert_eq!(Value::Object(intersection(&set(a.clone()), &set(b.clone()))), both, "{a} ∩ {b}");
        }
    }

    #[test]
    fn paths_read_as_upstream_writes_them() {
        let fields = json!({"f:spec": {
            "f:ports": {".": {}, "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:name": {}}},
            "f:finalizers": {"v:\"a\"": {}},
            "f:replicas": {},
        }});
        let want = [
            ".spec.ports",
            ".spec.replicas",
            ".spec.finalizers[=\"a\"]",
            ".spec.ports[containerPort=80,protocol=\"TCP\"]",
            ".spec.ports[containerPort=80,protocol=\"TCP\"].name",
        ];
        assert_eq!(paths(&set(fields)), want);
    }
}
