//! Calls carried to extension servers, under the name of who made them.
//!
//! The caller was authenticated and authorized here; the extension server learns who it is from request headers, and
//! believes them because the connection shows the front proxy's certificate. Upgraded connections pass through untouched.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use meta::{Reason, Status};
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use super::{Backend, Remote};
use crate::authn::User;
use crate::http::{Body, full};
use crate::server::{ApiServer, FrontProxy};
use crate::subresource::connect::{self, Stream};

const USER: &str = "x-remote-user";
const UID: &str = "x-remote-uid";
const GROUP: &str = "x-remote-group";
const EXTRA: &str = "x-remote-extra-";

/// The extension server a path belongs to: `/apis/GROUP/VERSION` and below.
pub fn of_path(server: &ApiServer, path: &str) -> Option<Arc<Remote>> {
    let services = server.aggregation().services();
    let mut parts = path.strip_prefix("/apis/")?.split('/');
    services.remote(parts.next()?, parts.next()?).cloned()
}

/// Replaces whatever a client said it was by who it is.
pub fn identify(headers: &mut HeaderMap, user: &User) {
    let foreign: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with("x-remote-") || name.as_str().starts_with("impersonate-"))
        .cloned()
        .collect();
    for name in foreign {
        headers.remove(name);
    }
    let mut add = |name: &str, value: &str| {
        // Names of users are bytes a header takes, or nothing is said and the extension server refuses.
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    };
    add(USER, &user.name);
    if !user.uid.is_empty() {
        add(UID, &user.uid);
    }
    for group in &user.groups {
        add(GROUP, group);
    }
    for (key, values) in &user.extra {
        let name = format!("{EXTRA}{}", escape_key(key));
        for value in values {
            add(&name, value);
        }
    }
}

