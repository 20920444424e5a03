//! What a write changed: the fields gained (added or modified) and lost between two versions of an object.
//!
//! Both trees are walked together and nothing is built for what is the same. Fields that no one ever owns (names,
//! versions, timestamps the server writes) are left out here, once, for all users of the difference.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::fields::{self, Fields};
use super::place::{Form, Identity, Place, field_element};
use crate::schema::View;

pub(super) const METADATA: &str = "metadata";
/// Fields of the whole object no one owns.
pub(super) const UNOWNED: &[&str] = &["apiVersion", "kind"];
/// Fields of its metadata no one owns.
pub(super) const UNOWNED_METADATA: &[&str] = &[
    "clusterName",
    "creationTimestamp",
    "generation",
    "managedFields",
    "name",
    "namespace",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// The difference of two versions of an object.
#[derive(Debug, Default)]
pub struct Difference {
    /// Added or modified.
    pub gained: Fields,
    pub lost: Fields,
}

impl Difference {
    pub fn is_empty(&self) -> bool {
        self.gained.is_empty() && self.lost.is_empty()
    }
}

/// Removes from a set what no one owns.
pub fn strip(set: &mut Fields) {
    for name in UNOWNED {
        set.remove(&field_element(name));
    }
    if let Some(Value::Object(metadata)) = set.get_mut("f:metadata") {
        metadata.remove(fields::SELF);
        for name in UNOWNED_METADATA {
            metadata.remove(&field_element(name));
        }
        if metadata.is_empty() {
            set.remove("f:metadata");
        }
    }
}

/// Compares two versions of an object; none for the time before it was created.
pub fn compare(root: View<'_>, old: Option<&Value>, new: &Value) -> Difference {
    let nothing = Map::new();
    let old = old.and_then(Value::as_object).unwrap_or(&nothing);
    let new = new.as_object().unwrap_or(&nothing);
    let place = Place::root(root);
    let mut out = Difference::default();
    objects(place, old, new, &|name| name == METADATA || UNOWNED.contains(&name), &mut out);
    let old = old.get(METADATA).and_then(Value::as_object).unwrap_or(&nothing);
    let new = new.get(METADATA).and_then(Value::as_object).unwrap_or(&nothing);
    let mut inner = Difference::default();
    objects(place.child(METADATA), old, new, &|name| UNOWNED_METADATA.contains(&name), &mut inner);
    attach(&mut out, field_element(METADATA), inner_node(inner.gained), inner_node(inner.lost));
    out
}

/// A difference one level up, under the element it is at.
fn attach(out: &mut Difference, element: String, gained: Option<Value>, lost: Option<Value>) {
    match (gained, lost) {
        (None, None) => {}
        (Some(gained), None) => {
            out.gained.insert(element, gained);
        }
        (None, Some(lost)) => {
            out.lost.insert(element, lost);
        }
        (Some(gained), Some(lost)) => {
            out.gained.insert(element.clone(), gained);
            out.lost.insert(element, lost);
        }
    }
}

fn inner_node(children: Fields) -> Option<Value> {
    fields::node(children, false)
}

fn objects(
    place: Place<'_>,
    old: &Map<String, Value>,
    new: &Map<String, Value>,
    skip: &dyn Fn(&str) -> bool,
    out: &mut Difference,
) {
    for (name, after) in new {
        if skip(name) {
            continue;
        }
        let child = place.child(name);
        match old.get(name) {
            Some(before) => {
                let (gained, lost) = values(child, before, after);
                if gained.is_some() || lost.is_some() {
                    attach(out, field_element(name), gained, lost);
                }
            }
            None if place.always_has(name) => {
                if let Some(gained) = from_zero(child, after) {
                    out.gained.insert(field_element(name), gained);
                }
            }
            None => {
                out.gained.insert(field_element(name), whole(child, after));
            }
        }
    }
    for (name, before) in old {
        if new.contains_key(name) || skip(name) {
            continue;
        }
        out.lost.insert(field_element(name), whole(place.child(name), before));
    }
}

/// What differs between a value and Go's zero value of its type.
fn from_zero(place: Place<'_>, value: &Value) -> Option<Value> {
    match (place.form(value), value) {
        (Form::Object, Value::Object(map)) => {
            let children = map.iter().filter_map(|(name, value)| {
                let child = place.child(name);
                let node = if place.always_has(name) { from_zero(child, value)? } else { whole(child, value) };
                Some((field_element(name), node))
            });
            inner_node(children.collect())
        }
        (Form::List(identity), Value::Array(items)) => inner_node(items_whole(place, identity, items)),
        _ => {
            let zero = match value {
                Value::Null | Value::Bool(false) => true,
                Value::Number(n) => n.as_f64() == Some(0.0),
                Value::String(s) => s.is_empty(),
                Value::Array(items) => items.is_empty(),
                Value::Object(map) => map.is_empty(),
                Value::Bool(true) => false,
            };
            (!zero).then(fields::leaf)
        }
    }
}

/// A value that is there on one side alone: it and everything in it.
pub fn whole(place: Place<'_>, value: &Value) -> Value {
    let children = match (place.form(value), value) {
        (Form::Object, Value::Object(map)) => {
            map.iter().map(|(name, value)| (field_element(name), whole(place.child(name), value))).collect()
        }
        (Form::List(identity), Value::Array(items)) => items_whole(place, identity, items),
        _ => Fields::new(),
    };
    fields::node(children, true).unwrap_or_else(fields::leaf)
}

fn items_whole(place: Place<'_>, identity: Identity<'_>, items: &[Value]) -> Fields {
    let mut out = Fields::new();
    for item in items {
        // An item without its keys has no path, and so no owner.
        let Ok(element) = place.element(identity, item) else { continue };
        let node = whole(place.item(), item);
        match out.get_mut(&element) {
            // Items that cannot be told apart are owned together, as one leaf.
            Some(twice) => *twice = fields::leaf(),
            None => {
                out.insert(element, node);
            }
        }
    }
    out
}

/// The nodes of what was gained and lost between two values of one place.
fn values(place: Place<'_>, old: &Value, new: &Value) -> (Option<Value>, Option<Value>) {
    match (place.form(old), old, place.form(new), new) {
        (Form::Object, Value::Object(old), Form::Object, Value::Object(new)) => {
            let mut inner = Difference::default();
            objects(place, old, new, &|_| false, &mut inner);
            (inner_node(inner.gained), inner_node(inner.lost))
        }
        (Form::List(identity), Value::Array(old), Form::List(_), Value::Array(new)) => {
            let inner = lists(place, identity, old, new);
            (inner_node(inner.gained), inner_node(inner.lost))
        }
        (Form::Leaf, _, Form::Leaf, _) => ((old != new).then(fields::leaf), None),
        // The value changed its very type: what was inside is gone.
        (before, _, after, _) => {
            let inside = |form, value| match form {
                Form::Leaf => None,
                _ => Some(whole(place, value)),
            };
            (Some(inside(after, new).unwrap_or_else(fields::leaf)), inside(before, old))
        }
    }
}

fn lists(place: Place<'_>, identity: Identity<'_>, old: &[Value], new: &[Value]) -> Difference {
    let mut out = Difference::default();
    // Most items of most lists did not change and did not move: only the others get path elements.
    let moved = |at: usize, item: &Value, other: &[Value]| other.get(at) != Some(item);
    let mut both: BTreeMap<String, (Vec<&Value>, Vec<&Value>)> = BTreeMap::new();
    for (_, item) in old.iter().enumerate().filter(|(at, item)| moved(*at, item, new)) {
        if let Ok(element) = place.element(identity, item) {
            both.entry(element).or_default().0.push(item);
        }
    }
    for (_, item) in new.iter().enumerate().filter(|(at, item)| moved(*at, item, old)) {
        if let Ok(element) = place.element(identity, item) {
            both.entry(element).or_default().1.push(item);
        }
    }
    for (element, (before, after)) in both {
        let (gained, lost) = match (&before[..], &after[..]) {
            ([before], [after]) => values(place.item(), before, after),
            ([], [after]) => (Some(whole(place.item(), after)), None),
            ([before], []) => (None, Some(whole(place.item(), before))),
            ([], _) => (Some(fields::leaf()), None),
            (_, []) => (None, Some(fields::leaf())),
            (before, after) => ((before != after).then(fields::leaf), None),
        };
        attach(&mut out, element, gained, lost);
    }
    out
}
