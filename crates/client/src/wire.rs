//! The wire's JSON cut into objects: lists, single answers and watch lines, without building trees.

use bytes::{Bytes, BytesMut};
use meta::{EventKind, List, Object, Reply, Status, WatchEvent};
use serde::Deserialize;
use serde_json::value::RawValue;

/// Bytes of one watch event; servers refuse objects of a tenth of this.
const MAX_LINE: usize = 32 << 20;

fn malformed(why: impl std::fmt::Display) -> Status {
    Status::internal(format!("the server's answer cannot be read: {why}"))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListHead<'a> {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    metadata: ListMeta,
    #[serde(default, borrow)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ListMeta {
    resource_version: String,
    #[serde(rename = "continue")]
    continue_token: Option<String>,
    remaining_item_count: Option<u64>,
}

/// One item of a list, in a buffer of its own (the list's would live as long as its last item). Items of built-in kinds
/// lack kind and apiVersion; the list's own kind tells them.
fn list_item(raw: &str, kind: &str, api_version: &str) -> Result<Object, Status> {
    let plain = || Object::from_wire(Bytes::copy_from_slice(raw.as_bytes())).map_err(malformed);
    let begins = raw.trim_start_matches('{').trim_start();
    if begins.starts_with("\"kind\"") || begins.starts_with("\"apiVersion\"") || begins.starts_with('}') {
        return plain();
    }
    let named = serde_json::to_string(&[kind, api_version]).map_err(malformed)?;
    let (kind, api_version) = named[1..named.len() - 1].split_once(',').unwrap_or(("\"\"", "\"\""));
    let rest = raw.trim_start().strip_prefix('{').unwrap_or_default();
    let whole = format!("{{\"kind\":{kind},\"apiVersion\":{api_version},{rest}");
    // An item that names its kind further back has it twice now, which does not parse.
    Object::from_wire(whole.into()).or_else(|_| plain())
}

pub fn decode_list(body: &[u8]) -> Result<List, Status> {
    let head: ListHead<'_> = serde_json::from_slice(body).map_err(malformed)?;
    let kind = head.kind.strip_suffix("List").unwrap_or(&head.kind);
    let items = head.items.unwrap_or_default();
    let items = items
        .iter()
        .map(|raw| list_item(raw.get(), kind, &head.api_version).map(Into::into))
        .collect::<Result<_, _>>()?;
    let version = head.metadata.resource_version;
    Ok(List {
        resource_version: if version.is_empty() { 0 } else { version.parse().map_err(malformed)? },
        items,
        continue_token: head.metadata.continue_token.filter(|t| !t.is_empty()),
        remaining_item_count: head.metadata.remaining_item_count,
    })
}