/// Keys hold slashes and more; what no header name takes is percent-encoded.
fn escape_key(key: &str) -> String {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&b);
    let mut out = String::with_capacity(key.len());
    for byte in key.bytes() {
        if token(byte) {
            out.push(byte as char);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// How to talk to an extension server: whom to trust, and the front proxy's certificate to show.
pub(super) fn tls(
    ca_bundle: Option<&str>,
    insecure: bool,
    front_proxy: Option<&FrontProxy>,
) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    let builder = if insecure {
        builder.dangerous().with_custom_certificate_verifier(client::AnyCertificate::verifier())
    } else {
        builder.dangerous().with_custom_certificate_verifier(crate::webhook::trust::of(ca_bundle)?)
    };
    let config = match front_proxy {
        Some(front_proxy) => {
            let chain: Result<Vec<CertificateDer<'static>>, _> =
                CertificateDer::pem_slice_iter(front_proxy.certificate.as_bytes()).collect();
            let chain = chain.map_err(|e| format!("the front proxy's certificate: {e}"))?;
            let key = PrivateKeyDer::from_pem_slice(front_proxy.key.as_bytes())
                .map_err(|e| format!("the front proxy's key: {e}"))?;
            builder.with_client_auth_cert(chain, key).map_err(|e| format!("the front proxy's certificate: {e}"))?
        }
        None => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

/// Where a Service leads: one of its ready endpoints, or the name it stands for.
pub(super) async fn resolve(server: &ApiServer, backend: &Backend) -> Result<SocketAddr, String> {
    let service = server.lookup("", "services", &backend.namespace, &backend.name);
    let service = service.ok_or_else(|| format!("service {:?} not found", backend.name))?;
    let service = service.value().map_err(|e| e.to_string())?;
    if service["spec"]["type"] == "ExternalName" {
        let name = service["spec"]["externalName"].as_str().unwrap_or_default();
        let mut found =
            tokio::net::lookup_host((name, backend.port)).await.map_err(|e| format!("lookup {name}: {e}"))?;
        return found.next().ok_or_else(|| format!("lookup {name}: no such host"));
    }
    connect::service_endpoint(server, &backend.namespace, &backend.name, &backend.port.to_string())
        .map_err(|status| status.message)
}

/// A TLS connection to an extension server, and the address it leads to.
pub(super) async fn connect(
    server: &ApiServer,
    backend: &Backend,
    tls: &Arc<ClientConfig>,
) -> Result<(Box<dyn Stream>, SocketAddr), String> {
    let address = resolve(server, backend).await?;
    let tcp = server.config().kubelet.dial.connect(address).await;
    let tcp = tcp.map_err(|e| connect::not_dialled(address, &e))?;
    let _ = tcp.set_nodelay(true);
    let name = ServerName::try_from(backend.host()).map_err(|e| e.to_string())?;
    let stream = tokio_rustls::TlsConnector::from(tls.clone()).connect(name, tcp).await;
    Ok((Box::new(stream.map_err(|e| format!("tls: {e}"))?), address))
}

fn plain(code: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(full(format!("{text}\n")));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Carries one call of a known, authorized caller.
pub async fn carry<B>(server: &ApiServer, remote: &Remote, user: &User, mut request: Request<B>) -> Response<Body>
where
    B: hyper::body::Body<Data = bytes::Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if !remote.available {
        return plain(StatusCode::SERVICE_UNAVAILABLE, "service unavailable");
    }
    let tls = match &remote.tls {
        Ok(tls) => tls,
        Err(why) => return plain(StatusCode::INTERNAL_SERVER_ERROR, why),
    };
    identify(request.headers_mut(), user);
    let upgrade = connect::is_upgrade(request.headers());
    let path = request.uri().path_and_query().map_or("/", |p| p.as_str()).to_string();
    let carried = match connect(server, &remote.backend, tls).await {
        Ok((stream, _)) => {
            if !upgrade {
                forwarded(request.headers_mut(), &remote.backend.host(), path.split('?').next().unwrap_or_default());
            }
            connect::forward_over(stream, &path, &remote.backend.host(), request).await
        }
        Err(why) if upgrade => Err(Status::new(Reason::ServiceUnavailable, format!("error dialing backend: {why}"))),
        Err(why) => Err(Status::new(Reason::ServiceUnavailable, format!("error trying to reach service: {why}"))),
    };
    match carried {
        // Followed by whoever asked, with his credentials, a redirect would lead past this server's authorization.
        Ok(answer) if answer.status().is_redirection() && answer.headers().contains_key(header::LOCATION) => {
            let mut refused =
                Response::new(full("the backend attempted to redirect this request, which is not permitted"));
            *refused.status_mut() = StatusCode::BAD_GATEWAY;
            refused
        }
        Ok(answer) => answer,
        Err(status) => {
            tracing::warn!(api = %remote.gv, %status, "aggregated API");
            plain(StatusCode::SERVICE_UNAVAILABLE, &status.message)
        }
    }
}

/// Where a call came to, for extension servers that write links.
fn forwarded(headers: &mut HeaderMap, host: &str, path: &str) {
    for (name, value) in [("x-forwarded-uri", path), ("x-forwarded-host", host), ("x-forwarded-proto", "https")] {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
}

/// Adds who called to those a call came through already.
pub fn came_from(headers: &mut HeaderMap, address: std::net::IpAddr) {
    const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
    let before = headers.get_all(FORWARDED_FOR).iter().filter_map(|v| v.to_str().ok());
    let all: Vec<String> = before.map(String::from).chain([address.to_string()]).collect();
    if let Ok(all) = HeaderValue::from_str(&all.join(", ")) {
        headers.insert(FORWARDED_FOR, all);
    }
}

/// Bytes of a document an extension server publishes: the largest OpenAPI documents known are a few megabytes.
const MAX_DOCUMENT: usize = 32 << 20;

/// A document, fetched as the aggregator itself.
pub(super) struct Fetched {
    pub code: StatusCode,
    pub headers: HeaderMap,
    pub body: bytes::Bytes,
    pub url: String,
}

/// Fetches what an extension server publishes.
pub(super) async fn fetch(
    server: &ApiServer,
    backend: &Backend,
    tls: &Arc<ClientConfig>,
    path: &str,
    headers: &[(HeaderName, &str)],
) -> Result<Fetched, String> {
    use http_body_util::{BodyExt, Empty, Limited};
    let (stream, address) = connect(server, backend, tls).await?;
    let mut request = Request::new(Empty::<bytes::Bytes>::new());
    *request.method_mut() = Method::GET;
    for (name, value) in headers {
        request.headers_mut().insert(name, HeaderValue::from_str(value).map_err(|e| e.to_string())?);
    }
    identify(request.headers_mut(), &User::new("system:kube-aggregator", &[crate::authn::MASTERS]));
    let answer = connect::forward_over(stream, path, &backend.host(), request).await.map_err(|s| s.message)?;
    let (parts, body): (_, UnsyncBoxBody<_, _>) = answer.into_parts();
    let body = Limited::new(body, MAX_DOCUMENT).collect().await.map_err(|e| format!("reading {path}: {e}"))?;
    Ok(Fetched {
        code: parts.status,
        headers: parts.headers,
        body: body.to_bytes(),
        url: format!("https://{address}{path}"),
    })
}
