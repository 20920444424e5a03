//! `--audit-*-truncate-enabled`: an event too large for who takes it loses its objects, and goes on without.
//!
//! Follows upstream's truncating backend: what is cut says so in an annotation; what is too large even then is dropped.

use bytes::Bytes;
use serde_json::Value;

const ANNOTATION: &str = "audit.k8s.io/truncated";

/// An event of at most `max` bytes; `None` if it cannot be made one.
pub fn to(event: Bytes, max: usize) -> Option<Bytes> {
    if event.len() <= max {
        return Some(event);
    }
    let mut cut: Value = serde_json::from_slice(&event).ok()?;
    let fields = cut.as_object_mut()?;
    // Of other levels there is nothing to take away.
    if !matches!(fields.get("level").and_then(Value::as_str), Some("Request" | "RequestResponse")) {
        return None;
    }
    fields.remove("requestObject");
    fields.remove("responseObject");
    let annotations = fields.entry("annotations").or_insert_with(|| Value::Object(Default::default()));
    annotations.as_object_mut()?.insert(ANNOTATION.into(), "true".into());
    let cut = serde_json::to_vec(&cut).ok()?;
    (cut.len() <= max).then(|| cut.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn objects_go_first_and_then_the_event() {
        let event = |level: &str, size: usize| json!({"level": level, "annotations": {"a": "b"}, "requestURI": "/x", "requestObject": "x".repeat(size), "responseObject": {}});
        let cut = |event: Value, max: usize| {
            to(event.to_string().into(), max).map(|e| serde_json::from_slice::<Value>(&e).unwrap())
        };
        let small = event("Request", 10);
        assert_eq!(cut(small.clone(), 1000), Some(small));
        let expect = json!({"level": "Request", "annotations": {"a": "b", ANNOTATION: "true"}, "requestURI": "/x"});
        assert_eq!(cut(event("Request", 1000), 1000), Some(expect));
        assert_eq!(cut(event("Request", 1000), 50), None);
        assert_eq!(cut(event("Metadata", 1000), 1000), None);
    }
}
