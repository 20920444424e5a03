//! Strategic merge patch: a merge patch that knows from the schema which lists are merged item by item, and by what key.
//!
//! Directives: `$patch` (replace, delete, merge) on objects and list items, `$retainKeys`, `$deleteFromPrimitiveList/x`
//! and `$setElementOrder/x`. What the schema does not know merges as RFC 7386 tells. No directive is left in the result.

use serde_json::{Map, Value};

use super::PatchError;
use crate::schema::{Shape, View};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ELEMENT_ORDER: &str = "$setElementOrder/";

/// Merges a patch into an object of the schema's kind.
pub fn strategic(root: View<'_>, doc: Value, patch: &Value) -> Result<Value, PatchError> {
    let (Value::Object(mut map), Value::Object(patch)) = (doc, patch) else {
        return Err(PatchError::invalid("invalid JSON document"));
    };
    merge_object(Some(root), &mut map, patch)?;
    Ok(Value::Object(map))
}

fn bad_order() -> PatchError {
    PatchError::invalid("invalid patch format of setElementOrder list")
}

fn no_key(item: &Value, key: &str) -> PatchError {
    PatchError::invalid(format!("map: {item} does not contain declared merge key: {key}"))
}

fn expected_list(found: &Value) -> PatchError {
    PatchError::invalid(format!("expected a list, but received {found}"))
}

/// How a list is merged: by this key, or as a set of scalars when the key is empty.
#[derive(Clone, Copy)]
struct Merge<'s> {
    key: &'s str,
    item: Option<View<'s>>,
}

/// None for lists that are replaced.
fn list_merge<'s>(view: Option<View<'s>>) -> Option<Merge<'s>> {
    let view = view?;
    match view.shape() {
        Shape::List { patch, .. } if patch.merge => Some(Merge { key: &patch.merge_key, item: view.item() }),
        _ => None,
    }
}

fn merge_object(
    view: Option<View<'_>>,
    doc: &mut Map<String, Value>,
    patch: &Map<String, Value>,
) -> Result<(), PatchError> {
    match patch.get(DIRECTIVE).map(|d| d.as_str().unwrap_or_default()) {
        None | Some("merge") => {}
        Some("replace") => {
            *doc = patch.iter().filter(|(k, _)| *k != DIRECTIVE).map(|(k, v)| (k.clone(), v.clone())).collect();
            return Ok(());
        }
        Some("delete") => {
            doc.clear();
            return Ok(());
        }
        Some(other) => {
            let shown = Value::Object(patch.clone());
            return Err(PatchError::invalid(format!("unknown patch type: {other} in map: {shown}")));
        }
    }
    if let Some(keep) = patch.get(RETAIN_KEYS) {
        retain_keys(doc, patch, keep)?;
    }
    let child = |name: &str| view.and_then(|v| v.child(name));
    for (key, order) in patch {
        let Some(name) = key.strip_prefix(ELEMENT_ORDER) else { continue };
        let order = order.as_array().ok_or_else(|| expected_list(order))?;
        ordered_list(child(name), doc, patch, name, order)?;
    }
    for (key, change) in patch {
        if key == DIRECTIVE || key == RETAIN_KEYS || key.starts_with(ELEMENT_ORDER) || key.starts_with(DELETE_FROM) {
            continue;
        }
        if change.is_null() {
            doc.remove(key);
            continue;
        }
        if change.is_array() && patch.keys().any(|k| k.strip_prefix(ELEMENT_ORDER) == Some(key)) {
            continue;
        }
        let view = child(key);
        match (doc.get_mut(key), change) {
            (Some(Value::Object(old)), Value::Object(change)) => merge_object(view, old, change)?,
            (Some(Value::Array(old)), Value::Array(change)) => {
                let merged = match list_merge(view) {
                    Some(merge) => merge_list(merge, std::mem::take(old), change)?,
                    None => change.clone(),
                };
                *old = merged;
            }
            (_, change) => {
                let value = added(view, change)?;
                doc.insert(key.clone(), value);
            }
        }
    }
    for (key, gone) in patch {
        let Some(name) = key.strip_prefix(DELETE_FROM) else { continue };
        let gone = gone.as_array().ok_or_else(|| PatchError::invalid("invalid patch format of primitive list"))?;
        if let Some(Value::Array(items)) = doc.get_mut(name) {
            items.retain(|item| !gone.contains(item));
        }
    }
    Ok(())
}

