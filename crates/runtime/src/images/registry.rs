//! A client of registries: manifests and blobs by the OCI distribution protocol, with the usual ways of logging in.
//!
//! Guarantees: HTTPS only, except towards loopback and where an administrator wrote `http://`; credentials go only to the
//! registry (and the token service that it names), never to a mirror; every answer is bounded in size, and a connection
//! that stalls is given up.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;

use super::hosts::Place;
use cri::v1::AuthConfig;

/// Largest manifest or token answer in bytes.
const MAX_JSON: usize = 8 << 20;
/// Most redirects of one request.
const MAX_REDIRECTS: usize = 5;
/// How long connecting and the answer's head may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Where this system keeps the authorities that it trusts, one of them.
const AUTHORITIES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                      application/vnd.docker.distribution.manifest.list.v2+json, \
                      application/vnd.docker.distribution.manifest.v2+json";

/// Why something could not be had.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The registry has no such thing.
    #[error("{0}: not found")]
    NotFound(String),
    /// The registry does not let us.
    #[error("pull access denied, repository does not exist or may require authorization: {0}")]
    Denied(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

fn failed(what: impl std::fmt::Display, error: impl std::fmt::Display) -> RegistryError {
    RegistryError::Failed(format!("{what}: {error}"))
}

type Body = Empty<Bytes>;

/// One place of a registry, for one repository and one user.
pub struct Registry {
    place: Place,
    repository: String,
    auth: AuthConfig,
    tls: Arc<rustls::ClientConfig>,
    /// The Authorization header that worked last.
    authorization: Mutex<Option<HeaderValue>>,
    /// Plain HTTP is spoken: asked for, or found out, the latter on loopback only.
    plain: Mutex<bool>,
}

impl Registry {
    /// For a repository of it.
    pub fn new(place: Place, repository: &str, auth: AuthConfig) -> Result<Registry, RegistryError> {
        Ok(Registry {
            tls: tls_config(&place.authorities)?,
            repository: repository.to_string(),
            auth: if place.mirror_of.is_some() { AuthConfig::default() } else { auth },
            authorization: Mutex::new(None),
            plain: Mutex::new(place.plain),
            place,
        })
    }

    /// What it is and what it may be asked for.
    pub fn place(&self) -> &Place {
        &self.place
    }

    fn path(&self, kind: &str, name: &str) -> String {
        let namespace = self.place.mirror_of.as_ref().map(|of| format!("?ns={}", escape(of))).unwrap_or_default();
        format!("{}/{}/{kind}/{name}{namespace}", self.place.prefix, self.repository)
    }

    /// A manifest or index by tag or digest.
    pub async fn manifest(&self, tag_or_digest: &str) -> Result<Bytes, RegistryError> {
        let response = self.get(&self.path("manifests", tag_or_digest), Some(ACCEPT), 0).await?;
        collect(response).await
    }

    /// A blob, from an offset on. The second value tells whether the registry heeded the offset.
    pub async fn blob(&self, digest: &str, from: u64) -> Result<(Incoming, bool), RegistryError> {
        let response = self.get(&self.path("blobs", digest), None, from).await?;
        let partial = response.status() == StatusCode::PARTIAL_CONTENT;
        Ok((response.into_body(), partial))
    }

    async fn get(&self, path: &str, accept: Option<&str>, from: u64) -> Result<Response<Incoming>, RegistryError> {
        let mut challenged = false;
        loop {
            let response = self.follow(path, accept, from).await?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            let shown = format!("{}{path}", self.place.authority);
            match status {
                StatusCode::UNAUTHORIZED if !challenged => {
                    challenged = true;
                    self.log_in(&response).await?;
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    return Err(RegistryError::Denied(format!("{shown}: {status}")));
                }
                StatusCode::NOT_FOUND => return Err(RegistryError::NotFound(shown)),
                _ => {
                    return Err(RegistryError::Failed(format!(
                        "unexpected status from GET request to {shown}: {status}"
                    )));
                }
            }
        }
    }

    /// One request and the redirects it leads to. Credentials stay with the registry.
    async fn follow(&self, path: &str, accept: Option<&str>, from: u64) -> Result<Response<Incoming>, RegistryError> {
        let scheme = if *self.plain.lock().unwrap_or_else(PoisonError::into_inner) { "http" } else { "https" };
        let mut uri: Uri = format!("{scheme}://{}{path}", self.place.authority).parse().map_err(|e| failed(path, e))?;
        for _ in 0..MAX_REDIRECTS {
            let own = uri.authority().is_some_and(|a| a.as_str() == self.place.authority);
            let mut request = Request::builder().method(Method::GET).uri(&uri);
            if let (Some(value), true) = (self.authorization(), own) {
                request = request.header(header::AUTHORIZATION, value);
            }
            if let Some(accept) = accept {
                request = request.header(header::ACCEPT, accept);
            }
            for (name, value) in self.place.headers.iter().filter(|_| own) {
                request = request.header(name, value);
            }
            if from > 0 {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            let request = request.body(Body::new()).map_err(|e| failed(&uri, e))?;
            let response = self.send(request).await?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let target = response.headers().get(header::LOCATION).and_then(|v| v.to_str().ok()).unwrap_or("");
            uri = resolve(&uri, target).ok_or_else(|| failed(&uri, "a redirect to nowhere"))?;
        }
        Err(failed(uri, "too many redirects"))
    }

    fn authorization(&self) -> Option<HeaderValue> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, RegistryError> {
        let shown = request.uri().to_string();
        match tokio::time::timeout(HEAD_TIMEOUT, self.exchange(request)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(failed(shown, format!("no answer within {} s", HEAD_TIMEOUT.as_secs()))),
        }
    }

    async fn exchange(&self, mut request: Request<Body>) -> Result<Response<Incoming>, RegistryError> {
        let uri = request.uri().clone();
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_string();
        let mut secure = uri.scheme_str() != Some("http");
        let loopback = is_loopback(&host);
        let asked_for = self.place.plain && uri.authority().is_some_and(|a| a.as_str() == self.place.authority);
        if !secure && !loopback && !asked_for {
            return Err(failed(&uri, "plain HTTP is spoken only with registries on loopback"));
        }
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let connect = || TcpStream::connect((host.clone(), port));
        let mut stream = connect().await.map_err(|e| failed(format!("connecting to {host}:{port}"), e))?;
        let target = uri.path_and_query().map_or("/".to_string(), ToString::to_string);
        let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
        *request.uri_mut() = target.parse().map_err(|e| failed(&uri, e))?;
        request.headers_mut().insert(header::HOST, HeaderValue::from_str(&authority).map_err(|e| failed(&uri, e))?);
        request
            .headers_mut()
            .insert(header::USER_AGENT, HeaderValue::from_static(concat!("nauplius/", env!("CARGO_PKG_VERSION"))));
        if secure {
            let name = ServerName::try_from(host.clone()).map_err(|e| failed(&host, e))?;
            match tokio_rustls::TlsConnector::from(self.tls.clone()).connect(name, stream).await {
                Ok(tls) => return talk(TokioIo::new(tls), request).await.map_err(|e| failed(&uri, e)),
                // A registry for development on this machine.
                Err(e) if loopback && speaks_no_tls(&e) => {
                    *self.plain.lock().unwrap_or_else(PoisonError::into_inner) = true;
                    secure = false;
                    stream = connect().await.map_err(|e| failed(format!("connecting to {host}:{port}"), e))?;
                }
                Err(e) => return Err(failed(format!("tls: {uri}"), e)),
            }
        }
        debug_assert!(!secure);
        talk(TokioIo::new(stream), request).await.map_err(|e| failed(&uri, e))
    }

    /// Answers a registry's challenge.
    async fn log_in(&self, response: &Response<Incoming>) -> Result<(), RegistryError> {
        let challenges: Vec<&str> =
            response.headers().get_all(header::WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok()).collect();
        let denied = || {
            RegistryError::Denied(format!("{}/{}: no way to log in is offered", self.place.authority, self.repository))
        };
        let find = |scheme: &str| {
            challenges.iter().find_map(|c| {
                let (name, rest) = c.split_once(' ').unwrap_or((c, ""));
                name.eq_ignore_ascii_case(scheme).then(|| rest.to_string())
            })
        };
        let value = if let Some(parameters) = find("Bearer") {
            let token = match self.auth.registry_token.as_str() {
                "" => self.fetch_token(&parse_challenge(&parameters)).await?,
                token => token.to_string(),
            };
            format!("Bearer {token}")
        } else if find("Basic").is_some() {
            self.basic().ok_or_else(denied)?
        } else {
            return Err(denied());
        };
        let mut value = HeaderValue::from_str(&value).map_err(|e| failed("credentials", e))?;
        value.set_sensitive(true);
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        Ok(())
    }

    fn basic(&self) -> Option<String> {
        if !self.auth.auth.is_empty() {
            // Some write it with padding of zero bytes.
            return Some(format!("Basic {}", self.auth.auth.trim_end_matches('\0')));
        }
        if self.auth.username.is_empty() {
            return None;
        }
        Some(format!("Basic {}", STANDARD.encode(format!("{}:{}", self.auth.username, self.auth.password))))
    }

    async fn fetch_token(&self, challenge: &[(String, String)]) -> Result<String, RegistryError> {
        let get = |name: &str| challenge.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        let realm = get("realm").ok_or_else(|| failed(&self.place.authority, "a challenge without realm"))?;
        let scope = get("scope").map_or_else(|| format!("repository:{}:pull", self.repository), str::to_string);
        let mut uri = format!("{realm}{}scope={}", if realm.contains('?') { '&' } else { '?' }, escape(&scope));
        if let Some(service) = get("service") {
            uri.push_str(&format!("&service={}", escape(service)));
        }
        let mut request = Request::builder().uri(&uri);
        if let Some(basic) = self.basic() {
            request = request.header(header::AUTHORIZATION, basic);
        }
        let response = self.send(request.body(Body::new()).map_err(|e| failed(&uri, e))?).await?;
        if !response.status().is_success() {
            return Err(RegistryError::Denied(format!("failed to fetch token from {realm}: {}", response.status())));
        }
        let answer: serde_json::Value =
            serde_json::from_slice(&collect(response).await?).map_err(|e| failed(realm, e))?;
        let token = answer.get("token").or_else(|| answer.get("access_token")).and_then(|t| t.as_str());
        token.map(str::to_string).ok_or_else(|| failed(realm, "an answer without token"))
    }
}

/// Whether a handshake failed because the other side does not know TLS, rather than because it is not trusted.
fn speaks_no_tls(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::UnexpectedEof
        || error.kind() == std::io::ErrorKind::ConnectionReset
        || error.get_ref().is_some_and(|e| e.to_string().contains("InvalidContentType"))
}

async fn collect(response: Response<Incoming>) -> Result<Bytes, RegistryError> {
    let body = Limited::new(response.into_body(), MAX_JSON).collect();
    match tokio::time::timeout(HEAD_TIMEOUT, body).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(e)) => Err(failed("reading an answer", e)),
        Err(_) => Err(failed("reading an answer", "it stalls")),
    }
}

