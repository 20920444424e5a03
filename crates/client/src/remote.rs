//! The transport over HTTPS: `kube`'s client for kubeconfig, TLS and authentication plugins; our own requests on it.
//!
//! Objects stay the bytes they came as: a list is cut into its items without building trees. It keeps its own bound of
//! requests in flight instead of a slow rate, and every body and watch line has a limit.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};
use http::{HeaderValue, Method, header};
use http_body_util::BodyExt;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use meta::{
    EventKind, List, Object, Options, Reason, Reply, Request, RequestBody, Status, Verb, WatchEvent, WatchStream,
};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::Semaphore;

use crate::Transport;

/// Requests in flight, watches aside. Enough to keep a server busy, little enough not to drown it.
const MAX_IN_FLIGHT: usize = 128;
/// Bytes of any answer: a list of 100,000 large pods.
const MAX_BODY: usize = 1 << 30;
/// Bytes of one watch event; servers refuse objects of a tenth of this.
const MAX_LINE: usize = 32 << 20;
/// Servers give up after 60 s.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(65);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// See the module.
pub struct Remote {
    client: kube::Client,
    in_flight: Semaphore,
}

fn unavailable(why: impl std::fmt::Display) -> Status {
    Status::new(Reason::ServiceUnavailable, why.to_string())
}

fn malformed(why: impl std::fmt::Display) -> Status {
    Status::internal(format!("the server's answer cannot be read: {why}"))
}

/// An error with its causes, which is where connection errors say what happened.
fn chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_said = cause.to_string();
        if !out.contains(&cause_said) {
            out.push_str(": ");
            out.push_str(&cause_said);
        }
        next = cause.source();
    }
    out
}

impl Remote {
    pub async fn from_kubeconfig(path: &Path, user_agent: &str) -> Result<Self, Status> {
        let shown = path.display();
        let kubeconfig = Kubeconfig::read_from(path)
            .map_err(|e| Status::bad_request(format!("kubeconfig {shown}: {}", chain(&e))))?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .map_err(|e| Status::bad_request(format!("kubeconfig {shown}: {}", chain(&e))))?;
        Self::from_config(config, user_agent)
    }

    pub fn in_cluster(user_agent: &str) -> Result<Self, Status> {
        let config = kube::Config::incluster()
            .map_err(|e| Status::bad_request(format!("in-cluster configuration: {}", chain(&e))))?;
        Self::from_config(config, user_agent)
    }

    pub fn from_config(mut config: kube::Config, user_agent: &str) -> Result<Self, Status> {
        let agent = HeaderValue::from_str(user_agent).map_err(|e| Status::bad_request(format!("user agent: {e}")))?;
        config.headers.push((header::USER_AGENT, agent));
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        // Retries are the callers' business: they know what may be repeated.
        config.default_retry = false;
        let client =
            kube::Client::try_from(config).map_err(|e| Status::bad_request(format!("client: {}", chain(&e))))?;
        Ok(Self { client, in_flight: Semaphore::new(MAX_IN_FLIGHT) })
    }

