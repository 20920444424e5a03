//! The ownership of a new object, as text.
//!
//! Who creates an object owns all it says: one entry, which nobody looks at before somebody changes the object. So it is
//! written as it will be stored, and never becomes a tree. [`super::track_update`] makes the same for all other cases.

use serde_json::{Map, Value};

use super::Writer;
use super::compare::{METADATA, UNOWNED, UNOWNED_METADATA};
use super::place::{Form, Identity, Place};
use super::text::{inside_quotes, quote};
use crate::schema::View;

/// `metadata.managedFields` of an object whose creator sent none; nothing where nothing is owned.
pub fn created(root: View<'_>, body: &Value, writer: &Writer<'_>) -> Option<String> {
    let body = body.as_object()?;
    // Ownership of a usual pod takes about as much text as the pod.
    let mut out = String::with_capacity(USUAL);
    out.push_str("[{\"apiVersion\":");
    quote(body.get("apiVersion").and_then(Value::as_str).unwrap_or_default(), &mut out);
    out.push_str(",\"fieldsType\":\"FieldsV1\",\"fieldsV1\":");
    if !whole_object(Place::root(root), body, &mut out) {
        return None;
    }
    out.push_str(",\"manager\":");
    quote(writer.manager, &mut out);
    out.push_str(",\"operation\":\"Update\"");
    if !writer.subresource.is_empty() {
        out.push_str(",\"subresource\":");
        quote(writer.subresource, &mut out);
    }
    out.push_str(",\"time\":");
    quote(writer.now, &mut out);
    out.push_str("}]");
    Some(out)
}

/// Bytes made ready for the text.
const USUAL: usize = 2048;

/// Members of one node. Nothing is written when there turn out to be none.
struct Node<'o> {
    out: &'o mut String,
    from: usize,
    empty: bool,
}

impl<'o> Node<'o> {
    fn open(out: &'o mut String) -> Self {
        let from = out.len();
        out.push('{');
        Self { out, from, empty: true }
    }

    fn next(&mut self) {
        if !std::mem::take(&mut self.empty) {
            self.out.push(',');
        }
    }

    /// A field or key.
    fn field(&mut self, name: &str) {
        self.next();
        self.out.push_str("\"f:");
        inside_quotes(name, self.out);
        self.out.push_str("\":");
    }

    fn element(&mut self, element: &str) {
        self.next();
        quote(element, self.out);
        self.out.push(':');
    }

    /// The node itself is a member: said first, where it has children.
    fn itself(&mut self) {
        self.next();
        self.out.push_str("\".\":{}");
    }

    /// As [`Node::field`] with what `write` makes, unless that is nothing.
    fn field_if(&mut self, name: &str, write: impl FnOnce(&mut String) -> bool) {
        let (before, empty) = (self.out.len(), self.empty);
        self.field(name);
        if !write(self.out) {
            self.out.truncate(before);
            self.empty = empty;
        }
    }

    /// Says whether there was anything; without, nothing was written.
    fn close(self) -> bool {
        if self.empty {
            self.out.truncate(self.from);
        } else {
            self.out.push('}');
        }
        !self.empty
    }
}

fn whole_object(place: Place<'_>, body: &Map<String, Value>, out: &mut String) -> bool {
    let mut node = Node::open(out);
    for (name, value) in body.iter().filter(|(name, _)| !UNOWNED.contains(&name.as_str())) {
        match value {
            Value::Object(metadata) if name == METADATA => {
                let place = place.child(METADATA);
                node.field_if(METADATA, |out| {
                    let mut inner = Node::open(out);
                    for (name, value) in metadata.iter().filter(|(name, _)| !UNOWNED_METADATA.contains(&name.as_str()))
                    {
                        member(&mut inner, place, name, value);
                    }
                    inner.close()
                });
            }
            _ if name == METADATA => {}
            _ => member(&mut node, place, name, value),
        }
    }
    node.close()
}

/// One field of an object that was not there before.
fn member(node: &mut Node<'_>, place: Place<'_>, name: &str, value: &Value) {
    let child = place.child(name);
    if place.always_has(name) {
        node.field_if(name, |out| from_zero(child, value, out));
    } else {
        node.field(name);
        whole(child, value, node.out);
    }
}

