//! `/containerLogs`: a container's log, from its file.

use std::sync::Arc;

use http::{Response, StatusCode};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc;

use super::{Body, find_container, flag, parameter, streamed, text};
use crate::agent::Context;
use crate::cri::v1;
use crate::logs::{Options, Stream, follow};
use crate::spec;

/// Pieces of a log waiting for a slow reader; 64 KiB each.
const BACKLOG: usize = 8;

fn options(query: &[(String, String)]) -> Result<Options, String> {
    let number = |name: &str| -> Result<Option<i64>, String> {
        parameter(query, &[name])
            .filter(|v| !v.is_empty())
            .map(|v| v.parse().map_err(|_| format!("invalid {name}: {v:?}")))
            .transpose()
    };
    let tail = number("tailLines")?;
    let limit = number("limitBytes")?;
    let seconds = number("sinceSeconds")?;
    let since_time = parameter(query, &["sinceTime"]).filter(|v| !v.is_empty());
    if tail.is_some_and(|t| t < 0) {
        return Err("spec.tailLines: Invalid value: must be greater than or equal to 0".into());
    }
    if limit.is_some_and(|l| l < 1) {
        return Err("limitBytes: Invalid value: must be greater than 0".into());
    }
    if seconds.is_some() && since_time.is_some() {
        return Err("at most one of `sinceTime` or `sinceSeconds` may be specified".into());
    }
    if seconds.is_some_and(|s| s < 1) {
        return Err("sinceSeconds: Invalid value: must be greater than 0".into());
    }
    let since = match (seconds, since_time) {
        (Some(seconds), _) => Timestamp::now().checked_sub(SignedDuration::from_secs(seconds)).ok(),
        (_, Some(time)) => Some(time.parse().map_err(|e| format!("invalid sinceTime: {e}"))?),
        _ => None,
    };
    let stream = match parameter(query, &["stream"]) {
        Some("Stdout") => Some(Stream::Stdout),
        Some("Stderr") => Some(Stream::Stderr),
        _ => None,
    };
    Ok(Options {
        follow: flag(query, &["follow"]),
        timestamps: flag(query, &["timestamps"]),
        tail_lines: tail.map(|t| t as u64),
        since,
        limit_bytes: limit.map(|l| l as u64),
        stream,
    })
}

/// The log, or why there is none.
pub async fn serve(
    context: &Arc<Context>,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &[(String, String)],
) -> Response<Body> {
    let options = match options(query) {
        Ok(options) => options,
        Err(why) => return text(StatusCode::BAD_REQUEST, why),
    };
    let Some(found) = context.workers.find(namespace, pod) else {
        return text(StatusCode::NOT_FOUND, format!("pod \"{pod}\" not found"));
    };
    let shown = |what: &str| text(StatusCode::BAD_REQUEST, what.to_string());
    if spec::find_container(&found, container).is_none() {
        return text(StatusCode::NOT_FOUND, format!("container \"{container}\" not found in pod \"{pod}\""));
    }
    let list = match find_container(context, &found, container).await {
        Ok(list) => list,
        Err(response) => return response,
    };
    let mut started = list.iter().filter(|c| c.state != v1::ContainerState::ContainerCreated as i32);
    let wanted = if flag(query, &["previous"]) {
        match started.nth(1) {
            Some(c) => c,
            None => return shown(&format!("previous terminated container \"{container}\" in pod \"{pod}\" not found")),
        }
    } else {
        match started.next() {
            Some(c) => c,
            None => {
                let waiting = found.status.as_ref().and_then(|s| {
                    let lists = [&s.container_statuses, &s.init_container_statuses, &s.ephemeral_container_statuses];
                    lists
                        .into_iter()
                        .flatten()
                        .flatten()
                        .find(|c| c.name == container)?
                        .state
                        .as_ref()?
                        .waiting
                        .as_ref()?
                        .reason
                        .clone()
                });
                return match waiting.as_deref() {
                    Some(reason @ ("ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull")) => {
                        let tail = if reason == "ErrImagePull" {
                            "image can't be pulled"
                        } else {
                            "trying and failing to pull image"
                        };
                        shown(&format!("container \"{container}\" in pod \"{pod}\" is waiting to start: {tail}"))
                    }
                    Some(reason) => {
                        shown(&format!("container \"{container}\" in pod \"{pod}\" is waiting to start: {reason}"))
                    }
                    None => shown(&format!("container \"{container}\" in pod \"{pod}\" is not available")),
                };
            }
        }
    };
    let id = wanted.id.clone();
    let status = match context
        .engine
        .container_status(v1::ContainerStatusRequest { container_id: id.clone(), verbose: false })
        .await
    {
        Ok(answer) => answer.status.unwrap_or_default(),
        Err(status) => return text(StatusCode::INTERNAL_SERVER_ERROR, status.message()),
    };
    let (send, receive) = mpsc::channel(BACKLOG);
    let context = context.clone();
    tokio::spawn(async move {
        let alive = || {
            let (engine, id) = (context.engine.clone(), id.clone());
            async move {
                let answer =
                    engine.container_status(v1::ContainerStatusRequest { container_id: id, verbose: false }).await;
                match answer {
                    Ok(answer) => answer.status.is_some_and(|s| s.state == v1::ContainerState::ContainerRunning as i32),
                    Err(status) => status.code() != tonic::Code::NotFound,
                }
            }
        };
        if let Err(error) = follow::stream(status.log_path.clone().into(), options, send, alive).await {
            tracing::debug!(log = %status.log_path, "log stream ended: {error}");
        }
    });
    let mut response = Response::new(streamed(receive));
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("text/plain"));
    response
}
