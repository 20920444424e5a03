//! The node API: what the control plane and people ask of a node over HTTPS.
//!
//! Every request is authenticated and authorized before anything is looked at ([`auth`]); who keeps the process alive asks
//! the port without TLS ([`healthz`]), which says nothing else. Streams are handed to the engine byte by byte ([`streams`]).

pub mod auth;
pub mod authorities;
pub mod cadvisor;
pub mod certificate;
mod configz;
pub mod files;
pub mod health;
pub mod log_query;
pub mod logs;
pub mod metrics;
pub mod pages;
pub mod streams;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use crate::agent::Context;
use crate::certificates::serving::Current;
use crate::config::Config;
use crate::cri::v1;
use crate::metrics::{Metrics, families};
use crate::spec;
use crate::stats;

/// Connections at once; each may be a log stream or a session.
const MAX_CONNECTIONS: usize = 1024;
/// What can only be read.
const READ_ONLY: [&str; 9] =
    ["allocatedPods", "configz", "containerLogs", "flagz", "logs", "pods", "runningpods", "stats", "statusz"];
/// A handshake slower than this is no client.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A response's body.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// The listening node API.
pub struct Server {
    context: Arc<Context>,
    listener: TcpListener,
    acceptor: TlsAcceptor,
    auth: Arc<auth::Auth>,
    /// The serving pair, when the cluster's signer gives it.
    issued: Option<Arc<Current>>,
}

/// A whole body at once.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body that arrives piece by piece.
pub fn streamed(receive: mpsc::Receiver<Bytes>) -> Body {
    use futures::StreamExt;
    let stream = tokio_stream::wrappers::ReceiverStream::new(receive).map(|bytes| Ok(Frame::data(bytes)));
    StreamBody::new(stream).boxed_unsync()
}

/// A plain text answer.
pub fn text(status: StatusCode, message: impl Into<String>) -> Response<Body> {
    let mut response = Response::new(full(message.into()));
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// A JSON answer.
pub fn json_body(value: &serde_json::Value) -> Response<Body> {
    let mut response = Response::new(full(value.to_string()));
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    response
}

/// Query parameters, decoded.
pub fn query(uri: &http::Uri) -> Vec<(String, String)> {
    let decode = |t: &str| -> String {
        let bytes = t.as_bytes();
        let mut out = Vec::with_capacity(bytes.len());
        let mut at = 0;
        while at < bytes.len() {
            match bytes[at] {
                b'+' => out.push(b' '),
                b'%' => match bytes
                    .get(at + 1..at + 3)
                    .and_then(|h| std::str::from_utf8(h).ok())
                    .and_then(|h| u8::from_str_radix(h, 16).ok())
                {
                    Some(byte) => {
                        out.push(byte);
                        at += 2;
                    }
                    None => out.push(b'%'),
                },
                byte => out.push(byte),
            }
            at += 1;
        }
        String::from_utf8_lossy(&out).into_owned()
    };
    uri.query()
        .into_iter()
        .flat_map(|q| q.split('&'))
        .filter(|p| !p.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        })
        .collect()
}

/// One parameter's first value.
pub fn parameter<'a>(query: &'a [(String, String)], names: &[&str]) -> Option<&'a str> {
    query.iter().find(|(k, _)| names.contains(&k.as_str())).map(|(_, v)| v.as_str())
}

/// Whether a parameter is set and true.
pub fn flag(query: &[(String, String)], names: &[&str]) -> bool {
    parameter(query, names).is_some_and(|v| matches!(v, "1" | "true" | "True" | "TRUE" | "t" | "T"))
}

/// The newest container of a pod by name.
pub async fn find_container(context: &Context, pod: &Pod, name: &str) -> Result<Vec<v1::Container>, Response<Body>> {
    let labels = [(spec::names::POD_UID, spec::uid(pod)), (spec::names::CONTAINER_NAME, name)];
    let filter = v1::ContainerFilter {
        label_selector: labels.map(|(k, v)| (k.to_string(), v.to_string())).into(),
        ..Default::default()
    };
    match context.engine.list_containers(v1::ListContainersRequest { filter: Some(filter) }).await {
        Ok(answer) => {
            let mut list = answer.containers;
            list.sort_by_key(|c| std::cmp::Reverse((c.metadata.as_ref().map_or(0, |m| m.attempt), c.created_at)));
            Ok(list)
        }
        Err(status) => Err(text(StatusCode::INTERNAL_SERVER_ERROR, status.message())),
    }
}

