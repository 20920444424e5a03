//! The server's own checks, at `/healthz`, `/livez` and `/readyz`: single ones, and all of them together.
//!
//! Why a check fails is told only below its own path, which takes a right of its own.

use std::time::Duration;

use client::health::ASKERS;
use http::{HeaderName, HeaderValue, Response, StatusCode};

use super::Body;
use super::paths::with_type;
use crate::server::ApiServer;

/// How long the store may take to say that it is there.
const STORE_WITHIN: Duration = Duration::from_secs(2);

/// What a check looks at.
#[derive(Clone, Copy, PartialEq)]
enum Check {
    /// Answering at all is the proof.
    Answering,
    Store,
    /// Whether what must be there at start is there.
    Started,
    /// Whether this server means to stay.
    Staying,
}

/// Checks in upstream's order: name, what it looks at, and whether readiness alone asks.
const CHECKS: &[(&str, Check, bool)] = &[
    ("ping", Check::Answering, false),
    ("log", Check::Answering, false),
    ("etcd", Check::Store, false),
    ("etcd-readiness", Check::Store, true),
    ("informer-sync", Check::Started, true),
    ("poststarthook/start-apiserver-admission-initializer", Check::Started, false),
    ("poststarthook/generic-apiserver-start-informers", Check::Started, false),
    ("poststarthook/storage-object-count-tracker-hook", Check::Started, false),
    ("poststarthook/start-apiextensions-informers", Check::Started, false),
    ("poststarthook/start-apiextensions-controllers", Check::Started, false),
    ("poststarthook/crd-informer-synced", Check::Started, false),
    ("poststarthook/start-system-namespaces-controller", Check::Started, false),
    ("poststarthook/start-cluster-authentication-info-controller", Check::Started, false),
    ("poststarthook/rbac/bootstrap-roles", Check::Started, false),
    ("poststarthook/scheduling/bootstrap-system-priority-classes", Check::Started, false),
    ("poststarthook/start-kube-aggregator-informers", Check::Started, false),
    ("poststarthook/apiservice-registration-controller", Check::Started, false),
    ("poststarthook/apiservice-status-remote-available-controller", Check::Started, false),
    ("poststarthook/kube-apiserver-autoregistration", Check::Started, false),
    ("autoregister-completion", Check::Started, false),
    ("poststarthook/apiservice-openapi-controller", Check::Started, false),
    ("poststarthook/apiservice-openapiv3-controller", Check::Started, false),
    ("shutdown", Check::Staying, true),
];

fn checks(asker: &str) -> impl Iterator<Item = (&'static str, Check)> {
    let ready = asker == "readyz";
    CHECKS.iter().filter(move |(.., only_ready)| ready || !only_ready).map(|(name, check, _)| (*name, *check))
}

/// Every path answered here.
pub fn paths() -> impl Iterator<Item = String> {
    let below = |asker: &'static str| checks(asker).map(move |(name, _)| format!("/{asker}/{name}"));
    ASKERS.into_iter().flat_map(move |asker| std::iter::once(format!("/{asker}")).chain(below(asker)))
}

/// What is wrong, if anything is.
async fn fault(server: &ApiServer, check: Check, ending: bool) -> Option<String> {
    match check {
        Check::Answering => None,
        Check::Store => match tokio::time::timeout(STORE_WITHIN, server.store().current_revision()).await {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("context deadline exceeded".into()),
        },
        Check::Started => (!server.is_ready()).then(|| "not finished".into()),
        Check::Staying => ending.then(|| "process is shutting down".into()),
    }
}

/// Answers below one of the three; `None` where there is no such check.
pub async fn serve(server: &ApiServer, asker: &str, check: &str, query: &str, ending: bool) -> Option<Response<Body>> {
    let asker = ASKERS.into_iter().find(|known| *known == asker)?;
    let said = if check.is_empty() {
        let query: Vec<(String, String)> = super::route::pairs(query).collect();
        let mut outcomes = Vec::with_capacity(CHECKS.len());
        for (name, check) in checks(asker) {
            outcomes.push((name, fault(server, check, ending).await));
        }
        client::health::told(asker, &outcomes, &query)
    } else {
        let (_, check) = checks(asker).find(|(name, _)| *name == check)?;
        client::health::alone(fault(server, check, ending).await)
    };
    Some(match said {
        Ok(said) => text(StatusCode::OK, said),
        Err(said) => text(StatusCode::INTERNAL_SERVER_ERROR, said),
    })
}

fn text(code: StatusCode, text: String) -> Response<Body> {
    let mut response = with_type(text, "text/plain; charset=utf-8");
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
    response
}
