//! Requests over HTTPS, told to the audit log: who they are from, and when their answers end.

use std::any::Any;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::BodyExt;
use meta::{Reply, Status, Verb};

use super::encode::{self, Shape};
use super::negotiated::Negotiated;
use super::route::{self, Route};
use super::{Body, text_of};
use crate::audit::{Audit, Received, Trail};
use crate::authn::User;
use crate::authz::Attributes;

/// A request's trail, once its user is known; empty where nothing is told.
#[derive(Default)]
pub struct Slot(OnceLock<Arc<Trail>>);

impl Slot {
    pub fn trail(&self) -> Option<Arc<Trail>> {
        self.0.get().cloned()
    }

    pub async fn begin<B>(
        &self,
        audit: &Arc<Audit>,
        request: &Request<B>,
        user: Option<&User>,
        from: IpAddr,
        audit_id: &HeaderValue,
    ) {
        let uri = request.uri().clone();
        let (path, method) = (uri.path(), request.method().clone());
        let route = route::parse(&method, path, uri.query().unwrap_or_default());
        let lowered = method.as_str().to_ascii_lowercase();
        let (attributes, long_running) = match &route {
            Ok(Route::Resource(asked)) => (Attributes::of(asked), asked.verb == Verb::Watch),
            Ok(Route::Connect(call)) => {
                (Attributes { verb: call.verb(&method), ..Attributes::of(&call.request) }, true)
            }
            Ok(Route::Path) | Err(_) => (Attributes::path(&lowered, path), false),
        };
        let headers = request.headers();
        let trail = audit.begin(Received {
            audit_id: audit_id.to_str().unwrap_or_default(),
            uri: uri.path_and_query().map_or_else(|| path.to_string(), ToString::to_string),
            user,
            source_ips: sources(headers, from),
            user_agent: text_of(headers, header::USER_AGENT).unwrap_or_default(),
            attributes: &attributes,
            long_running,
        });
        let Some(trail) = trail else { return };
        if user.is_none() {
            let scheme = text_of(headers, header::AUTHORIZATION).and_then(|a| a.split(' ').next());
            let attempted = scheme.map_or_else(|| "x509".into(), str::to_ascii_lowercase);
            return trail.unauthenticated(&attempted).await;
        }
        trail.received().await;
        // Only this fills it.
        let _ = self.0.set(trail);
    }

    /// A refusal as a response, and in the trail.
    pub fn refused(&self, status: &Status) -> Response<Body> {
        if let Some(trail) = self.0.get() {
            trail.refused(status);
        }
        super::error(status)
    }

    pub async fn ended(&self, response: Response<Body>) -> Response<Body> {
        if let Some(trail) = self.0.get() {
            Box::pin(trail.ended(response.status().as_u16())).await;
        }
        response
    }

    pub async fn panicked(&self, why: Box<dyn Any + Send>) {
        let Some(trail) = self.0.get() else { return };
        let text = match why.downcast::<String>() {
            Ok(text) => *text,
            Err(why) => why.downcast::<&str>().map(|text| text.to_string()).unwrap_or_default(),
        };
        Box::pin(trail.panicked(&format!("APIServer panic'd: {text}"))).await;
    }
}

/// Where a request says it comes from, and where it does.
fn sources(headers: &HeaderMap, from: IpAddr) -> Vec<String> {
    let addresses = |name: &str| -> Vec<IpAddr> {
        let said = headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
        said.split(',').filter_map(|address| address.trim().parse().ok()).collect()
    };
    let mut found = addresses("x-forwarded-for");
    for address in addresses("x-real-ip").into_iter().take(1).chain([from.to_canonical()]) {
        if found.last() != Some(&address) {
            found.push(address);
        }
    }
    found.iter().map(ToString::to_string).collect()
}

/// What is to be told of a reply, as JSON.
pub fn wanted(
    trail: &Trail,
    reply: &Reply,
    shape: &Shape,
    negotiated: &Negotiated,
) -> Result<Option<Response<Body>>, Status> {
    if trail.wants_answers() || matches!(reply, Reply::Value { .. }) {
        return encode::as_json(reply, shape, negotiated);
    }
    Ok(None)
}

/// Tells it.
pub async fn answered(trail: &Trail, shown: Response<Body>) {
    let Ok(body) = shown.into_body().collect().await;
    if let Ok(body) = serde_json::from_slice(&body.to_bytes()) {
        trail.answer(body);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_say_whom_they_speak_for() {
        for (forwarded, real, expect) in [
            (None, None, "10.0.0.1"),
            (Some("1.1.1.1, 2.2.2.2"), None, "1.1.1.1,2.2.2.2,10.0.0.1"),
            (Some("x, 1.1.1.1"), Some("1.1.1.1"), "1.1.1.1,10.0.0.1"),
            (None, Some("3.3.3.3"), "3.3.3.3,10.0.0.1"),
            (Some("10.0.0.1"), None, "10.0.0.1"),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in [("x-forwarded-for", forwarded), ("x-real-ip", real)] {
                if let Some(value) = value {
                    headers.insert(name, HeaderValue::from_static(value));
                }
            }
            assert_eq!(sources(&headers, "::ffff:10.0.0.1".parse().unwrap()).join(","), expect);
        }
    }
}
