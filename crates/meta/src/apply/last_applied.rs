//! The way from client-side to server-side apply: kubectl's annotation of what it applied last.
//!
//! Only the manager named `kubectl` takes part, as upstream: it may take over without a conflict the fields it applied
//! before in the client, as long as they are still what it made them, and the annotation is kept up to date for clients
//! that go back.

use serde_json::Value;

use super::Writer;
use super::compare::compare;
use super::config;
use super::fields::{self, Fields};
use super::place::Place;
use crate::schema::View;

const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";
const KUBECTL: &str = "kubectl";
/// Upstream's limit for all annotations of an object, in bytes: the largest a client would want to read with a list.
const MAX_ANNOTATION_BYTES: usize = 256 * 1024;

fn annotation(object: &Value) -> Option<&str> {
    let text = object.get("metadata")?.get("annotations")?.get(ANNOTATION)?.as_str()?;
    (!text.is_empty()).then_some(text)
}

/// The fields kubectl may take although others own them.
pub fn allowed(root: View<'_>, live: &Value, writer: &Writer<'_>, api_version: &str) -> Fields {
    let last = || -> Option<Value> {
        let last: Value = serde_json::from_str(annotation(live)?).ok()?;
        (last.get("apiVersion")?.as_str()? == api_version).then_some(last)
    };
    if writer.manager != KUBECTL {
        return Fields::new();
    }
    let Some(last) = last() else { return Fields::new() };
    let mut set = config::applied(Place::root(root), &last);
    let difference = compare(root, Some(&last), live);
    fields::subtract(&mut set, &difference.gained);
    fields::subtract(&mut set, &difference.lost);
    set
}

/// Writes the annotation of an object that has one anew.
pub fn keep(merged: &mut Value, applied: &Value, writer: &Writer<'_>) {
    if writer.manager != KUBECTL || annotation(merged).is_none() {
        return;
    }
    let mut last = applied.clone();
    if let Some(Value::Object(annotations)) = last.get_mut("metadata").and_then(|m| m.get_mut("annotations")) {
        annotations.remove(ANNOTATION);
    }
    let Some(Value::Object(annotations)) = merged.get_mut("metadata").and_then(|m| m.get_mut("annotations")) else {
        return;
    };
    annotations.insert(ANNOTATION.into(), format!("{last}\n").into());
    let bytes: usize = annotations.iter().map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum();
    if bytes > MAX_ANNOTATION_BYTES {
        annotations.remove(ANNOTATION);
    }
}
