//! Calls of this process's own components to extension servers: the in-process transport's way out.
//!
//! The garbage collector, the namespace controller and autoscalers see aggregated kinds as all others: a request goes out
//! as HTTP, and what comes back is read as the remote transport reads it.

use bytes::Bytes;
use futures::TryStreamExt;
use http::{HeaderValue, Method, header};
use http_body_util::{BodyExt, Full, Limited};
use meta::{Reason, Reply, Request, RequestBody, Status, Verb};

use super::{Remote, proxy};
use crate::pipeline::Caller;
use crate::server::ApiServer;

/// Bytes of an answer.
const MAX_ANSWER: usize = 64 << 20;
/// How long an answer may take, watches aside.
const ANSWER_WITHIN: std::time::Duration = std::time::Duration::from_secs(60);

fn method(verb: Verb) -> Method {
    match verb {
        Verb::Get | Verb::List | Verb::Watch => Method::GET,
        Verb::Create => Method::POST,
        Verb::Update => Method::PUT,
        Verb::Patch => Method::PATCH,
        Verb::Delete | Verb::DeleteCollection => Method::DELETE,
    }
}

/// Serves one authorized request.
pub async fn call(server: &ApiServer, remote: &Remote, caller: &Caller, request: Request) -> Result<Reply, Status> {
    let verb = request.verb;
    let mut out = http::Request::builder()
        .method(method(verb))
        .uri(client::remote::url(&request))
        .header(header::ACCEPT, "application/json");
    if let Ok(agent) = HeaderValue::from_str(&caller.user_agent) {
        out = out.header(header::USER_AGENT, agent);
    }
    let body = match request.body {
        RequestBody::None => Bytes::new(),
        RequestBody::Bytes { content_type, bytes } => {
            out = out.header(header::CONTENT_TYPE, content_type);
            bytes
        }
        RequestBody::Value { content_type, value } => {
            out = out.header(header::CONTENT_TYPE, content_type);
            serde_json::to_vec(&value).map_err(Status::internal)?.into()
        }
    };
    let out = out.body(Full::new(body)).map_err(|e| Status::bad_request(e.to_string()))?;
    let late = |_| Status::timeout("the extension server gave no answer in time", 0);
    let answer = proxy::carry(server, remote, &caller.user, out);
    let answer = tokio::time::timeout(ANSWER_WITHIN, answer).await.map_err(late)?;
    let code = answer.status();
    if verb == Verb::Watch && code.is_success() {
        let chunks = answer.into_body().into_data_stream().map_err(|never| match never {});
        return Ok(Reply::Watch(client::remote::watch_stream::<std::io::Error>(Box::pin(chunks))));
    }
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect();
    let body = tokio::time::timeout(ANSWER_WITHIN, body).await.map_err(late)?;
    let body = body.map_err(|e| Status::new(Reason::ServiceUnavailable, e.to_string()))?;
    client::remote::reply(verb, code.as_u16(), body.to_bytes())
}