impl Server {
    /// Opens the port, so that a taken one is known at start.
    pub async fn bind(context: &Arc<Context>) -> anyhow::Result<Self> {
        let address = context.config.listen;
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!(
                "cannot listen on {address} for the node API: another kubelet may be running, or choose another port"
            )
        })?;
        let given = context.config.serving_certificate.is_some();
        let issued = (context.config.server_tls_bootstrap && !given).then(Arc::<Current>::default);
        let tls = certificate::server_config(&context.config, &context.host_ips, issued.clone())?;
        let auth = Arc::new(auth::Auth::new(
            context.client.clone(),
            context.config.node_name.clone(),
            context.config.auth.clone(),
        ));
        Ok(Self { context: context.clone(), listener, acceptor: TlsAcceptor::from(Arc::new(tls)), auth, issued })
    }

    /// Serves until the agent stops.
    pub async fn serve(self) {
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let _renewal = self.issued.clone().map(|issued| {
            AbortOnDropHandle::new(tokio::spawn(crate::certificates::serving::run(self.context.clone(), issued)))
        });
        loop {
            let Ok(permit) = room.clone().acquire_owned().await else { return };
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let (context, acceptor, auth) = (self.context.clone(), self.acceptor.clone(), self.auth.clone());
            tokio::spawn(async move {
                let _permit = permit;
                let _ = stream.set_nodelay(true);
                let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else { return };
                let peer =
                    stream.get_ref().1.peer_certificates().and_then(|c| c.first()).and_then(|c| auth::identity(c));
                let peer = Arc::new(peer);
                let service = service_fn(move |request| {
                    let (context, auth, peer) = (context.clone(), auth.clone(), peer.clone());
                    async move {
                        let (began, labels) = (Instant::now(), labels(&request));
                        context.metrics.add(&families::HTTP_INFLIGHT, &labels, 1.0);
                        let response = answer(&context, &auth, &peer, request).await;
                        context.metrics.add(&families::HTTP_INFLIGHT, &labels, -1.0);
                        context.metrics.count(&families::HTTP_REQUESTS, &labels);
                        context.metrics.since(&families::HTTP_DURATION, &labels, began);
                        Ok::<_, std::convert::Infallible>(response)
                    }
                });
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                if let Err(error) = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await {
                    tracing::debug!("node API connection ended: {error}");
                }
            });
        }
    }
}

/// Paths that requests are counted by; all others are `other`.
const COUNTED: [&str; 17] = [
    "attach",
    "checkpoint",
    "configz",
    "containerLogs",
    "debug",
    "exec",
    "flagz",
    "healthz",
    "logs",
    "metrics",
    "pods",
    "portForward",
    "run",
    "runningpods",
    "stats",
    "statusz",
    "allocatedPods",
];

/// How a request is counted: whether it may last, its method, what it is about, and by which server.
fn labels(request: &Request<Incoming>) -> [&'static str; 4] {
    let first = request.uri().path().trim_start_matches('/').split('/').next().unwrap_or_default();
    let path = COUNTED.into_iter().find(|p| *p == first).unwrap_or("other");
    let long = matches!(path, "exec" | "attach" | "portForward")
        || path == "containerLogs" && flag(&query(request.uri()), &["follow"]);
    let methods = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "CONNECT"];
    let method = methods.into_iter().find(|m| *m == request.method().as_str()).unwrap_or("other");
    [if long { "true" } else { "false" }, method, path, "readwrite"]
}

/// Why a path is not served, where the configuration says so.
fn disabled(config: &Config, first: &str, path: &str) -> Option<&'static str> {
    let debugging = ["exec", "attach", "portForward", "portforward", "run", "containerLogs", "runningpods", "logs"];
    if debugging.contains(&first) && !config.debugging_handlers {
        return Some("Debug endpoints are disabled.");
    }
    if first == "logs" && !config.system_logs {
        return Some("logs endpoint is disabled.");
    }
    // There are no profiles of this agent's kind to be had, whatever the configuration says, and no such flag.
    match path.trim_end_matches('/') {
        "/debug/pprof" => Some("profiling endpoint is disabled."),
        "/debug/flags/v" => Some("flags endpoint is disabled."),
        other if other.starts_with("/debug/pprof/") => Some("profiling endpoint is disabled."),
        _ => None,
    }
}

async fn answer(
    context: &Arc<Context>,
    auth: &auth::Auth,
    peer: &Option<auth::User>,
    request: Request<Incoming>,
) -> Response<Body> {
    let path = request.uri().path().to_string();
    let user = match peer {
        Some(user) => user.clone(),
        None => match auth.user(&request).await {
            Some(user) => user,
            None => return text(StatusCode::UNAUTHORIZED, "Unauthorized"),
        },
    };
    if let Err(why) = auth.allows(&user, request.method(), &path).await {
        return text(StatusCode::FORBIDDEN, why);
    }
    if let Some(response) = health::answer(&context.metrics, request.uri()) {
        return response;
    }
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    if let Some(why) = disabled(&context.config, first, &path) {
        return text(StatusCode::METHOD_NOT_ALLOWED, why);
    }
    if READ_ONLY.contains(&first) && request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed");
    }
    route(context, request, &path).await
}

