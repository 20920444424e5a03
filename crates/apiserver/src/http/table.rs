//! Server-side tables: columns and rows, as `kubectl get` prints them.

use meta::{Object, Status, Value};
use resources::{Cell, Resource, ResourceVersion};
use serde_json::json;

use crate::clock;

pub fn columns(resource: &Resource, version: &ResourceVersion) -> Value {
    if version.columns.is_empty() {
        // A kind without columns of its own is shown by name and age.
        return json!([
            {"name": "Name", "type": "string", "format": "name", "description": "", "priority": 0},
            {"name": if resource.custom { "Age" } else { "Created At" }, "type": "date", "format": "", "description": "", "priority": 0},
        ]);
    }
    let columns = version.columns.iter();
    columns
        .map(|c| json!({"name": &*c.name, "type": &*c.kind, "format": &*c.format, "description": &*c.description, "priority": c.priority}))
        .collect()
}

/// The value at a JSONPath, as its column's type prints it.
fn cell_at(body: &Value, path: &str, kind: &str, now: &str) -> Value {
    let Some(found) = super::jsonpath::find(body, path) else { return Value::Null };
    match (kind, found) {
        ("date", Value::String(at)) => resources::cells::since(at, now).into(),
        ("string", Value::String(_)) | ("integer" | "number", Value::Number(_)) | ("boolean", Value::Bool(_)) => {
            found.clone()
        }
        ("string", other) if !other.is_null() => other.to_string().into(),
        _ => Value::Null,
    }
}

pub fn row(resource: &Resource, version: &ResourceVersion, object: &Object, include: &str) -> Result<Value, Status> {
    let body = object.value().map_err(Status::internal)?;
    let now = clock::now();
    let mut built = if version.columns.iter().any(|c| c.cell == Cell::Built) {
        resource.strategy.table_row(&body, &now)
    } else {
        Vec::new()
    }
    .into_iter();
    let mut cells: Vec<Value> = version
        .columns
        .iter()
        .map(|column| match &column.cell {
            Cell::Built => built.next().unwrap_or(Value::Null),
            Cell::JsonPath(path) => cell_at(&body, path, &column.kind, &now),
        })
        .collect();
    if cells.is_empty() {
        cells = vec![body["metadata"]["name"].clone(), body["metadata"]["creationTimestamp"].clone()];
    }
    let mut out = json!({"cells": cells});
    match include {
        "None" => out["object"] = Value::Null,
        "Object" => out["object"] = body,
        _ => {
            out["object"] =
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": body["metadata"]})
        }
    }
    Ok(out)
}
