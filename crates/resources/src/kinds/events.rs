//! Events, which two groups serve: stored as core `v1`, renamed field by field for `events.k8s.io/v1`.

use meta::{FieldError, Status, Value};

use crate::cells::since;
use crate::strategy::{Context, Strategy};
use crate::validate::{At, Errors, formats};
use meta::Tree;

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

const MAX_WORD: usize = 128;
const MAX_NOTE: usize = 1024;

/// An event in core form, as written through either group.
fn check(event: &Value, strictly: bool) -> Errors {
    let (at, mut errors) = (At::root(event), Errors::default());
    let (namespace, about) = (event.text("metadata.namespace"), at.child("involvedObject.namespace"));
    let controller = At {
        value: event.at("reportingComponent"),
        path: meta::FieldPath::new(if strictly { "reportingController" } else { "reportingComponent" }),
    };
    let new = event.has("eventTime");
    let agrees = match about.str() {
        "" if new => matches!(namespace, "" | "default" | "kube-system"),
        "" => matches!(namespace, "" | "default"),
        other => new || other == namespace,
    };
    if !agrees {
        errors.invalid_as(&about, about.str(), "does not match event.namespace");
    }
    if new {
        errors.need(&controller, "");
        errors.format(&controller, formats::qualified_name);
        for field in ["reportingInstance", "action", "reason"].map(|f| at.child(f)) {
            errors.need(&field, "");
            if field.str().len() > MAX_WORD {
                errors.invalid_as(&field, "", format!("can have at most {MAX_WORD} characters"));
            }
        }
        if event.text("message").len() > MAX_NOTE {
            errors.invalid_as(&at.child("message"), "", format!("can have at most {MAX_NOTE} characters"));
        }
    }
    if strictly {
        errors.need(&at.child("eventTime"), "");
        if !matches!(event.text("type"), "Normal" | "Warning") {
            errors.invalid_as(&at.child("type"), "", format!("has invalid value: {}", event.text("type")));
        }
        for field in ["firstTimestamp", "lastTimestamp"].map(|f| at.child(f)).into_iter().filter(At::there) {
            errors.invalid_as(&field, "", "needs to be unset");
        }
        if event.int("count") != 0 {
            errors.invalid_as(&at.child("count"), "", "needs to be unset");
        }
        if !event.text("source.component").is_empty() || !event.text("source.host").is_empty() {
            errors.invalid_as(&at.child("source"), "", "needs to be unset");
        }
        if event.has("series") {
            if event.int("series.count") < 2 {
                errors.invalid_as(&at.child("series.count"), "", "should be at least 2");
            }
            errors.need(&at.child("series.lastObservedTime"), "");
        }
    }
    errors
}

impl Strategy for CoreEvent {
    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        check(object, false).0
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        row(object, now)
    }
}

impl Strategy for Event {
    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        check(object, true).0
    }

    fn validate_update(&self, _cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        const KEPT: [&str; 9] = [
            "involvedObject",
            "reason",
            "message",
            "type",
            "eventTime",
            "action",
            "related",
            "reportingComponent",
            "reportingInstance",
        ];
        // Events written through the older group may be looser.
        let mut errors = check(object, old.has("eventTime"));
        for field in KEPT {
            errors.immutable(&At::root(object).child(field), old.at(field));
        }
        errors.0
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

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
        assert_eq!(
            (events.text("note"), events.text("regarding.name"), events.int("deprecatedCount")),
            ("hello ", "a", 3)
        );
        let now = "2026-01-01T00:01:00Z";
        let expect = json!(["10s", "Normal", "R", "pod/a", "", "kubelet, n", "hello", "60s", 3, "e"]);
        assert_eq!(Value::from(row(&core, now)), expect);
        assert_eq!(Value::from(Event.table_row(&events, now)), expect);
        convert(&mut events, EVENTS, CORE);
        assert_eq!(events, core);
    }

    #[test]
    fn events_are_checked_by_the_group_they_come_through() {
        let cx = Context::SOMEBODY;
        let old = json!({"metadata": {"namespace": "n"}, "involvedObject": {"namespace": "m"}});
        let said = |errors: Vec<FieldError>| errors.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            said(CoreEvent.validate_create(&cx, &old)),
            ["involvedObject.namespace: Invalid value: \"m\": does not match event.namespace"]
        );
        let new = json!({"metadata": {"namespace": "n"}, "involvedObject": {"namespace": "n"}, "eventTime": "2026-01-01T00:00:00.000000Z",
            "reportingComponent": "a.b/c", "reportingInstance": "i", "action": "A", "reason": "R", "type": "Normal"});
        assert_eq!(said(Event.validate_create(&cx, &new)), Vec::<String>::new());
        let mut more = new.clone();
        more.put("series", json!({"count": 2, "lastObservedTime": "2026-01-01T00:00:00.000000Z"}));
        assert_eq!(said(Event.validate_update(&cx, &more, &new)), Vec::<String>::new());
    }
}