/// What differs from Go's zero value; whether anything does.
fn from_zero(place: Place<'_>, value: &Value, out: &mut String) -> bool {
    match (place.form(value), value) {
        (Form::Object, Value::Object(map)) => {
            let mut node = Node::open(out);
            map.iter().for_each(|(name, value)| member(&mut node, place, name, value));
            node.close()
        }
        (Form::List(identity), Value::Array(list)) => {
            let mut node = Node::open(out);
            items(&mut node, place, identity, list);
            node.close()
        }
        _ if crate::schema::is_zero(value) => false,
        _ => {
            out.push_str("{}");
            true
        }
    }
}

/// A value that was not there before, and everything in it.
fn whole(place: Place<'_>, value: &Value, out: &mut String) {
    let filled = match (place.form(value), value) {
        (Form::Object, Value::Object(map)) if !map.is_empty() => {
            let mut node = Node::open(out);
            node.itself();
            for (name, value) in map {
                node.field(name);
                whole(place.child(name), value, node.out);
            }
            node.close()
        }
        (Form::List(identity), Value::Array(list)) => {
            let from = out.len();
            let mut node = Node::open(out);
            node.itself();
            let alone = node.out.len();
            items(&mut node, place, identity, list);
            let filled = node.out.len() > alone;
            node.close();
            if !filled {
                out.truncate(from);
            }
            filled
        }
        _ => false,
    };
    if !filled {
        out.push_str("{}");
    }
}

fn items(node: &mut Node<'_>, place: Place<'_>, identity: Identity<'_>, list: &[Value]) {
    // An item without its keys has no path, and so no owner.
    let mut found: Vec<(String, &Value)> =
        list.iter().filter_map(|item| Some((place.element(identity, item).ok()?, item))).collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    for alike in found.chunk_by(|a, b| a.0 == b.0) {
        node.element(&alike[0].0);
        match alike {
            [(_, item)] => whole(place.item(), item, node.out),
            // Items that cannot be told apart are owned together, as one leaf.
            _ => node.out.push_str("{}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::apply::track_update;
    use crate::schema::builtin;

    /// The text is what a tree would be written as.
    #[test]
    fn text_and_tree_agree() {
        let writer = Writer { manager: "m\"1", subresource: "", now: "2026-01-01T00:00:00Z" };
        let container = json!({"name": "a", "image": "i", "env": [{"name": "A", "value": "1"}, {"name": "A"}, {"x": 1}], "args": ["x"],
            "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 70}], "resources": {"limits": {"cpu": "1"}}});
        let mut bodies = vec![
            json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a", "labels": {"a/b": "c", "q\"": "\n"}, "finalizers": ["b", "a", "b"], "annotations": {}},
                "spec": {"containers": [container], "nodeSelector": {}, "hostNetwork": false, "tolerations": [], "volumes": [{"name": "v", "emptyDir": {}}]},
                "status": {"phase": "Pending", "conditions": [{"type": "Ready", "status": "True"}]}}),
            json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "a", "namespace": "n"}, "data": {"k": "v"}}),
            json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "a"}}),
            json!({"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"ownerReferences": [{"uid": "u", "name": "n"}]},
                "spec": {"replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "strategy": {}, "template": {"spec": {}}}}),
        ];
        bodies.push(json!({"kind": "Pod", "apiVersion": "v1", "metadata": null, "spec": {"containers": []}}));
        for body in bodies {
            let (group, version) = body["apiVersion"].as_str().unwrap().rsplit_once('/').unwrap_or(("", "v1"));
            let root = builtin().kind(&crate::Gvk::new(group, version, body["kind"].as_str().unwrap())).unwrap();
            let mut tracked = body.clone();
            if tracked["metadata"].is_null() {
                tracked["metadata"] = json!({});
            }
            track_update(root, None, &mut tracked, &writer);
            let tree = tracked["metadata"].get("managedFields").map(Value::to_string);
            assert_eq!(created(root, &body, &writer), tree, "{body}");
        }
    }
}
