//! The transport over HTTPS: `kube`'s client for kubeconfig, TLS and authentication plugins; our own requests on it.
//!
//! Objects stay the bytes they came as: a list is cut into its items without building trees. It keeps its own bound of
//! requests in flight instead of a slow rate, and every body and watch line has a limit.

use std::path::Path;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{HeaderValue, Method, header};
use http_body::Body as _;
use http_body_util::BodyExt;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use meta::{Options, Reason, Reply, Request, RequestBody, Status, Verb, WatchEvent, WatchStream};
use tokio::sync::Semaphore;

use crate::Transport;
use crate::wire::{Lines, decode_list, decode_object};

/// Requests in flight, watches aside. Enough to keep a server busy, little enough not to drown it.
const MAX_IN_FLIGHT: usize = 128;
/// Bytes of any answer: a list of 100,000 large pods.
const MAX_BODY: usize = 1 << 30;
/// Servers give up after 60 s.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(65);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// See the module.
pub struct Remote {
    client: kube::Client,
    /// With its port, for those who count.
    host: String,
    in_flight: Semaphore,
}

fn unavailable(why: impl std::fmt::Display) -> Status {
    Status::new(Reason::ServiceUnavailable, why.to_string())
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
        Self::from_config(Self::configuration(path).await?, user_agent)
    }

    /// The server at another address than the kubeconfig's.
    pub async fn of_server(path: &Path, server: &str, user_agent: &str) -> Result<Self, Status> {
        let mut config = Self::configuration(path).await?;
        config.cluster_url = server.parse().map_err(|e| Status::bad_request(format!("{server:?}: {e}")))?;
        Self::from_config(config, user_agent)
    }

    async fn configuration(path: &Path) -> Result<kube::Config, Status> {
        let shown = path.display();
        let kubeconfig = Kubeconfig::read_from(path)
            .map_err(|e| Status::bad_request(format!("kubeconfig {shown}: {}", chain(&e))))?;
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .map_err(|e| Status::bad_request(format!("kubeconfig {shown}: {}", chain(&e))))
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
        crate::metrics::show();
        let host = config.cluster_url.authority().map(ToString::to_string).unwrap_or_default();
        // Retries are the callers' business: they know what may be repeated.
        config.default_retry = false;
        let client =
            kube::Client::try_from(config).map_err(|e| Status::bad_request(format!("client: {}", chain(&e))))?;
        Ok(Self { client, host, in_flight: Semaphore::new(MAX_IN_FLIGHT) })
    }

    /// Bounds the requests in flight, and with them the connections. A server that many such clients share is spared a
    /// handshake for each of a burst of requests, and answers them as fast.
    pub fn at_most(self, in_flight: usize) -> Self {
        Self { in_flight: Semaphore::new(in_flight), ..self }
    }

    async fn send(&self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        let method = request.method().clone();
        let size = request.body().size_hint().exact().unwrap_or_default();
        let start = Instant::now();
        let sent = self.client.send(request).await;
        let (code, length) = match &sent {
            Ok(response) => (response.status().as_u16(), response.body().size_hint().exact()),
            Err(_) => (0, None),
        };
        crate::metrics::requested(code, &self.host, method.as_str(), start.elapsed(), (size, length));
        let response = sent.map_err(|e| unavailable(chain(&e)))?;
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

/// One address that takes documents, and may answer with one: a webhook that a kubeconfig names.
pub struct Post {
    remote: Remote,
    path: String,
}

impl Post {
    /// The server's whole URL is where documents go.
    pub async fn from_kubeconfig(path: &Path, user_agent: &str) -> Result<Self, Status> {
        let mut config = Remote::configuration(path).await?;
        let mut parts = std::mem::take(&mut config.cluster_url).into_parts();
        let asked = parts.path_and_query.replace(http::uri::PathAndQuery::from_static("/"));
        config.cluster_url = http::Uri::from_parts(parts).map_err(|e| Status::bad_request(e.to_string()))?;
        let path = asked.map_or_else(|| "/".into(), |p| p.to_string());
        Ok(Self { remote: Remote::from_config(config, user_agent)?, path })
    }

    pub async fn json(&self, body: Bytes) -> Result<(), Status> {
        self.exchange(body).await.map(drop)
    }

    async fn exchange(&self, body: Bytes) -> Result<Bytes, Status> {
        let request = http::Request::post(&self.path).header(header::CONTENT_TYPE, "application/json");
        let request = request.body(Body::from(body)).map_err(|e| Status::bad_request(e.to_string()))?;
        self.remote.exchange(request).await.map(|(_, answer)| answer)
    }

    /// Sends a document and reads the answer.
    pub async fn ask(&self, document: &serde_json::Value) -> Result<serde_json::Value, Status> {
        let answer = self.exchange(document.to_string().into()).await?;
        serde_json::from_slice(&answer).map_err(|e| Status::internal(format!("the answer is no JSON: {e}")))
    }

    /// The same, asked again while the server cannot answer: each wait is half as long again.
    pub async fn ask_patiently(
        &self,
        document: &serde_json::Value,
        tries: u32,
        first_wait: Duration,
    ) -> Result<serde_json::Value, Status> {
        let mut wait = first_wait;
        for _ in 1..tries {
            match self.ask(document).await {
                Err(status) if status.code >= 500 || status.is(Reason::TooManyRequests) => {
                    tokio::time::sleep(wait).await;
                    wait = wait.mul_f64(1.5);
                }
                answered => return answered,
            }
        }
        self.ask(document).await
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

/// The path and query of a request.
pub fn url(request: &Request) -> String {
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

/// What an answer's status code and bytes come to; a watch's do not come whole.
pub fn reply(verb: Verb, code: u16, body: Bytes) -> Result<Reply, Status> {
    match verb {
        _ if !(200..300).contains(&code) => Err(failure(code, None, &body)),
        Verb::List => decode_list(&body).map(Reply::List),
        Verb::DeleteCollection => Ok(Reply::Value { value: serde_json::Value::Null, code }),
        _ => decode_object(code, body),
    }
}

/// The events of a watch's answer, as it comes.
pub fn watch_stream<E>(chunks: impl stream::Stream<Item = Result<Bytes, E>> + Send + Unpin + 'static) -> WatchStream
where
    E: std::error::Error + Send + 'static,
{
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
            return Ok(Reply::Watch(watch_stream(response.into_body().into_data_stream())));
        }
        let (code, body) = self.exchange(request).await?;
        reply(verb, code, body)
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
    fn failures_become_statuses() {
        let body = json!({"kind": "Status", "code": 404, "reason": "NotFound", "message": "no"}).to_string();
        assert!(failure(404, None, body.as_bytes()).is_not_found());
        let plain = failure(429, Some(3), b"slow down");
        assert!(plain.is(Reason::TooManyRequests) && plain.details.unwrap().retry_after_seconds == 3);
    }
}