/// `/healthz` without TLS, where the configuration wants it.
pub async fn healthz(address: Option<SocketAddr>, metrics: Arc<Metrics>) {
    let Some(address) = address else { return std::future::pending().await };
    plain(address, "health", move |request| {
        let answer = health::answer(&metrics, request.uri());
        std::future::ready(answer.unwrap_or_else(|| text(StatusCode::NOT_FOUND, "404 page not found")))
    })
    .await;
}

/// What can only be read, told to anybody who asks without TLS: for nodes that are told to.
pub async fn read_only(context: Arc<Context>, address: SocketAddr) {
    plain(address, "what can be read", move |request| {
        let context = context.clone();
        async move {
            if let Some(answer) = health::answer(&context.metrics, request.uri()) {
                return answer;
            }
            let path = request.uri().path().to_string();
            match path.trim_matches('/').split('/').next() {
                Some("pods" | "stats" | "metrics") if request.method() == Method::GET => {
                    route(&context, request, &path).await
                }
                _ => text(StatusCode::NOT_FOUND, "404 page not found"),
            }
        }
    })
    .await;
}

/// Serves without TLS, one short connection after the other.
async fn plain<A>(
    address: SocketAddr,
    what: &str,
    answer: impl Fn(Request<Incoming>) -> A + Clone + Send + Sync + 'static,
) where
    A: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%address, "{what} is not served: {error}");
            return std::future::pending().await;
        }
    };
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let answer = answer.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let answer = answer(request);
            async move { Ok::<_, std::convert::Infallible>(answer.await) }
        });
        tokio::spawn(tokio::time::timeout(HANDSHAKE, async move {
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        }));
    }
}

async fn route(context: &Arc<Context>, request: Request<Incoming>, path: &str) -> Response<Body> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let not_found = || text(StatusCode::NOT_FOUND, "404 page not found");
    match parts.as_slice() {
        ["pods"] => pod_list(&context.workers.pods()),
        ["allocatedPods"] if context.config.gates.allocated_pods => {
            let pods: Vec<_> = context.workers.pods().iter().map(|p| context.allocations.apply(p)).collect();
            pod_list(&pods)
        }
        ["runningpods"] => running_pods(context).await,
        ["containerLogs", namespace, pod, container] => {
            logs::serve(context, namespace, pod, container, &query(request.uri())).await
        }
        ["exec" | "attach" | "portForward" | "portforward", namespace, pod, rest @ ..] => {
            let Some(found) = context.workers.find(namespace, pod) else {
                return text(StatusCode::NOT_FOUND, "pod does not exist");
            };
            // The longer forms carry the pod's uid before the container.
            let kind = parts[0];
            let (uid, container) = match (kind, rest) {
                ("exec" | "attach", [container]) => (None, *container),
                ("exec" | "attach", [uid, container]) => (Some(*uid), *container),
                (_, []) => (None, ""),
                (_, [uid]) => (Some(*uid), ""),
                _ => return not_found(),
            };
            if uid.is_some_and(|u| u != spec::uid(&found)) {
                return text(StatusCode::NOT_FOUND, "pod does not exist");
            }
            streams::serve(context, kind, &found, container, request).await
        }
        ["run", namespace, pod, uid @ .., container] if uid.len() <= 1 && request.method() == Method::POST => {
            run(context, namespace, pod, container, &query(request.uri())).await
        }
        ["stats", "summary"] | ["stats"] => {
            let mut summary = context.stats.summary(context).await;
            if flag(&query(request.uri()), &["only_cpu_and_memory"]) {
                stats::only_cpu_and_memory(&mut summary);
            }
            json_body(&summary)
        }
        ["metrics"] => metrics::serve(context).await,
        ["metrics", "resource"] => text(StatusCode::OK, context.stats.resource_metrics(context).await),
        ["metrics", "cadvisor"] => cadvisor::serve(context).await,
        ["metrics", "probes"] => text(StatusCode::OK, metrics::probes(context)),
        ["metrics", "slis"] => text(StatusCode::OK, health::slis(&context.metrics)),
        ["checkpoint", namespace, pod, container]
            if request.method() == Method::POST && context.config.gates.checkpoint =>
        {
            checkpoint(context, namespace, pod, container, &query(request.uri())).await
        }
        ["configz"] => json_body(&configz::configz(&context.config)),
        ["statusz"] => {
            pages::statusz(request.headers(), &context.config, context.began.elapsed(), jiff::Timestamp::now())
        }
        ["flagz"] => pages::flagz(request.headers(), &context.config),
        ["logs", rest @ ..] => {
            let root = &context.config.log_dir;
            if context.config.system_log_query
                && let Some(response) = log_query::serve(root, &query(request.uri())).await
            {
                return response;
            }
            files::logs(root, rest)
        }
        _ => not_found(),
    }
}

