//! Conditions in a status, as JSON: the same for every kind.

use client::time::rfc3339;
use jiff::Timestamp;
use serde_json::{Value, json};

/// A condition to set.
#[derive(Clone, Debug)]
pub struct Condition<'a> {
    pub kind: &'a str,
    pub status: &'a str,
    pub reason: &'a str,
    pub message: &'a str,
}

pub fn get<'a>(status: &'a Value, kind: &str) -> Option<&'a Value> {
    status["conditions"].as_array()?.iter().find(|c| c["type"] == kind)
}

pub fn is_true(status: &Value, kind: &str) -> bool {
    get(status, kind).is_some_and(|c| c["status"] == "True")
}

pub fn remove(status: &mut Value, kind: &str) {
    if let Some(list) = status.get_mut("conditions").and_then(Value::as_array_mut) {
        list.retain(|c| c["type"] != kind);
        if list.is_empty()
            && let Some(map) = status.as_object_mut()
        {
            map.remove("conditions");
        }
    }
}

/// Puts a condition as it is, in place of one of its type, at the end as upstream's workload controllers do.
pub fn replace(status: &mut Value, condition: Value) {
    let kind = condition["type"].as_str().unwrap_or_default().to_string();
    remove(status, &kind);
    match status.get_mut("conditions").and_then(Value::as_array_mut) {
        Some(list) => list.push(condition),
        None => status["conditions"] = json!([condition]),
    }
}

/// Sets a condition unless one of the same status and reason is there; the transition time is kept when the status is
/// the same.
pub fn set(status: &mut Value, condition: Condition<'_>, now: Timestamp) {
    let current = get(status, condition.kind);
    let same_status = current.is_some_and(|c| c["status"] == condition.status);
    if same_status && current.is_some_and(|c| c["reason"].as_str().unwrap_or_default() == condition.reason) {
        return;
    }
    let since = match current {
        Some(current) if same_status => current["lastTransitionTime"].clone(),
        _ => rfc3339(now).into(),
    };
    let mut new = json!({"type": condition.kind, "status": condition.status, "lastTransitionTime": since});
    for (field, text) in [("reason", condition.reason), ("message", condition.message)] {
        if !text.is_empty() {
            new[field] = text.into();
        }
    }
    replace(status, new);
}

/// Sets a number that the API leaves out when it is zero.
pub fn count(status: &mut Value, field: &str, number: i64) {
    if number != 0 {
        status[field] = number.into();
    } else if let Some(map) = status.as_object_mut() {
        map.remove(field);
    }
}

/// Time a condition's field holds.
pub fn time(condition: &Value, field: &str) -> Option<Timestamp> {
    client::time::parse(condition[field].as_str()?)
}

/// Sets a condition in its place, also when only its words changed; the transition time is kept when the status is the
/// same. For controllers whose conditions keep their order.
pub fn update(status: &mut Value, condition: Condition<'_>, now: Timestamp) {
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let list = status["conditions"].as_array_mut().into_iter().flatten();
    let wanted = [("status", condition.status), ("reason", condition.reason), ("message", condition.message)];
    if let Some(current) = list.into_iter().find(|c| c["type"] == condition.kind) {
        if current["status"] != condition.status {
            current["lastTransitionTime"] = rfc3339(now).into();
        }
        for (field, text) in wanted {
            current[field] = text.into();
        }
        return;
    }
    let mut new = json!({"type": condition.kind, "lastTransitionTime": rfc3339(now)});
    for (field, text) in wanted {
        new[field] = text.into();
    }
    if let Some(list) = status["conditions"].as_array_mut() {
        list.push(new);
    }
}
