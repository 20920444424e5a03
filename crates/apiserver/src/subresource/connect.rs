//! Streams and proxied calls: logs, exec, attach, port-forward, and HTTP to pods, services and nodes.
//!
//! The server finds out where the call goes, dials, and then carries bytes: an upgraded connection (SPDY or WebSocket)
//! is passed through untouched, ends and all. It never looks into the stream.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use futures::StreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use meta::{FieldError, FieldPath, Object, Reason, Status, Value};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::http::Body;
use crate::http::lasting::Lasting;
use crate::http::route::{self, Connect};
use crate::server::ApiServer;

/// Where kubelets listen.
const KUBELET_PORT: u16 = 10250;

/// Largest answer taken from a kubelet for ourselves: a summary of 500 pods is some 2 MiB.
const MAX_KUBELET_ANSWER: usize = 16 << 20;
/// A kubelet that takes longer is as good as silent.
const KUBELET_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// Where a call goes.
struct Destination {
    address: SocketAddr,
    /// TLS with the API server's kubelet identity, or none.
    tls: bool,
    path: String,
    /// Shown as `Host`.
    host: String,
}

fn unavailable(what: impl std::fmt::Display) -> Status {
    Status::new(Reason::ServiceUnavailable, format!("{what}"))
}

fn text<'a>(body: &'a Value, pointer: &str) -> &'a str {
    body.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

pub async fn serve(
    server: &Arc<ApiServer>,
    call: Connect,
    request: Request<Incoming>,
) -> Result<Response<Body>, Status> {
    let r = &call.request;
    if r.subresource == "log" {
        check_log_options(&r.name, &call.query)?;
    }
    server.await_newest().await?;
    let proxied = r.subresource == "proxy";
    // What stands before the proxied path: links in the answer must go through the proxy, too.
    let prefix = request.uri().path().strip_suffix(&*call.rest).unwrap_or_default().to_string();
    let destination = match (&*r.resource.resource, &*r.subresource) {
        ("pods", "proxy") => pod_proxy(server, &call)?,
        ("services", "proxy") => service_proxy(server, &call)?,
        ("nodes", "proxy") => {
            let (address, _) = kubelet(server, split_target("node", &r.name)?.1)?;
            Destination {
                address,
                tls: true,
                path: with_query(&or_root(&call.rest), &call.query),
                host: r.name.clone(),
            }
        }
        ("pods", "log" | "exec" | "attach" | "portforward") => match pod_stream(server, &call, request.method())? {
            Some(destination) => destination,
            None => return Ok(nothing()),
        },
        _ => return Err(Status::unknown_path()),
    };
    if proxied
        && call.rest.is_empty()
        && matches!(*request.method(), Method::GET | Method::HEAD)
        && !is_upgrade(request.headers())
    {
        return Ok(to_root(request.uri()));
    }
    let response = forward(server, destination, request).await?;
    if proxied { Ok(super::rewrite::links(response, &prefix).await) } else { Ok(response) }
}