fn pod_list(pods: &[Arc<Pod>]) -> Response<Body> {
    let items: Vec<_> = pods.iter().map(|p| &**p).filter_map(|p| serde_json::to_value(p).ok()).collect();
    json_body(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

/// Has the engine write a container down as it is.
async fn checkpoint(
    context: &Context,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &[(String, String)],
) -> Response<Body> {
    let Some(found) = context.workers.find(namespace, pod) else {
        return text(StatusCode::NOT_FOUND, "pod does not exist");
    };
    if spec::find_container(&found, container).is_none() {
        return text(StatusCode::NOT_FOUND, format!("container {container} does not exist"));
    }
    let mut timeouts = query.iter().filter(|(key, _)| key == "timeout").map(|(_, value)| value.parse::<i64>());
    let timeout = match timeouts.next_back() {
        None => 0,
        Some(Ok(seconds)) => seconds,
        Some(Err(_)) => return text(StatusCode::NOT_FOUND, "cannot parse value of timeout parameter"),
    };
    let failed = |why: String| {
        let why = format!("checkpointing of {namespace}/{pod}/{container} failed ({why})");
        text(StatusCode::INTERNAL_SERVER_ERROR, why)
    };
    let running = match find_container(context, &found, container).await {
        Ok(list) => list.into_iter().find(|c| c.state == v1::ContainerState::ContainerRunning as i32),
        Err(response) => return response,
    };
    let Some(running) = running else { return failed(format!("container {container} not found")) };
    let dir = context.config.root_dir.join("checkpoints");
    if let Err(error) = std::fs::create_dir_all(&dir) {
        return failed(error.to_string());
    }
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let location =
        dir.join(format!("checkpoint-{pod}_{namespace}-{container}-{now}.tar")).to_string_lossy().into_owned();
    let request = v1::CheckpointContainerRequest { container_id: running.id, location: location.clone(), timeout };
    match context.engine.checkpoint_container(request).await {
        Ok(_) => json_body(&json!({"items": [location]})),
        Err(status) => failed(format!("rpc error: code = {:?} desc = {}", status.code(), status.message())),
    }
}

async fn running_pods(context: &Context) -> Response<Body> {
    let Ok((sandboxes, containers)) = context.engine.list(Default::default()).await else {
        return text(StatusCode::INTERNAL_SERVER_ERROR, "the container engine does not answer");
    };
    let items: Vec<_> = sandboxes
        .iter()
        .filter(|s| s.state == v1::PodSandboxState::SandboxReady as i32)
        .filter_map(|s| {
            let metadata = s.metadata.as_ref()?;
            let inside: Vec<_> = containers
                .iter()
                .filter(|c| c.pod_sandbox_id == s.id && c.state == v1::ContainerState::ContainerRunning as i32)
                .map(|c| json!({"name": c.metadata.as_ref().map(|m| m.name.as_str()), "image": c.image.as_ref().map(|i| i.image.as_str())}))
                .collect();
            Some(json!({"metadata": {"name": metadata.name, "namespace": metadata.namespace, "uid": metadata.uid}, "spec": {"containers": inside}}))
        })
        .collect();
    json_body(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

async fn run(
    context: &Context,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &[(String, String)],
) -> Response<Body> {
    let Some(pod) = context.workers.find(namespace, pod) else {
        return text(StatusCode::NOT_FOUND, "pod does not exist");
    };
    let list = match find_container(context, &pod, container).await {
        Ok(list) => list,
        Err(response) => return response,
    };
    let Some(found) = list.first() else {
        return text(StatusCode::NOT_FOUND, format!("container not found (\"{container}\")"));
    };
    let command = parameter(query, &["cmd"]).unwrap_or_default().split(' ').map(str::to_string).collect();
    match context.engine.exec_sync(&found.id, command, Duration::from_secs(3600)).await {
        Ok(done) if done.exit_code == 0 => {
            text(StatusCode::OK, String::from_utf8_lossy(&[done.stdout, done.stderr].concat()))
        }
        Ok(done) => {
            let shown = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
            text(StatusCode::INTERNAL_SERVER_ERROR, format!("command exited with {}: {shown}", done.exit_code))
        }
        Err(status) => text(StatusCode::INTERNAL_SERVER_ERROR, status.message()),
    }
}
