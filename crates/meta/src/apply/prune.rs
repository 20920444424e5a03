//! What an applier withdraws: it applied it before, applies it no more, and nobody else owns it.
//!
//! Each owner's fields are looked up in the version they were written in: what the last configuration named is taken away
//! in its version, and what somebody owns in another is put back in that one.

use serde_json::Value;

use super::compare;
use super::config;
use super::entries;
use super::fields::{self, Fields};
use super::place::{Form, Place, field_element};
use super::versions::{Unconverted, Versions};
use crate::schema::View;

/// The merged object, in the version it is in, without what `last` (an entry) owned and none of `owners` (entries) does.
pub fn withdrawn(
    versions: &Versions<'_>,
    merged: Value,
    last: &Value,
    owners: &[&Value],
    api_version: &str,
) -> Result<Value, Unconverted> {
    let version = entries::text(last, "apiVersion");
    let (Some(place), Some(last)) = (versions.place(version), entries::fields_of(last)) else { return Ok(merged) };
    let owned = |version: &str| {
        let theirs = owners.iter().filter(|e| versions.name(entries::text(e, "apiVersion")) == versions.name(version));
        let mut owned = Fields::new();
        theirs.for_each(|e| fields::unite(&mut owned, entries::fields_of(e).cloned().unwrap_or_default()));
        owned
    };
    let whole = versions.shown(&merged, version)?;
    let mut left = whole.clone();
    prune(place, &mut left, last, &owned(version));

    let mut others: Vec<&str> = owners.iter().map(|e| entries::text(e, "apiVersion")).collect();
    others.sort_unstable();
    others.dedup();
    for other in others.into_iter().filter(|other| versions.name(other) != versions.name(version)) {
        let Some(root) = versions.root(other) else { continue };
        let place = Place::root(root);
        let mut all = versions.shown(&merged, other)?.clone();
        let (gone, mut stays) = lost(root, &all, versions.shown(&left, other)?);
        fields::unite(&mut stays, owned(other));
        prune(place, &mut all, &gone, &stays);
        left = all;
    }
    // On the way through other versions only what the last configuration named may have been lost.
    if versions.name(entries::text(&left, "apiVersion")) != versions.name(version)
        && let Some(root) = versions.root(version)
    {
        let (gone, stays) = lost(root, whole, versions.shown(&left, version)?);
        let mut named = whole.clone();
        prune(place, &mut named, &fields::intersection(&gone, &members(last)), &stays);
        left = named;
    }
    Ok(versions.shown(&left, api_version)?.clone())
}

/// What went from one object to the other, and what the other has.
fn lost(root: View<'_>, from: &Value, to: &Value) -> (Fields, Fields) {
    (compare::compare(root, Some(from), to).lost, config::applied(Place::root(root), to))
}

/// A set with all nodes that hold a member as members themselves.
fn members(set: &Fields) -> Fields {
    let whole = |(element, below): (&String, &Value)| {
        let children = members(below.as_object().unwrap_or(&Fields::new()));
        (element.clone(), fields::node(children, true).unwrap_or_else(fields::leaf))
    };
    set.iter().filter(|(element, _)| *element != fields::SELF).map(whole).collect()
}

/// Removes from a merged object what was applied last time (`last`) and is owned by no one now.
fn prune(place: Place<'_>, merged: &mut Value, last: &Fields, owned: &Fields) {
    let goes = |last: &Value, now: Option<&Value>, declared: bool| {
        // A declared field counts as applied when anything in it was.
        let was = declared || fields::member(last);
        let is = now.is_some_and(|now| declared || fields::member(now));
        was && !is
    };
    match (place.form(merged), merged) {
        (Form::Object, Value::Object(map)) => map.retain(|name, value| {
            let element = field_element(name);
            let Some(before) = last.get(&element) else { return true };
            let now = owned.get(&element);
            !goes(before, now, place.declares(name)) && !emptied(place.child(name), value, before, now)
        }),
        (Form::List(identity), Value::Array(items)) => items.retain_mut(|item| {
            let Ok(element) = place.element(identity, item) else { return true };
            let Some(before) = last.get(&element) else { return true };
            let now = owned.get(&element);
            !goes(before, now, false) && !emptied(place.item(), item, before, now)
        }),
        _ => {}
    }
}

/// Prunes inside a value that stays; whether that left it without anything in it, and no one who owns it empty.
fn emptied(place: Place<'_>, value: &mut Value, last: &Value, owned: Option<&Value>) -> bool {
    let nothing = Fields::new();
    let empty = |value: &Value| match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => true,
    };
    let Value::Object(last) = last else { return false };
    if empty(value) {
        return false;
    }
    prune(place, value, last, owned.and_then(Value::as_object).unwrap_or(&nothing));
    empty(value) && !owned.is_some_and(fields::member)
}