async fn talk<S>(io: TokioIo<S>, request: Request<Body>) -> hyper::Result<Response<Incoming>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    tokio::spawn(async move {
        // Whoever reads the body hears of its errors.
        let _ = connection.await;
    });
    sender.send_request(request).await
}

/// Whether a host is this machine by name or number.
pub fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn tls_config(own: &[PathBuf]) -> Result<Arc<rustls::ClientConfig>, RegistryError> {
    let mut roots = rustls::RootCertStore::empty();
    // As other programs have it: the environment may name the file of authorities.
    let system = std::env::var("SSL_CERT_FILE").ok().into_iter().chain(AUTHORITIES.iter().map(|f| f.to_string()));
    let system = system.map(PathBuf::from).find(|f| f.exists());
    for file in own.iter().chain(&system) {
        let Ok(certificates) = CertificateDer::pem_file_iter(file) else { continue };
        // Certificates that cannot be read are authorities that are not trusted.
        roots.add_parsable_certificates(certificates.flatten());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| failed("TLS", e))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// `realm="…",service="…",scope="…"`
fn parse_challenge(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text.trim();
    while let Some((name, after)) = rest.split_once('=') {
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        found.push((name.trim().to_lowercase(), value.to_string()));
        rest = next.trim_start_matches([',', ' ']);
    }
    found
}

fn escape(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~:/".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn resolve(base: &Uri, target: &str) -> Option<Uri> {
    if target.starts_with("http://") || target.starts_with("https://") {
        return target.parse().ok();
    }
    let path = target.starts_with('/').then_some(target)?;
    format!("{}://{}{path}", base.scheme_str()?, base.authority()?).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let got =
            parse_challenge(r#"realm="https://auth.example/token",service="reg, one",scope="repository:a/b:pull""#);
        let expect =
            [("realm", "https://auth.example/token"), ("service", "reg, one"), ("scope", "repository:a/b:pull")];
        assert_eq!(got, expect.map(|(a, b)| (a.to_string(), b.to_string())));
        assert!(parse_challenge("").is_empty());
        assert_eq!(parse_challenge("a=b,c"), [("a".to_string(), "b".to_string())]);
    }

    #[test]
    fn loopback_is_told() {
        for (host, expect) in
            [("localhost", true), ("127.9.9.9", true), ("::1", true), ("10.0.0.1", false), ("a.b", false)]
        {
            assert_eq!(is_loopback(host), expect, "{host}");
        }
    }
}
