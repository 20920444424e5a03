//! `metadata.managedFields`: its entries, one for each writer, and their upkeep.
//!
//! Entries stay the JSON they are. An entry's writer is its manager, operation and subresource, and for updates its
//! apiVersion too.

use serde_json::{Map, Value};

use super::Writer;
use super::fields::{self, Fields};

/// How many writers of ordinary updates are remembered by name, as upstream. The oldest others share one entry.
pub const MAX_UPDATE_MANAGERS: usize = 10;

/// The manager under which the oldest updates are remembered.
const ANCIENT: &str = "ancient-changes";

/// `operation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Apply,
    Update,
}

impl Operation {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

pub fn text<'v>(entry: &'v Value, name: &str) -> &'v str {
    entry.get(name).and_then(Value::as_str).unwrap_or_default()
}

pub fn is_update(entry: &Value) -> bool {
    text(entry, "operation") == Operation::Update.as_str()
}

pub fn fields_of(entry: &Value) -> Option<&Fields> {
    entry.get("fieldsV1").and_then(Value::as_object)
}

pub fn fields_mut(entry: &mut Value) -> Option<&mut Fields> {
    entry.get_mut("fieldsV1").and_then(Value::as_object_mut)
}

/// Whether a list is one upstream can decode.
pub fn valid(entries: &[Value]) -> bool {
    entries.iter().all(|entry| {
        matches!(text(entry, "operation"), "Apply" | "Update")
            && !text(entry, "apiVersion").is_empty()
            && text(entry, "fieldsType") == "FieldsV1"
            && entry.get("fieldsV1").is_none_or(|set| set.as_object().is_some_and(fields::valid))
    })
}

/// Whether a client asks with this list that all be forgotten: it is empty, or holds one empty entry.
pub fn is_reset(entries: &[Value]) -> bool {
    match entries {
        [] => true,
        [Value::Object(only)] => only.is_empty(),
        _ => false,
    }
}

pub fn find(entries: &[Value], writer: &Writer<'_>, operation: Operation, api_version: &str) -> Option<usize> {
    entries.iter().position(|entry| {
        text(entry, "manager") == writer.manager
            && text(entry, "operation") == operation.as_str()
            && text(entry, "subresource") == writer.subresource
            && (operation == Operation::Apply || text(entry, "apiVersion") == api_version)
    })
}

pub fn new(writer: &Writer<'_>, operation: Operation, api_version: &str, fields: Fields) -> Value {
    let mut out = Map::new();
    let mut put = |name: &str, value: Value| out.insert(name.to_string(), value);
    put("manager", writer.manager.into());
    put("operation", operation.as_str().into());
    put("apiVersion", api_version.into());
    put("time", writer.now.into());
    put("fieldsType", "FieldsV1".into());
    put("fieldsV1", Value::Object(fields));
    if !writer.subresource.is_empty() {
        put("subresource", writer.subresource.into());
    }
    Value::Object(out)
}

pub fn set_time(entry: &mut Value, time: Option<&Value>) {
    if let Value::Object(entry) = entry {
        match time {
            Some(time) => entry.insert("time".into(), time.clone()),
            None => entry.remove("time"),
        };
    }
}

/// Makes one of the entries of one writer; only a client that wrote the list itself can have made two.
pub fn merge_twins(entries: &mut Vec<Value>) {
    let same = |a: &Value, b: &Value| {
        text(a, "manager") == text(b, "manager")
            && text(a, "operation") == text(b, "operation")
            && text(a, "subresource") == text(b, "subresource")
            && (!is_update(a) || text(a, "apiVersion") == text(b, "apiVersion"))
    };
    let mut at = 1;
    while at < entries.len() {
        let Some(first) = (0..at).find(|first| same(&entries[*first], &entries[at])) else {
            at += 1;
            continue;
        };
        let mut twin = entries.remove(at);
        if let (Some(into), Some(what)) = (fields_mut(&mut entries[first]), fields_mut(&mut twin)) {
            fields::unite(into, std::mem::take(what));
        }
    }
}

/// Forgets entries that own nothing.
pub fn drop_empty(entries: &mut Vec<Value>) {
    entries.retain(|entry| fields_of(entry).is_some_and(|f| !f.is_empty()));
}

/// Upstream's order: appliers first, then by age.
pub fn sort(entries: &mut [Value]) {
    const ORDER: [&str; 5] = ["operation", "time", "manager", "apiVersion", "subresource"];
    entries.sort_by(|a, b| ORDER.iter().map(|name| text(a, name)).cmp(ORDER.iter().map(|name| text(b, name))));
}

/// Lets the oldest updates share an entry when there are too many of them.
pub fn cap(entries: &mut Vec<Value>) {
    let mut updates = entries.iter().filter(|e| is_update(e)).count();
    if updates <= MAX_UPDATE_MANAGERS {
        return;
    }
    let order =
        |e: &Value| (text(e, "time").to_string(), text(e, "manager").to_string(), text(e, "subresource").to_string());
    let mut oldest: Vec<Value> = Vec::with_capacity(updates);
    let mut rest: Vec<Value> = Vec::with_capacity(entries.len());
    for entry in entries.drain(..) {
        if is_update(&entry) { oldest.push(entry) } else { rest.push(entry) }
    }
    oldest.sort_by_key(order);
    // One bucket for each apiVersion: the first entry of that version alone stays under its own name.
    let mut buckets: Vec<Value> = Vec::new();
    let mut oldest = oldest.into_iter();
    while updates > MAX_UPDATE_MANAGERS
        && let Some(mut entry) = oldest.next()
    {
        let Some(bucket) = buckets.iter_mut().find(|b| text(b, "apiVersion") == text(&entry, "apiVersion")) else {
            buckets.push(entry);
            continue;
        };
        set_time(bucket, entry.get("time"));
        let moved = fields_mut(&mut entry).map(std::mem::take).unwrap_or_default();
        if let Some(into) = fields_mut(bucket) {
            fields::unite(into, moved);
        }
        if let Value::Object(bucket) = bucket {
            bucket.insert("manager".into(), ANCIENT.into());
            bucket.remove("subresource");
        }
        updates -= 1;
    }
    rest.extend(buckets);
    rest.extend(oldest);
    *entries = rest;
}