    async fn send(&self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        let response = self.client.send(request).await.map_err(|e| unavailable(chain(&e)))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let code = response.status();
        let retry_after = response.headers().get(header::RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
        let body = collect(response.into_body()).await.unwrap_or_default();
        Err(failure(code.as_u16(), retry_after, &body))
    }

    async fn exchange(&self, request: http::Request<Body>) -> Result<(u16, Bytes), Status> {
        let work = async {
            // The semaphore is never closed.
            let _permit = self.in_flight.acquire().await.map_err(unavailable)?;
            let response = self.send(request).await?;
            let code = response.status().as_u16();
            Ok((code, collect(response.into_body()).await?))
        };
        match tokio::time::timeout(REQUEST_TIMEOUT, work).await {
            Ok(result) => result,
            Err(_) => Err(Status::timeout("the server gave no answer in time", 0)),
        }
    }
}

async fn collect(body: Body) -> Result<Bytes, Status> {
    let limited = http_body_util::Limited::new(body, MAX_BODY);
    Ok(limited.collect().await.map_err(|e| unavailable(chain(&*e)))?.to_bytes())
}

/// A failed answer as a `Status`, also when the server (or a proxy on the way) wrote none.
fn failure(code: u16, retry_after: Option<u32>, body: &[u8]) -> Status {
    let mut status = match serde_json::from_slice::<serde_json::Value>(body) {
        Ok(value) if value["kind"] == "Status" => Status::from_value(&value),
        _ => {
            let reason = match code {
                400 => Reason::BadRequest,
                401 => Reason::Unauthorized,
                403 => Reason::Forbidden,
                404 => Reason::NotFound,
                405 => Reason::MethodNotAllowed,
                406 => Reason::NotAcceptable,
                409 => Reason::Conflict,
                410 => Reason::Gone,
                413 => Reason::RequestEntityTooLarge,
                415 => Reason::UnsupportedMediaType,
                422 => Reason::Invalid,
                429 => Reason::TooManyRequests,
                500 => Reason::InternalError,
                503 => Reason::ServiceUnavailable,
                504 => Reason::Timeout,
                _ => Reason::Unknown,
            };
            let text = String::from_utf8_lossy(&body[..body.len().min(512)]);
            Status { code, ..Status::new(reason, format!("the server answered {code}: {}", text.trim())) }
        }
    };
    if let Some(seconds) = retry_after {
        status.details.get_or_insert_default().retry_after_seconds = seconds;
    }
    status
}

/// Percent-encodes all but what paths (`/` among it) and query values may hold as it is.
fn encode(text: &str, plain: &[u8], out: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || plain.contains(&byte) {
            out.push(byte as char);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
}

fn url(request: &Request) -> String {
    let mut url = String::new();
    encode(&request.path(), b"/:@!$&'()*+,;=", &mut url);
    let mut pairs: Vec<(&str, String)> = Vec::new();
    let Options {
        label_selector,
        field_selector,
        limit,
        continue_token,
        resource_version,
        resource_version_match,
        allow_watch_bookmarks,
        send_initial_events,
        timeout_seconds,
        dry_run,
        field_manager,
        field_validation,
        force,
        other,
    } = &request.options;
    let mut push = |name: &'static str, value: Option<String>| pairs.extend(value.map(|v| (name, v)));
    push("labelSelector", label_selector.clone());
    push("fieldSelector", field_selector.clone());
    push("limit", limit.map(|n| n.to_string()));
    push("continue", continue_token.clone());
    push("resourceVersion", resource_version.clone());
    push("resourceVersionMatch", resource_version_match.clone());
    push("watch", (request.verb == Verb::Watch).then(|| "true".into()));
    push("allowWatchBookmarks", allow_watch_bookmarks.then(|| "true".into()));
    push("sendInitialEvents", send_initial_events.map(|b| b.to_string()));
    push("timeoutSeconds", timeout_seconds.map(|n| n.to_string()));
    for value in dry_run {
        push("dryRun", Some(value.clone()));
    }
    push("fieldManager", field_manager.clone());
    push("fieldValidation", field_validation.clone());
    push("force", force.map(|b| b.to_string()));
    pairs.extend(other.iter().map(|(k, v)| (k.as_str(), v.clone())));
    for (i, (name, value)) in pairs.iter().enumerate() {
        url.push(if i == 0 { '?' } else { '&' });
        encode(name, b"", &mut url);
        url.push('=');
        encode(value, b"", &mut url);
    }
    url
}

fn http_request(request: Request) -> Result<http::Request<Body>, Status> {
    let method = match request.verb {
        Verb::Get | Verb::List | Verb::Watch => Method::GET,
        Verb::Create => Method::POST,
        Verb::Update => Method::PUT,
        Verb::Patch => Method::PATCH,
        Verb::Delete | Verb::DeleteCollection => Method::DELETE,
    };
    let mut builder =
        http::Request::builder().method(method).uri(url(&request)).header(header::ACCEPT, "application/json");
    let body = match request.body {
        RequestBody::None => Body::empty(),
        RequestBody::Bytes { content_type, bytes } => {
            builder = builder.header(header::CONTENT_TYPE, content_type);
            Body::from(bytes)
        }
        RequestBody::Value { content_type, value } => {
            builder = builder.header(header::CONTENT_TYPE, content_type);
            Body::from(serde_json::to_vec(&value).map_err(Status::internal)?)
        }
    };
    builder.body(body).map_err(|e| Status::bad_request(e.to_string()))
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

fn decode_list(body: &[u8]) -> Result<List, Status> {
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

fn decode_object(code: u16, body: Bytes) -> Result<Reply, Status> {
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
struct Lines {
    rest: BytesMut,
    /// How much of `rest` is known to hold no line end.
    searched: usize,
}

impl Lines {
    fn new() -> Self {
        Self { rest: BytesMut::new(), searched: 0 }
    }

    fn feed(&mut self, chunk: &[u8]) -> Vec<WatchEvent> {
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

fn watch_stream(body: Body) -> WatchStream {
    let chunks = body.into_data_stream();
    stream::unfold(Some((chunks, Lines::new())), |state| async move {
        let (mut chunks, mut lines) = state?;
        loop {
            match chunks.next().await? {
                Ok(chunk) => {
                    let events = lines.feed(&chunk);
                    if events.is_empty() {
                        continue;
                    }
                    let ended = matches!(events.last(), Some(WatchEvent::Error(_)));
                    return Some((events, (!ended).then_some((chunks, lines))));
                }
                // A cut connection is an ordinary end: the watcher resumes.
                Err(error) => {
                    tracing::debug!("watch interrupted: {}", chain(&error));
                    return None;
                }
            }
        }
    })
    .boxed()
}

#[async_trait]
impl Transport for Remote {
    async fn call(&self, request: Request) -> Result<Reply, Status> {
        let verb = request.verb;
        let request = http_request(request)?;
        if verb == Verb::Watch {
            let answer = tokio::time::timeout(REQUEST_TIMEOUT, self.send(request)).await;
            let response = answer.map_err(|_| Status::timeout("the server gave no answer in time", 0))??;
            return Ok(Reply::Watch(watch_stream(response.into_body())));
        }
        let (code, body) = self.exchange(request).await?;
        if verb == Verb::List {
            return decode_list(&body).map(Reply::List);
        }
        if verb == Verb::DeleteCollection {
            return Ok(Reply::Value { value: serde_json::Value::Null, code });
        }
        decode_object(code, body)
    }

    async fn get_path(&self, path_and_query: &str) -> Result<Bytes, Status> {
        let request = http::Request::builder().uri(path_and_query).header(header::ACCEPT, "application/json, */*");
        let request = request.body(Body::empty()).map_err(|e| Status::bad_request(e.to_string()))?;
        Ok(self.exchange(request).await?.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::Gvr;
    use serde_json::json;

    #[test]
    fn urls() {
        let mut request = Request::new(Verb::Watch, Gvr::new("apps", "v1", "deployments"), "n", "");
        request.options.label_selector = Some("a in (b,c)".into());
        request.options.resource_version = Some("5".into());
        assert_eq!(
            url(&request),
            "/apis/apps/v1/namespaces/n/deployments?labelSelector=a%20in%20%28b%2Cc%29&resourceVersion=5&watch=true"
        );
        let role =
            Request::new(Verb::Get, Gvr::new("rbac.authorization.k8s.io", "v1", "clusterroles"), "", "system:a b");
        assert_eq!(url(&role), "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:a%20b");
    }

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

    #[test]
    fn failures_become_statuses() {
        let body = json!({"kind": "Status", "code": 404, "reason": "NotFound", "message": "no"}).to_string();
        assert!(failure(404, None, body.as_bytes()).is_not_found());
        let plain = failure(429, Some(3), b"slow down");
        assert!(plain.is(Reason::TooManyRequests) && plain.details.unwrap().retry_after_seconds == 3);
    }
}
