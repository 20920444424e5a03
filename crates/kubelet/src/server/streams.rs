//! Exec, attach and port-forward: the engine is asked for a URL, and the client's upgraded connection is joined to it.
//!
//! Bytes are passed on unread, so SPDY and WebSocket, and whatever comes after, are the engine's concern alone.

use std::sync::Arc;

use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use tokio::net::TcpStream;

use super::{Body, find_container, flag, query, text};
use crate::agent::Context;
use crate::cri::v1;
use crate::spec;

/// Answers an exec, attach or port-forward request.
pub async fn serve(
    context: &Arc<Context>,
    kind: &str,
    pod: &Pod,
    container: &str,
    request: Request<Incoming>,
) -> Response<Body> {
    let url = match url(context, kind, pod, container, &query(request.uri())).await {
        Ok(url) => url,
        Err(response) => return response,
    };
    match join(&url, request).await {
        Ok(response) => response,
        Err(why) => {
            text(StatusCode::BAD_GATEWAY, format!("cannot reach the container engine's streaming server: {why}"))
        }
    }
}

/// The URL the engine offers for this stream.
async fn url(
    context: &Context,
    kind: &str,
    pod: &Pod,
    container: &str,
    query: &[(String, String)],
) -> Result<String, Response<Body>> {
    let failed = |status: tonic::Status| text(StatusCode::INTERNAL_SERVER_ERROR, status.message());
    if kind.eq_ignore_ascii_case("portforward") {
        let labels = [(spec::names::POD_UID.to_string(), spec::uid(pod).to_string())].into();
        let (mut sandboxes, _) = context.engine.list(labels).await.map_err(failed)?;
        sandboxes.retain(|s| s.state == v1::PodSandboxState::SandboxReady as i32);
        sandboxes.sort_by_key(|s| std::cmp::Reverse(s.created_at));
        let Some(sandbox) = sandboxes.first() else {
            return Err(text(StatusCode::NOT_FOUND, format!("pod {} has no running sandbox", spec::described(pod))));
        };
        let ports = query
            .iter()
            .filter(|(k, _)| k == "port")
            .flat_map(|(_, v)| v.split(','))
            .filter_map(|p| p.parse().ok())
            .collect();
        let request = v1::PortForwardRequest { pod_sandbox_id: sandbox.id.clone(), port: ports };
        return context.engine.port_forward(request).await.map(|a| a.url).map_err(failed);
    }
    let list = find_container(context, pod, container).await?;
    let Some(found) = list.iter().find(|c| c.state == v1::ContainerState::ContainerRunning as i32) else {
        return Err(text(StatusCode::NOT_FOUND, format!("container not found (\"{container}\")")));
    };
    let (stdin, stdout, stderr, tty) = (
        flag(query, &["input", "stdin"]),
        flag(query, &["output", "stdout"]),
        flag(query, &["error", "stderr"]),
        flag(query, &["tty"]),
    );
    if !(stdin || stdout || stderr) {
        return Err(text(StatusCode::BAD_REQUEST, "you must specify at least 1 of stdin, stdout, stderr"));
    }
    // With a terminal there is one stream, and it is called standard output.
    let (container_id, stderr) = (found.id.clone(), stderr && !tty);
    if kind == "attach" {
        let tty = spec::find_container(pod, container).is_some_and(|(_, c)| c.tty == Some(true));
        let request = v1::AttachRequest { container_id, stdin, tty, stdout, stderr: stderr && !tty };
        return context.engine.attach(request).await.map(|a| a.url).map_err(failed);
    }
    let cmd = query.iter().filter(|(k, _)| k == "command").map(|(_, v)| v.clone()).collect();
    context
        .engine
        .exec(v1::ExecRequest { container_id, cmd, tty, stdin, stdout, stderr })
        .await
        .map(|a| a.url)
        .map_err(failed)
}

/// Repeats the request to the engine and, once both sides have switched protocols, copies bytes both ways.
async fn join(url: &str, mut request: Request<Incoming>) -> Result<Response<Body>, String> {
    let uri: http::Uri = url.parse().map_err(|e| format!("{url:?}: {e}"))?;
    if uri.scheme_str() != Some("http") {
        return Err(format!("{url:?}: only plain http is expected from an engine on this machine"));
    }
    let authority = uri.authority().ok_or("the engine's URL names no host")?.clone();
    let stream = TcpStream::connect((authority.host().trim_matches(['[', ']']), authority.port_u16().unwrap_or(80)))
        .await
        .map_err(|e| e.to_string())?;
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    tokio::spawn(async move {
        let _ = connection.with_upgrades().await;
    });
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let mut onward = Request::builder().method(request.method().clone()).uri(path);
    for (name, value) in request.headers() {
        // What authenticated the client here is none of the engine's business.
        if name != "host" && name != "authorization" && name != "content-length" {
            onward = onward.header(name, value);
        }
    }
    let onward =
        onward.header("host", authority.as_str()).body(Empty::<bytes::Bytes>::new()).map_err(|e| e.to_string())?;
    let mut answer = sender.send_request(onward).await.map_err(|e| e.to_string())?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(answer.map(|body| body.map_err(std::io::Error::other).boxed_unsync()));
    }
    let (ours, theirs) = (hyper::upgrade::on(&mut request), hyper::upgrade::on(&mut answer));
    tokio::spawn(async move {
        match tokio::try_join!(ours, theirs) {
            Ok((ours, theirs)) => {
                let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
                // An end on either side is how sessions end.
                let _ = tokio::io::copy_bidirectional(&mut ours, &mut theirs).await;
            }
            Err(error) => tracing::debug!("stream not joined: {error}"),
        }
    });
    let mut response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
    for (name, value) in answer.headers() {
        response = response.header(name, value);
    }
    response.body(super::full("")).map_err(|e| e.to_string())
}