pub fn decode_object(code: u16, body: Bytes) -> Result<Reply, Status> {
    let object = Object::from_wire(body.clone()).map_err(malformed)?;
    if object.meta.name.is_empty() || object.meta.uid.is_empty() {
        let value = serde_json::from_slice(&body).map_err(malformed)?;
        return Ok(Reply::Value { value, code });
    }
    Ok(Reply::Object { object: object.into(), created: code == 201 })
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct BookmarkHead {
    #[serde(default)]
    metadata: BookmarkMeta,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct BookmarkMeta {
    resource_version: String,
    annotations: Option<std::collections::BTreeMap<String, String>>,
}

fn decode_event(line: &[u8]) -> Result<WatchEvent, Status> {
    let event: Line<'_> = serde_json::from_slice(line).map_err(malformed)?;
    let kind = match event.kind {
        "ADDED" => EventKind::Added,
        "MODIFIED" => EventKind::Modified,
        "DELETED" => EventKind::Deleted,
        "BOOKMARK" => {
            let head: BookmarkHead = serde_json::from_str(event.object.get()).map_err(malformed)?;
            let annotations = head.metadata.annotations.unwrap_or_default();
            return Ok(WatchEvent::Bookmark {
                resource_version: head.metadata.resource_version.parse().map_err(malformed)?,
                initial_events_end: annotations.get("k8s.io/initial-events-end").is_some_and(|v| v == "true"),
            });
        }
        "ERROR" => {
            let value = serde_json::from_str(event.object.get()).map_err(malformed)?;
            return Ok(WatchEvent::Error(Status::from_value(&value)));
        }
        other => return Err(malformed(format!("unknown watch event {other:?}"))),
    };
    let object = Object::from_wire(Bytes::copy_from_slice(event.object.get().as_bytes())).map_err(malformed)?;
    Ok(WatchEvent::Object { kind, object: object.into() })
}

/// Cuts a stream of chunks into lines and those into events.
pub struct Lines {
    rest: BytesMut,
    /// How much of `rest` is known to hold no line end.
    searched: usize,
}

impl Lines {
    pub fn new() -> Self {
        Self { rest: BytesMut::new(), searched: 0 }
    }

    pub fn feed(&mut self, chunk: &[u8]) -> Vec<WatchEvent> {
        self.rest.extend_from_slice(chunk);
        let mut events = Vec::new();
        while let Some(at) = self.rest[self.searched..].iter().position(|b| *b == b'\n') {
            let line = self.rest.split_to(self.searched + at + 1);
            self.searched = 0;
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let event = decode_event(&line).unwrap_or_else(WatchEvent::Error);
            let last = matches!(event, WatchEvent::Error(_));
            events.push(event);
            if last {
                return events;
            }
        }
        self.searched = self.rest.len();
        if self.rest.len() > MAX_LINE {
            events.push(WatchEvent::Error(malformed(format!("a watch event is larger than {MAX_LINE} bytes"))));
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::Reason;

    #[test]
    fn list_items_get_the_kind_of_their_list() {
        let item = |extra: &str| format!("{{{extra}\"metadata\":{{\"name\":\"a\",\"resourceVersion\":\"7\"}}}}");
        for extra in
            ["", "\"kind\":\"Pod\",\"apiVersion\":\"v1\",", "\"spec\":{},\"kind\":\"Pod\",\"apiVersion\":\"v1\","]
        {
            let body = format!(
                "{{\"kind\":\"PodList\",\"apiVersion\":\"v1\",\"metadata\":{{\"resourceVersion\":\"9\"}},\"items\":[{}]}}",
                item(extra)
            );
            let list = decode_list(body.as_bytes()).unwrap();
            assert_eq!((list.resource_version, list.items.len()), (9, 1));
            let one = &list.items[0];
            assert_eq!((&*one.kind, &*one.api_version, one.resource_version), ("Pod", "v1", 7), "{extra}");
            assert_eq!(one.value().unwrap()["kind"], "Pod");
        }
        assert!(decode_list(br#"{"kind":"PodList","items":null}"#).unwrap().items.is_empty());
    }

    #[test]
    fn watch_lines_may_come_in_any_pieces() {
        let text = concat!(
            r#"{"type":"ADDED","object":{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a","resourceVersion":"3"}}}"#,
            "\n",
            r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"4","annotations":{"k8s.io/initial-events-end":"true"}}}}"#,
            "\n",
            r#"{"type":"ERROR","object":{"kind":"Status","status":"Failure","code":410,"reason":"Expired"}}"#,
            "\n",
        );
        for size in [1, 7, 1000] {
            let mut lines = Lines::new();
            let events: Vec<_> = text.as_bytes().chunks(size).flat_map(|c| lines.feed(c)).collect();
            assert!(
                matches!(&events[0], WatchEvent::Object { kind: EventKind::Added, object } if object.resource_version == 3)
            );
            assert!(matches!(events[1], WatchEvent::Bookmark { resource_version: 4, initial_events_end: true }));
            assert!(matches!(&events[2], WatchEvent::Error(s) if s.is(Reason::Expired)));
        }
    }
}
