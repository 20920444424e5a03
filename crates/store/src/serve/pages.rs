//! The pages etcd has beside its API, for probes and for Prometheus: `/health`, `/version`, `/metrics`.
//!
//! Under etcd's names and only what is so: a lone member has a leader, itself.

use std::convert::Infallible;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{API_VERSION, Served, limits};
use crate::StoreError;
use crate::embedded::Status;

type Page = Response<Full<Bytes>>;

/// Answers requests of HTTP/1.1 until the client leaves or the server stops.
///
/// # Errors
/// Those of the connection.
pub async fn serve(io: impl AsyncRead + AsyncWrite + Unpin, served: Arc<Served>) -> hyper::Result<()> {
    let stopped = served.clone();
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let page = page(&served, request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(page) }
    });
    let mut connection = std::pin::pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits::HANDSHAKE_TIMEOUT)
            .serve_connection(TokioIo::new(io), service)
    );
    tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped.stopped() => Ok(()),
    }
}

fn page(served: &Served, method: &Method, path: &str) -> Page {
    const JSON: &str = "application/json";
    let full = served.full.load(Ordering::Relaxed);
    let (code, kind, text) = match (path, method) {
        (_, method) if !matches!(*method, Method::GET | Method::HEAD) => {
            (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "Method Not Allowed\n".into())
        }
        ("/health", _) => match served.store.status() {
            Ok(_) if full => unwell("ALARM NOSPACE"),
            Ok(_) => (StatusCode::OK, JSON, r#"{"health":"true","reason":""}"#.into()),
            Err(error) => unwell(&error.to_string()),
        },
        ("/version", _) => (StatusCode::OK, JSON, format!(r#"{{"etcdserver":"{API_VERSION}","etcdcluster":"3.5.0"}}"#)),
        ("/metrics", _) => match metrics(served) {
            Ok(text) => (StatusCode::OK, "text/plain; version=0.0.4", text),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string()),
        },
        _ => (StatusCode::NOT_FOUND, "text/plain", "404 page not found\n".into()),
    };
    let mut page = Response::new(Full::new(text.into()));
    *page.status_mut() = code;
    page.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    page
}

fn unwell(why: &str) -> (StatusCode, &'static str, String) {
    let why = why.replace('\\', "\\\\").replace('"', "\\\"");
    (StatusCode::SERVICE_UNAVAILABLE, "application/json", format!(r#"{{"health":"false","reason":"{why}"}}"#))
}

fn metrics(served: &Served) -> Result<String, StoreError> {
    let Status { revision, compacted, keys, live_bytes, log_bytes, leases, .. } = served.store.status()?;
    let mut page = String::new();
    let mut gauge = |name: &str, what: &str, value: u64| {
        _ = write!(page, "# HELP {name} {what}\n# TYPE {name} gauge\n{name} {value}\n");
    };
    gauge("etcd_server_has_leader", "Whether this member has a leader: it is its own.", 1);
    gauge("etcd_server_is_leader", "Whether this member is the leader.", 1);
    gauge(
        "etcd_server_quota_backend_bytes",
        "The most bytes of keys and values.",
        served.store.options().max_database_bytes,
    );
    gauge("etcd_mvcc_db_total_size_in_bytes", "Bytes of log and snapshots.", log_bytes);
    gauge("etcd_mvcc_db_total_size_in_use_in_bytes", "Bytes of keys and values that are there.", live_bytes);
    gauge("etcd_debugging_mvcc_keys_total", "Keys that are there.", keys);
    gauge("etcd_debugging_mvcc_current_revision", "The newest revision.", revision);
    gauge("etcd_debugging_mvcc_compact_revision", "The revision before which nothing is known.", compacted);
    gauge("etcd_debugging_lease_granted", "Leases that are held.", leases);
    gauge(
        "etcd_debugging_mvcc_watcher_total",
        "Watches on all streams.",
        served.watches.load(Ordering::Relaxed) as u64,
    );
    _ = write!(
        page,
        "# HELP etcd_server_version The version whose API this is.\n# TYPE etcd_server_version gauge\n\
         etcd_server_version{{server_version=\"{API_VERSION}\"}} 1\n"
    );
    Ok(page)
}