/// The root of what is proxied ends in a slash, so that its relative links work.
fn to_root(uri: &Uri) -> Response<Body> {
    let location = with_query(&format!("{}/", uri.path()), uri.query().unwrap_or_default());
    let mut response = Response::new(crate::http::full(bytes::Bytes::new()));
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

fn nothing() -> Response<Body> {
    let mut response = Response::new(crate::http::full(bytes::Bytes::new()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

fn or_root(path: &str) -> String {
    if path.is_empty() { "/".into() } else { path.into() }
}

fn with_query(path: &str, query: &str) -> String {
    if query.is_empty() { path.into() } else { format!("{path}?{query}") }
}

/// What may be asked of a log: counts that make sense, and one beginning.
fn check_log_options(pod: &str, query: &str) -> Result<(), Status> {
    let mut errors = Vec::new();
    let said = |key: &str| route::pairs(query).find(|(k, v)| k == key && !v.is_empty()).map(|(_, value)| value);
    for (key, least, why) in [
        ("tailLines", 0, "must be greater than or equal to 0"),
        ("limitBytes", 1, "must be greater than 0"),
        ("sinceSeconds", 1, "must be greater than 0"),
    ] {
        let Some(text) = said(key) else { continue };
        let number: Result<i64, _> = text.parse();
        let number = number.map_err(|e| Status::bad_request(route::not_a_number("ParseInt", &text, &e)))?;
        if number < least {
            errors.push(FieldError::invalid(&FieldPath::new(key), number, why));
        }
    }
    if let Some(time) = said("sinceTime") {
        meta::time::canonical(&time, false).map_err(Status::bad_request)?;
        if said("sinceSeconds").is_some() {
            let why = "at most one of `sinceTime` or `sinceSeconds` may be specified";
            errors.push(FieldError::forbidden(&FieldPath::new("[]"), why));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid("", "PodLogOptions", pod, &errors)) }
}

/// `[scheme:]name[:port]`
fn split_target<'n>(kind: &str, name: &'n str) -> Result<(&'n str, &'n str, &'n str), Status> {
    let (scheme, id, port) = match name.split(':').collect::<Vec<_>>()[..] {
        [name] => ("", name, ""),
        [name, port] => ("", name, port),
        [scheme @ ("" | "http" | "https"), name, port] => (scheme, name, port),
        _ => ("", "", ""),
    };
    if id.is_empty() {
        return Err(Status::bad_request(format!("invalid {kind} request {name:?}")));
    }
    Ok((scheme, id, port))
}

/// The address of a node's kubelet.
fn kubelet(server: &ApiServer, node: &str) -> Result<(SocketAddr, Arc<Object>), Status> {
    let object = server.lookup("", "nodes", "", node).ok_or_else(|| Status::not_found("", "nodes", node))?;
    let body = object.value().map_err(Status::internal)?;
    let port = body
        .pointer("/status/daemonEndpoints/kubeletEndpoint/Port")
        .and_then(Value::as_u64)
        .and_then(|p| u16::try_from(p).ok())
        .unwrap_or(KUBELET_PORT);
    let addresses = body.pointer("/status/addresses").and_then(Value::as_array);
    let address = ["InternalIP", "ExternalIP"]
        .iter()
        .find_map(|kind| addresses.into_iter().flatten().find(|a| a["type"] == *kind))
        .and_then(|a| a["address"].as_str()?.parse().ok())
        .ok_or_else(|| unavailable(format!("no preferred addresses found; known addresses: [] of node {node:?}")))?;
    Ok((SocketAddr::new(address, port), object))
}

/// The body of a `GET` on a node's kubelet, under the server's own identity.
pub(crate) async fn kubelet_get(server: &ApiServer, node: &str, path: &str) -> Result<bytes::Bytes, Status> {
    let (address, _) = kubelet(server, node)?;
    let destination = Destination { address, tls: true, path: path.into(), host: node.into() };
    let asked = async {
        let stream = dial(server, &destination).await?;
        let request = Request::new(http_body_util::Empty::<bytes::Bytes>::new());
        let response = forward_over(stream, &destination.path, &destination.host, request).await?;
        if !response.status().is_success() {
            return Err(unavailable(format!("the kubelet of node {node:?} answered {}", response.status())));
        }
        let body = http_body_util::Limited::new(response.into_body(), MAX_KUBELET_ANSWER).collect().await;
        Ok(body.map_err(unavailable)?.to_bytes())
    };
    let late = |_| unavailable(format!("the kubelet of node {node:?} does not answer"));
    tokio::time::timeout(KUBELET_TIMEOUT, asked).await.map_err(late)?
}

fn pod(server: &ApiServer, namespace: &str, name: &str) -> Result<Value, Status> {
    let object = server.lookup("", "pods", namespace, name).ok_or_else(|| Status::not_found("", "pods", name))?;
    object.value().map_err(Status::internal)
}

/// Where a pod's stream is; nowhere, where there is nothing to be read yet.
fn pod_stream(server: &ApiServer, call: &Connect, method: &Method) -> Result<Option<Destination>, Status> {
    let r = &call.request;
    if !matches!(*method, Method::GET | Method::POST) || (r.subresource == "log" && *method != Method::GET) {
        return Err(Status::wrong_method());
    }
    let body = pod(server, &r.namespace, &r.name)?;
    let options: Vec<(String, String)> = crate::http::route::pairs(&call.query).collect();
    let query_without = |name: &str| {
        let kept = call.query.split('&').filter(|pair| pair.split('=').next() != Some(name) && !pair.is_empty());
        kept.collect::<Vec<_>>().join("&")
    };
    let path = if r.subresource == "portforward" {
        with_query(&format!("/portForward/{}/{}", r.namespace, r.name), &kubelet_ports_query(&options))
    } else {
        let asked = options.iter().find(|(k, _)| k == "container").map(|(_, v)| v.as_str()).unwrap_or_default();
        let container = choose_container(&body, asked, &r.name)?;
        let verb = if r.subresource == "log" { "containerLogs" } else { &r.subresource };
        let mut query = query_without("container");
        if r.subresource != "log" {
            query = kubelet_stream_query(&options);
        }
        with_query(&format!("/{verb}/{}/{}/{container}", r.namespace, r.name), &query)
    };
    let node = text(&body, "/spec/nodeName");
    if node.is_empty() {
        // What has not begun has written nothing yet.
        if r.subresource == "log" {
            return Ok(None);
        }
        return Err(Status::bad_request(format!("pod {} does not have a host assigned", r.name)));
    }
    let (address, _) = kubelet(server, node)?;
    Ok(Some(Destination { address, tls: true, path, host: node.to_string() }))
}

/// The ports a client names in advance, which it must over WebSockets: `ports` here is `port` there.
fn kubelet_ports_query(options: &[(String, String)]) -> String {
    let ports: Vec<String> = options.iter().filter(|(key, _)| key == "ports").map(|(_, port)| escape(port)).collect();
    if ports.is_empty() { String::new() } else { format!("port={}", ports.join(",")) }
}

/// The kubelet spells the same options its own way.
fn kubelet_stream_query(options: &[(String, String)]) -> String {
    let mut out = Vec::new();
    for (key, value) in options {
        let on = matches!(value.as_str(), "true" | "1");
        match key.as_str() {
            "stdin" if on => out.push("input=1".to_string()),
            "stdout" if on => out.push("output=1".into()),
            "stderr" if on => out.push("error=1".into()),
            "tty" if on => out.push("tty=1".into()),
            "command" => out.push(format!("command={}", escape(value))),
            _ => {}
        }
    }
    // Upstream's defaults: both outputs, when the client names none.
    if !options.iter().any(|(k, _)| matches!(k.as_str(), "stdin" | "stdout" | "stderr")) {
        out.push("output=1".into());
        out.push("error=1".into());
    }
    out.join("&")
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(byte as char);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn choose_container(pod: &Value, asked: &str, name: &str) -> Result<String, Status> {
    let names = |list: &str| -> Vec<String> {
        pod["spec"][list]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|c| c["name"].as_str())
            .map(String::from)
            .collect()
    };
    let (containers, init, ephemeral) = (names("containers"), names("initContainers"), names("ephemeralContainers"));
    if !asked.is_empty() {
        return if containers.iter().chain(&init).chain(&ephemeral).any(|c| c == asked) {
            Ok(asked.into())
        } else {
            Err(Status::bad_request(format!("container {asked} is not valid for pod {name}")))
        };
    }
    let annotated = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
    if let Some(annotated) = annotated.filter(|a| containers.iter().any(|c| c == a)) {
        return Ok(annotated.into());
    }
    match &containers[..] {
        [] => Err(Status::bad_request(format!("a container name must be specified for pod {name}"))),
        [one] => Ok(one.clone()),
        many => {
            let mut message =
                format!("a container name must be specified for pod {name}, choose one of: [{}]", many.join(" "));
            if !init.is_empty() {
                message += &format!(" or one of the init containers: [{}]", init.join(" "));
            }
            Err(Status::bad_request(message))
        }
    }
}

fn pod_proxy(server: &ApiServer, call: &Connect) -> Result<Destination, Status> {
    let (scheme, name, port) = split_target("pod", &call.request.name)?;
    let body = pod(server, &call.request.namespace, name)?;
    let ip = text(&body, "/status/podIP");
    let port = match port {
        "" => {
            let ports = body["spec"]["containers"]
                .as_array()
                .into_iter()
                .flatten()
                .flat_map(|c| c["ports"].as_array().into_iter().flatten());
            ports.filter_map(|p| p["containerPort"].as_u64()).next().unwrap_or(80)
        }
        port => port.parse().map_err(|_| Status::bad_request(format!("invalid port {port:?}")))?,
    };
    let ip = ip.parse().map_err(|_| Status::bad_request("address not allowed"))?;
    let port = u16::try_from(port).map_err(|_| Status::bad_request("invalid port"))?;
    let path = with_query(&or_root(&call.rest), &call.query);
    Ok(Destination { address: SocketAddr::new(ip, port), tls: scheme == "https", path, host: format!("{ip}:{port}") })
}

fn service_proxy(server: &ApiServer, call: &Connect) -> Result<Destination, Status> {
    let (scheme, name, port) = split_target("service", &call.request.name)?;
    let address = service_endpoint(server, &call.request.namespace, name, port)?;
    let path = with_query(&or_root(&call.rest), &call.query);
    Ok(Destination { address, tls: scheme == "https", path, host: address.to_string() })
}

/// A ready endpoint of a service's port, by its name or number (any port when empty), chosen at random.
pub(crate) fn service_endpoint(
    server: &ApiServer,
    namespace: &str,
    name: &str,
    port: &str,
) -> Result<SocketAddr, Status> {
    use rand::seq::IndexedRandom;
    let service =
        server.lookup("", "services", namespace, name).ok_or_else(|| Status::not_found("", "services", name))?;
    let service = service.value().map_err(Status::internal)?;
    let ports = service["spec"]["ports"].as_array();
    let wanted = ports
        .into_iter()
        .flatten()
        .find(|p| port.is_empty() || p["name"] == port || p["port"].as_u64().is_some_and(|n| n.to_string() == port));
    let wanted = wanted.ok_or_else(|| unavailable(format!("no service port {port:?} found for service {name:?}")))?;
    let port_name = wanted["name"].as_str().unwrap_or_default();
    let mut found = Vec::new();
    for slice in server.lookup_all("discovery.k8s.io", "endpointslices", namespace) {
        if slice.meta.label("kubernetes.io/service-name") != Some(name) {
            continue;
        }
        let slice = slice.value().map_err(Status::internal)?;
        let port = slice["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|p| p["name"].as_str().unwrap_or_default() == port_name)
            .and_then(|p| p["port"].as_u64());
        let Some(port) = port.and_then(|p| u16::try_from(p).ok()) else { continue };
        for endpoint in
            slice["endpoints"].as_array().into_iter().flatten().filter(|e| e["conditions"]["ready"] != false)
        {
            let ips = endpoint["addresses"].as_array().into_iter().flatten().filter_map(|a| a.as_str()?.parse().ok());
            found.extend(ips.map(|ip| SocketAddr::new(ip, port)));
        }
    }
    found
        .choose(&mut rand::rng())
        .copied()
        .ok_or_else(|| unavailable(format!("no endpoints available for service {name:?}")))
}

/// A connection, whatever is under it.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn dial(server: &ApiServer, destination: &Destination) -> Result<Box<dyn Stream>, Status> {
    let connection = &server.config().kubelet;
    let failed = |error: std::io::Error| {
        unavailable(format!("error trying to reach service: dial tcp {}: {error}", destination.address))
    };
    let tcp = connection.dial.connect(destination.address).await.map_err(failed)?;
    let _ = tcp.set_nodelay(true);
    if !destination.tls {
        return Ok(Box::new(tcp));
    }
    let name = ServerName::from(destination.address.ip());
    let tls = tokio_rustls::TlsConnector::from(connection.tls.clone()).connect(name, tcp).await.map_err(failed)?;
    Ok(Box::new(tls))
}

/// A connection that was not made, as Go says it.
pub(crate) fn not_dialled(address: SocketAddr, error: &std::io::Error) -> String {
    let said = error.to_string();
    let said = said.split(" (os error").next().unwrap_or_default();
    let mut letters = said.chars();
    let first = letters.next().map(|c| c.to_ascii_lowercase()).into_iter();
    format!("dial tcp {address}: connect: {}", first.chain(letters).collect::<String>())
}

/// A connection that ended before its answer, as Go says it.
fn cut_off(error: &hyper::Error) -> String {
    use std::error::Error;
    use std::io::ErrorKind;
    let io = error.source().and_then(|source| source.downcast_ref::<std::io::Error>());
    match io.map(std::io::Error::kind) {
        _ if error.is_incomplete_message() || error.is_closed() => "EOF".into(),
        Some(ErrorKind::UnexpectedEof) => "EOF".into(),
        Some(ErrorKind::ConnectionReset) => "read: connection reset by peer".into(),
        _ => error.to_string(),
    }
}

pub(crate) fn is_upgrade(headers: &HeaderMap) -> bool {
    headers.get(header::UPGRADE).is_some()
        && headers
            .get_all(header::CONNECTION)
            .iter()
            .any(|v| v.to_str().is_ok_and(|v| v.to_ascii_lowercase().contains("upgrade")))
}

/// Headers that speak of one connection, or of the caller's credentials.
const NOT_FORWARDED: [HeaderName; 6] = [
    header::AUTHORIZATION,
    header::HOST,
    header::TRANSFER_ENCODING,
    header::TE,
    header::PROXY_AUTHORIZATION,
    header::COOKIE,
];

async fn forward(
    server: &ApiServer,
    destination: Destination,
    request: Request<Incoming>,
) -> Result<Response<Body>, Status> {
    let stream = dial(server, &destination).await?;
    forward_over(stream, &destination.path, &destination.host, request).await
}

/// Sends a request over a connection and gives back the answer; an upgraded connection is joined to the client's.
pub(crate) async fn forward_over<B>(
    stream: Box<dyn Stream>,
    path: &str,
    host: &str,
    mut request: Request<B>,
) -> Result<Response<Body>, Status>
where
    B: hyper::body::Body<Data = bytes::Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let upgrade = is_upgrade(request.headers());
    let failed = |error: hyper::Error| unavailable(format!("error trying to reach service: {}", cut_off(&error)));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "proxied connection");
        }
    });
    let client_side = upgrade.then(|| hyper::upgrade::on(&mut request));
    // The request is over when its streams are.
    let lasting: Lasting = request.extensions_mut().remove().unwrap_or_default();
    let (mut parts, body) = request.into_parts();
    for name in NOT_FORWARDED {
        parts.headers.remove(name);
    }
    if !upgrade {
        parts.headers.remove(header::CONNECTION);
    }
    parts.uri = path.parse::<Uri>().map_err(|e| Status::bad_request(e.to_string()))?;
    parts.version = http::Version::HTTP_11;
    parts.headers.insert(header::HOST, HeaderValue::from_str(host).unwrap_or(HeaderValue::from_static("kubelet")));
    let mut response = sender.send_request(Request::from_parts(parts, body)).await.map_err(failed)?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(client_side) = client_side
    {
        let node_side = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            let (Ok(client), Ok(node)) = (client_side.await, node_side.await) else { return };
            let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(node)).await;
            drop(lasting);
        });
        let (parts, _) = response.into_parts();
        return Ok(Response::from_parts(parts, crate::http::full(bytes::Bytes::new())));
    }
    let (mut parts, body) = response.into_parts();
    parts.headers.remove(header::TRANSFER_ENCODING);
    parts.headers.remove(header::CONNECTION);
    // A node's connection that breaks ends the reply; what was received stays valid.
    let chunks = body.into_data_stream().take_while(|chunk| std::future::ready(chunk.is_ok()));
    let frames = chunks.filter_map(|chunk| std::future::ready(chunk.ok().map(|c| Ok::<_, Infallible>(Frame::data(c)))));
    Ok(Response::from_parts(parts, lasting.held_by(StreamBody::new(frames).boxed_unsync())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_told_to_the_kubelet() {
        for (query, expect) in [
            ("", ""),
            ("ports=80", "port=80"),
            ("ports=80&ports=443&x=1", "port=80,443"),
            ("ports=8%26x", "port=8%26x"),
        ] {
            let options: Vec<_> = crate::http::route::pairs(query).collect();
            assert_eq!(kubelet_ports_query(&options), expect);
        }
    }
}
