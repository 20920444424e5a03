//! One call to a webhook: a review posted over HTTPS, a review read back.
//!
//! A client configuration names a URL or a service. A service is any of its ready endpoints, and the certificate must be
//! `NAME.NAMESPACE.svc`'s; the address is dialled where the cluster's addresses live. Time and size are bounded. Errors
//! read as Go's HTTP client words them, since people and tests look for those words. What is in a review is not known here.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use meta::Value;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde::Deserialize;
use tokio::net::TcpStream;

use super::trust;
use crate::server::ApiServer;
use crate::subresource::connect;

/// Bytes of a webhook's answer: three times the largest object a store takes, for two objects and a patch.
const MAX_ANSWER: usize = 3 * (3 << 20);
const HTTPS_PORT: u16 = 443;

/// `WebhookClientConfig` of admission and of conversion.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct WebhookClientConfig {
    pub url: Option<String>,
    pub service: Option<ServiceReference>,
    /// PEM in base64.
    pub ca_bundle: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ServiceReference {
    pub namespace: String,
    pub name: String,
    pub path: Option<String>,
    pub port: Option<u16>,
}

/// Where a call goes, as its URL says it.
struct Destination {
    /// What the certificate must be for, and the URL's host.
    host: String,
    port: u16,
    /// With its query.
    path: String,
}

impl Destination {
    fn of(config: &WebhookClientConfig, timeout: Duration) -> Result<Self, String> {
        let mut destination = match (&config.service, &config.url) {
            (Some(service), _) => {
                let path = service.path.as_deref().unwrap_or_default();
                Self {
                    host: format!("{}.{}.svc", service.name, service.namespace),
                    port: service.port.unwrap_or(HTTPS_PORT),
                    path: if path.starts_with('/') { path.to_string() } else { format!("/{path}") },
                }
            }
            (None, Some(url)) => {
                let uri: http::Uri = url.parse().map_err(|e| format!("Unparsable webhook URL {url:?}: {e}"))?;
                let host = uri.host().ok_or_else(|| format!("Unparsable webhook URL {url:?}: no host"))?;
                let path = uri.path_and_query().map_or("/", |p| p.as_str());
                Self {
                    host: host.trim_matches(['[', ']']).to_string(),
                    port: uri.port_u16().unwrap_or(HTTPS_PORT),
                    path: path.into(),
                }
            }
            (None, None) => return Err("webhook configuration must have either service or URL".into()),
        };
        let joint = if destination.path.contains('?') { '&' } else { '?' };
        destination.path.push_str(&format!("{joint}timeout={}s", timeout.as_secs()));
        Ok(destination)
    }

    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    async fn resolve(&self, server: &ApiServer, config: &WebhookClientConfig) -> Result<SocketAddr, String> {
        if let Some(service) = &config.service {
            return connect::service_endpoint(server, &service.namespace, &service.name, &self.port.to_string())
                .map_err(|status| match status.is_not_found() {
                    // As upstream's lister names it.
                    true => format!("service {:?} not found", service.name),
                    false => status.message,
                });
        }
        if let Ok(ip) = self.host.parse() {
            return Ok(SocketAddr::new(ip, self.port));
        }
        let failed = |why: &dyn std::fmt::Display| format!("dial tcp: lookup {}: {why}", self.host);
        let mut found = tokio::net::lookup_host((self.host.as_str(), self.port)).await.map_err(|e| failed(&e))?;
        found.next().ok_or_else(|| failed(&"no such host"))
    }
}

pub(crate) fn tls(bundle: Option<&str>) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    Ok(builder.dangerous().with_custom_certificate_verifier(trust::of(bundle)?).with_no_client_auth())
}

/// Posts a review and reads the answer. The timeout also goes into the URL, so that webhooks know it.
pub async fn post(
    server: &ApiServer,
    config: &WebhookClientConfig,
    review: &Value,
    timeout: Duration,
) -> Result<Value, String> {
    let destination = Destination::of(config, timeout)?;
    let said = |why: String| format!("Post \"https://{}{}\": {why}", destination.authority(), destination.path);
    match tokio::time::timeout(timeout, exchange(server, config, &destination, review)).await {
        Err(_) => Err(said("context deadline exceeded".into())),
        Ok(Err(Failure::Transport(why))) => Err(said(why)),
        Ok(Err(Failure::Answer(why))) => Err(why),
        Ok(Ok(answer)) => Ok(answer),
    }
}

/// HTTP/1.1 over TLS to a host that is dialled already; the connection ends with the sender.
pub(crate) async fn over_tls<B>(tcp: TcpStream, tls: ClientConfig, host: &str) -> Result<SendRequest<B>, String>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let name = ServerName::try_from(host.to_string()).map_err(|e| e.to_string())?;
    let stream = tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, tcp).await;
    let stream = stream.map_err(|e| format!("tls: failed to verify certificate: {}", distrust(&e, host)))?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to a webhook or issuer");
        }
    });
    Ok(sender)
}

