//! The pages etcd has beside its API, for probes and for Prometheus: `/health`, `/livez`, `/readyz`, `/version`, `/metrics`.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{API_VERSION, Served, limits, metrics};

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
        ("/livez" | "/readyz", _) => match served.store.status() {
            Ok(_) => (StatusCode::OK, "text/plain", "ok\n".into()),
            Err(error) => (StatusCode::SERVICE_UNAVAILABLE, "text/plain", format!("{error}\n")),
        },
        ("/version", _) => (StatusCode::OK, JSON, format!(r#"{{"etcdserver":"{API_VERSION}","etcdcluster":"3.5.0"}}"#)),
        ("/metrics", _) => match metrics::page(served) {
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
