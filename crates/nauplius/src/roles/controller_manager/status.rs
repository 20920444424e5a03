//! `/healthz` for whoever keeps the process alive, `/metrics` for whom the API server lets read them.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use client::{Client, Gvr, Status};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Connections at a time: a few probes and scrapers.
const MAX_CONNECTIONS: usize = 32;
/// A connection that lasts longer is let go.
const CONNECTION_TIME: Duration = Duration::from_secs(60);

/// What to serve with: the files named, or a certificate nobody needs to trust, as upstream makes one.
pub fn tls(files: Option<(&Path, &Path)>) -> Result<Arc<ServerConfig>> {
    let (certificate, key) = match files {
        Some((certificate, key)) => {
            let read = |p: &Path| std::fs::read_to_string(p).with_context(|| format!("cannot read {}", p.display()));
            (read(certificate)?, read(key)?)
        }
        None => {
            let made = rcgen::generate_simple_self_signed(["localhost".to_string(), "127.0.0.1".to_string()])?;
            (made.cert.pem(), made.signing_key.serialize_pem())
        }
    };
    let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
    Ok(Arc::new(ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?))
}

/// Serves until cancelled.
pub async fn serve(listener: TcpListener, tls: Arc<ServerConfig>, client: Client, cancel: CancellationToken) {
    let acceptor = tokio_rustls::TlsAcceptor::from(tls);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (Ok((stream, _)), Ok(place)) = (accepted, places.clone().try_acquire_owned()) else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (acceptor, client) = (acceptor.clone(), client.clone());
        tokio::spawn(async move {
            let _place = place;
            let connection = async {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let answer = |request: Request<Incoming>| {
                    let client = client.clone();
                    async move { Ok::<_, Infallible>(answer(&client, &request).await) }
                };
                let service = hyper::service::service_fn(answer);
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            };
            let _ = tokio::time::timeout(CONNECTION_TIME, connection).await;
        });
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

async fn answer(client: &Client, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    match request.uri().path() {
        "/healthz" | "/livez" | "/readyz" => text(StatusCode::OK, "ok"),
        path @ "/metrics" => {
            let token = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
            let Some(token) = token.and_then(|t| t.strip_prefix("Bearer ")) else {
                return text(StatusCode::UNAUTHORIZED, "Unauthorized\n");
            };
            match may_read(client, token, path).await {
                Ok(true) => text(StatusCode::OK, client::exposition::text()),
                Ok(false) => text(StatusCode::FORBIDDEN, "Forbidden\n"),
                Err(status) => text(StatusCode::INTERNAL_SERVER_ERROR, status.message),
            }
        }
        _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

/// Asks the API server who a token is for, and whether that one may read a path.
async fn may_read(client: &Client, token: &str, path: &str) -> Result<bool, Status> {
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    let reviews = client.dynamic(Gvr::new("authentication.k8s.io", "v1", "tokenreviews"));
    let answer = reviews.create(review).await?.value().map_err(Status::internal)?;
    if answer["status"]["authenticated"] != true {
        return Ok(false);
    }
    let user = &answer["status"]["user"];
    let access = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": {
            "user": user["username"], "uid": user["uid"], "groups": user["groups"], "extra": user["extra"],
            "nonResourceAttributes": {"path": path, "verb": "get"},
        },
    });
    let reviews = client.dynamic(Gvr::new("authorization.k8s.io", "v1", "subjectaccessreviews"));
    let answer = reviews.create(access).await?.value().map_err(Status::internal)?;
    Ok(answer["status"]["allowed"] == true)
}
