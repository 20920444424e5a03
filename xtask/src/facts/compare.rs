//! Compares the table with a published OpenAPI v2 document: the table should say the same of what both know.

use std::collections::BTreeMap;

use serde_json::Value;

/// Sentences about differences; the document may be of an older release, so additions are no difference.
pub fn compare(table: &str, document: &Value) -> Vec<String> {
    let mut out = Vec::new();
    let mut package = "";
    let mut structs: BTreeMap<String, BTreeMap<&str, &str>> = BTreeMap::new();
    let mut current = String::new();
    for line in table.lines() {
        if let Some(rest) = line.strip_prefix("package ") {
            package = rest.split(' ').next().unwrap_or_default();
        } else if let Some(field) = line.strip_prefix(' ') {
            if let Some((name, rest)) = field.split_once(' ') {
                structs.entry(current.clone()).or_default().insert(name, rest);
            }
        } else if !line.starts_with("enum ") && !line.starts_with('#') {
            current = format!("{package}.{}", line.split(' ').next().unwrap_or_default());
            structs.entry(current.clone()).or_default();
        }
    }
    let Some(definitions) = document["definitions"].as_object() else { return vec!["no definitions".into()] };
    for (name, definition) in definitions {
        let Some(properties) = definition["properties"].as_object() else { continue };
        let Some(fields) = structs.get(name) else {
            out.push(format!("{name}: not in the table"));
            continue;
        };
        let required: Vec<&str> =
            definition["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for (field, property) in properties {
            let Some(line) = fields.get(field.as_str()) else {
                out.push(format!("{name}.{field}: not in the table"));
                continue;
            };
            let said = |word: &str| line.split(' ').any(|w| w == word);
            let value = |word: &str| line.split(' ').find_map(|w| w.strip_prefix(word)?.strip_prefix('='));
            if required.contains(&field.as_str()) != said("req") {
                out.push(format!("{name}.{field}: required differs: {line}"));
            }
            let list = property["x-kubernetes-list-type"].as_str().unwrap_or("atomic");
            let ours = if said("set") {
                "set"
            } else if value("map").is_some() {
                "map"
            } else {
                "atomic"
            };
            if property["type"] == "array" && list != ours {
                out.push(format!("{name}.{field}: list type {list}, ours {ours}"));
            }
            let keys: Vec<&str> = property["x-kubernetes-list-map-keys"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            if keys.join(",") != value("map").unwrap_or_default() {
                out.push(format!("{name}.{field}: keys {keys:?}: {line}"));
            }
            let strategy = property["x-kubernetes-patch-strategy"].as_str().unwrap_or_default();
            if strategy.contains("merge") != (said("merge") || value("merge").is_some())
                || strategy.contains("retain") != said("retain")
            {
                out.push(format!("{name}.{field}: patch strategy {strategy:?}: {line}"));
            }
            let key = property["x-kubernetes-patch-merge-key"].as_str().unwrap_or_default();
            if key != value("merge").unwrap_or_default() {
                out.push(format!("{name}.{field}: merge key {key:?}: {line}"));
            }
        }
    }
    out
}