/// A value where there was none: without nulls and without directives.
fn added(view: Option<View<'_>>, change: &Value) -> Result<Value, PatchError> {
    match change {
        Value::Object(change) => {
            let mut new = Map::new();
            merge_object(view, &mut new, change)?;
            Ok(Value::Object(new))
        }
        Value::Array(items) => match list_merge(view) {
            Some(merge) if !merge.key.is_empty() && items.iter().all(Value::is_object) => {
                let kept = items.iter().filter(|i| i.get(DIRECTIVE).is_none_or(|d| d == "merge"));
                Ok(Value::Array(kept.map(|i| added(merge.item, i)).collect::<Result<_, _>>()?))
            }
            _ => Ok(change.clone()),
        },
        other => Ok(other.clone()),
    }
}

fn retain_keys(doc: &mut Map<String, Value>, patch: &Map<String, Value>, keep: &Value) -> Result<(), PatchError> {
    let bad = || PatchError::invalid("invalid patch format of retainKeys");
    let keep = keep.as_array().ok_or_else(bad)?;
    let kept = |name: &str| keep.iter().any(|k| k.as_str() == Some(name));
    for (key, change) in patch {
        let directive =
            key == RETAIN_KEYS || key == DIRECTIVE || key.starts_with(DELETE_FROM) || key.starts_with(ELEMENT_ORDER);
        if !directive && !change.is_null() && !kept(key) {
            return Err(bad());
        }
    }
    doc.retain(|key, _| kept(key));
    Ok(())
}

/// A list whose order the patch tells, whether or not the patch changes its items.
fn ordered_list(
    view: Option<View<'_>>,
    doc: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    name: &str,
    order: &[Value],
) -> Result<(), PatchError> {
    let list = |value: Option<&Value>| match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(items)) => Ok(Some(items.clone())),
        Some(other) => Err(expected_list(other)),
    };
    let original = list(doc.get(name))?;
    let changes = list(patch.get(name))?;
    let merge = list_merge(view);
    let key = merge.map_or("", |m| m.key);
    check_order(changes.as_deref().unwrap_or_default(), order, key)?;
    let server_order = original.clone().unwrap_or_default();
    let merged = match (original, changes) {
        (None, None) => return Ok(()),
        (Some(original), None) => original,
        (None, Some(changes)) => match added(view, &Value::Array(changes))? {
            Value::Array(items) => items,
            _ => return Ok(()),
        },
        (Some(original), Some(changes)) => match merge {
            Some(merge) => merge_list(merge, original, &changes)?,
            None => changes,
        },
    };
    let sorted = in_order(merged, order, &server_order, key)?;
    doc.insert(name.to_string(), Value::Array(sorted));
    Ok(())
}

/// The items of the patch must come in the order the patch demands.
fn check_order(changes: &[Value], order: &[Value], key: &str) -> Result<(), PatchError> {
    if order.is_empty() {
        return Ok(());
    }
    let mut rest = order.iter();
    for change in changes.iter().filter(|c| c.get(DIRECTIVE).is_none()) {
        let wanted = identity(change, key)?;
        loop {
            let Some(next) = rest.next() else {
                let (changes, order) = (Value::from(changes.to_vec()), Value::from(order.to_vec()));
                return Err(PatchError::invalid(format!(
                    "The order in patch list:\n{changes}\n doesn't match $setElementOrder list:\n{order}\n"
                )));
            };
            if identity(next, key)? == wanted {
                break;
            }
        }
    }
    Ok(())
}

/// What tells an item from the others: the value of its merge key, or the scalar itself.
fn identity<'v>(item: &'v Value, key: &str) -> Result<&'v Value, PatchError> {
    match item {
        _ if key.is_empty() => Ok(item),
        Value::Object(map) => map.get(key).ok_or_else(|| no_key(item, key)),
        _ => Err(bad_order()),
    }
}