/// Why a certificate does not count, as Go words it.
fn distrust(error: &std::io::Error, host: &str) -> String {
    use rustls::CertificateError as Why;
    let rustls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match rustls {
        Some(rustls::Error::InvalidCertificate(why)) => match why {
            Why::UnknownIssuer | Why::BadSignature => "x509: certificate signed by unknown authority".into(),
            Why::Expired | Why::ExpiredContext { .. } | Why::NotValidYet | Why::NotValidYetContext { .. } => {
                "x509: certificate has expired or is not yet valid".into()
            }
            Why::NotValidForName | Why::NotValidForNameContext { .. } => {
                format!("x509: certificate is not valid for {host}")
            }
            _ => format!("x509: {error}"),
        },
        _ => error.to_string(),
    }
}

enum Failure {
    /// There was no answer.
    Transport(String),
    /// There was one, and it is no review.
    Answer(String),
}

async fn exchange(
    server: &ApiServer,
    config: &WebhookClientConfig,
    destination: &Destination,
    review: &Value,
) -> Result<Value, Failure> {
    let transport = |why: String| Failure::Transport(why);
    let address = destination.resolve(server, config).await.map_err(transport)?;
    let tls = tls(config.ca_bundle.as_deref()).map_err(transport)?;
    let tcp = server.config().kubelet.dial.connect(address).await;
    let tcp = tcp.map_err(|e| Failure::Transport(connect::not_dialled(address, &e)))?;
    let _ = tcp.set_nodelay(true);
    let failed = |e: hyper::Error| Failure::Transport(e.to_string());
    let mut sender = over_tls(tcp, tls, &destination.host).await.map_err(transport)?;
    let body = serde_json::to_vec(review).map_err(|e| Failure::Answer(e.to_string()))?;
    let host = HeaderValue::from_str(&destination.authority()).map_err(|e| Failure::Transport(e.to_string()))?;
    let mut request = Request::post(destination.path.as_str())
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| Failure::Transport(e.to_string()))?;
    let headers = request.headers_mut();
    headers.insert(header::HOST, host);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json, */*"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static("kube-apiserver-admission"));
    let response = sender.send_request(request).await.map_err(failed)?;
    let status = response.status();
    let content_type = response.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    let content_type = content_type.unwrap_or_default().to_string();
    let is_text = content_type.is_empty() || content_type.starts_with("text/");
    let answer = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let answer = answer.map_err(|e| Failure::Answer(format!("reading the webhook's answer: {e}")))?.to_bytes();
    if !status.is_success() {
        // As upstream's client: only what says that it is text is shown.
        let text = match is_text {
            true => String::from_utf8_lossy(&answer).trim().chars().take(256).collect(),
            false => String::from("unknown"),
        };
        // A server that says what is wrong in a Status is quoted.
        let said = meta::decode::json(&answer).ok().map(|(said, _)| said);
        let said = said.filter(|s| s["kind"] == "Status" && s["apiVersion"] == "v1" && s["status"] != "Success");
        let said = said.as_ref().and_then(|s| s["message"].as_str()).filter(|message| !message.is_empty());
        let why = if let Some(said) = said {
            said.to_string()
        } else if status.as_u16() == 404 {
            "the server could not find the requested resource".to_string()
        } else {
            format!("an error on the server ({text:?}) has prevented the request from succeeding")
        };
        return Err(Failure::Answer(why));
    }
    if answer.is_empty() {
        return Err(Failure::Answer(format!(
            "0-length response with status code: {} and content type: {content_type}",
            status.as_u16()
        )));
    }
    meta::decode::json(&answer).map(|(answer, _)| answer).map_err(|e| Failure::Answer(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_made_of_services_and_urls() {
        let service = |path: Option<&str>, port| WebhookClientConfig {
            service: Some(ServiceReference {
                namespace: "ns".into(),
                name: "hook".into(),
                path: path.map(String::from),
                port,
            }),
            ..WebhookClientConfig::default()
        };
        let url = |url: &str| WebhookClientConfig { url: Some(url.into()), ..WebhookClientConfig::default() };
        for (config, expect) in [
            (service(None, None), "hook.ns.svc:443/?timeout=5s"),
            (service(Some("/a"), Some(8443)), "hook.ns.svc:8443/a?timeout=5s"),
            (url("https://example.org"), "example.org:443/?timeout=5s"),
            (url("https://127.0.0.1:9443/x?y=z"), "127.0.0.1:9443/x?y=z&timeout=5s"),
            (url("https://[::1]:9443/x"), "[::1]:9443/x?timeout=5s"),
        ] {
            let found = Destination::of(&config, Duration::from_secs(5)).unwrap();
            assert_eq!(found.authority() + &found.path, expect);
        }
        assert!(Destination::of(&WebhookClientConfig::default(), Duration::from_secs(5)).is_err());
    }
}
