//! Events, which two groups serve: stored as core `v1`, renamed field by field for `events.k8s.io/v1`.

use meta::{Status, Value};

use crate::cells::since;
use crate::strategy::Strategy;
use crate::tree::Tree;

kinds! {
    CoreEvent: "Last Seen|Type|Reason|Object|Subobject*|Source*|Message|First Seen*|Count*|Name*";
    Event: "Last Seen|Type|Reason|Object|Subobject*|Source*|Message|First Seen*|Count*|Name*";
}

/// Fields in core `v1` and in `events.k8s.io/v1`, where they differ.
const RENAMED: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];
const CORE: &str = "v1";
const EVENTS: &str = "events.k8s.io/v1";

fn first<'a>(texts: &[&'a str]) -> &'a str {
    texts.iter().find(|t| !t.is_empty()).copied().unwrap_or_default()
}

/// The row of an event in core form.
fn row(event: &Value, now: &str) -> Vec<Value> {
    let first_seen = since(first(&[event.text("firstTimestamp"), event.text("eventTime")]), now);
    let (mut last_seen, mut count) = (first_seen.clone(), event.int("count").max(1));
    if event.has("series") {
        last_seen = since(event.text("series.lastObservedTime"), now);
        count = event.int("series.count");
    } else if event.has("lastTimestamp") {
        last_seen = since(event.text("lastTimestamp"), now);
    }
    let object = event.at("involvedObject");
    let kind = object.text("kind").to_lowercase();
    let target = if object.text("name").is_empty() { kind } else { format!("{kind}/{}", object.text("name")) };
    let component = first(&[event.text("source.component"), event.text("reportingComponent")]);
    let host = first(&[event.text("source.host"), event.text("reportingInstance")]);
    let source = if host.is_empty() { component.to_string() } else { format!("{component}, {host}") };
    vec![
        last_seen.into(),
        event.text("type").into(),
        event.text("reason").into(),
        target.into(),
        object.text("fieldPath").into(),
        source.into(),
        event.text("message").trim().into(),
        first_seen.into(),
        count.into(),
        event.text("metadata.name").into(),
    ]
}

fn rename(object: &mut Value, pairs: impl Iterator<Item = (&'static str, &'static str)>, api_version: &str) {
    let map = object.dig("");
    for (from, to) in pairs {
        if let Some(value) = map.remove(from) {
            map.insert(to.to_string(), value);
        }
    }
    map.insert("apiVersion".into(), api_version.into());
}

/// Renames an event's fields into the other group's form.
fn convert(object: &mut Value, from: &str, to: &str) {
    match (from, to) {
        (CORE, EVENTS) => rename(object, RENAMED.iter().copied(), EVENTS),
        (EVENTS, CORE) => rename(object, RENAMED.iter().map(|(core, events)| (*events, *core)), CORE),
        _ => {}
    }
}

impl Strategy for CoreEvent {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        row(object, now)
    }
}

impl Strategy for Event {
    fn stored_as(&self) -> Option<&'static str> {
        Some(CORE)
    }

    fn convert(&self, object: &mut Value, from: &str, to: &str) -> Result<(), Status> {
        convert(object, from, to);
        Ok(())
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        if object.text("apiVersion") == CORE {
            return row(object, now);
        }
        let mut core = object.clone();
        convert(&mut core, EVENTS, CORE);
        row(&core, now)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_go_both_ways_and_print_the_same() {
        let core = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "a"},
            "message": "hello ", "count": 3, "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:50Z",
            "source": {"component": "kubelet", "host": "n"}, "reason": "R", "type": "Normal", "reportingComponent": "kubelet"});
        let mut events = core.clone();
        convert(&mut events, CORE, EVENTS);
        assert_eq!((events.text("note"), events.text("regarding.name"), events.int("deprecatedCount")), ("hello ", "a", 3));
        let now = "2026-01-01T00:01:00Z";
        let expect = json!(["10s", "Normal", "R", "pod/a", "", "kubelet, n", "hello", "60s", 3, "e"]);
        assert_eq!(Value::from(row(&core, now)), expect);
        assert_eq!(Value::from(Event.table_row(&events, now)), expect);
        convert(&mut events, EVENTS, CORE);
        assert_eq!(events, core);
    }
}