fn merge_list(merge: Merge<'_>, original: Vec<Value>, changes: &[Value]) -> Result<Vec<Value>, PatchError> {
    let all = || original.iter().chain(changes);
    let objects = all().next().is_some_and(Value::is_object);
    if all().any(Value::is_array) {
        return Err(PatchError::unprocessable("lists of lists are not supported"));
    }
    if all().any(|item| item.is_object() != objects) {
        let shown: Vec<String> = all().map(Value::to_string).collect();
        let shown = shown.join(" ");
        return Err(PatchError::invalid(format!("list element types are not identical: [{shown}]")));
    }
    if !objects {
        let server_order = original.clone();
        let mut merged: Vec<Value> = Vec::with_capacity(original.len() + changes.len());
        for item in original.into_iter().chain(changes.iter().cloned()) {
            if !merged.contains(&item) {
                merged.push(item);
            }
        }
        return in_order(merged, changes, &server_order, "");
    }
    let key = merge.key;
    if key.is_empty() {
        return Err(PatchError::invalid("cannot merge lists without merge key"));
    }
    let mut original = original;
    let mut plain = Vec::with_capacity(changes.len());
    let mut replace = false;
    for change in changes {
        match change.get(DIRECTIVE).map(|d| d.as_str().unwrap_or_default()) {
            None => plain.push(change),
            Some("delete") => {
                let gone = identity(change, key)?;
                original.retain(|item| item.get(key) != Some(gone));
            }
            Some("replace") => replace = true,
            Some("merge") => return Err(PatchError::invalid("merging lists cannot yet be specified in the patch")),
            Some(other) => return Err(PatchError::invalid(format!("unknown patch type: {other} in map: {change}"))),
        }
    }
    if replace {
        return plain.into_iter().map(|change| added(merge.item, change)).collect();
    }
    let server_order: Vec<Value> = original.iter().map(|item| bare(item, key)).collect();
    let patch_order: Vec<Value> = plain.iter().map(|item| bare(item, key)).collect();
    for change in plain {
        let wanted = identity(change, key)?;
        let found = original.iter_mut().find(|item| item.get(key) == Some(wanted));
        match (found, change) {
            (Some(Value::Object(item)), Value::Object(change)) => merge_object(merge.item, item, change)?,
            _ => original.push(added(merge.item, change)?),
        }
    }
    in_order(original, &patch_order, &server_order, key)
}

/// Only what tells an item from the others.
fn bare(item: &Value, key: &str) -> Value {
    item.get(key).map_or(Value::Null, |id| Value::Object(Map::from_iter([(key.to_string(), id.clone())])))
}

/// Orders a merged list: items the patch names as it names them, the others where the server had them as far as that
/// goes together.
fn in_order(merged: Vec<Value>, order: &[Value], server_order: &[Value], key: &str) -> Result<Vec<Value>, PatchError> {
    let place = |list: &[Value], item: &Value| -> Option<usize> {
        let id = if key.is_empty() { Some(item) } else { item.get(key) };
        list.iter().position(|other| id.is_some() && (if key.is_empty() { Some(other) } else { other.get(key) }) == id)
    };
    let mut named = Vec::new();
    let mut others = Vec::new();
    for item in merged {
        if !key.is_empty() {
            identity(&item, key)?;
        }
        let at = place(server_order, &item);
        match place(order, &item) {
            Some(first) => named.push((first, at, item)),
            None => others.push((at.unwrap_or(usize::MAX), at, item)),
        }
    }
    named.sort_by_key(|(first, ..)| *first);
    others.sort_by_key(|(first, ..)| *first);
    let mut out = Vec::with_capacity(named.len() + others.len());
    let mut others = others.into_iter().map(|(_, at, item)| (at, item)).peekable();
    for (_, at, item) in named {
        while let Some((Some(other_at), _)) = others.peek()
            && at.is_some_and(|at| *other_at < at)
        {
            out.extend(others.next().map(|(_, item)| item));
        }
        out.push(item);
    }
    out.extend(others.map(|(_, item)| item));
    Ok(out)
}

#[cfg(test)]
mod tests;
